//! What goes into a replica and comes out of it, besides messages.

use bytes::Bytes;

use super::{
    KEPT_DELETES, LOG_MAX_BYTES, LOG_MAX_ENTRIES, MAX_ENDED, MESSAGE_MAX_ENTRIES, REMEMBER_ENDED_MS,
    REMEMBER_EVICTED_MS, SCAN_STEP, Seat,
};
use crate::clock::Dot;
use crate::store::Record;

// Settings are what people set: each flag is one of its own.
#[allow(clippy::struct_excessive_bools)]
/// What a replica must know at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This process: never used before, never to be used again. Not 0.
    pub origin: u64,
    /// The node, unique in the cluster; a later process of the name replaces
    /// an earlier one that is not heard any more.
    pub name: String,
    /// Whether it is a member of the cluster proper, not a sidecar.
    pub voter: bool,
    /// When the process started, milliseconds since 1970.
    pub started_ms: u64,
    /// How many voters the cluster is meant to have; 0: as many as are known.
    pub voters: usize,
    /// After how long a silence a seat may be given up on, milliseconds.
    pub evict_after_ms: u64,
    /// Between two heartbeats, and between two digests, milliseconds.
    pub sync_interval_ms: u64,
    /// A peer whose clock is further ahead than this is refused, milliseconds.
    pub max_clock_skew_ms: u64,
    /// Client writes that would take the store above this many bytes are refused.
    pub max_memory: Option<u64>,
    /// When the store is full, values that will end make room, those that end
    /// first going first.
    pub evict_ending: bool,
    /// Whether this node may be ready without having synced from a ready one,
    /// when every peer that is known is as new as itself.
    pub may_found: bool,
    /// Whether to serve alone, with an empty map, when `join_timeout_ms` brought no ready peer: whatever else was heard of.
    pub serve_alone: bool,
    /// How long to look for a ready peer, milliseconds.
    pub join_timeout_ms: u64,
    /// Bounds on single steps and on the log; small ones only in simulations.
    pub bounds: Bounds,
}

/// How much is done at once, and kept.
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

/// Why a write was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the node is full: it holds {held} of at most {limit} bytes (maxMemory), and this takes {cost}; delete keys or raise the limit"
)]
pub struct Full {
    /// What the write takes, bytes as they are accounted.
    pub cost: u64,
    /// Accounted bytes now.
    pub held: u64,
    /// The limit.
    pub limit: u64,
}

/// Why a link must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The peer's clock is too far ahead of ours.
    #[error(
        "the peer's clock is {ahead_ms} ms ahead, at most {limit_ms} ms (maxClockSkew): check the time service of both machines"
    )]
    ClockAhead {
        /// By how much.
        ahead_ms: u64,
        /// What is allowed.
        limit_ms: u64,
    },
    /// The peer sent what the protocol does not have.
    #[error("the peer sent a message without a kind: it speaks another version of the protocol")]
    Unknown,
    /// What no node makes: an entry without a key or a stamp, or that replaced a later one, or a stamp that no clock gives.
    #[error(
        "the peer sent an entry without a key or a stamp, or one that replaced a later one, or a stamp of a time that is thousands of years ahead"
    )]
    Malformed,
}

/// What discovery and membership know that the replica cannot.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Every discovery provider has answered at least once.
    pub answered: bool,
    /// Addresses of other nodes that were found and have no link yet.
    pub unlinked: usize,
    /// Those of them where a peer answers that this node cannot talk to: it has another key, release, clock or cluster.
    pub refused: usize,
    /// Such peers at addresses that neither discovery nor membership names.
    pub strangers: usize,
}

impl View {
    /// Nobody else was found, and no provider is left to answer.
    pub const ALONE: Self = Self { answered: true, unlinked: 0, refused: 0, strangers: 0 };
    /// Nothing is known yet, or no longer. No cluster is founded on it.
    pub const UNKNOWN: Self =
        Self { answered: false, unlinked: usize::MAX, refused: usize::MAX, strangers: usize::MAX };
}

impl Default for View {
    fn default() -> Self {
        Self::UNKNOWN
    }
}

/// Figures of a replica since its start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Deltas that were answered with a scan of the store.
    pub scans: u64,
    /// Syncs that were sent.
    pub syncs: u64,
    /// Times that equal vectors came with different maps: a bug, bad memory,
    /// or what a node left half-sent when it died.
    pub divergences: u64,
    /// Entries taken from peers.
    pub entries_in: u64,
    /// Entries sent to peers.
    pub entries_out: u64,
    /// Times that this node began anew, its life having been ended by others.
    pub returns: u64,
    /// Writes of ended seats of this node that no member had, and that were
    /// issued again under a new dot.
    pub reissued: u64,
    /// Writes of ended seats of this node that were not issued again, having come
    /// too late: nobody remembers any more whether they were beaten.
    pub too_late: u64,
    /// Times that writes which a dead node had half sent were taken as they are.
    pub adoptions: u64,
    /// Values deleted to make room.
    pub evicted_keys: u64,
    /// Peers' writes that found no room.
    pub no_room: u64,
    /// Processes that were refused because a live one has their name.
    pub twins: u64,
}

/// A process at the other end of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerId {
    /// The process.
    pub origin: u64,
    /// The node.
    pub name: String,
    /// Whether it is a member of the cluster proper, not a sidecar.
    pub voter: bool,
    /// When its seat was taken, milliseconds since 1970 by its own clock.
    pub started_ms: u64,
    /// Whether it brings writes of an ended seat that it has yet to issue again.
    pub returning: bool,
}

/// What a watcher of the map, or of the cluster, may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key has a new record: a value, or none.
    Wrote(Bytes, Record),
    /// The value under the key came to its end; its dot.
    Expired(Bytes, Dot),
    /// The map was taken anew: what was told before may not hold.
    Reset,
    /// A seat was given up on by a majority.
    Evicted(Seat),
    /// A write was issued again: its dot, and the new one.
    Reissued(Dot, Dot),
}

/// Who holds a write, as far as this node was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holders {
    /// Linked peers, by name, that said so.
    pub peers: usize,
    /// Voters among them, and this node if it is one.
    pub voters: usize,
    /// Seats that take part and have not said so.
    pub lacking: usize,
    /// How many voters are a majority.
    pub majority: usize,
}

/// Who shall hold a write before it is answered, beside the node that takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// This many others.
    Count(usize),
    /// A majority of the voters, this one counted if it is one.
    Majority,
    /// All that take part.
    All,
}

impl Need {
    /// Whether as many hold it.
    pub const fn met(self, holders: &Holders) -> bool {
        match self {
            Self::Count(count) => holders.peers >= count,
            Self::Majority => holders.voters >= holders.majority,
            Self::All => holders.lacking == 0,
        }
    }
}

/// Whether a node holds a write that was seen elsewhere. Of several the largest is that of all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Coverage {
    /// That, or one that beats it.
    Covered,
    /// Not yet.
    Behind,
    /// It was lost with its node.
    Lost,
}
