//! The one handle on this node's replica: a lock, the wall clock, and the tasks to wake after a change.
//!
//! Every method that takes the lock is synchronous and short, so the lock is never held across an await.
//! It is one mutex, not a sharded map: a call holds it for about a microsecond, and the replica's invariants span the
//! store, the vector and the log.
//!
//! Knows nothing of sockets or gRPC.

mod clients;
mod lifecycle;
mod link_task;
mod links;
mod scan;
mod stats;
mod types;
mod waits;
mod wakeups;
mod watcher;
mod watches;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, broadcast, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use self::lifecycle::Unreplicated;
pub use self::link_task::LinkHandle;
pub use self::stats::{Epoch, SEAT_STATES, Stats};
pub use self::types::{EngineOptions, Evicted, Page, Phase, Read, ReadError, Value, WriteError};
pub use self::waits::{Acked, MAX_WAITING, Permit, SessionError, TooManyWaiting};
pub use self::watcher::{Batch, KeyEvent, Lost, QUEUE_BYTES, QUEUE_EVENTS};
pub use self::watches::{MAX_WATCHES, Watch, WatchError};
use self::{link_task::LinkTask, wakeups::Wakeups, watcher::Watcher};
use crate::memory::log_bounds;
pub use crate::replica::Need;
use crate::replica::{Bounds, LATE_KEYS, LinkId, Namesake, PeerId, Replica, Settings, View};
use crate::wall_clock::{millis, wall_ms};

/// The interval of expiry, heartbeats and timeouts.
const TICK: Duration = Duration::from_millis(20);
/// Evictions kept for a listener that has not received them yet.
const EVICTIONS_KEPT: usize = 256;
/// Former origins of this process kept for the status; the oldest are dropped first.
const FORMER_ORIGINS_KEPT: usize = 8;

// The flags are independent of each other: they do not encode a state.
#[allow(clippy::struct_excessive_bools)]
struct Inner {
    replica: Replica,
    view: View,
    /// The value of `link_changes` when the view was taken.
    view_links: u64,
    /// How often a link came up or went down.
    link_changes: u64,
    /// How many of the backlog's dropped writes were logged.
    logged_too_late: u64,
    /// Accounted bytes when a write was last refused because the node was full; `None` after a write succeeded.
    full_at: Option<u64>,
    draining: bool,
    leaving: bool,
    /// The replica's origin when it was last checked.
    origin: u64,
    /// The origins before that, latest last; at most [`FORMER_ORIGINS_KEPT`].
    former_origins: VecDeque<u64>,
    /// Whether the loss of this node's name was logged.
    name_lost: bool,
    /// The tasks that carry the links.
    links: BTreeMap<LinkId, LinkTask>,
    watchers: BTreeMap<u64, Watcher>,
    next_watch: u64,
    /// Evicted seats that were reported, so that each is reported once.
    evicted: BTreeSet<u64>,
    /// Whether this node was ever ready: evictions from before then are not reported.
    was_ready: bool,
}

/// The node's data: see the [module](self).
pub struct Engine {
    inner: Mutex<Inner>,
    phase: watch::Sender<Phase>,
    /// This node as it introduces itself to peers.
    identity: watch::Sender<PeerId>,
    /// The process that holds this node's name, once this node must end because of it.
    dismissed: watch::Sender<Option<Namesake>>,
    /// Wakes calls that wait for peers.
    wakeups: Wakeups,
    /// Permits for calls that wait.
    permits: Arc<Semaphore>,
    evictions: broadcast::Sender<Evicted>,
    evicted: AtomicU64,
    max_memory: Option<u64>,
    started_ms: u64,
}

impl Engine {
    /// An empty node that is joining.
    pub fn new(options: &EngineOptions) -> Arc<Self> {
        let inner = Inner {
            replica: Replica::new(settings(options), wall_ms()),
            view: View::UNKNOWN,
            view_links: 0,
            link_changes: 0,
            logged_too_late: 0,
            full_at: None,
            draining: false,
            leaving: false,
            origin: options.origin,
            former_origins: VecDeque::new(),
            name_lost: false,
            links: BTreeMap::new(),
            watchers: BTreeMap::new(),
            next_watch: 0,
            evicted: BTreeSet::new(),
            was_ready: false,
        };
        Arc::new(Self {
            identity: watch::Sender::new(inner.replica.id()),
            dismissed: watch::Sender::new(None),
            wakeups: Wakeups::default(),
            permits: Arc::new(Semaphore::new(MAX_WAITING)),
            evictions: broadcast::Sender::new(EVICTIONS_KEPT),
            evicted: AtomicU64::new(0),
            inner: Mutex::new(inner),
            phase: watch::Sender::new(Phase::Joining),
            max_memory: options.max_memory,
            started_ms: options.started_ms,
        })
    }

