//! What a replica must know at its start, and of its surroundings.

use super::limits::{
    KEPT_DELETES, LOG_MAX_BYTES, LOG_MAX_ENTRIES, MAX_ENDED, MESSAGE_MAX_ENTRIES, REMEMBER_ENDED_MS,
    REMEMBER_EVICTED_MS, SCAN_STEP,
};

// Each flag is a setting of its own.
#[allow(clippy::struct_excessive_bools)]
/// What a replica must know at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The origin of this process, which is never reused. Not 0.
    pub origin: u64,
    /// The name of the node, unique in the cluster. A later process with the name replaces an earlier one that is not heard any
    /// more.
    pub name: String,
    /// Whether it is a member of the cluster proper, not a sidecar.
    pub voter: bool,
    /// When the process started, milliseconds since 1970.
    pub started_ms: u64,
    /// How many voters the cluster is meant to have; 0: as many as are known.
    pub voters: usize,
    /// How long a seat may be without a link before it can be evicted, milliseconds.
    pub evict_after_ms: u64,
    /// Between two heartbeats, and between two digests, milliseconds.
    pub sync_interval_ms: u64,
    /// A peer whose clock is further ahead than this is refused, milliseconds.
    pub max_clock_skew_ms: u64,
    /// Client writes that would take the store above this many bytes are refused.
    pub max_memory: Option<u64>,
    /// When the store is full, values with a TTL make room; those that end first go first.
    pub evict_ending: bool,
    /// Whether this node may found an epoch if no known peer has a map.
    pub may_found: bool,
    /// Whether to serve alone, with an empty map, if no ready peer was found within `join_timeout_ms`, whatever other peers
    /// there are.
    pub serve_alone: bool,
    /// How long to look for a ready peer, milliseconds.
    pub join_timeout_ms: u64,
    /// Bounds on single steps and on the log; small ones only in simulations.
    pub bounds: Bounds,
}

/// Bounds on what is done in one step, and on what is kept.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// See [`LOG_MAX_ENTRIES`].
    pub log_entries: usize,
    /// See [`LOG_MAX_BYTES`].
    pub log_bytes: usize,
    /// See [`MESSAGE_MAX_ENTRIES`].
    pub message_entries: usize,
    /// See [`SCAN_STEP`].
    pub scan_step: usize,
    /// See [`REMEMBER_ENDED_MS`].
    pub remember_ended_ms: u64,
    /// See [`REMEMBER_EVICTED_MS`].
    pub remember_evicted_ms: u64,
    /// See [`MAX_ENDED`].
    pub ended_seats: usize,
    /// See [`KEPT_DELETES`].
    pub kept_deletes: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            log_entries: LOG_MAX_ENTRIES,
            log_bytes: LOG_MAX_BYTES,
            message_entries: MESSAGE_MAX_ENTRIES,
            scan_step: SCAN_STEP,
            remember_ended_ms: REMEMBER_ENDED_MS,
            remember_evicted_ms: REMEMBER_EVICTED_MS,
            ended_seats: MAX_ENDED,
            kept_deletes: KEPT_DELETES,
        }
    }
}

/// What discovery and membership know that the replica cannot.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Every discovery provider has answered at least once.
    pub answered: bool,
    /// Addresses of other nodes that were found and have no link yet.
    pub unlinked: usize,
    /// The addresses among them where a peer with another key, release, clock or cluster answers, which this node cannot talk
    /// to.
    pub refused: usize,
    /// Peers that this node cannot talk to, at addresses that neither discovery nor membership names.
    pub strangers: usize,
}

impl View {
    /// No other node was found, and every provider has answered.
    pub const ALONE: Self = Self { answered: true, unlinked: 0, refused: 0, strangers: 0 };
    /// Nothing is known yet, or the last view is out of date. No epoch is founded with this view.
    pub const UNKNOWN: Self =
        Self { answered: false, unlinked: usize::MAX, refused: usize::MAX, strangers: usize::MAX };
}

impl Default for View {
    fn default() -> Self {
        Self::UNKNOWN
    }
}
