//! TCP links between nodes: who dials whom, the handshake, and one task each
//! way that carries messages between the sockets and the engine. Knows nothing
//! of what the messages mean.
//!
//! There is one connection for each pair of nodes, used both ways. The process
//! with the smaller origin dials; the other one does so only when no link came
//! up for [`PATIENCE`]. The newest connection of a pair wins.

pub mod frame;
mod secure;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use kvasir_proto::peer::v1::{Hello, Message};
use parking_lot::Mutex;
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use self::frame::{FrameError, Mode};
pub use self::secure::Protection;
use self::secure::{Reader, Secured, Writer};
use crate::config::PeerPortConfig;
use crate::encryption::noise::NoiseError;
use crate::encryption::{KeyId, Keys};
use crate::engine::{Engine, Linked, wall_ms};
use crate::gate::Gate;
use crate::refusals::{Reason, Refusals};
use crate::replica::{LinkId, MESSAGE_MAX_BYTES, PeerId, Violation};

/// A Hello is no longer than this, bytes.
pub const MAX_HELLO: usize = 4096;
/// How long the process with the larger origin waits to be dialled.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// Between two attempts to dial the same peer.
pub const REDIAL: Duration = Duration::from_millis(500);
/// A link over which nothing came for this many heartbeats is closed.
pub const SILENT_BEATS: u32 = 10;
/// How long a link may go on whose key was taken from the list: the side that
/// dials has this long to replace it by one with the primary key.
pub const RETIRE_AFTER: Duration = Duration::from_secs(10);
/// Messages for a peer that are due together go out in one write, until there are this many bytes.
const WRITE_BYTES: usize = 64 << 10;
/// A frame may exceed the cut of a message by one entry and the vectors.
const FRAME_SLACK: usize = 4 << 20;

/// A peer to be linked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its process.
    pub origin: u64,
    /// Where it listens for peers.
    pub address: SocketAddr,
    /// Its name, for the logs.
    pub name: String,
}

/// What the transport must know.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster's name; nodes of other clusters are refused.
    pub cluster: String,
    /// Which of the clusters of that name; nodes of the others are refused.
    pub cluster_uid: String,
    /// Between two heartbeats.
    pub sync_interval: Duration,
    /// How far ahead a peer's clock may be.
    pub max_clock_skew: Duration,
    /// The largest value a node may hold, bytes.
    pub max_value_bytes: usize,
    /// How links are protected.
    pub protection: Protection,
    /// What peers may take of the node.
    pub port: PeerPortConfig,
    /// The version of the protocol that is spoken: [`frame::VERSION`], but in tests.
    pub version: u8,
    /// Where peers that cannot be talked to are noted.
    pub refusals: Arc<Refusals>,
}

/// Connections and frames that were refused, by reason, since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Not a Kvasir node.
    pub garbage: AtomicU64,
    /// Another version of the protocol.
    pub version: AtomicU64,
    /// A frame over the limit.
    pub oversized: AtomicU64,
    /// A frame that does not decode, or breaks a rule of the protocol.
    pub malformed: AtomicU64,
    /// Another cluster's node, or this node itself.
    pub stranger: AtomicU64,
    /// A clock too far from this node's.
    pub clock: AtomicU64,
    /// A handshake that took too long or broke off.
    pub handshake: AtomicU64,
    /// Over the limit on open connections.
    pub crowded: AtomicU64,
    /// A node that does not encrypt, while this one does.
    pub plaintext: AtomicU64,
    /// A node that encrypts, while this one does not, or in another way.
    pub encrypted: AtomicU64,
    /// Another cookie, or no common key.
    pub key: AtomicU64,
    /// A message that is not authentic: changed, repeated, or of somebody else.
    pub forged: AtomicU64,
    /// A certificate that is not good enough, or no TLS.
    pub tls: AtomicU64,
}