    /// Drives the replica by the clock until cancelled.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            self.tick();
        }
    }

    fn tick(&self) {
        let mut inner = self.inner.lock();
        // A view from before a link change is stale. Ignore it, or a node that just lost every link would conclude
        // that it is alone.
        let view = if inner.view_links == inner.link_changes { inner.view } else { View::UNKNOWN };
        let was_ready = inner.replica.is_ready();
        inner.replica.tick(view, wall_ms());
        if !was_ready && inner.replica.is_ready() {
            inner.log_founding();
        }
        inner.log_too_late();
        self.report_evictions(&mut inner);
        self.after(&mut inner);
        drop(inner);
        self.wakeups.notify();
    }

    /// Handles the effects of a change: identity, watches, links with something to send, phase.
    fn after(&self, inner: &mut Inner) {
        if inner.replica.origin() != inner.origin {
            self.on_rejoin(inner);
        }
        if let Some(holder) = inner.replica.refused() {
            self.on_name_lost(inner, holder);
        }
        watcher::feed(&mut inner.watchers, &mut inner.replica);
        for link in inner.replica.due() {
            if let Some(link) = inner.links.get(&link) {
                link.waker.notify_one();
            }
        }
        let phase = match (inner.draining, inner.replica.serves(), inner.links.is_empty()) {
            (true, _, _) => Phase::Draining,
            (_, true, _) => Phase::Ready,
            (_, _, true) => Phase::Joining,
            (_, _, false) => Phase::Syncing,
        };
        let before = *self.phase.borrow();
        if before != phase {
            info!(from = before.as_str(), to = phase.as_str(), keys = inner.replica.store().keys(), "phase changed");
            self.phase.send_replace(phase);
        }
    }
}

impl Inner {
    /// Logs that the node founded a map. Only founding makes a node ready in a tick: a snapshot makes it ready when its last
    /// message arrives.
    fn log_founding(&self) {
        let (keys, links) = (self.replica.store().keys(), self.links.len());
        // An unknown view counts as no peers here.
        let count = |peers: usize| if peers == usize::MAX { 0 } else { peers };
        let View { unlinked, refused, strangers, .. } = self.view;
        let (unlinked, refused) = (count(unlinked), count(refused) + count(strangers));
        if unlinked + refused == 0 {
            info!(keys, links, "no peer holds a map: founded one and is ready");
        } else {
            warn!(
                keys,
                links,
                unreached = unlinked,
                refused,
                "founded a map and is ready without some of the peers that it knows: this map lacks what those peers hold"
            );
        }
    }

    /// Logs how much of the backlog was dropped: once, after the whole backlog was processed.
    fn log_too_late(&mut self) {
        let too_late = self.replica.counters().too_late;
        if too_late <= self.logged_too_late || self.replica.brought() > 0 {
            return;
        }
        warn!(
            writes = too_late - self.logged_too_late,
            keys = ?self.replica.late_keys().map(String::from_utf8_lossy).collect::<Vec<_>>(),
            "dropped backlog writes that only this node may have held: it was evicted for longer than deletes are kept, \
             so the keys may have been deleted since; names at most {LATE_KEYS} keys"
        );
        self.logged_too_late = too_late;
    }
}

/// The replica's settings for these options.
fn settings(options: &EngineOptions) -> Settings {
    let (log_bytes, log_entries) = log_bounds(options.max_memory);
    Settings {
        origin: options.origin,
        name: options.name.clone(),
        voter: options.may_found,
        started_ms: options.started_ms,
        voters: options.voters,
        evict_after_ms: millis(options.evict_after),
        evict_ending: options.evict_ending,
        sync_interval_ms: millis(options.sync_interval),
        max_clock_skew_ms: millis(options.max_clock_skew),
        max_memory: options.max_memory,
        may_found: options.may_found,
        serve_alone: options.serve_alone,
        join_timeout_ms: millis(options.join_timeout),
        bounds: Bounds { log_bytes, log_entries, ..Bounds::default() },
    }
}

#[cfg(test)]
mod tests;
