//! How the nodes keep track of who lives: the intervals and sizes of the
//! protocol. They need not be the same on all nodes, but a node that probes more
//! seldom than it suspects is of little use to the others.

use std::{
    num::{NonZeroU8, NonZeroUsize},
    time::Duration,
};

/// The intervals and sizes of the membership protocol.
///
/// A death is seen after the time until somebody's turn to probe the dead comes
/// (a few periods), one more period without an answer, and the suspicion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often this node probes one member. Of less than four others each is probed often enough if the next probe waits
    /// longer, up to 7/3 of this, after one that was answered.
    pub probe_period: Duration,
    /// How long it waits for the answer before it asks others to probe.
    pub probe_timeout: Duration,
    /// How long a member that didn't answer may take to say that it lives.
    pub suspicion: Duration,
    /// How often news go out, while there are any.
    pub gossip_period: Duration,
    /// How often a member is asked for all members it knows.
    pub exchange_period: Duration,
    /// How often some of those who failed are tried again.
    pub retry_period: Duration,
    /// How often addresses that no member has are tried.
    pub announce_period: Duration,
    /// How long the dead are remembered, so that old news cannot revive them.
    pub forget_after: Duration,
    /// How many members are asked to probe one that didn't answer.
    pub indirect_probes: NonZeroUsize,
    /// How many members a round of gossip goes to.
    pub gossip_fanout: NonZeroUsize,
    /// How many times one node passes on a piece of news.
    pub transmissions: NonZeroU8,
}

impl Timing {
    /// For a local network: a death is seen within 3 s. News are passed on
    /// often enough for some hundred nodes.
    pub const LAN: Self = Self {
        probe_period: Duration::from_millis(200),
        probe_timeout: Duration::from_millis(80),
        suspicion: Duration::from_millis(1200),
        gossip_period: Duration::from_millis(100),
        exchange_period: Duration::from_secs(10),
        retry_period: Duration::from_secs(5),
        announce_period: Duration::from_secs(2),
        forget_after: Duration::from_hours(1),
        indirect_probes: NonZeroUsize::new(3).expect("3 is not zero"),
        gossip_fanout: NonZeroUsize::new(3).expect("3 is not zero"),
        transmissions: NonZeroU8::new(10).expect("10 is not zero"),
    };
}
