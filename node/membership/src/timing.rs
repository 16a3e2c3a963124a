//! The intervals and sizes of the protocol. They may differ between nodes, but a node whose probe period is longer than its
//! suspicion time detects little.

use std::{
    num::{NonZeroU8, NonZeroUsize},
    time::Duration,
};

/// The intervals and sizes of the membership protocol.
///
/// A death is detected after: the time until some node probes the dead one (a few periods), one period without an answer,
/// and the suspicion time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often this node probes one member. With fewer than four others the next probe waits longer, up to 7/3 of this,
    /// after a probe that was answered; each member is still probed as often as with four.
    pub probe_period: Duration,
    /// How long this node waits for the answer before it asks other members to probe.
    pub probe_timeout: Duration,
    /// How long a suspect has to refute the suspicion before it is declared dead.
    pub suspicion: Duration,
    /// How often this node gossips, as long as it has updates to pass on.
    pub gossip_period: Duration,
    /// How often this node asks a member for all members that it knows.
    pub exchange_period: Duration,
    /// How often this node contacts some of the failed nodes again.
    pub retry_period: Duration,
    /// How often this node announces itself to addresses that no member has.
    pub announce_period: Duration,
    /// How long the dead are remembered, so that old updates cannot revive them.
    pub forget_after: Duration,
    /// How many members are asked to probe a member that did not answer.
    pub indirect_probes: NonZeroUsize,
    /// How many members a round of gossip goes to.
    pub gossip_fanout: NonZeroUsize,
    /// How many times one node passes on an update.
    pub transmissions: NonZeroU8,
}

impl Timing {
    /// For a local network: a death is detected within 3 s. Updates are passed on often enough for some hundred nodes.
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
