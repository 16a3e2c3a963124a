//! The membership protocol as a state machine. It reads no clock, draws random numbers only from its seed, and sends
//! nothing itself: the caller passes in datagrams and the time, and takes out what to send and what happened.
//!
//! The parts, each of which uses only parts before it: `events`; `timers`, `pacing`, `announcements`, `protocol` (foca as
//! configured here); `members`; `core` (one step of foca); `identity`; `admission` (what reaches foca); and [`Swim`].

mod admission;
mod announcements;
mod core;
mod events;
mod identity;
mod members;
mod pacing;
mod protocol;
#[cfg(test)]
mod tests;
mod timers;

use std::{net::SocketAddr, time::Duration};

use foca::{Message, State, Timer};

pub use self::events::{Event, Output};
use self::{
    admission::{Admission, lost_to},
    core::Core,
    pacing::Pacing,
};
use crate::{
    MemberInfo, NodeId, Refused, Timing,
    wire::{self, ENVELOPE, Parsed},
};

/// How many dead nodes a node without members announces itself to at once.
const DEAD_TRIED: usize = 8;

/// One node's part in the membership protocol.
///
/// All times are durations since a moment that the caller chooses, and never decrease. The wall clock is independent of
/// them: `wall_ms` is in milliseconds since 1970.
pub struct Swim {
    core: Core,
    admission: Admission,
    pacing: Pacing,
    left: bool,
}

impl Swim {
    /// A node that knows no other nodes, in the cluster of this [envelope](wire::envelope). Nodes whose start is further
    /// ahead of the wall clock than `max_clock_skew` are refused. `seed` determines all random choices.
    pub fn new(me: NodeId, envelope: [u8; ENVELOPE], timing: Timing, max_clock_skew: Duration, seed: u64) -> Self {
        Self {
            core: Core::new(me, envelope, timing, seed),
            admission: Admission::new(timing, max_clock_skew),
            pacing: Pacing::new(timing.probe_period),
            left: false,
        }
    }

    /// This node, in its present generation.
    pub fn me(&self) -> &NodeId {
        self.core.me()
    }

    /// The other members, eldest first.
    pub fn members(&self) -> Vec<MemberInfo> {
        self.core.members.by_seniority()
    }

    /// What to do next. Call it until it returns none.
    pub fn output(&mut self) -> Option<Output> {
        self.core.pop_output()
    }

    /// When to call [`tick`](Self::tick) next.
    pub fn deadline(&self) -> Duration {
        let next_round = self.core.announcements.next_round();
        self.core.timers.next().map_or(next_round, |at| at.min(next_round))
    }

    /// Sets the addresses at which discovery finds peers. This node's own may be among them.
    pub fn set_addresses(&mut self, now: Duration, addresses: impl IntoIterator<Item = SocketAddr>) {
        let me = self.me().peer_address;
        let others = addresses.into_iter().filter(|address| *address != me).collect();
        if self.core.announcements.set_addresses(others) {
            self.core.announcements.hasten(now);
        }
    }

    /// Takes in a datagram.
    pub fn datagram(&mut self, now: Duration, wall_ms: u64, datagram: &[u8]) -> Result<(), Refused> {
        let message = match wire::open(datagram, self.core.envelope()) {
            Ok(message) => message,
            Err(refused) => {
                if matches!(refused, Refused::Cluster | Refused::OtherUid) && !self.left {
                    self.admission.answer_other_cluster(&mut self.core, now, wall_ms, &datagram[ENVELOPE..]);
                }
                return Err(refused);
            }
        };
        if self.left {
            return Ok(());
        }
        let Some(parsed) = Parsed::read(&mut self.core.wire(), message) else {
            // foca reports what is wrong with the message.
            return self.core.drive(now, |foca, outbox| foca.handle_data(message, outbox)).map_err(Refused::Malformed);
        };
        if self.admission.check_sender(&self.core, wall_ms, &parsed)? {
            self.receive(now, wall_ms, message, parsed)
        } else {
            Ok(())
        }
    }

