//! What happens in one run, fixed before it begins, so that a run can be repeated, reduced, and kept in a file.

mod draw;
mod kept;

use serde::{Deserialize, Serialize};

pub use self::kept::Kept;
use crate::prelude::*;

/// Something that a client does, or that happens to the cluster. A node is named by its place.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Op {
    Put {
        node: usize,
        key: u8,
        ttl_ms: Option<u64>,
        #[serde(with = "Ack")]
        ack: Need,
    },
    Delete {
        node: usize,
        key: u8,
    },
    /// The client of a session reads at a node.
    Read {
        session: usize,
        node: usize,
        key: u8,
    },
    /// The client of a session writes at a node, if the node covers the session.
    SessionPut {
        session: usize,
        node: usize,
        key: u8,
    },
    /// The connection of a pair breaks, and comes up again at once.
    Reconnect(usize, usize),
    /// No message gets from the first node to the second.
    Block(usize, usize),
    /// A partition: the nodes whose bits are set on one side, all others on the other.
    Split(u32),
    /// All nodes hear each other again.
    Unblock,
    /// The node's memory is lost; its peers are not notified.
    Crash(usize),
    Start(usize),
    /// The node drains and leaves.
    Leave(usize),
    /// The wall clock jumps by so many milliseconds.
    Jump(usize, i64),
    /// From now on the cluster is meant to have this many voters. Each node learns that by `Configure`.
    Scale(usize),
    /// A voter reads the number of voters from its configuration.
    Configure(usize),
}

/// The form of [`Need`] in files.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Need", rename_all = "snake_case")]
enum Ack {
    Count(usize),
    Majority,
    All,
}

// The flags are independent: no two of them form one state.
#[allow(clippy::struct_excessive_bools)]
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Determines what the network does, and the bounds of each process.
    pub seed: u64,
    /// Whether nodes find each other by the production membership, and link only to nodes that it lists.
    ///
    /// Otherwise all nodes that can talk are linked at once. Then the replica meets every peer in every state, which
    /// tests it harder, and a run takes a third of the time. So most runs are of that kind.
    pub membership: bool,
    pub voters: usize,
    pub sidecars: usize,
    pub keys: u8,
    pub loss: f64,
    pub duplicate: f64,
    /// A message takes between 1 and this many milliseconds, so messages overtake one another.
    pub delay_ms: u64,
    /// Messages of this pair take ten times as long.
    pub slow: (usize, usize),
    pub evict_after_ms: u64,
    /// A node that may be full.
    pub room: Option<Room>,
    /// How far a wall clock may be off, milliseconds. Beyond [`NEAR_MS`], nodes may refuse each other.
    pub skew_ms: i64,
    /// For how long at least ended seats are remembered, milliseconds. If that is less than in production, sessions may
    /// outlive the memory of a seat.
    pub remember_ended_ms: u64,
    /// How long evicted seats are remembered, milliseconds. If that is less than in production, many nodes rejoin too
    /// late.
    pub remember_evicted_ms: u64,
    /// How many ended seats are remembered. If these are fewer than in production, some seats are retired early.
    pub ended_seats: usize,
    /// How many tombstones are kept for evicted nodes. If these are fewer than in production, some nodes rejoin too
    /// late.
    pub kept_deletes: u64,
    /// Whether a voter that finds no ready peer serves alone after `joinTimeout`.
    pub serve_alone: bool,
    /// A place whose nodes have another key until the network heals: they and the others learn that a peer is there,
    /// and nothing else.
    pub apart: Option<usize>,
    /// A second process with the name of a voter, at a place after all others.
    pub twin: Option<Twin>,
    /// How often a process may reset. Each eviction leads to a reset, and so does each epoch that gives way.
    pub max_resets: u64,
    /// What happens, and when, milliseconds.
    pub ops: Vec<(u64, Op)>,
}

/// A node with little memory.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Room {
    pub node: usize,
    /// How many entries fit.
    pub entries: u64,
    /// Whether values with a TTL are deleted to make room.
    pub evict_ending: bool,
    /// Whether the node stays full after the network has healed, until everything is deleted.
    pub stays: bool,
}

/// A second process with one name.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Twin {
    /// The place of the voter whose name it has.
    pub of: usize,
    /// Nothing else happens to the cluster: the process that was first must not be affected by the second.
    pub calm: bool,
}

/// While no clock is off by more than this, milliseconds, no node refuses another for its clock.
pub const NEAR_MS: i64 = 3_500;

impl Plan {
    /// Whether the number of voters changes.
    pub fn scales(&self) -> bool {
        self.ops.iter().any(|(_, op)| matches!(op, Op::Scale(_)))
    }

    /// Whether deletes are kept for as long as an evicted node may rejoin with older writes.
    pub const fn remembers_deletes(&self) -> bool {
        self.kept_deletes == KEPT_DELETES
            && self.remember_evicted_ms == REMEMBER_EVICTED_MS
            && self.ended_seats == MAX_ENDED
            && self.room.is_none()
            // A replaced process is remembered for less long than an evicted one.
            && (self.twin.is_none() || self.remember_ended_ms == REMEMBER_ENDED_MS)
    }

    /// How far two clocks are apart at most, milliseconds, with some margin.
    pub const fn apart_ms(&self) -> u64 {
        2 * self.skew_ms.unsigned_abs() + 1_000
    }
}