impl Counters {
    /// Each reason and its figure.
    pub fn read(&self) -> [(&'static str, u64); 13] {
        [
            ("garbage", &self.garbage),
            ("version", &self.version),
            ("oversized", &self.oversized),
            ("malformed", &self.malformed),
            ("stranger", &self.stranger),
            ("clock", &self.clock),
            ("handshake", &self.handshake),
            ("crowded", &self.crowded),
            ("plaintext", &self.plaintext),
            ("encrypted", &self.encrypted),
            ("key", &self.key),
            ("forged", &self.forged),
            ("tls", &self.tls),
        ]
        .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
    }

    /// Counts a connection or frame that was refused for what came over it.
    pub fn count(&self, error: &FrameError) {
        let counter = match error {
            FrameError::Garbage => &self.garbage,
            FrameError::Version { .. } => &self.version,
            FrameError::Oversized { .. } => &self.oversized,
            FrameError::Decode(_) => &self.malformed,
            FrameError::Mode { theirs: Mode::Plain, .. } => &self.plaintext,
            FrameError::Mode { .. } => &self.encrypted,
            FrameError::Noise(NoiseError::Key | NoiseError::Unanswered) => &self.key,
            FrameError::Noise(NoiseError::Forged) => &self.forged,
            FrameError::Tls(_) => &self.tls,
            FrameError::Io(_) | FrameError::Noise(NoiseError::Io(_)) => &self.handshake,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Violation(#[from] Violation),
    #[error("the peer belongs to the cluster `{theirs}`, this node to `{ours}`")]
    OtherCluster { theirs: String, ours: String },
    #[error(
        "the peer belongs to an earlier or later cluster of the name `{cluster}`: its clusterUid is `{theirs}`, this node's `{ours}`. Delete what remains of the earlier one"
    )]
    OtherUid { cluster: String, theirs: String, ours: String },
    #[error("the connection leads to this node itself")]
    Myself,
    #[error(
        "the peer's clock is {behind_ms} ms behind, at most {limit_ms} ms (maxClockSkew): check the time service of both machines"
    )]
    ClockBehind { behind_ms: u64, limit_ms: u64 },
    #[error("this node began anew during the handshake")]
    Outdated,
    #[error("nothing came for {0:?}")]
    Silent(Duration),
    #[error("its key was taken from the list {RETIRE_AFTER:?} ago, and no link with another one has replaced it")]
    Retired,
    #[error("the handshake took longer than {0:?}")]
    Slow(Duration),
}

impl LinkError {
    /// What keeps this node and the peer apart until one of the two is changed; `None` of an accident, and of what no node
    /// of whatever release or settings does.
    fn reason(&self) -> Option<Reason> {
        match self {
            Self::Frame(error) => match error {
                FrameError::Version { .. } => Some(Reason::Version),
                FrameError::Mode { theirs: Mode::Plain, .. } => Some(Reason::Plaintext),
                FrameError::Mode { .. } => Some(Reason::Encrypted),
                FrameError::Noise(NoiseError::Key | NoiseError::Unanswered) => Some(Reason::Key),
                FrameError::Tls(error) => frame::is_of_tls(error).then_some(Reason::Certificate),
                FrameError::Garbage
                | FrameError::Noise(NoiseError::Forged | NoiseError::Io(_))
                | FrameError::Oversized { .. }
                | FrameError::Decode(_)
                | FrameError::Io(_) => None,
            },
            Self::Violation(Violation::ClockAhead { .. }) | Self::ClockBehind { .. } => Some(Reason::Clock),
            Self::OtherCluster { .. } | Self::OtherUid { .. } => Some(Reason::Cluster),
            // A frame without a kind is one of a later release.
            Self::Violation(Violation::Unknown) => Some(Reason::Version),
            Self::Violation(Violation::Malformed)
            | Self::Myself
            | Self::Outdated
            | Self::Silent(_)
            | Self::Retired
            | Self::Slow(_) => None,
        }
    }
}

/// Which side of a connection this node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Dialled,
    Accepted,
}

/// The links to one process that are up.
#[derive(Default)]
struct Up {
    count: usize,
    /// The key of the newest one.
    key: Option<KeyId>,
}