    fn receive(&mut self, now: Duration, wall_ms: u64, message: &[u8], mut parsed: Parsed<'_>) -> Result<(), Refused> {
        let admitted = self.admission.admit(&mut self.core, now, wall_ms, &mut parsed)?;
        if let (Message::TurnUndead, Some(rival)) = (&parsed.header.message, &admitted.rival) {
            // foca would renew this node as well, but one new identity is enough.
            self.core.outrank(now, rival);
            return Ok(());
        }
        let filtered = admitted.filtered.then(|| parsed.write());
        let message = filtered.as_deref().unwrap_or(message);
        self.core.drive(now, |foca, outbox| foca.handle_data(message, outbox)).map_err(Refused::Malformed)?;
        if matches!(parsed.header.message, Message::Ack(_) | Message::ForwardedAck { .. }) {
            self.pacing.probe_answered();
        }
        if let Some(winner) = admitted.sender_lost_to {
            self.admission.turn_undead(&mut self.core, now, &parsed.header.src, &winner);
        }
        if let Some(rival) = admitted.rival
            && self.admission.may_renew(now)
        {
            self.core.outrank(now, &rival);
        }
        Ok(())
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Duration, wall_ms: u64) {
        while let Some((at, timer)) = self.core.timers.pop_due(now) {
            self.fire(now, at, timer);
        }
        if now >= self.core.announcements.next_round() {
            self.admission.recheck_starts(&mut self.core, now, wall_ms);
            self.announce(now);
        }
    }

    fn fire(&mut self, now: Duration, at: Duration, timer: Timer<NodeId>) {
        if self.was_refuted(&timer) {
            return;
        }
        if matches!(timer, Timer::ProbeRandomMember(_))
            && let Some(extra) = self.pacing.extend(self.core.active_count())
        {
            self.core.timers.set(at + extra, timer);
            return;
        }
        let suspect = match &timer {
            Timer::ChangeSuspectToDown { member_id, .. } => Some(member_id.clone()),
            _ => None,
        };
        self.core.attempt(now, |foca, outbox| foca.handle_timer(timer, outbox));
        // A node that was declared dead but is alive can only rejoin if it hears of that.
        if let Some(dead) = suspect
            && lost_to(&self.core, &dead).is_some()
        {
            self.admission.turn_undead(&mut self.core, now, &dead, &dead);
        }
    }

    /// Whether this timer ends a suspicion that was refuted in the meantime.
    ///
    /// For such a timer foca 2.0.0 leaves the member alive, as it must, but still tells the member that it was declared
    /// dead, and the member then takes a new generation for no reason. So foca does not get such timers.
    fn was_refuted(&self, timer: &Timer<NodeId>) -> bool {
        let Timer::ChangeSuspectToDown { member_id, incarnation, .. } = timer else { return false };
        !self.core.active().any(|member| {
            member.state() == State::Suspect && member.id() == member_id && member.incarnation() == *incarnation
        })
    }

    /// Announces this node to addresses that no member has; without any member, also to nodes that failed.
    fn announce(&mut self, now: Duration) {
        let Core { announcements, members, .. } = &mut self.core;
        let mut targets = announcements.begin(now, |address| members.is_at(address));
        if self.left {
            return;
        }
        if self.core.members.is_empty() {
            let failed = self.core.dead().filter(|id| !id.leaving);
            targets.extend(failed.map(|id| id.peer_address).take(DEAD_TRIED));
        }
        for address in targets {
            self.core.attempt(now, |foca, outbox| foca.announce(NodeId::unknown_at(address), outbox));
        }
    }

    /// This node becomes the process `origin`: the other nodes see its former process fail and the new one join. Returns
    /// `false` if it is that process already, or has left.
    pub fn reset(&mut self, now: Duration, origin: u64, started_ms: u64) -> bool {
        let may_reset = !self.left && origin != self.me().origin;
        if may_reset {
            self.core.reset(now, origin, started_ms);
        }
        may_reset
    }

    /// Leaves, and tells all members at once. Afterwards only [`farewell`](Self::farewell) has an effect.
    pub fn leave(&mut self, now: Duration) {
        if !self.left {
            self.core.leave(now);
            self.left = true;
        }
    }

    /// Says once more that this node leaves, because datagrams get lost.
    pub fn farewell(&mut self, now: Duration) {
        if self.left {
            self.core.attempt(now, |foca, outbox| foca.gossip(outbox));
        }
    }

    /// Whether this node sent the datagram itself.
    pub fn is_own(&self, datagram: &[u8]) -> bool {
        let message = wire::open(datagram, self.core.envelope()).ok();
        let parsed = message.and_then(|message| Parsed::read(&mut self.core.wire(), message));
        parsed.is_some_and(|parsed| parsed.header.src.origin == self.me().origin)
    }
}
