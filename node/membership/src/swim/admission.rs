//! Which datagrams, and which of their updates, reach foca; and what this node answers on its own. A datagram's sender is
//! not authenticated here, so a forged one must neither displace a member nor cause a flood.

use std::{net::SocketAddr, time::Duration};

use foca::{Identity, Message, State};

use super::core::Core;
use crate::{
    NodeId, Refused, Timing,
    limits::{Answers, Bucket, LIST_COST, PROBE_COST, REFUTATION_BURST, REFUTATION_RATE, RENEWAL_BURST},
    wire::{MAX_KNOWN, Parsed},
};

/// How far this node trusts and reacts to datagrams.
pub(super) struct Admission {
    max_skew_ms: u64,
    answers: Answers,
    /// New identities of this node.
    renewals: Bucket,
    /// Answers to suspicion.
    refutations: Bucket,
}

/// What is left of a datagram after the checks.
pub(super) struct Admitted {
    /// A node that would win this node's address, according to the datagram.
    pub(super) rival: Option<NodeId>,
    /// Why the sender is no member: it is dead, or this other node has its address.
    pub(super) sender_lost_to: Option<NodeId>,
    /// Whether updates were removed.
    pub(super) filtered: bool,
}

impl Admission {
    pub(super) fn new(timing: Timing, max_clock_skew: Duration) -> Self {
        Self {
            max_skew_ms: u64::try_from(max_clock_skew.as_millis()).unwrap_or(u64::MAX),
            answers: Answers::new(timing.probe_period),
            renewals: Bucket::new(timing.suspicion, RENEWAL_BURST),
            refutations: Bucket::new(timing.probe_period / REFUTATION_RATE, REFUTATION_BURST),
        }
    }

    /// The latest start that this node believes.
    const fn latest_ms(&self, wall_ms: u64) -> u64 {
        wall_ms.saturating_add(self.max_skew_ms)
    }

    /// Whether this node may take a new identity now.
    pub(super) fn may_renew(&mut self, now: Duration) -> bool {
        self.renewals.take(now, 1)
    }

    /// Checks who sent a datagram and about which nodes. Returns `false` for a datagram that is harmless and useless.
    pub(super) fn check_sender(&self, core: &Core, wall_ms: u64, parsed: &Parsed<'_>) -> Result<bool, Refused> {
        let (me, sender) = (core.me(), &parsed.header.src);
        if sender.peer_address == me.peer_address {
            // Discovery may list this node itself, so it may hear itself.
            return if sender.origin == me.origin { Ok(false) } else { Err(Refused::Impostor) };
        }
        if sender.origin == me.origin {
            return Err(Refused::Origin { name: sender.name.clone(), address: sender.peer_address });
        }
        let latest_ms = self.latest_ms(wall_ms);
        for id in [Some(sender), parsed.third_node()].into_iter().flatten() {
            if let Some(ahead_ms) = id.ahead_of(latest_ms) {
                let (ahead_ms, limit_ms) = (ahead_ms.saturating_add(self.max_skew_ms), self.max_skew_ms);
                return Err(Refused::Ahead { name: id.name.clone(), address: id.peer_address, ahead_ms, limit_ms });
            }
        }
        // An announcement is for any node at this address; any other message is only for the identity to which it is addressed.
        Ok(parsed.header.dst == *me || parsed.header.message == Message::Announce)
    }

    /// Checks a datagram whose sender passed. Removes the updates that this node does not believe or has no tokens for.
    pub(super) fn admit(
        &mut self,
        core: &mut Core,
        now: Duration,
        wall_ms: u64,
        parsed: &mut Parsed<'_>,
    ) -> Result<Admitted, Refused> {
        if !has_room(core, now, parsed.header.src.peer_address) {
            return Err(Refused::Full);
        }
        let updates = parsed.updates.len();
        let rival = self.filter_updates(core, now, self.latest_ms(wall_ms), parsed);
        let filtered = parsed.updates.len() < updates;
        if parsed.header.message == Message::TurnUndead {
            if !self.may_renew(now) {
                return Err(Refused::TooMany);
            }
            if rival.is_some() {
                return Ok(Admitted { rival, sender_lost_to: None, filtered });
            }
        }
        let sender_lost_to = lost_to(core, &parsed.header.src);
        if sender_lost_to.is_none() {
            let cost = answer_cost(&parsed.header.message);
            if !self.answers.take(now, parsed.header.src.peer_address, cost) {
                return Err(Refused::TooMany);
            }
        }
        Ok(Admitted { rival, sender_lost_to, filtered })
    }