/// The peer side of the node: see the module.
pub struct Transport {
    engine: Arc<Engine>,
    options: Options,
    counters: Counters,
    /// Origins with a link that is up.
    up: Mutex<BTreeMap<u64, Up>>,
    /// Nodes whose clock was too far from this one's when they last tried, by
    /// name, and what was said of it.
    skewed: Mutex<BTreeMap<String, String>>,
    /// The last refusal of each remote, so that each is logged once.
    refused: Mutex<BTreeMap<std::net::IpAddr, String>>,
    /// Who should be linked to.
    peers: watch::Receiver<Vec<Peer>>,
    changed: Notify,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// Remotes whose last refusal is remembered.
const MAX_REFUSED: usize = 256;

impl Transport {
    /// Begins to accept and to dial; ends when `stop` is cancelled.
    pub fn start(
        engine: Arc<Engine>,
        options: Options,
        listener: TcpListener,
        peers: watch::Receiver<Vec<Peer>>,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let transport = Arc::new(Self {
            engine,
            options,
            counters: Counters::default(),
            up: Mutex::default(),
            skewed: Mutex::default(),
            refused: Mutex::default(),
            peers: peers.clone(),
            changed: Notify::new(),
            tasks: TaskTracker::new(),
            stop: stop.clone(),
        });
        let accept = transport.clone().accept(listener);
        transport.tasks.spawn(stop.clone().run_until_cancelled_owned(accept));
        let dial = transport.clone().dial(peers);
        transport.tasks.spawn(stop.run_until_cancelled_owned(dial));
        transport
    }

    /// What was refused.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Nodes that have no link for their clock or this one's: name and reason.
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

    /// What links are encrypted with.
    pub const fn keys(&self) -> Option<&Keys> {
        match &self.options.protection {
            Protection::Keys(keys) => Some(keys),
            Protection::None | Protection::Tls(_) => None,
        }
    }

    /// Whether the newest link to the process has another key than new links
    /// would have.
    fn is_outdated(&self, origin: u64) -> bool {
        let Some(keys) = self.keys() else { return false };
        let key = self.up.lock().get(&origin).and_then(|up| up.key);
        key.is_some_and(|key| key != keys.now().primary().id)
    }

    /// Returns once a link with this key is outdated.
    async fn outdated(&self, key: Option<KeyId>) {
        match (self.keys(), key) {
            (Some(keys), Some(key)) => keys.until_not(|ring| ring.primary().id == key).await,
            _ => std::future::pending().await,
        }
    }

    /// Returns once a link with this key must be closed.
    async fn retired(&self, key: Option<KeyId>) {
        match (self.keys(), key) {
            (Some(keys), Some(key)) => keys.until_not(|ring| ring.names().contains(&key)).await,
            _ => std::future::pending().await,
        }
        tokio::time::sleep(RETIRE_AFTER).await;
    }

    /// Waits for all connections to be closed, once `stop` was cancelled.
    pub async fn closed(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) {
        let PeerPortConfig { max_connections, max_connections_per_address, max_handshakes, .. } = self.options.port;
        let handshakes = Arc::new(Semaphore::new(max_handshakes));
        let gate = Gate::new(max_connections, max_connections_per_address);
        loop {
            let Ok(shaking) = handshakes.clone().acquire_owned().await else { return };
            let (stream, remote) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely: others must end first.
                    warn!(%error, "could not accept a peer's connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(place) = gate.enter(remote.ip()) else {
                self.counters.crowded.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let transport = self.clone();
            self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(async move {
                let result = transport.connection(stream, Side::Accepted, None, || drop(shaking)).await;
                drop(place);
                if let Err(error) = result {
                    transport.refuse(remote, &error);
                }
            }));
        }
    }

