//! The membership protocol as a plain state machine. It reads no clock, draws
//! no random numbers but from its seed, and sends nothing itself: the caller
//! hands in datagrams and the time, and takes out what to send and what
//! happened.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
    net::SocketAddr,
    num::{NonZeroU8, NonZeroUsize},
    sync::Arc,
    time::Duration,
};

use foca::{Codec, Foca, Header, Identity, Message, Notification, PeriodicParams, State, Timer};
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

use super::{
    MemberInfo, MemberState, NodeId, Refused, Timing,
    wire::{self, ENVELOPE, MAX_MESSAGE, Wire},
};

/// The same for the news that this node leaves, which it alone tells.
const LAST_TRANSMISSIONS: NonZeroU8 = NonZeroU8::MAX;
/// How many addresses one round of announcements goes to.
const ANNOUNCEMENTS: usize = 32;
/// How many of the dead a node that has nobody else tries at once.
const LOST_TRIED: usize = 8;
/// The least time between two rounds of announcements.
const MIN_ROUND: Duration = Duration::from_millis(100);
/// With `n` others a node probes each in turn, and none comes later than the `2n - 1`st after its last time (first of
/// one round, last of the next). With few others the turns may come more seldom for each to be probed as often as with
/// four, where it is this many periods at most.
const TURNS: u32 = 7;
/// With one or two others a turn takes as long as this part of [`TURNS`].
const FEWEST_TURNS: u32 = 3;

/// What happened to the cluster. Each process that is listed has come once, and is told gone once when it is listed no
/// more: of those listed at each moment and those that came and did not go, the origins are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A node came.
    Joined(NodeId),
    /// A node said goodbye.
    Left(NodeId),
    /// A node died, or was replaced by a later life of itself.
    Failed(NodeId),
    /// This node was declared dead by others and has come back.
    Renewed(NodeId),
}

/// What the caller has to do.
#[derive(Debug)]
pub enum Output {
    /// Send this datagram.
    Send(SocketAddr, Vec<u8>),
    /// Take note.
    Event(Event),
    /// The other members, eldest first, as they are now.
    Members(Arc<Vec<MemberInfo>>),
    /// The protocol met something that it calls impossible, and went on.
    Fault(foca::Error),
}

type Protocol = Foca<NodeId, Wire, Xoshiro256PlusPlus, foca::NoCustomBroadcast>;

/// One node's part in the membership protocol.
pub struct Swim {
    foca: Protocol,
    config: foca::Config,
    timing: Timing,
    envelope: [u8; ENVELOPE],
    timers: BinaryHeap<Reverse<Due>>,
    timers_set: u64,
    outputs: VecDeque<Output>,
    /// The members as last told, by address.
    members: BTreeMap<SocketAddr, MemberInfo>,
    /// Where discovery says that peers may be.
    addresses: Vec<SocketAddr>,
    /// Where in `addresses` the next round begins.
    turn: usize,
    last_round: Option<Duration>,
    next_round: Duration,
    /// Whether an answer to a probe came since the last turn began.
    answered: bool,
    /// Whether this turn takes longer than a period.
    rests: bool,
    left: bool,
}

impl Swim {
    /// A node that knows nobody. Times are since any one moment that the
    /// caller chooses, and never fall.
    pub fn new(me: NodeId, cluster: &str, timing: Timing, seed: u64) -> Self {
        let config = config(timing);
        let wire = Wire { me: me.peer_address };
        Self {
            foca: Foca::new(me, config.clone(), Xoshiro256PlusPlus::seed_from_u64(seed), wire),
            config,
            timing,
            envelope: wire::envelope(cluster, wire::VERSION),
            timers: BinaryHeap::new(),
            timers_set: 0,
            outputs: VecDeque::new(),
            members: BTreeMap::new(),
            addresses: Vec::new(),
            turn: 0,
            last_round: None,
            next_round: Duration::ZERO,
            answered: false,
            rests: false,
            left: false,
        }
    }

    /// The same, in another version of the protocol: for tests of what its peers make of it.
    #[must_use]
    pub fn speaking(mut self, version: u8, cluster: &str) -> Self {
        self.envelope = wire::envelope(cluster, version);
        self
    }

    /// This node, in its present generation.
    pub fn me(&self) -> &NodeId {
        self.foca.identity()
    }