    /// Returns the strongest identity that is claimed to have this node's address and would win it.
    ///
    /// Updates are removed one by one: a node whose clock was wrong may keep gossiping what it believed then, and the
    /// rest of its messages must still be heard.
    fn filter_updates(
        &mut self,
        core: &mut Core,
        now: Duration,
        latest_ms: u64,
        parsed: &mut Parsed<'_>,
    ) -> Option<NodeId> {
        let me = core.me().clone();
        let mut rival: Option<NodeId> = None;
        parsed.updates.retain(|(update, _)| {
            let id = update.id();
            if *id == me {
                return self.reacts_to(core, now, update);
            }
            if id.ahead_of(latest_ms).is_some() {
                return false;
            }
            if id.peer_address == me.peer_address {
                if id.win_addr_conflict(rival.as_ref().unwrap_or(&me)) {
                    rival = Some(id.clone());
                }
                return true;
            }
            id.origin != me.origin && has_room(core, now, id.peer_address)
        });
        rival
    }

    /// Whether foca gets an update about this node itself, to which it reacts: by refuting a suspicion, or by renewing.
    fn reacts_to(&mut self, core: &mut Core, now: Duration, update: &foca::Member<NodeId>) -> bool {
        let incarnation = update.incarnation().max(core.incarnation);
        match update.state() {
            State::Alive => true,
            State::Suspect if incarnation < foca::Incarnation::MAX => {
                let is_fresh = update.incarnation() >= core.incarnation;
                let reacts = self.refutations.take(now, if is_fresh { PROBE_COST } else { LIST_COST });
                if is_fresh && reacts {
                    core.incarnation = incarnation + 1;
                }
                reacts
            }
            State::Suspect | State::Down => self.may_renew(now),
        }
    }

    /// Tells a node that it is not a member here, and which node has its address if it is another one.
    pub(super) fn turn_undead(&mut self, core: &mut Core, now: Duration, to: &NodeId, lost_to: &NodeId) {
        if self.answers.take(now, to.peer_address, LIST_COST) {
            // The message itself says that its receiver is dead.
            let winner = (lost_to != to).then(|| foca::Member::alive(lost_to.clone()));
            core.send(to, Message::TurnUndead, winner.as_slice());
        }
    }

    /// Tells a node of another cluster, which looks for members at this address, that this is another cluster. The answer
    /// asks for no answer.
    pub(super) fn answer_other_cluster(&mut self, core: &mut Core, now: Duration, wall_ms: u64, message: &[u8]) {
        let Some(parsed) = Parsed::read(&mut core.wire(), message) else { return };
        let foca::Header { src, message, .. } = parsed.header;
        if message == Message::Announce
            && src.peer_address != core.me().peer_address
            && src.ahead_of(self.latest_ms(wall_ms)).is_none()
            && self.answers.take(now, src.peer_address, LIST_COST)
        {
            core.send(&src, Message::Gossip, &[]);
        }
    }

    /// Corrects what this node accepted while its clock was wrong: its own start, or another node's, that is too far
    /// ahead now that the clock is right.
    pub(super) fn recheck_starts(&mut self, core: &mut Core, now: Duration, wall_ms: u64) {
        let latest_ms = self.latest_ms(wall_ms);
        if core.me().ahead_of(latest_ms).is_some() && self.may_renew(now) {
            let me = core.me();
            let generation = me.generation.wrapping_add(1);
            let next = NodeId { started_ms: wall_ms, generation, ..me.clone() };
            core.renew_as(now, next);
        }
        let known = core.known().map(foca::Member::id);
        let ahead: Vec<_> = known.filter(|id| id.ahead_of(latest_ms).is_some()).cloned().collect();
        if !ahead.is_empty() {
            let dead: Vec<_> = ahead.iter().cloned().map(foca::Member::down).collect();
            core.attempt(now, |foca, outbox| foca.apply_many(dead.into_iter(), false, outbox));
            core.forget(now, ahead);
        }
    }
}

/// What foca's answer to a message costs.
const fn answer_cost(message: &Message<NodeId>) -> u32 {
    match message {
        Message::Announce => LIST_COST,
        Message::Ping(_) | Message::PingReq { .. } | Message::IndirectPing { .. } | Message::IndirectAck { .. } => {
            PROBE_COST
        }
        Message::Ack(_)
        | Message::ForwardedAck { .. }
        | Message::Feed
        | Message::Gossip
        | Message::Broadcast
        | Message::TurnUndead => 0,
    }
}

/// Why a node is no member: it is dead itself, or another node has its address. None for a member or an unknown node.
pub(super) fn lost_to(core: &Core, node: &NodeId) -> Option<NodeId> {
    let held = core.at(node.peer_address)?;
    let is_lost = if held.id() == node { held.state() == State::Down } else { held.id().win_addr_conflict(node) };
    is_lost.then(|| held.id().clone())
}

/// Whether a node at this address may be known. If too many nodes are known, the dead are forgotten.
fn has_room(core: &mut Core, now: Duration, address: SocketAddr) -> bool {
    if core.known().len() < MAX_KNOWN || core.at(address).is_some() {
        return true;
    }
    let dead: Vec<_> = core.dead().cloned().collect();
    core.forget(now, dead);
    core.known().len() < MAX_KNOWN
}