    /// Keeps a task for each peer that should be dialled.
    async fn dial(self: Arc<Self>, mut peers: watch::Receiver<Vec<Peer>>) {
        let mut dialling: BTreeMap<u64, (Peer, CancellationToken)> = BTreeMap::new();
        loop {
            let wanted = peers.borrow_and_update().clone();
            dialling.retain(|_, (peer, stop)| {
                let keep = wanted.contains(peer);
                if !keep {
                    stop.cancel();
                }
                keep
            });
            for peer in wanted {
                dialling.entry(peer.origin).or_insert_with(|| {
                    let stop = self.stop.child_token();
                    let task = self.clone().keep_linked(peer.clone());
                    self.tasks.spawn(stop.clone().run_until_cancelled_owned(task));
                    (peer, stop)
                });
            }
            if peers.changed().await.is_err() {
                return;
            }
        }
    }

    /// Dials a peer again and again while no link to it is up.
    async fn keep_linked(self: Arc<Self>, peer: Peer) {
        let mut since = Instant::now();
        loop {
            let (linked, first) = (self.is_linked(peer.origin), self.engine.origin() < peer.origin);
            if linked {
                since = Instant::now();
            }
            // A link whose key is the primary one no more is replaced while it
            // is up: nothing stands still meanwhile.
            let due =
                if linked { first && self.is_outdated(peer.origin) } else { first || since.elapsed() >= PATIENCE };
            if due {
                // Before the connection takes its key: one that changes between is seen.
                let key = self.keys().map(|keys| keys.now().primary().id);
                let dialled = timeout(self.options.port.handshake_timeout, TcpStream::connect(peer.address)).await;
                let result = match dialled {
                    // Carried by a task of its own: the link outlives the peer's
                    // place in the list until it fails by itself.
                    Ok(Ok(stream)) => {
                        let transport = self.clone();
                        let stop = self.stop.clone();
                        let name = Some(peer.name.clone());
                        let task = async move { transport.connection(stream, Side::Dialled, name, || ()).await };
                        tokio::select! {
                            ended = self.tasks.spawn(stop.run_until_cancelled_owned(task)) => match ended {
                                Ok(Some(result)) => result,
                                _ => return,
                            },
                            () = self.outdated(key) => continue,
                        }
                    }
                    Ok(Err(error)) => Err(FrameError::from(error).into()),
                    Err(_) => Err(LinkError::Slow(self.options.port.handshake_timeout)),
                };
                if let Err(error) = result {
                    debug!(peer = peer.name, address = %peer.address, %error, "no link");
                    if !matches!(error, LinkError::Frame(FrameError::Io(_)) | LinkError::Slow(_)) {
                        self.refuse(peer.address, &error);
                    }
                }
            }
            let _ = timeout(REDIAL, self.changed.notified()).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Counts a refusal, and logs it when it is not the remote's last one again. Of a peer that cannot be talked to it is
    /// logged where that is noted.
    fn refuse(&self, remote: SocketAddr, error: &LinkError) {
        let counters = &self.counters;
        let own = match error {
            LinkError::Frame(error) => {
                counters.count(error);
                None
            }
            LinkError::Violation(Violation::Unknown | Violation::Malformed) => Some(&counters.malformed),
            LinkError::Violation(Violation::ClockAhead { .. }) | LinkError::ClockBehind { .. } => Some(&counters.clock),
            LinkError::OtherCluster { .. } | LinkError::OtherUid { .. } | LinkError::Myself => Some(&counters.stranger),
            LinkError::Silent(_) | LinkError::Slow(_) | LinkError::Retired | LinkError::Outdated => {
                Some(&counters.handshake)
            }
        };
        if let Some(counter) = own {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        if error.reason().is_some() {
            return;
        }
        let text = error.to_string();
        let mut refused = self.refused.lock();
        if refused.len() >= MAX_REFUSED {
            refused.clear();
        }
        if refused.insert(remote.ip(), text.clone()).as_ref() != Some(&text) {
            warn!(%remote, error = text, "refused a peer's connection");
        }
    }

    /// The whole life of a connection. An end of one that was a link is no error. `name` is that of the peer, if it is
    /// known before it says so.
    async fn connection(
        &self,
        stream: TcpStream,
        side: Side,
        mut name: Option<String>,
        shaken: impl FnOnce(),
    ) -> Result<(), LinkError> {
        let address = stream.peer_addr().map_err(FrameError::from)?;
        let result = self.carry(stream, address, side, &mut name, shaken).await;
        if let Err(error) = &result
            && let Some(reason) = error.reason()
        {
            let (refusals, why) = (&self.options.refusals, error.to_string());
            match side {
                Side::Dialled => refusals.note(address, name.as_deref(), reason, &why),
                Side::Accepted => refusals.note_caller(address.ip(), name.as_deref(), reason, &why),
            }
        }
        result
    }

    async fn carry(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        side: Side,
        name: &mut Option<String>,
        shaken: impl FnOnce(),
    ) -> Result<(), LinkError> {
        stream.set_nodelay(true).map_err(FrameError::from)?;
        let limit = self.options.port.handshake_timeout;
        let shake = async {
            let mut secured = secure::secure(stream, side, &self.options.protection, self.options.version).await?;
            let (me, hello) = self.handshake(&mut secured, name).await?;
            Ok::<_, LinkError>((secured, me, hello))
        };
        let (secured, me, hello) = timeout(limit, shake).await.map_err(|_| LinkError::Slow(limit))??;
        let Secured { reader, writer, key } = secured;
        shaken();
        let peer = PeerId {
            origin: hello.origin,
            name: hello.name.clone(),
            voter: !hello.sidecar,
            started_ms: hello.started_ms,
            returning: hello.returning,
        };
        let Linked { id: link, waker, gone } = self.engine.link_up(me, peer).ok_or(LinkError::Outdated)?;
        self.skewed.lock().remove(&hello.name);
        let listens_at = match side {
            Side::Dialled => Some(address),
            Side::Accepted => self.peers.borrow().iter().find(|peer| peer.origin == hello.origin).map(|p| p.address),
        };
        self.options.refusals.joined(listens_at, &hello.name);
        {
            let mut all = self.up.lock();
            let up = all.entry(hello.origin).or_default();
            (up.count, up.key) = (up.count + 1, key);
        }
        self.changed.notify_waiters();
        let with = key.map(|key| key.to_string());
        info!(peer = hello.name, origin = format!("{:016x}", hello.origin), %address, key = with, "link up");

        let result = tokio::select! {
            result = self.receive(link, BufReader::new(reader)) => result,
            result = self.send(link, &waker, writer) => result,
            // A write to a peer that takes nothing must not hold up the next link.
            () = gone.cancelled() => Ok(()),
            () = self.retired(key) => Err(LinkError::Retired),
        };
        self.note_skew(&hello.name, result.as_ref().err());

        self.engine.link_down(link);
        {
            let mut all = self.up.lock();
            if let Some(up) = all.get_mut(&hello.origin) {
                up.count -= 1;
                if up.count == 0 {
                    all.remove(&hello.origin);
                }
            }
        }
        self.changed.notify_waiters();
        let reason = result.as_ref().err().map(ToString::to_string);
        info!(peer = hello.name, origin = format!("{:016x}", hello.origin), reason, "link down");
        match result {
            Err(LinkError::Frame(FrameError::Io(_)) | LinkError::Silent(_) | LinkError::Retired) => Ok(()),
            other => other,
        }
    }

    /// Both sides say who they are, and each judges the other. Returns which
    /// process this node said it is, and what the peer said; `name` is what the peer calls itself, also if it is refused.
    async fn handshake(&self, stream: &mut Secured, name: &mut Option<String>) -> Result<(u64, Hello), LinkError> {
        let id = self.engine.id();
        let ours = Hello {
            cluster: self.options.cluster.clone(),
            name: id.name,
            origin: id.origin,
            sidecar: !id.voter,
            now_ms: wall_ms(),
            started_ms: id.started_ms,
            returning: id.returning,
            cluster_uid: self.options.cluster_uid.clone(),
        };
        let mut frame = BytesMut::new();
        frame::append(&mut frame, &ours);
        frame::write(&mut stream.writer, &frame).await?;
        let hello: Hello = frame::read(&mut stream.reader, MAX_HELLO).await?;
        *name = Some(hello.name.clone());
        if hello.cluster != ours.cluster {
            return Err(LinkError::OtherCluster { theirs: hello.cluster, ours: ours.cluster });
        }
        if hello.cluster_uid != ours.cluster_uid {
            let (theirs, ours) = (hello.cluster_uid, ours.cluster_uid);
            return Err(LinkError::OtherUid { cluster: hello.cluster, theirs, ours });
        }
        if hello.origin == ours.origin || hello.origin == 0 {
            return Err(LinkError::Myself);
        }
        let judged = judge_clock(hello.now_ms, wall_ms(), self.options.max_clock_skew);
        self.note_skew(&hello.name, judged.as_ref().err());
        judged?;
        Ok((ours.origin, hello))
    }

    /// Remembers a node that is refused for a clock, for the status.
    fn note_skew(&self, name: &str, error: Option<&LinkError>) {
        let Some(error @ (LinkError::Violation(Violation::ClockAhead { .. }) | LinkError::ClockBehind { .. })) = error
        else {
            return;
        };
        let mut skewed = self.skewed.lock();
        if skewed.len() >= MAX_REFUSED {
            skewed.clear();
        }
        skewed.insert(name.to_owned(), error.to_string());
    }

    async fn receive(&self, link: LinkId, mut reader: BufReader<Reader>) -> Result<(), LinkError> {
        let silence = self.options.sync_interval * SILENT_BEATS;
        let limit = MESSAGE_MAX_BYTES + self.options.max_value_bytes + FRAME_SLACK;
        loop {
            let message: Message =
                timeout(silence, frame::read(&mut reader, limit)).await.map_err(|_| LinkError::Silent(silence))??;
            self.engine.receive(link, message)?;
        }
    }

    async fn send(&self, link: LinkId, waker: &Notify, mut writer: Writer) -> Result<(), LinkError> {
        let silence = self.options.sync_interval * SILENT_BEATS;
        let mut frames = BytesMut::new();
        loop {
            frames.clear();
            // What is due together leaves together: an acknowledgement with a write, all of a heartbeat in one packet.
            while frames.len() < WRITE_BYTES
                && let Some(message) = self.engine.poll_send(link)
            {
                frame::append(&mut frames, &message);
            }
            if frames.is_empty() {
                waker.notified().await;
                continue;
            }
            // A peer that takes nothing is a peer that is gone: writes pile
            // up in the bounded log alone.
            timeout(silence, frame::write(&mut writer, &frames)).await.map_err(|_| LinkError::Silent(silence))??;
        }
    }
}

/// Whether two clocks are near enough to each other. Judged both ways, so that
/// the node whose clock is wrong is told as well as the one that refuses it.
fn judge_clock(theirs_ms: u64, ours_ms: u64, limit: Duration) -> Result<(), LinkError> {
    let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    match (theirs_ms.saturating_sub(ours_ms), ours_ms.saturating_sub(theirs_ms)) {
        (ahead_ms, _) if ahead_ms > limit_ms => Err(Violation::ClockAhead { ahead_ms, limit_ms }.into()),
        (_, behind_ms) if behind_ms > limit_ms => Err(LinkError::ClockBehind { behind_ms, limit_ms }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_of_a_pair_with_clocks_apart_refuse() {
        let judge = |theirs, ours| judge_clock(theirs, ours, Duration::from_secs(10));
        assert!(judge(20_000, 10_000).is_ok() && judge(10_000, 20_000).is_ok());
        assert!(matches!(
            judge(20_001, 10_000),
            Err(LinkError::Violation(Violation::ClockAhead { ahead_ms: 10_001, limit_ms: 10_000 }))
        ));
        assert!(matches!(judge(10_000, 20_001), Err(LinkError::ClockBehind { behind_ms: 10_001, limit_ms: 10_000 })));
    }
}
