//! The one handle on this node's replica: a lock, the wall clock, and who must
//! be woken. Every method is short and none awaits, so the lock is never held
//! across one.
//!
//! One mutex, not a sharded map: a call holds it for about a microsecond, and
//! the replica's invariants span the store, the vector and the log.

mod heard;
mod links;
mod wait;
mod watching;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use kvasir_proto::peer::v1::SeatState;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, broadcast, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use self::links::Linked;
pub use self::wait::{Acked, Crowded, MAX_WAITING, Place, SessionError};
pub use self::watching::{Happened, Lost, MAX_WATCHES, QUEUE_BYTES, QUEUE_EVENTS, Told, Watch, WatchError};
use self::{heard::Heard, links::LinkTask, watching::Watcher};
use crate::clock::{Dot, ms_of};
use crate::memory::log_bounds;
pub use crate::replica::Need;
use crate::replica::{Bounds, Counters, Full, LATE_KEYS, LinkId, Namesake, PeerId, Replica, Settings, View};
use crate::session::Session;
use crate::store::Record;

/// How often expiry, heartbeats and time-outs are looked at.
const TICK: Duration = Duration::from_millis(20);
/// One step of a listing looks at no more than this many records under the lock.
const LIST_STEP: usize = 4096;
/// Evictions that are kept for a listener who has not taken them yet.
const EVICTIONS_KEPT: usize = 256;
/// Former origins of this process that are kept for the status; the oldest go first.
const FORMER_ORIGINS_KEPT: usize = 8;

/// Where a seat can be in its life, with the name that metrics and status use.
pub const SEAT_STATES: [(SeatState, &str); 4] = [
    (SeatState::Joining, "joining"),
    (SeatState::Member, "member"),
    (SeatState::Evicted, "evicted"),
    (SeatState::Ended, "ended"),
];

/// Where the node is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Looking for peers.
    Joining,
    /// Has peers, and is taking in what they hold.
    Syncing,
    /// Serves reads and writes.
    Ready,
    /// Was told to stop: serves reads, refuses writes, hands over.
    Draining,
}

impl Phase {
    /// Its name as in `/status`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Syncing => "syncing",
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }
}

/// A member that a majority gave up on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evicted {
    /// Its name.
    pub name: String,
    /// The process.
    pub origin: u64,
    /// Whether it was a member of the cluster proper, not a sidecar.
    pub voter: bool,
}

/// A live value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The bytes; shared with the store, not copied.
    pub value: Bytes,
    /// The write that put it.
    pub dot: Dot,
    /// When it ends, milliseconds since 1970.
    pub expires_ms: Option<u64>,
}

/// What is under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// The live value.
    pub value: Option<Value>,
    /// The write that made it so; `None` if nothing is remembered of the key.
    pub dot: Option<Dot>,
}

/// A part of a listing.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Entries in key order.
    pub entries: Vec<(Bytes, Value)>,
    /// There are more after the last one.
    pub more: bool,
}

/// Why a read was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The node does not serve yet.
    #[error("the node is not ready ({}): ask another node, or again", .0.as_str())]
    NotReady(Phase),
}

/// Why a write was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The node does not serve yet, or no more.
    #[error("the node takes no writes ({}): ask another node, or again", .0.as_str())]
    NotReady(Phase),
    /// The node holds all it may.
    #[error(transparent)]
    Full(#[from] Full),
}

/// The founding that a map goes back to: it holds what was written since, and nothing older.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Founding {
    /// When it was, milliseconds since 1970.
    pub at_ms: u64,
    /// The process that founded.
    pub by: u64,
}

/// Figures for status and metrics.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Live keys.
    pub keys: u64,
    /// Deletes and expired values still remembered.
    pub tombstones: u64,
    /// Accounted bytes.
    pub memory_bytes: u64,
    /// The limit on them.
    pub max_memory: Option<u64>,
    /// Whether the last write that needed memory was refused for want of it, and none was freed since, by whomever.
    pub full: bool,
    /// Equal on nodes with equal maps.
    pub fingerprint: u128,
    /// See [`Replica::lag_ms`].
    pub lag: Option<Duration>,
    /// Origins of the linked processes.
    pub linked: Vec<u64>,
    /// Seats of the roster in each [state](SEAT_STATES).
    pub seats: [usize; SEAT_STATES.len()],
    /// The founding that this node's map goes back to; `None` before it has a map.
    pub founding: Option<Founding>,
    /// Origins under which this process ran before it rejoined, latest last.
    pub former_origins: Vec<u64>,
    /// How long ago the stamp was up to which deletes are forgotten; `None`
    /// while none are.
    pub collected_age: Option<Duration>,
    /// Whether a peer's write found no room lately.
    pub overfull: bool,
    /// Totals since the start.
    pub counters: Counters,
    /// Members that a majority gave up on.
    pub evicted: u64,
    /// Watches that are open.
    pub watches: usize,
    /// Calls that wait for other nodes.
    pub waiting: usize,
}

