//! foca, as this crate configures it, and the collector of what one step of foca asks for.

use std::{net::SocketAddr, num::NonZeroUsize, time::Duration};

use foca::{Foca, NoCustomBroadcast, Notification, PeriodicParams, Runtime, Timer};
use rand::rngs::Xoshiro256PlusPlus;

use crate::{
    NodeId, Timing,
    wire::{ENVELOPE, MAX_MESSAGE, Wire},
};

pub(super) type Protocol = Foca<NodeId, Wire, Xoshiro256PlusPlus, NoCustomBroadcast>;

pub(super) fn config(timing: Timing) -> foca::Config {
    let each = |frequency, num_members| Some(PeriodicParams { frequency, num_members });
    foca::Config {
        probe_period: timing.probe_period,
        probe_rtt: timing.probe_timeout,
        num_indirect_probes: timing.indirect_probes,
        max_transmissions: timing.transmissions,
        suspect_to_down_after: timing.suspicion,
        remove_down_after: Some(timing.forget_after),
        max_packet_size: MAX_MESSAGE,
        // `Core` notifies them itself, within its limits.
        notify_down_members: false,
        periodic_announce: each(timing.exchange_period, NonZeroUsize::MIN),
        periodic_announce_to_down_members: each(timing.retry_period, NonZeroUsize::MIN),
        periodic_gossip: each(timing.gossip_period, timing.gossip_fanout),
    }
}

/// What one step asks for.
pub(super) struct Outbox {
    envelope: [u8; ENVELOPE],
    pub(super) datagrams: Vec<(SocketAddr, Vec<u8>)>,
    pub(super) timers: Vec<(Timer<NodeId>, Duration)>,
    /// This node's identity, if foca renewed it.
    pub(super) renewed: Option<NodeId>,
}

impl Outbox {
    pub(super) const fn new(envelope: [u8; ENVELOPE]) -> Self {
        Self { envelope, datagrams: Vec::new(), timers: Vec::new(), renewed: None }
    }
}

impl Runtime<NodeId> for Outbox {
    fn notify(&mut self, notification: Notification<'_, NodeId>) {
        // `Members` finds changes by comparing, which finds suspicion as well.
        if let Notification::Rejoin(me) = notification {
            self.renewed = Some(me.clone());
        }
    }

    fn send_to(&mut self, to: NodeId, message: &[u8]) {
        self.datagrams.push((to.peer_address, [&self.envelope, message].concat()));
    }

    fn submit_after(&mut self, timer: Timer<NodeId>, after: Duration) {
        self.timers.push((timer, after));
    }
}
