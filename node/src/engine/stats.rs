//! Figures of the engine for status and metrics.

use std::sync::atomic::Ordering;
use std::time::Duration;

use kvasir_proto::peer::v1::SeatState;

use super::{Engine, MAX_WAITING};
use crate::clock::ms_of;
use crate::replica::Counters;
use crate::wall_clock::wall_ms;

/// The states of a seat, each with its name in metrics and status.
pub const SEAT_STATES: [(SeatState, &str); 4] = [
    (SeatState::Joining, "joining"),
    (SeatState::Member, "member"),
    (SeatState::Evicted, "evicted"),
    (SeatState::Ended, "ended"),
];

/// The history of a map since it was founded. Two maps with different epochs were founded independently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// When the map was founded, milliseconds since 1970.
    pub founded_ms: u64,
    /// The process that founded it.
    pub founder: u64,
}

/// Figures for status and metrics.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Live keys.
    pub keys: u64,
    /// Deleted and expired keys whose tombstone is kept.
    pub tombstones: u64,
    /// Accounted bytes.
    pub memory_bytes: u64,
    /// The limit on accounted bytes.
    pub max_memory: Option<u64>,
    /// Whether a write was refused for lack of memory, and no memory was freed since.
    pub full: bool,
    /// Equal on nodes with equal maps.
    pub fingerprint: u128,
    /// See [`Replica::lag_ms`](crate::replica::Replica::lag_ms).
    pub lag: Option<Duration>,
    /// Origins of the linked processes.
    pub linked: Vec<u64>,
    /// Seats of the roster in each [state](SEAT_STATES).
    pub seats: [usize; SEAT_STATES.len()],
    /// The epoch of this node's map; `None` while the node has no map.
    pub epoch: Option<Epoch>,
    /// Origins of this process before it rejoined, latest last.
    pub former_origins: Vec<u64>,
    /// The age of the GC watermark, the timestamp up to which deletes are collected; `None` while none are.
    pub collected_age: Option<Duration>,
    /// Whether a peer's write found no room recently.
    pub overfull: bool,
    /// Totals since the start.
    pub counters: Counters,
    /// Evictions of other nodes, since this node was ready.
    pub evicted: u64,
    /// Open watches.
    pub watches: usize,
    /// Calls that wait for other nodes.
    pub waiting: usize,
}

impl Engine {
    /// The figures now.
    pub fn stats(&self) -> Stats {
        let inner = self.inner.lock();
        let (replica, store) = (&inner.replica, inner.replica.store());
        let now_ms = wall_ms();
        let epoch = Some(replica.founding()).filter(|(timestamp, _)| *timestamp > 0);
        let collected = Some(replica.forgotten()).filter(|timestamp| *timestamp > 0);
        // Before a peer's first heartbeat its writes are unknown: the lag is the age of this process, not of 1970.
        let max_lag_ms = now_ms.saturating_sub(self.started_ms);
        Stats {
            keys: store.keys(),
            tombstones: store.tombstones(),
            memory_bytes: store.memory() + replica.brought_memory(),
            max_memory: self.max_memory,
            // A peer's delete or an expiry may have made room without a later write that clears the mark.
            full: inner.full_at.is_some_and(|held| store.memory() >= held),
            fingerprint: store.fingerprint(),
            lag: replica.lag_ms(now_ms).map(|lag_ms| Duration::from_millis(lag_ms.min(max_lag_ms))),
            linked: replica.linked().collect(),
            seats: SEAT_STATES.map(|(state, _)| replica.seats().filter(|(_, seat)| seat.state == state).count()),
            epoch: epoch.map(|(timestamp, founder)| Epoch { founded_ms: ms_of(timestamp), founder }),
            former_origins: inner.former_origins.iter().copied().collect(),
            collected_age: collected.map(|timestamp| Duration::from_millis(now_ms.saturating_sub(ms_of(timestamp)))),
            overfull: replica.is_overfull(),
            counters: replica.counters(),
            evicted: self.evicted.load(Ordering::Relaxed),
            watches: inner.watchers.len(),
            waiting: MAX_WAITING - self.permits.available_permits(),
        }
    }
}