// Each flag is a fact of its own: no two of them make a state.
#[allow(clippy::struct_excessive_bools)]
struct Inner {
    replica: Replica,
    view: View,
    /// What `link_changes` was when the view was taken.
    viewed: u64,
    /// How often a link came up or went.
    link_changes: u64,
    /// How many of its writes it has said that it dropped.
    dropped: u64,
    /// Accounted bytes when the last write was refused for want of memory.
    full: Option<u64>,
    draining: bool,
    leaving: bool,
    /// What the replica's origin was when it was last looked at.
    origin: u64,
    /// The origins before that one, latest last; at most [`FORMER_ORIGINS_KEPT`].
    former_origins: VecDeque<u64>,
    /// Whether it was told that the name is another's.
    refused: bool,
    /// The tasks that carry the links.
    links: BTreeMap<LinkId, LinkTask>,
    watchers: BTreeMap<u64, Watcher>,
    next_watch: u64,
    /// Seats that were seen to be evicted, so that each is told once.
    evicted: BTreeSet<u64>,
    /// Whether it has ever been ready: who was evicted before that is no news.
    was_ready: bool,
}

/// The node's data: see the module.
pub struct Engine {
    inner: Mutex<Inner>,
    phase: watch::Sender<Phase>,
    /// This node as its peers are to know it.
    identity: watch::Sender<PeerId>,
    /// The process that has this node's name, once this node is to end for it.
    dismissed: watch::Sender<Option<Namesake>>,
    /// For calls that wait for what peers say.
    heard: Heard,
    /// For calls that wait.
    places: Arc<Semaphore>,
    /// Members that a majority gave up on.
    evictions: broadcast::Sender<Evicted>,
    evicted: AtomicU64,
    max_memory: Option<u64>,
    started_ms: u64,
}

/// What [`Engine::new`] must know.
#[derive(Clone, Debug)]
pub struct Options {
    /// This process.
    pub origin: u64,
    /// The node, unique in the cluster.
    pub name: String,
    /// When the process started, milliseconds since 1970.
    pub started_ms: u64,
    /// How many members the cluster is meant to have; 0: as many as are known.
    pub voters: usize,
    /// After how long a silence a member may be given up on.
    pub evict_after: Duration,
    /// Whether values with a TTL make room when the store is full.
    pub evict_ending: bool,
    /// Between two heartbeats.
    pub sync_interval: Duration,
    /// How far ahead a peer's clock may be.
    pub max_clock_skew: Duration,
    /// The limit on accounted memory, bytes.
    pub max_memory: Option<u64>,
    /// Members may found a cluster; sidecars wait for one.
    pub may_found: bool,
    /// Whether to serve without a ready peer once `join_timeout` is over.
    pub serve_alone: bool,
    /// How long to look for a ready peer.
    pub join_timeout: Duration,
}

impl Engine {
    /// An empty node that is joining.
    pub fn new(options: &Options) -> Arc<Self> {
        let (log_bytes, log_entries) = log_bounds(options.max_memory);
        let settings = Settings {
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
        };
        let inner = Inner {
            replica: Replica::new(settings, wall_ms()),
            view: View::UNKNOWN,
            viewed: 0,
            link_changes: 0,
            dropped: 0,
            full: None,
            draining: false,
            leaving: false,
            origin: options.origin,
            former_origins: VecDeque::new(),
            refused: false,
            links: BTreeMap::new(),
            watchers: BTreeMap::new(),
            next_watch: 0,
            evicted: BTreeSet::new(),
            was_ready: false,
        };
        Arc::new(Self {
            identity: watch::Sender::new(inner.replica.id()),
            dismissed: watch::Sender::new(None),
            heard: Heard::default(),
            places: Arc::new(Semaphore::new(MAX_WAITING)),
            evictions: broadcast::Sender::new(EVICTIONS_KEPT),
            evicted: AtomicU64::new(0),
            inner: Mutex::new(inner),
            phase: watch::Sender::new(Phase::Joining),
            max_memory: options.max_memory,
            started_ms: options.started_ms,
        })
    }

