//! What the engine takes and returns.

use std::time::Duration;

use bytes::Bytes;

use crate::clock::Dot;
use crate::replica::Full;

/// The node's state as its clients see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Looks for peers.
    Joining,
    /// Has peers, and receives what they hold.
    Syncing,
    /// Serves reads and writes.
    Ready,
    /// Is shutting down: serves reads, refuses writes, hands over.
    Draining,
}

impl Phase {
    /// The phase as `/status` writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Syncing => "syncing",
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }
}

/// A node whose seat was evicted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evicted {
    /// The node's name.
    pub name: String,
    /// The evicted process.
    pub origin: u64,
    /// Whether the node was a member, not a sidecar.
    pub voter: bool,
}

/// A live value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The bytes; shared with the store, not copied.
    pub value: Bytes,
    /// The write that put it.
    pub dot: Dot,
    /// When the value ends, milliseconds since 1970.
    pub expires_ms: Option<u64>,
}

/// What is stored under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// The live value.
    pub value: Option<Value>,
    /// The key's last write, which may be a delete; `None` if the store has no record of the key.
    pub dot: Option<Dot>,
}

/// A part of a listing.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Entries in key order.
    pub entries: Vec<(Bytes, Value)>,
    /// Whether there are more entries after the last one.
    pub more: bool,
}

/// Why a read was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The node does not serve yet.
    #[error("the node is not ready ({}): ask another node, or try again", .0.as_str())]
    NotReady(Phase),
}

/// Why a write was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The node does not accept writes yet, or no longer.
    #[error("the node does not accept writes ({}): ask another node, or try again", .0.as_str())]
    NotReady(Phase),
    /// The node is at its memory limit.
    #[error(transparent)]
    Full(#[from] Full),
}

/// What [`Engine::new`](super::Engine::new) needs.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// This process.
    pub origin: u64,
    /// The node's name, unique in the cluster.
    pub name: String,
    /// When the process started, milliseconds since 1970.
    pub started_ms: u64,
    /// How many voters the cluster should have; 0: as many as are known.
    pub voters: usize,
    /// How long a seat must be without links before it may be evicted.
    pub evict_after: Duration,
    /// Whether to delete values with a TTL to make room when the store is full.
    pub evict_ending: bool,
    /// The heartbeat interval.
    pub sync_interval: Duration,
    /// How far ahead of this node's clock a peer's clock may be.
    pub max_clock_skew: Duration,
    /// The limit on accounted memory, bytes.
    pub max_memory: Option<u64>,
    /// Whether the node may found a cluster: members may, sidecars wait for one.
    pub may_found: bool,
    /// Whether to serve without a ready peer after `join_timeout`.
    pub serve_alone: bool,
    /// How long to look for a ready peer.
    pub join_timeout: Duration,
}