    /// The other members, eldest first.
    pub fn members(&self) -> Vec<MemberInfo> {
        let mut members: Vec<_> = self.members.values().cloned().collect();
        members.sort_by_key(|member| member.id.seniority());
        members
    }

    /// What to do next; ask until there is nothing.
    pub fn output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`tick`](Self::tick) has to be called next.
    pub fn deadline(&self) -> Duration {
        self.timers.peek().map_or(self.next_round, |Reverse(due)| due.at.min(self.next_round))
    }

    /// A datagram came.
    pub fn datagram(&mut self, now: Duration, datagram: &[u8]) -> Result<(), Refused> {
        let message = wire::open(datagram, &self.envelope)?;
        if self.left {
            return Ok(());
        }
        match self.drive(now, |foca, outbox| foca.handle_data(message, outbox)) {
            Ok(()) => {
                self.answered = self.answered || self.is_answer(message);
                Ok(())
            }
            Err(foca::Error::DataFromOurselves) => self.own_or_impostor(message),
            Err(error) => Err(Refused::Malformed(error)),
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Duration) {
        while let Some(Reverse(due)) = self.timers.peek()
            && due.at <= now
        {
            let Some(Reverse(Due { at, timer, .. })) = self.timers.pop() else { break };
            if self.was_refuted(&timer) {
                continue;
            }
            if matches!(timer, Timer::ProbeRandomMember(_)) {
                // After an answer the next probe may wait. A probe without one ends with its period.
                let rest = if self.answered && !self.rests { self.rest() } else { Duration::ZERO };
                self.rests = rest > Duration::ZERO;
                if self.rests {
                    self.set(at + rest, timer);
                    continue;
                }
                self.answered = false;
            }
            self.attempt(now, |foca, outbox| foca.handle_timer(timer, outbox));
        }
        if now >= self.next_round {
            self.announce(now);
        }
    }

    /// Discovery says that peers may be at these addresses. The node's own may
    /// be among them.
    pub fn look_at(&mut self, now: Duration, addresses: impl IntoIterator<Item = SocketAddr>) {
        let me = self.me().peer_address;
        let addresses: BTreeSet<_> = addresses.into_iter().filter(|address| *address != me).collect();
        if !addresses.iter().eq(&self.addresses) {
            self.addresses = addresses.into_iter().collect();
            self.round_soon(now);
        }
    }

    /// This node begins another life, as the process `origin`: to the others
    /// the old one has ended and a new one has joined. Returns whether it did.
    pub fn begin_anew(&mut self, now: Duration, origin: u64, started_ms: u64) -> bool {
        if self.left || origin == self.me().origin {
            return false;
        }
        // Of the two at one address the later start wins.
        let started_ms = started_ms.max(self.me().started_ms.saturating_add(1));
        let anew = NodeId { origin, started_ms, ..self.me().clone() };
        self.attempt(now, |foca, outbox| foca.change_identity(anew, outbox));
        self.round_soon(now);
        true
    }

    /// Says goodbye to everyone. Only [`farewell`](Self::farewell) may follow.
    pub fn leave(&mut self, now: Duration) {
        if self.left {
            return;
        }
        // The protocol itself would tell three members, and leave it to them
        // to pass it on; but nothing is more use to the others than to know at once.
        self.config.num_indirect_probes = NonZeroUsize::new(self.foca.num_members()).unwrap_or(NonZeroUsize::MIN);
        self.config.max_transmissions = LAST_TRANSMISSIONS;
        if let Err(error) = self.foca.set_config(self.config.clone()) {
            self.outputs.push_back(Output::Fault(error));
        }
        let leaving = NodeId { leaving: true, ..self.me().clone() };
        self.attempt(now, |foca, outbox| foca.change_identity(leaving, outbox));
        self.attempt(now, |foca, outbox| foca.leave_cluster(outbox));
        self.left = true;
        self.timers.clear();
    }

    /// Says goodbye once more, as datagrams get lost.
    pub fn farewell(&mut self, now: Duration) {
        if self.left {
            self.attempt(now, |foca, outbox| foca.gossip(outbox));
        }
    }

    /// Tells this node's existence to every address that no member has; and
    /// when nobody is left, to some of those that were lost.
    fn announce(&mut self, now: Duration) {
        self.last_round = Some(now);
        self.next_round = now + self.timing.announce_period;
        if self.left {
            return;
        }
        let strangers = |address: &SocketAddr| !self.members.contains_key(address);
        let (before, after) = self.addresses.split_at(self.turn.min(self.addresses.len()));
        let mut targets: Vec<_> = after.iter().chain(before).copied().filter(strangers).take(ANNOUNCEMENTS).collect();
        self.turn = if targets.len() < ANNOUNCEMENTS {
            0
        } else {
            targets.last().and_then(|last| self.addresses.iter().position(|it| it == last)).map_or(0, |it| it + 1)
        };
        if self.members.is_empty() {
            let lost = self.foca.iter_membership_state().filter(|it| it.state() == State::Down && !it.id().leaving);
            targets.extend(lost.map(|it| it.id().peer_address).take(LOST_TRIED));
        }
        for address in targets {
            self.attempt(now, |foca, outbox| foca.announce(NodeId::somebody_at(address), outbox));
        }
    }

    /// Whether this is the end of a suspicion that has been refuted meanwhile.
    ///
    /// foca 2.0.0 then leaves the member alive, as it must, but still tells the
    /// member itself that it was declared dead; which makes it come back as a
    /// new generation, for no reason. So such a timer is not handed over.
    fn was_refuted(&self, timer: &Timer<NodeId>) -> bool {
        let Timer::ChangeSuspectToDown { member_id, incarnation, .. } = timer else { return false };
        !self.foca.iter_members().any(|member| {
            member.state() == State::Suspect && member.id() == member_id && member.incarnation() == *incarnation
        })
    }

    fn set(&mut self, at: Duration, timer: Timer<NodeId>) {
        self.timers_set += 1;
        self.timers.push(Reverse(Due { at, set: self.timers_set, timer }));
    }

    /// By how much a turn to probe takes longer than a period, see [`TURNS`].
    fn rest(&self) -> Duration {
        let others = u32::try_from(self.foca.num_members()).unwrap_or(u32::MAX);
        let latest = others.saturating_mul(2).saturating_sub(1).max(FEWEST_TURNS);
        (self.timing.probe_period * TURNS / latest).saturating_sub(self.timing.probe_period)
    }

    fn round_soon(&mut self, now: Duration) {
        let earliest = self.last_round.map_or(now, |last| now.max(last + MIN_ROUND));
        self.next_round = self.next_round.min(earliest);
    }

    /// Whether this node sent a datagram itself.
    pub fn is_own(&self, datagram: &[u8]) -> bool {
        wire::open(datagram, &self.envelope).is_ok_and(|message| self.own_or_impostor(message).is_ok())
    }

    /// Listing oneself in discovery is fine, and so is hearing oneself.
    fn own_or_impostor(&self, message: &[u8]) -> Result<(), Refused> {
        let own = self.header(message).is_some_and(|header| header.src.origin == self.me().origin);
        if own { Ok(()) } else { Err(Refused::Impostor) }
    }

    fn is_answer(&self, message: &[u8]) -> bool {
        let answers = |header: Header<NodeId>| matches!(header.message, Message::Ack(_) | Message::ForwardedAck { .. });
        self.header(message).is_some_and(answers)
    }

    fn header(&self, message: &[u8]) -> Option<Header<NodeId>> {
        Wire { me: self.me().peer_address }.decode_header(message).ok()
    }

    fn attempt(&mut self, now: Duration, step: impl FnOnce(&mut Protocol, &mut Outbox) -> Result<(), foca::Error>) {
        if let Err(error) = self.drive(now, step) {
            self.outputs.push_back(Output::Fault(error));
        }
    }

    /// Takes one step of the protocol, and collects what came of it.
    fn drive(
        &mut self,
        now: Duration,
        step: impl FnOnce(&mut Protocol, &mut Outbox) -> Result<(), foca::Error>,
    ) -> Result<(), foca::Error> {
        let mut outbox = Outbox { envelope: self.envelope, sends: Vec::new(), timers: Vec::new(), renewed: None };
        let before = (self.me().origin, self.me().generation);
        let mut result = step(&mut self.foca, &mut outbox);
        if (self.me().origin, self.me().generation) != before {
            // foca 2.0.0 probes nobody under a new identity until it hears of anyone. It may never.
            result = result.and_then(|()| self.foca.apply_many(std::iter::empty(), false, &mut outbox));
        }
        for (to, datagram) in outbox.sends {
            self.outputs.push_back(Output::Send(to, datagram));
        }
        for (timer, after) in outbox.timers {
            self.set(now + after, timer);
        }
        if let Some(me) = outbox.renewed {
            self.outputs.push_back(Output::Event(Event::Renewed(me)));
            // Whoever declared it dead must hear of the new generation.
            self.round_soon(now);
        }
        self.compare();
        self.bury_predecessors(now);
        result
    }

    /// Tells how the members differ from those last told.
    fn compare(&mut self) {
        let present = || self.foca.iter_members().filter(|member| !member.id().leaving);
        let same = |member: &foca::Member<NodeId>| {
            self.members
                .get(&member.id().peer_address)
                .is_some_and(|known| known.id == *member.id() && known.state == state(member))
        };
        if present().count() == self.members.len() && present().all(same) {
            return;
        }
        let now: BTreeMap<_, _> = present()
            .map(|member| (member.id().addr(), MemberInfo { id: member.id().clone(), state: state(member) }))
            .collect();
        let before = std::mem::replace(&mut self.members, now);
        // Who hears the events tells one process from another by its origin, and by no address: one that is listed at
        // two (of a datagram that got spoilt on its way, or was forged) has come when it is at the first, and is gone
        // when it is at neither.
        let (were, are) = (by_origin(&before), by_origin(&self.members));
        for (origin, id) in &were {
            if are.contains_key(origin) {
                continue;
            }
            let said_goodbye = self.foca.iter_membership_state().any(|it| it.id().leaving && it.id().origin == *origin);
            let event = if said_goodbye { Event::Left((*id).clone()) } else { Event::Failed((*id).clone()) };
            self.outputs.push_back(Output::Event(event));
        }
        for (origin, id) in &are {
            if !were.contains_key(origin) {
                self.outputs.push_back(Output::Event(Event::Joined((*id).clone())));
            }
        }
        self.outputs.push_back(Output::Members(Arc::new(self.members())));
    }

    /// A suspect whose name a later life has taken, at whatever address, is
    /// dead: there is nothing to wait for. (One that answers is left alone:
    /// then two nodes were given one name.)
    fn bury_predecessors(&mut self, now: Duration) {
        let dead: Vec<_> = self
            .members
            .values()
            .filter(|old| old.state == MemberState::Suspect)
            .filter(|old| self.members.values().any(|new| new.state == MemberState::Alive && new.id.succeeds(&old.id)))
            .map(|old| foca::Member::down(old.id.clone()))
            .collect();
        if !dead.is_empty() {
            self.attempt(now, |foca, outbox| foca.apply_many(dead.into_iter(), true, outbox));
        }
    }
}

