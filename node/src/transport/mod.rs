//! TCP links between nodes: which side dials, the handshake, and a task for each direction that carries messages
//! between the socket and the engine. Knows nothing of what the messages mean.
//!
//! Each pair of nodes has one connection, used in both directions. The process with the smaller origin dials; the other
//! dials only after [`PATIENCE`] without a link. The newest connection of a pair wins.

mod accept;
mod connection;
mod dial;
pub mod frame;
mod refusals;
mod secure;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::connection::{MAX_HELLO, SILENT_BEATS};
pub use self::dial::{PATIENCE, REDIAL};
pub use self::refusals::{PeerPortCounters, RETIRE_AFTER};
pub use self::secure::Protection;
use crate::config::PeerPortConfig;
use crate::encryption::{KeyId, Keys};
use crate::engine::Engine;
use crate::refusals::Refusals;

/// A peer that this node should have a link to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkTarget {
    /// The peer's process.
    pub origin: u64,
    /// Where the peer listens for peers.
    pub address: SocketAddr,
    /// The peer's name, for logs.
    pub name: String,
}

/// What the transport needs.
#[derive(Clone, Debug)]
pub struct TransportOptions {
    /// The cluster's name; nodes of other clusters are refused.
    pub cluster: String,
    /// The cluster's UID; nodes of a cluster with this name and another UID are refused.
    pub cluster_uid: String,
    /// The heartbeat interval.
    pub sync_interval: Duration,
    /// How far apart this node's clock and a peer's may be.
    pub max_clock_skew: Duration,
    /// The largest value that a node may hold, bytes.
    pub max_value_bytes: usize,
    /// How links are protected.
    pub protection: Protection,
    /// The limits of the peer port.
    pub port: PeerPortConfig,
    /// The protocol version: [`frame::VERSION`], except in tests.
    pub version: u8,
    /// Where peers that cannot be talked to are recorded.
    pub refusals: Arc<Refusals>,
}

/// The links to one process that are up.
#[derive(Default)]
struct Up {
    count: usize,
    /// The key of the newest link.
    key: Option<KeyId>,
}

/// The peer port of the node: see the [module](self).
pub struct Transport {
    engine: Arc<Engine>,
    options: TransportOptions,
    counters: PeerPortCounters,
    /// Origins with a link that is up.
    up: Mutex<BTreeMap<u64, Up>>,
    /// Nodes refused at their last attempt because of a clock, by name, with the reason.
    skewed: Mutex<BTreeMap<String, String>>,
    /// The last refusal of each remote address, so that a repeated one is logged once.
    logged: Mutex<BTreeMap<IpAddr, String>>,
    /// The peers to link to.
    targets: watch::Receiver<Vec<LinkTarget>>,
    /// Notified when a link comes up or goes down.
    changed: Notify,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Transport {
    /// Starts to accept and to dial; ends when `stop` is cancelled.
    pub fn start(
        engine: Arc<Engine>,
        options: TransportOptions,
        listener: TcpListener,
        targets: watch::Receiver<Vec<LinkTarget>>,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let transport = Arc::new(Self {
            engine,
            options,
            counters: PeerPortCounters::default(),
            up: Mutex::default(),
            skewed: Mutex::default(),
            logged: Mutex::default(),
            targets: targets.clone(),
            changed: Notify::new(),
            tasks: TaskTracker::new(),
            stop: stop.clone(),
        });
        let accept = transport.clone().accept(listener);
        transport.tasks.spawn(stop.clone().run_until_cancelled_owned(accept));
        let dial = transport.clone().dial(targets);
        transport.tasks.spawn(stop.run_until_cancelled_owned(dial));
        transport
    }

    /// Waits until all connections are closed, after `stop` was cancelled.
    pub async fn closed(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Connections and frames that were refused.
    pub const fn counters(&self) -> &PeerPortCounters {
        &self.counters
    }

    /// Nodes without a link because their clock and this node's are too far apart: name and reason.
    pub fn skewed(&self) -> Vec<(String, String)> {
        self.skewed.lock().iter().map(|(name, reason)| (name.clone(), reason.clone())).collect()
    }

    /// Peers that cannot be talked to.
    pub fn refusals(&self) -> &Refusals {
        &self.options.refusals
    }

    /// Whether a link to the process is up.
    pub fn is_linked(&self, origin: u64) -> bool {
        self.up.lock().contains_key(&origin)
    }

    /// The keys that links are encrypted with.
    pub const fn keys(&self) -> Option<&Keys> {
        match &self.options.protection {
            Protection::Keys(keys) => Some(keys),
            Protection::None | Protection::Tls(_) => None,
        }
    }

    /// Records that a link to the process is up, encrypted with `key`.
    fn set_up(&self, origin: u64, key: Option<KeyId>) {
        let mut all = self.up.lock();
        let up = all.entry(origin).or_default();
        (up.count, up.key) = (up.count + 1, key);
        drop(all);
        self.changed.notify_waiters();
    }

    /// Records that a link to the process is down.
    fn set_down(&self, origin: u64) {
        let mut all = self.up.lock();
        if let Some(up) = all.get_mut(&origin) {
            up.count -= 1;
            if up.count == 0 {
                all.remove(&origin);
            }
        }
        drop(all);
        self.changed.notify_waiters();
    }

    /// Whether the newest link to the process has another key than a new link would have.
    fn is_outdated(&self, origin: u64) -> bool {
        let Some(keys) = self.keys() else { return false };
        let key = self.up.lock().get(&origin).and_then(|up| up.key);
        key.is_some_and(|key| key != keys.now().primary().id)
    }

    /// Returns once `key` is no longer the primary key.
    async fn outdated(&self, key: Option<KeyId>) {
        match (self.keys(), key) {
            (Some(keys), Some(key)) => keys.until_not(|ring| ring.primary().id == key).await,
            _ => std::future::pending().await,
        }
    }

    /// Returns once a link with this key must be closed, because the key was removed.
    async fn retired(&self, key: Option<KeyId>) {
        match (self.keys(), key) {
            (Some(keys), Some(key)) => keys.until_not(|ring| ring.names().contains(&key)).await,
            _ => std::future::pending().await,
        }
        tokio::time::sleep(RETIRE_AFTER).await;
    }
}