    /// Runs the replica's clockwork until cancelled.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            self.tick();
        }
    }

    fn tick(&self) {
        let mut inner = self.inner.lock();
        // Nobody in sight is unlinked, it said, and now they all may be: a node
        // that has just lost its links must not take itself for the only one.
        let view = if inner.viewed == inner.link_changes { inner.view } else { View::UNKNOWN };
        let waited = !inner.replica.is_ready();
        inner.replica.tick(view, wall_ms());
        if waited && inner.replica.is_ready() {
            tell_of_founding(&inner);
        }
        let late = inner.replica.counters().too_late;
        // Once, when all that it had brought has been looked at.
        if late > inner.dropped && inner.replica.brought() == 0 {
            warn!(
                writes = late - inner.dropped,
                keys = ?inner.replica.late_keys().map(String::from_utf8_lossy).collect::<Vec<_>>(),
                "dropped what this node alone may have held: it was away for longer than deletes are remembered; of the keys, at most {LATE_KEYS} are named"
            );
            inner.dropped = late;
        }
        self.see_evictions(&mut inner);
        self.after(&mut inner);
        drop(inner);
        self.heard.tell();
    }

    /// Sees to what a call changed: the node's own identity, what the links
    /// have to send, the phase.
    fn after(&self, inner: &mut Inner) {
        if inner.replica.origin() != inner.origin {
            self.began_anew(inner);
        }
        if let Some(holder) = inner.replica.refused() {
            self.see_refusal(inner, holder);
        }
        watching::feed(inner);
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

    /// A majority decides on an eviction, but one node counts the votes: the
    /// others see it in the roster.
    fn see_evictions(&self, inner: &mut Inner) {
        let Inner { replica, evicted, was_ready, .. } = inner;
        for (origin, seat) in replica.seats().filter(|(_, seat)| seat.state == SeatState::Evicted) {
            if evicted.insert(origin) && *was_ready {
                info!(name = seat.name, origin = format!("{origin:016x}"), "a majority gave up on a member");
                self.evicted.fetch_add(1, Ordering::Relaxed);
                // Nobody may be listening.
                let _ = self.evictions.send(Evicted { name: seat.name.clone(), origin, voter: seat.voter });
            }
        }
        if evicted.len() > crate::replica::MAX_ENDED {
            evicted.retain(|origin| replica.seats().any(|(seat, _)| seat == *origin));
        }
        *was_ready |= replica.is_ready();
    }

    /// Members that a majority gives up on, from now on.
    pub fn evictions(&self) -> broadcast::Receiver<Evicted> {
        self.evictions.subscribe()
    }

    // ---- clients

    /// Writes a value that ends after `ttl`, if that is given.
    pub fn put(&self, key: &str, value: &Bytes, ttl: Option<Duration>) -> Result<Dot, WriteError> {
        // Copied so that the message they came in can go.
        let (key, value) = (Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(value));
        let mut inner = self.inner.lock();
        self.writable(&inner)?;
        let now_ms = wall_ms();
        let expires_ms = ttl.map(|ttl| now_ms.saturating_add(millis(ttl)));
        let result = inner.replica.put(key, value, expires_ms, now_ms);
        let full = result.as_ref().err().map(|full| full.held);
        match (inner.full, &result) {
            (None, Err(full)) => warn!("writes are refused: {full}"),
            (Some(_), Ok(_)) => info!("writes are taken again"),
            _ => {}
        }
        inner.full = full;
        let dot = result?;
        self.after(&mut inner);
        Ok(dot)
    }

    /// Deletes a key. `None` when nothing was there.
    pub fn delete(&self, key: &str) -> Result<Option<Dot>, WriteError> {
        let mut inner = self.inner.lock();
        self.writable(&inner)?;
        let dot = inner.replica.delete(Bytes::copy_from_slice(key.as_bytes()), wall_ms());
        self.after(&mut inner);
        Ok(dot)
    }

    /// Gives a key another end, or none. `None` when nothing was there.
    pub fn touch(&self, key: &str, ttl: Option<Duration>) -> Result<Option<Dot>, WriteError> {
        let mut inner = self.inner.lock();
        self.writable(&inner)?;
        let now_ms = wall_ms();
        let expires_ms = ttl.map(|ttl| now_ms.saturating_add(millis(ttl)));
        let dot = inner.replica.touch(Bytes::copy_from_slice(key.as_bytes()), expires_ms, now_ms)?;
        self.after(&mut inner);
        Ok(dot)
    }

    /// Reads a key.
    pub fn read(&self, key: &str) -> Result<Read, ReadError> {
        let inner = self.inner.lock();
        self.readable(&inner)?;
        let now_ms = wall_ms();
        let record = inner.replica.store().get(key.as_bytes());
        let live = |r: &Record| {
            r.live(now_ms).map(|value| Value { value: value.clone(), dot: r.dot, expires_ms: r.expires_ms })
        };
        Ok(Read { value: record.and_then(live), dot: record.map(|r| r.dot) })
    }

    /// The last write under a key that is remembered, a delete too.
    pub fn dot(&self, key: &str) -> Option<Dot> {
        self.inner.lock().replica.store().get(key.as_bytes()).map(|r| r.dot)
    }

    /// Notes all that this node holds: what is not there was seen, too.
    pub fn saw_all(&self, session: &mut Session) {
        for (&origin, cover) in self.inner.lock().replica.vector() {
            session.saw(Dot { hlc: cover.last.min(cover.seen), origin });
        }
    }

    /// Live entries under `prefix`, after the key `after`, in key order: at most
    /// `max_entries`, and not more than one above `max_bytes`.
    ///
    /// The lock is let go between steps: entries are each as they were at some
    /// moment of the call.
    pub fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        max_entries: usize,
        max_bytes: usize,
    ) -> Result<Page, ReadError> {
        let mut page = Page::default();
        let mut bytes = 0;
        let mut last: Option<Bytes> = after.map(|a| Bytes::copy_from_slice(a.as_bytes()));
        loop {
            let inner = self.inner.lock();
            self.readable(&inner)?;
            let now_ms = wall_ms();
            let store = inner.replica.store();
            // Whichever is later: the prefix itself, or where we were.
            let start = last.clone().filter(|l| l.as_ref() >= prefix.as_bytes());
            let mut records: Box<dyn Iterator<Item = _>> = match &start {
                Some(last) => Box::new(store.scan(Some(last))),
                None => Box::new(store.scan_from(prefix.as_bytes())),
            };
            for _ in 0..LIST_STEP {
                let Some((key, record)) = records.next().filter(|(k, _)| k.starts_with(prefix.as_bytes())) else {
                    return Ok(page);
                };
                if let Some(value) = record.live(now_ms) {
                    if page.entries.len() >= max_entries || bytes >= max_bytes {
                        page.more = true;
                        return Ok(page);
                    }
                    bytes += key.len() + value.len();
                    let value = Value { value: value.clone(), dot: record.dot, expires_ms: record.expires_ms };
                    page.entries.push((key.clone(), value));
                }
                last = Some(key.clone());
            }
        }
    }

    fn readable(&self, inner: &Inner) -> Result<(), ReadError> {
        if inner.replica.serves() { Ok(()) } else { Err(ReadError::NotReady(self.phase())) }
    }

    fn writable(&self, inner: &Inner) -> Result<(), WriteError> {
        if inner.replica.serves() && !inner.draining {
            Ok(())
        } else {
            Err(WriteError::NotReady(if inner.draining { Phase::Draining } else { self.phase() }))
        }
    }

    // ---- life

    /// Origins of the linked processes, and which state of the links that is.
    pub fn linked(&self) -> (Vec<u64>, u64) {
        let inner = self.inner.lock();
        (inner.replica.linked().collect(), inner.link_changes)
    }

    /// What discovery and membership know, for the decision to be ready; it
    /// counts while the links are in the state for which it was found.
    pub fn set_view(&self, view: View, links: u64) {
        let mut inner = self.inner.lock();
        (inner.view, inner.viewed) = (view, links);
    }

    /// See [`Replica::founders`].
    pub fn founders(&self) -> Option<(usize, usize)> {
        self.inner.lock().replica.founders()
    }

    /// How many members the cluster is meant to have, from now on.
    pub fn set_voters(&self, voters: usize) {
        self.inner.lock().replica.set_voters(voters);
    }

    /// From now on no write is taken.
    pub fn drain(&self) {
        let mut inner = self.inner.lock();
        inner.draining = true;
        inner.replica.drain();
        self.after(&mut inner);
    }

    /// Waits until every linked peer holds every own write that is still in the
    /// log, and what is held here of those who cannot be heard, see
    /// [`Replica::uncovered`]. Returns how many writes `(no peer, not every peer)` holds; on an
    /// end by `deadline` that may be above zero.
    pub async fn covered(&self, deadline: Duration) -> (usize, usize) {
        let end = tokio::time::Instant::now() + deadline;
        loop {
            let uncovered = {
                let inner = self.inner.lock();
                if inner.links.is_empty() { (inner.replica.uncovered().0, 0) } else { inner.replica.uncovered() }
            };
            if uncovered == (0, 0) || tokio::time::Instant::now() >= end {
                return uncovered;
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Keys of own writes that no peer is known to hold, at most so many, each once.
    pub fn uncovered_keys(&self, at_most: usize) -> Vec<String> {
        let inner = self.inner.lock();
        let mut keys: Vec<String> = Vec::new();
        for key in inner.replica.uncovered_keys().map(String::from_utf8_lossy) {
            if keys.len() >= at_most {
                break;
            }
            if !keys.iter().any(|known| *known == key) {
                keys.push(key.into_owned());
            }
        }
        keys
    }

    /// Where the node is in its life.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Changes of the phase.
    pub fn subscribe_phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Figures.
    pub fn stats(&self) -> Stats {
        let inner = self.inner.lock();
        let store = inner.replica.store();
        let now_ms = wall_ms();
        Stats {
            keys: store.keys(),
            tombstones: store.tombstones(),
            memory_bytes: store.memory() + inner.replica.brought_memory(),
            max_memory: self.max_memory,
            // A peer's delete or an expiry may have made room, and no write of ours may come to find it.
            full: inner.full.is_some_and(|held| store.memory() >= held),
            fingerprint: store.fingerprint(),
            // Before a peer's first heartbeat nothing of it is known: the lag is as
            // long as this process runs, and not since 1970.
            lag: inner
                .replica
                .lag_ms(now_ms)
                .map(|lag| Duration::from_millis(lag.min(now_ms.saturating_sub(self.started_ms)))),
            linked: inner.replica.linked().collect(),
            seats: SEAT_STATES.map(|(state, _)| inner.replica.seats().filter(|(_, seat)| seat.state == state).count()),
            founding: Some(inner.replica.founding())
                .filter(|(stamp, _)| *stamp > 0)
                .map(|(stamp, by)| Founding { at_ms: ms_of(stamp), by }),
            former_origins: inner.former_origins.iter().copied().collect(),
            collected_age: Some(inner.replica.forgotten())
                .filter(|stamp| *stamp > 0)
                .map(|stamp| Duration::from_millis(now_ms.saturating_sub(ms_of(stamp)))),
            overfull: inner.replica.is_overfull(),
            counters: inner.replica.counters(),
            evicted: self.evicted.load(Ordering::Relaxed),
            watches: inner.watchers.len(),
            waiting: MAX_WAITING - self.places.available_permits(),
        }
    }

    /// The wall clock, milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        wall_ms()
    }
}

/// A node that becomes ready by the clock has its map from no peer.
fn tell_of_founding(inner: &Inner) {
    let (keys, links) = (inner.replica.store().keys(), inner.links.len());
    // A view in which nothing is known counts none.
    let count = |peers: usize| if peers == usize::MAX { 0 } else { peers };
    let View { unlinked, refused, strangers, .. } = inner.view;
    let (unlinked, refused) = (count(unlinked), count(refused) + count(strangers));
    if unlinked + refused == 0 {
        info!(keys, links, "no peer holds a map: ready with one of its own");
    } else {
        warn!(
            keys,
            links,
            unreached = unlinked,
            refused,
            "ready with a map of its own, without some of the peers that it knows of: what they hold is not here"
        );
    }
}

/// The wall clock, milliseconds since 1970.
pub fn wall_ms() -> u64 {
    // A clock before 1970 counts as 1970: stamps rise all the same.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