fn by_origin(members: &BTreeMap<SocketAddr, MemberInfo>) -> BTreeMap<u64, &NodeId> {
    members.values().map(|member| (member.id.origin, &member.id)).collect()
}

fn state(member: &foca::Member<NodeId>) -> MemberState {
    match member.state() {
        State::Alive => MemberState::Alive,
        State::Suspect | State::Down => MemberState::Suspect,
    }
}

fn config(timing: Timing) -> foca::Config {
    let each = |frequency, num_members| Some(PeriodicParams { frequency, num_members });
    foca::Config {
        probe_period: timing.probe_period,
        probe_rtt: timing.probe_timeout,
        num_indirect_probes: timing.indirect_probes,
        max_transmissions: timing.transmissions,
        suspect_to_down_after: timing.suspicion,
        remove_down_after: Some(timing.forget_after),
        max_packet_size: MAX_MESSAGE,
        notify_down_members: true,
        periodic_announce: each(timing.exchange_period, NonZeroUsize::MIN),
        periodic_announce_to_down_members: each(timing.retry_period, NonZeroUsize::MIN),
        periodic_gossip: each(timing.gossip_period, timing.gossip_fanout),
    }
}

/// What one step of the protocol asks for.
struct Outbox {
    envelope: [u8; ENVELOPE],
    sends: Vec<(SocketAddr, Vec<u8>)>,
    timers: Vec<(Timer<NodeId>, Duration)>,
    renewed: Option<NodeId>,
}

