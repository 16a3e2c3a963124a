//! What goes into a replica and comes out of it, besides messages.

/// Why a write was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the node is full: it holds {held} of at most {limit} bytes (maxMemory), and this takes {cost}; delete keys or raise the limit"
)]
pub struct Full {
    /// The accounted memory that the write takes, in bytes.
    pub cost: u64,
    /// Accounted bytes now.
    pub held: u64,
    /// The limit.
    pub limit: u64,
}

/// Why a link must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The peer's clock is too far ahead of this node's.
    #[error(
        "the peer's clock is {ahead_ms} ms ahead, at most {limit_ms} ms (maxClockSkew): check the time service of both machines"
    )]
    ClockAhead {
        /// By how much.
        ahead_ms: u64,
        /// What is allowed.
        limit_ms: u64,
    },
    /// The peer sent something that the protocol does not have.
    #[error("the peer sent a message without a kind: it speaks another version of the protocol")]
    Unknown,
    /// No node sends this: an entry without a key or a timestamp, an entry that replaced a later write, or an impossible
    /// timestamp.
    #[error(
        "the peer sent an entry without a key or a timestamp, an entry that replaced a later write, or a timestamp that is thousands of years ahead"
    )]
    Malformed,
}

/// Figures of a replica since its start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Deltas that were answered with a scan of the store.
    pub scans: u64,
    /// Syncs that were sent.
    pub syncs: u64,
    /// Times that equal vectors came with different maps: a bug, bad memory,
    /// or partial writes of a node that died.
    pub divergences: u64,
    /// Entries taken from peers.
    pub entries_in: u64,
    /// Entries sent to peers.
    pub entries_out: u64,
    /// Times that other nodes ended this node's seat, and it rejoined with a new origin.
    pub returns: u64,
    /// Writes of this node's backlogs that no member had, and that were reissued under a new dot.
    pub reissued: u64,
    /// Writes of this node's backlogs that came too late to be reissued: no node remembers any more whether they were beaten.
    pub too_late: u64,
    /// Times that partial writes of a dead node were adopted.
    pub adoptions: u64,
    /// Values deleted to make room.
    pub evicted_keys: u64,
    /// Peers' writes for which there was no room.
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
    /// Whether it has a backlog to reissue.
    pub returning: bool,
}

/// How many nodes hold a write, as far as this node knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holders {
    /// Linked peers that confirmed the write, counted by name.
    pub peers: usize,
    /// Voters among those peers, and this node if it is one.
    pub voters: usize,
    /// Other members that have not confirmed the write.
    pub lacking: usize,
    /// How many voters are a majority.
    pub majority: usize,
}

/// How many other nodes must hold a write before it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// This many others.
    Count(usize),
    /// A majority of the voters, this node included if it is one.
    Majority,
    /// All that take part.
    All,
}

impl Need {
    /// Whether as many nodes as needed hold the write.
    pub const fn met(self, holders: &Holders) -> bool {
        match self {
            Self::Count(count) => holders.peers >= count,
            Self::Majority => holders.voters >= holders.majority,
            Self::All => holders.lacking == 0,
        }
    }
}

/// Whether a node holds a write that was seen elsewhere. The coverage of several writes is the largest of theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Coverage {
    /// The node holds it, or a write that beats it.
    Covered,
    /// Not yet.
    Behind,
    /// The write was lost with the node that held it.
    Lost,
}

/// A process that has a name which another one claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namesake {
    /// The process.
    pub origin: u64,
    /// When its seat was taken, milliseconds since 1970 by its own clock.
    pub started_ms: u64,
}
