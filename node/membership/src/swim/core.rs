//! Runs foca one step at a time, and keeps what follows from its steps. Judges no datagrams.

use std::{collections::VecDeque, iter, net::SocketAddr, num::NonZeroUsize, sync::Arc, time::Duration};

use foca::{Message, State, Timer};
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

use super::{
    announcements::Announcements,
    events::{Event, Output},
    members::Members,
    protocol::{Outbox, Protocol, config},
    timers::Timers,
};
use crate::{
    NodeId, Timing,
    wire::{self, ENVELOPE, Wire},
};

/// foca with its timers and this node's view of the cluster.
pub(super) struct Core {
    foca: Protocol,
    config: foca::Config,
    envelope: [u8; ENVELOPE],
    /// foca's incarnation of this node, which foca does not expose.
    pub(super) incarnation: foca::Incarnation,
    pub(super) timers: Timers,
    pub(super) members: Members,
    pub(super) announcements: Announcements,
    outputs: VecDeque<Output>,
}

impl Core {
    pub(super) fn new(me: NodeId, envelope: [u8; ENVELOPE], timing: Timing, seed: u64) -> Self {
        let config = config(timing);
        let wire = Wire { me: me.peer_address };
        Self {
            foca: Protocol::new(me, config.clone(), Xoshiro256PlusPlus::seed_from_u64(seed), wire),
            config,
            envelope,
            incarnation: 0,
            timers: Timers::default(),
            members: Members::default(),
            announcements: Announcements::new(timing.announce_period),
            outputs: VecDeque::new(),
        }
    }

    pub(super) fn me(&self) -> &NodeId {
        self.foca.identity()
    }

    pub(super) fn wire(&self) -> Wire {
        Wire { me: self.me().peer_address }
    }

    pub(super) const fn envelope(&self) -> &[u8; ENVELOPE] {
        &self.envelope
    }

    /// All nodes that foca knows, dead ones included.
    pub(super) fn known(&self) -> impl ExactSizeIterator<Item = &foca::Member<NodeId>> {
        self.foca.iter_membership_state()
    }

    /// The nodes that foca takes for alive or suspects.
    pub(super) fn active(&self) -> impl Iterator<Item = &foca::Member<NodeId>> {
        self.foca.iter_members()
    }

    pub(super) fn active_count(&self) -> usize {
        self.foca.num_members()
    }

    pub(super) fn pop_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(super) fn report(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    /// Sends a message that foca did not ask for.
    pub(super) fn send(&mut self, to: &NodeId, message: Message<NodeId>, updates: &[foca::Member<NodeId>]) {
        match wire::encode(&mut self.wire(), self.me(), to, message, updates) {
            Ok(message) => {
                let datagram = [&self.envelope[..], &message].concat();
                self.outputs.push_back(Output::Send(to.peer_address, datagram));
            }
            Err(error) => self.outputs.push_back(Output::Fault(foca::Error::Encode(error.into()))),
        }
    }

    /// Forgets dead nodes before their time.
    pub(super) fn forget(&mut self, now: Duration, dead: Vec<NodeId>) {
        for id in dead {
            self.attempt(now, |foca, outbox| foca.handle_timer(Timer::RemoveDown(id), outbox));
        }
    }

    /// Sends the next broadcasts to all members at once, `transmissions` times.
    pub(super) fn widen_broadcasts(&mut self, transmissions: std::num::NonZeroU8) {
        self.config.num_indirect_probes = NonZeroUsize::new(self.active_count()).unwrap_or(NonZeroUsize::MIN);
        self.config.max_transmissions = transmissions;
        if let Err(error) = self.foca.set_config(self.config.clone()) {
            self.outputs.push_back(Output::Fault(error));
        }
    }

    /// Takes a step that is not expected to fail.
    pub(super) fn attempt(
        &mut self,
        now: Duration,
        step: impl FnOnce(&mut Protocol, &mut Outbox) -> Result<(), foca::Error>,
    ) {
        if let Err(error) = self.drive(now, step) {
            self.outputs.push_back(Output::Fault(error));
        }
    }

    /// Takes one step of foca and collects its results.
    pub(super) fn drive(
        &mut self,
        now: Duration,
        step: impl FnOnce(&mut Protocol, &mut Outbox) -> Result<(), foca::Error>,
    ) -> Result<(), foca::Error> {
        let mut outbox = Outbox::new(self.envelope);
        let before = (self.me().origin, self.me().generation);
        let mut result = step(&mut self.foca, &mut outbox);
        if (self.me().origin, self.me().generation) != before {
            self.incarnation = 0;
            // Under a new identity foca 2.0.0 does not probe before it hears of a member, which may never happen.
            result = result.and_then(|()| self.foca.apply_many(iter::empty(), false, &mut outbox));
        }
        self.outputs.extend(outbox.datagrams.into_iter().map(|(to, datagram)| Output::Send(to, datagram)));
        for (timer, after) in outbox.timers {
            self.timers.set(now + after, timer);
        }
        if let Some(me) = outbox.renewed {
            self.report(Event::Renewed(me));
            // The nodes that declared this one dead must hear of its new generation.
            self.announcements.hasten(now);
        }
        self.follow_members(now);
        result
    }

    fn follow_members(&mut self, now: Duration) {
        if let Some(events) = self.members.update(&self.foca) {
            self.outputs.extend(events.into_iter().map(Output::Event));
            self.outputs.push_back(Output::Members(Arc::new(self.members.by_seniority())));
        }
        let dead: Vec<_> = self.members.replaced().into_iter().map(foca::Member::down).collect();
        if !dead.is_empty() {
            self.attempt(now, |foca, outbox| foca.apply_many(dead.into_iter(), true, outbox));
        }
    }

    /// The record of the node at this address, dead or alive.
    pub(super) fn at(&self, address: SocketAddr) -> Option<&foca::Member<NodeId>> {
        self.known().find(|it| it.id().peer_address == address)
    }

    pub(super) fn dead(&self) -> impl Iterator<Item = &NodeId> {
        self.known().filter(|it| it.state() == State::Down).map(foca::Member::id)
    }
}