impl foca::Runtime<NodeId> for Outbox {
    fn notify(&mut self, notification: Notification<'_, NodeId>) {
        // Members that come and go are seen by comparing, which also sees suspicion.
        if let Notification::Rejoin(me) = notification {
            self.renewed = Some(me.clone());
        }
    }

    fn send_to(&mut self, to: NodeId, message: &[u8]) {
        self.sends.push((to.peer_address, [&self.envelope, message].concat()));
    }

    fn submit_after(&mut self, timer: Timer<NodeId>, after: Duration) {
        self.timers.push((timer, after));
    }
}

/// A timer of the protocol. Of two at one time, that set first comes first.
struct Due {
    at: Duration,
    set: u64,
    timer: Timer<NodeId>,
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.set).cmp(&(other.at, other.set))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Role;

    fn swim(name: &str, origin: u64, address: SocketAddr) -> Swim {
        Swim::new(NodeId::new(name, origin, Role::Member, address, origin), "test", Timing::LAN, origin)
    }

    /// Hands datagrams to and fro until all is said, and returns what happened as the first of them sees it.
    fn talk(nodes: &mut [Swim], now: Duration) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let mut sent = Vec::new();
            for (at, node) in nodes.iter_mut().enumerate() {
                while let Some(output) = node.output() {
                    match output {
                        Output::Send(to, datagram) => sent.push((to, datagram)),
                        Output::Event(event) if at == 0 => events.push(event),
                        Output::Event(_) | Output::Members(_) => {}
                        Output::Fault(error) => panic!("{error}"),
                    }
                }
            }
            if sent.is_empty() {
                return events;
            }
            for (to, datagram) in sent {
                if let Some(node) = nodes.iter_mut().find(|node| node.me().peer_address == to) {
                    node.datagram(now, &datagram).unwrap();
                }
            }
        }
    }

    /// Lets time pass for all of them.
    fn pass(nodes: &mut [Swim], now: &mut Duration, time: Duration) -> Vec<Event> {
        let end = *now + time;
        let mut events = Vec::new();
        while *now < end {
            *now += Duration::from_millis(10);
            for node in &mut *nodes {
                node.tick(*now);
            }
            events.extend(talk(nodes, *now));
        }
        events
    }

    /// A node that lists one other process, at two addresses: one of them comes of a bit that fell over.
    fn with_one_at_two_addresses() -> ([Swim; 3], Duration) {
        let [a, b, spoilt] = [[10, 0, 0, 1], [10, 0, 0, 2], [10, 0, 0, 3]].map(|ip| SocketAddr::from((ip, 7071)));
        let mut nodes = [swim("a", 1, a), swim("b", 2, b), swim("b", 2, spoilt)];
        let mut now = Duration::ZERO;
        nodes[1].look_at(now, [a]);
        nodes[2].look_at(now, [a]);
        let events = pass(&mut nodes, &mut now, Duration::from_secs(1));
        assert!(matches!(&events[..], [Event::Joined(id)] if id.origin == 2), "{events:?}");
        assert_eq!(nodes[0].members().len(), 2);
        (nodes, now)
    }

    #[test]
    fn a_process_that_is_listed_still_is_not_told_gone() {
        let ([a, b, _], mut now) = with_one_at_two_addresses();
        let mut nodes = [a, b];
        let events = pass(&mut nodes, &mut now, Duration::from_secs(10));
        assert_eq!(events, [], "there never was anybody else");
        let members = nodes[0].members();
        assert!(matches!(&members[..], [member] if member.id == *nodes[1].me()), "{members:?}");
        nodes[1].leave(now);
        let events = talk(&mut nodes, now);
        assert!(matches!(&events[..], [Event::Left(id)] if id.origin == 2), "{events:?}");
    }

    #[test]
    fn a_process_at_two_addresses_goes_once_and_by_its_goodbye() {
        let (mut nodes, mut now) = with_one_at_two_addresses();
        nodes[1].leave(now);
        assert_eq!(talk(&mut nodes, now), [], "the other address is listed still");
        let [a, ..] = nodes;
        let mut nodes = [a];
        let events = pass(&mut nodes, &mut now, Duration::from_secs(10));
        assert!(matches!(&events[..], [Event::Left(id)] if id.origin == 2), "{events:?}");
        assert_eq!(nodes[0].members(), []);
    }
}
