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

use foca::{Foca, Header, Identity, Message, Notification, PeriodicParams, State, Timer};
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

use super::{
    MemberInfo, MemberState, NodeId, Refused, Timing,
    limits::{Answers, Bucket, PROBE_COST, RENEWAL_BURST, TALK_COST},
    wire::{self, ENVELOPE, Letter, MAX_KNOWN, MAX_MESSAGE, Wire},
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
/// From so many timers on, no more are set to forget the dead: what forged deaths can make this node keep.
const MAX_TIMERS: usize = 4 * MAX_KNOWN;
/// How many times at once, after a pause, this node may say that it is alive although others suspect it.
const REFUTATION_BURST: u32 = 64;
/// And in each probe period, in the long run.
const REFUTATION_RATE: u32 = 4;
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
    max_skew_ms: u64,
    /// The protocol's incarnation of this node, which it keeps to itself.
    incarnation: foca::Incarnation,
    answers: Answers,
    /// New identities of this node.
    renewals: Bucket,
    /// Answers to suspicion.
    refutations: Bucket,
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
    /// A node that knows nobody, in the cluster of this [envelope](wire::envelope). Times are since any
    /// one moment that the caller chooses, and never fall; the wall clock is apart from them. A node
    /// that says it started further ahead of the wall clock than `max_clock_skew` is refused.
    pub fn new(me: NodeId, envelope: [u8; ENVELOPE], timing: Timing, max_clock_skew: Duration, seed: u64) -> Self {
        let config = config(timing);
        let wire = Wire { me: me.peer_address };
        Self {
            foca: Foca::new(me, config.clone(), Xoshiro256PlusPlus::seed_from_u64(seed), wire),
            config,
            timing,
            envelope,
            max_skew_ms: u64::try_from(max_clock_skew.as_millis()).unwrap_or(u64::MAX),
            incarnation: 0,
            answers: Answers::new(timing.probe_period),
            renewals: Bucket::new(timing.suspicion, RENEWAL_BURST),
            refutations: Bucket::new(timing.probe_period / REFUTATION_RATE, REFUTATION_BURST),
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

    /// A datagram came, while the wall clock shows `wall_ms`, milliseconds since 1970.
    pub fn datagram(&mut self, now: Duration, wall_ms: u64, datagram: &[u8]) -> Result<(), Refused> {
        let message = match wire::open(datagram, &self.envelope) {
            Ok(message) => message,
            Err(refused) => {
                if matches!(refused, Refused::Cluster | Refused::OtherUid) && !self.left {
                    self.answer_stranger(now, wall_ms, &datagram[ENVELOPE..]);
                }
                return Err(refused);
            }
        };
        if self.left {
            return Ok(());
        }
        let Some(mut letter) = Letter::read(&mut self.wire(), message) else {
            return self.drive(now, |foca, outbox| foca.handle_data(message, outbox)).map_err(Refused::Malformed);
        };
        let (me, sender) = (self.me().clone(), letter.header.src.clone());
        if sender.peer_address == me.peer_address {
            // Listing oneself in discovery is fine, and so is hearing oneself.
            return if sender.origin == me.origin { Ok(()) } else { Err(Refused::Impostor) };
        }
        if sender.origin == me.origin {
            return Err(Refused::Origin { name: sender.name, address: sender.peer_address });
        }
        let latest_ms = self.latest_ms(wall_ms);
        for id in [Some(&sender), letter.other()].into_iter().flatten() {
            if let Some(ahead_ms) = id.ahead_of(latest_ms) {
                let (ahead_ms, limit_ms) = (ahead_ms.saturating_add(self.max_skew_ms), self.max_skew_ms);
                return Err(Refused::Ahead { name: id.name.clone(), address: id.peer_address, ahead_ms, limit_ms });
            }
        }
        let announced = letter.header.message == Message::Announce;
        if letter.header.dst != me && !announced {
            return Ok(()); // of no use to who is not meant
        }
        if !self.has_room(now, sender.peer_address) {
            return Err(Refused::Full);
        }
        let told = letter.updates.len();
        let rival = self.sift(now, latest_ms, &mut letter);
        if letter.header.message == Message::TurnUndead {
            if !self.renewals.take(now, 1) {
                return Err(Refused::TooMany);
            }
            if let Some(rival) = &rival {
                // The sender says what it holds against this node: one new identity is enough.
                self.outbid(now, rival);
                return Ok(());
            }
        }
        let held = self.holds_against(&sender);
        if held.is_none() {
            let cost = match letter.header.message {
                Message::Announce => TALK_COST,
                Message::Ping(_)
                | Message::PingReq { .. }
                | Message::IndirectPing { .. }
                | Message::IndirectAck { .. } => PROBE_COST,
                Message::Ack(_)
                | Message::ForwardedAck { .. }
                | Message::Feed
                | Message::Gossip
                | Message::Broadcast
                | Message::TurnUndead => 0,
            };
            if !self.answers.take(now, sender.peer_address, cost) {
                return Err(Refused::TooMany);
            }
        }
        let sifted = (letter.updates.len() < told).then(|| letter.write());
        let message = sifted.as_deref().unwrap_or(message);
        self.drive(now, |foca, outbox| foca.handle_data(message, outbox)).map_err(Refused::Malformed)?;
        let answer = matches!(letter.header.message, Message::Ack(_) | Message::ForwardedAck { .. });
        self.answered = self.answered || answer;
        if let Some(held) = held {
            self.turn_undead(now, &sender, &held);
        }
        if let Some(rival) = rival
            && self.renewals.take(now, 1)
        {
            self.outbid(now, &rival);
        }
        Ok(())
    }

    /// Takes from a message what this node does not believe or has no time for. Returns who is said to have this
    /// node's address instead of it, if that one would win it.
    ///
    /// The rest of the message stays: a node whose clock was wrong may go on telling of what it believed then, and
    /// must still be heard.
    fn sift(&mut self, now: Duration, latest_ms: u64, letter: &mut Letter<'_>) -> Option<NodeId> {
        let me = self.me().clone();
        let mut rival: Option<NodeId> = None;
        letter.updates.retain(|(update, _)| {
            let id = update.id();
            if *id == me {
                return self.defends(now, update);
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
            id.origin != me.origin && self.has_room(now, id.peer_address)
        });
        rival
    }

    /// Whether this node reacts to what is said of itself.
    fn defends(&mut self, now: Duration, update: &foca::Member<NodeId>) -> bool {
        let incarnation = update.incarnation().max(self.incarnation);
        match update.state() {
            State::Alive => true,
            State::Suspect if incarnation < foca::Incarnation::MAX => {
                let fresh = update.incarnation() >= self.incarnation;
                let defends = self.refutations.take(now, if fresh { PROBE_COST } else { TALK_COST });
                if fresh && defends {
                    self.incarnation = incarnation + 1;
                }
                defends
            }
            State::Suspect | State::Down => self.renewals.take(now, 1),
        }
    }

    /// What this node holds against a sender: it is dead, or another has its address.
    fn holds_against(&self, sender: &NodeId) -> Option<NodeId> {
        let held = self.foca.iter_membership_state().find(|it| it.id().peer_address == sender.peer_address)?;
        let against =
            if held.id() == sender { held.state() == State::Down } else { held.id().win_addr_conflict(sender) };
        against.then(|| held.id().clone())
    }

    /// Says to a sender that it is not a member, and by whom its address is taken.
    fn turn_undead(&mut self, now: Duration, to: &NodeId, held: &NodeId) {
        if !self.answers.take(now, to.peer_address, TALK_COST) {
            return;
        }
        // That it is dead itself, the message says.
        let rival = (held != to).then(|| foca::Member::alive(held.clone()));
        self.send(to, Message::TurnUndead, rival.as_slice());
    }

    /// Lets a node of another cluster that looks for members here know that this is another one. What it gets asks for
    /// no answer, so this goes on no longer than it looks.
    fn answer_stranger(&mut self, now: Duration, wall_ms: u64, message: &[u8]) {
        let Some(letter) = Letter::read(&mut self.wire(), message) else { return };
        let Header { src, message, .. } = letter.header;
        if message == Message::Announce
            && src.peer_address != self.me().peer_address
            && src.ahead_of(self.latest_ms(wall_ms)).is_none()
            && self.answers.take(now, src.peer_address, TALK_COST)
        {
            self.send(&src, Message::Gossip, &[]);
        }
    }

    fn send(&mut self, to: &NodeId, message: Message<NodeId>, updates: &[foca::Member<NodeId>]) {
        match wire::letter(&mut self.wire(), self.me(), to, message, updates) {
            Ok(message) => {
                let datagram = [&self.envelope[..], &message].concat();
                self.outputs.push_back(Output::Send(to.peer_address, datagram));
            }
            Err(error) => self.outputs.push_back(Output::Fault(foca::Error::Encode(error.into()))),
        }
    }

    fn wire(&self) -> Wire {
        Wire { me: self.me().peer_address }
    }

    /// The latest start that this node believes.
    const fn latest_ms(&self, wall_ms: u64) -> u64 {
        wall_ms.saturating_add(self.max_skew_ms)
    }

    /// Whether a node at this address may be known. If too many are, the dead are forgotten.
    fn has_room(&mut self, now: Duration, address: SocketAddr) -> bool {
        let known = |foca: &Protocol| foca.iter_membership_state().any(|it| it.id().peer_address == address);
        if self.foca.iter_membership_state().len() < MAX_KNOWN || known(&self.foca) {
            return true;
        }
        let dead = self.foca.iter_membership_state().filter(|it| it.state() == State::Down);
        let dead: Vec<_> = dead.map(|it| it.id().clone()).collect();
        self.forget(now, dead);
        self.foca.iter_membership_state().len() < MAX_KNOWN
    }

    /// Forgets dead nodes, as if their time were over.
    fn forget(&mut self, now: Duration, dead: Vec<NodeId>) {
        for id in dead {
            self.attempt(now, |foca, outbox| foca.handle_timer(Timer::RemoveDown(id), outbox));
        }
    }

    /// Takes an identity that wins this node's address from `rival`.
    fn outbid(&mut self, now: Duration, rival: &NodeId) {
        if let Some(next) = self.me().outbidding(rival) {
            self.take_identity(now, next);
        }
    }

    fn take_identity(&mut self, now: Duration, next: NodeId) {
        self.attempt(now, |foca, outbox| foca.change_identity(next, outbox));
        self.outputs.push_back(Output::Event(Event::Renewed(self.me().clone())));
        self.round_soon(now);
    }

    /// A clock that was wrong is right again: what it made this node believe goes. That may be the starts of others,
    /// and its own.
    fn doubt(&mut self, now: Duration, wall_ms: u64) {
        let latest_ms = self.latest_ms(wall_ms);
        if self.me().ahead_of(latest_ms).is_some() && self.renewals.take(now, 1) {
            let me = self.me();
            let generation = me.generation.wrapping_add(1);
            self.take_identity(now, NodeId { started_ms: wall_ms, generation, ..me.clone() });
        }
        let ahead = self.foca.iter_membership_state().map(foca::Member::id);
        let ahead: Vec<_> = ahead.filter(|id| id.ahead_of(latest_ms).is_some()).cloned().collect();
        if !ahead.is_empty() {
            let dead: Vec<_> = ahead.iter().cloned().map(foca::Member::down).collect();
            self.attempt(now, |foca, outbox| foca.apply_many(dead.into_iter(), false, outbox));
            self.forget(now, ahead);
        }
    }

    /// Does what is due, while the wall clock shows `wall_ms`.
    pub fn tick(&mut self, now: Duration, wall_ms: u64) {
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
            let suspect = match &timer {
                Timer::ChangeSuspectToDown { member_id, .. } => Some(member_id.clone()),
                _ => None,
            };
            self.attempt(now, |foca, outbox| foca.handle_timer(timer, outbox));
            // It may live all the same, and can only come back if it hears of it.
            if let Some(dead) = suspect
                && self.holds_against(&dead).is_some()
            {
                self.turn_undead(now, &dead, &dead);
            }
        }
        if now >= self.next_round {
            self.doubt(now, wall_ms);
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
        // One for each death. A dead node that is not forgotten by its timer is when room is needed.
        if matches!(timer, Timer::RemoveDown(_)) && self.timers.len() >= MAX_TIMERS {
            return;
        }
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
        let message = wire::open(datagram, &self.envelope).ok();
        let letter = message.and_then(|message| Letter::read(&mut self.wire(), message));
        letter.is_some_and(|letter| letter.header.src.origin == self.me().origin)
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
            self.incarnation = 0;
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
        // This node does so itself, by its limits.
        notify_down_members: false,
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
    use crate::{
        Role,
        limits::{PEER_BURST, TOTAL_BURST},
    };

    /// The wall clock of all nodes, in 2026.
    const WALL_MS: u64 = 1_790_000_000_000;
    const SKEW: Duration = Duration::from_secs(10);

    fn swim(name: &str, origin: u64, address: SocketAddr) -> Swim {
        let me = NodeId::new(name, origin, Role::Member, address, WALL_MS + origin);
        Swim::new(me, wire::envelope("test", "", wire::VERSION), Timing::LAN, SKEW, origin)
    }

    /// Hands datagrams to and fro until all is said, and returns what happened as the first of them sees it.
    fn talk(nodes: &mut [Swim], now: Duration) -> Vec<Event> {
        exchange(nodes, now).0
    }

    /// The same, and how many datagrams that took.
    fn exchange(nodes: &mut [Swim], now: Duration) -> (Vec<Event>, usize) {
        let (mut events, mut count) = (Vec::new(), 0);
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
                return (events, count);
            }
            count += sent.len();
            assert!(count < 100_000, "there is no end to it");
            for (to, datagram) in sent {
                if let Some(node) = nodes.iter_mut().find(|node| node.me().peer_address == to) {
                    match node.datagram(now, WALL_MS, &datagram) {
                        // Of those with one origin, each finds that the other has its own.
                        Ok(()) | Err(Refused::Origin { .. } | Refused::TooMany | Refused::Full) => {}
                        Err(refused) => panic!("{refused}"),
                    }
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
                node.tick(*now, WALL_MS);
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

    const NOT_HERE: [u8; 4] = [10, 9, 9, 9];

    fn node_at(ip: [u8; 4], origin: u64) -> NodeId {
        NodeId::new("x", origin, Role::Member, (ip, 7071).into(), WALL_MS)
    }

    /// A datagram that anyone can make who knows the cluster's name.
    fn forge(from: &NodeId, to: &NodeId, message: Message<NodeId>, updates: &[foca::Member<NodeId>]) -> Vec<u8> {
        let message = wire::letter(&mut Wire { me: to.peer_address }, from, to, message, updates).unwrap();
        [&wire::envelope("test", "", wire::VERSION)[..], &message].concat()
    }

    fn three() -> ([Swim; 3], Duration) {
        let at = |last: u8| SocketAddr::from(([10, 0, 0, last], 7071));
        let mut nodes = [swim("a", 1, at(1)), swim("b", 2, at(2)), swim("c", 3, at(3))];
        let mut now = Duration::ZERO;
        nodes[1].look_at(now, [at(1)]);
        nodes[2].look_at(now, [at(1)]);
        pass(&mut nodes, &mut now, Duration::from_secs(30));
        assert!(all_listed(&nodes));
        (nodes, now)
    }

    fn all_listed(nodes: &[Swim]) -> bool {
        nodes.iter().all(|node| {
            let listed: BTreeSet<_> = node.members().iter().map(|it| it.id.origin).collect();
            let others = nodes.iter().map(|it| it.me().origin).filter(|origin| *origin != node.me().origin);
            listed == others.collect()
        })
    }

    /// What three nodes send in so much time when nothing happens, roughly.
    const QUIET_SECOND: usize = 3 * 30;

    /// One datagram says that another node has `b`'s address, in every way that is believed or not.
    #[test]
    fn forged_rival_is_outbid_at_once() {
        const YEARS: u64 = 36 * 365 * 86_400_000;
        let b = node_at([10, 0, 0, 2], 2);
        let ghosts = [
            NodeId { started_ms: WALL_MS + YEARS, ..NodeId::new("ghost", 99, Role::Member, b.peer_address, 0) },
            NodeId { started_ms: WALL_MS + 10_001, ..NodeId::new("ghost", 99, Role::Member, b.peer_address, 0) },
            NodeId { started_ms: WALL_MS + 10_000, ..NodeId::new("ghost", 99, Role::Member, b.peer_address, 0) },
            NodeId { generation: u32::MAX, ..NodeId::new("ghost", 99, Role::Member, b.peer_address, WALL_MS + 9_999) },
            NodeId { generation: 40, ..NodeId::new("ghost", 99, Role::Sidecar, b.peer_address, WALL_MS + 9_000) },
            NodeId {
                generation: u32::MAX,
                leaving: true,
                ..NodeId::new("b", 2, Role::Member, b.peer_address, WALL_MS + 2)
            },
            NodeId { leaving: true, ..NodeId::new("b", 2, Role::Member, b.peer_address, WALL_MS + 2) },
        ];
        for ghost in ghosts {
            for state in [State::Alive, State::Suspect, State::Down] {
                let (mut nodes, mut now) = three();
                let update = foca::Member::new(ghost.clone(), foca::Incarnation::MAX, state);
                let forged = forge(&node_at(NOT_HERE, 9), nodes[0].me(), Message::Gossip, &[update]);
                nodes[0].datagram(now, WALL_MS, &forged).unwrap();
                let mut sent = exchange(&mut nodes, now).1;
                let events_until = now + Duration::from_secs(10);
                while now < events_until {
                    now += Duration::from_millis(10);
                    for node in &mut nodes {
                        node.tick(now, WALL_MS);
                    }
                    sent += exchange(&mut nodes, now).1;
                }
                assert!(sent < 10 * QUIET_SECOND + 100, "{ghost:?}, {state:?}: {sent} datagrams");
                assert!(all_listed(&nodes), "{ghost:?}, {state:?}: {:?}", nodes[0].members());
                assert!(nodes[1].me().started_ms <= WALL_MS + 10_001, "{ghost:?}, {state:?}");
            }
        }
    }

    #[test]
    fn forged_start_is_named_with_its_limit() {
        let ([mut a, b, _], now) = three();
        let late = NodeId { started_ms: WALL_MS + 10_001, ..node_at(NOT_HERE, 9) };
        let sent = forge(&late, a.me(), Message::Gossip, &[]);
        let about = Message::PingReq { target: late.clone(), probe_number: 1 };
        for datagram in [sent, forge(b.me(), a.me(), about, &[])] {
            let refused = a.datagram(now, WALL_MS, &datagram).unwrap_err().to_string();
            let said = "`x` at 10.9.9.9:7071 says that it started 10001 ms from now, at most 10000 ms (maxClockSkew)";
            assert!(refused.starts_with(said), "{refused}");
        }
        // What else the message says still counts.
        let other = NodeId { origin: 8, ..node_at([10, 9, 9, 8], 8) };
        let updates = [foca::Member::alive(late), foca::Member::alive(other.clone())];
        a.datagram(now, WALL_MS, &forge(b.me(), a.me(), Message::Gossip, &updates)).unwrap();
        assert!(a.members().iter().any(|it| it.id == other) && a.members().len() == 3, "{:?}", a.members());
    }

    #[test]
    fn forged_copy_of_ones_own_origin_is_refused() {
        let ([mut a, b, _], now) = three();
        let copy = NodeId { origin: a.me().origin, ..node_at(NOT_HERE, 1) };
        let refused = a.datagram(now, WALL_MS, &forge(&copy, a.me(), Message::Gossip, &[]));
        assert!(matches!(refused, Err(Refused::Origin { .. })), "{refused:?}");
        a.datagram(now, WALL_MS, &forge(b.me(), a.me(), Message::Gossip, &[foca::Member::alive(copy)])).unwrap();
        assert_eq!(a.members().len(), 2);
    }

    /// Ten thousand datagrams at one moment, of each kind that a node reacts to by sending: how many it sends at most,
    /// with what the others send because of that.
    #[test]
    fn forged_floods_cause_few_datagrams() {
        type Flood<'a> = (&'a str, usize, Box<dyn Fn(u32, &NodeId) -> Vec<u8> + 'a>);
        const FLOOD: u32 = 10_000;
        // Per renewal: to 3 members at once, and a round of announcements to none.
        let renewals = (RENEWAL_BURST as usize) * 4;
        let suspicions = REFUTATION_BURST as usize * 3;
        let (one, all) = (PEER_BURST as usize, TOTAL_BURST as usize);
        let x = node_at(NOT_HERE, 9);
        let from = |at: u32| node_at([10, 9, (at >> 8) as u8, at as u8], u64::from(at) + 100);
        let ping = || Message::PingReq { target: node_at([10, 8, 8, 8], 7), probe_number: 1 };
        let floods: [Flood<'_>; 11] = [
            ("pings", one, Box::new(|_, a| forge(&x, a, Message::Ping(1), &[]))),
            ("pings of many", all, Box::new(|at, a| forge(&from(at), a, Message::Ping(1), &[]))),
            ("announcements", one / TALK_COST as usize, Box::new(|_, a| forge(&x, a, Message::Announce, &[]))),
            (
                "announcements of many",
                all / TALK_COST as usize,
                Box::new(|at, a| forge(&from(at), a, Message::Announce, &[])),
            ),
            ("requests", one, Box::new(|_, a| forge(&x, a, ping(), &[]))),
            ("turn undead", renewals, Box::new(|_, a| forge(&x, a, Message::TurnUndead, &[]))),
            ("deaths", renewals, Box::new(|_, a| forge(&x, a, Message::Gossip, &[foca::Member::down(a.clone())]))),
            (
                "deaths of all generations",
                renewals,
                Box::new(|at, a| {
                    let me = NodeId { generation: at, ..a.clone() };
                    forge(&x, &me, Message::Gossip, &[foca::Member::down(me.clone())])
                }),
            ),
            (
                "suspicions",
                suspicions,
                Box::new(|at, a| {
                    let suspect = foca::Member::new(a.clone(), at as u16, State::Suspect);
                    forge(&x, a, Message::Gossip, &[suspect])
                }),
            ),
            (
                "last suspicions",
                renewals,
                Box::new(|_, a| {
                    let suspect = foca::Member::new(a.clone(), u16::MAX, State::Suspect);
                    forge(&x, a, Message::Gossip, &[suspect])
                }),
            ),
            (
                "rivals",
                renewals,
                Box::new(|at, a| {
                    let rival = NodeId {
                        started_ms: WALL_MS + u64::from(at),
                        ..NodeId::new("y", 8, Role::Member, a.peer_address, 0)
                    };
                    forge(&x, a, Message::Gossip, &[foca::Member::alive(rival)])
                }),
            ),
        ];
        for (what, limit, make) in floods {
            let (mut nodes, now) = three();
            for at in 0..FLOOD {
                let datagram = make(at, &nodes[0].me().clone());
                let _ = nodes[0].datagram(now, WALL_MS, &datagram);
            }
            let sent = exchange(&mut nodes, now).1;
            // Each renewal is heard by two others, who answer it at most once.
            assert!(sent > 0 && sent <= limit, "{what}: {sent} datagrams, at most {limit}");
        }
    }

    #[test]
    fn forged_members_are_bounded() {
        let (mut nodes, now) = three();
        let ghosts = (0..3000_u32)
            .map(|at| foca::Member::alive(node_at([11, 0, (at >> 8) as u8, at as u8], 100 + u64::from(at))));
        let (ghosts, b) = (ghosts.collect::<Vec<_>>(), nodes[1].me().clone());
        for some in ghosts.chunks(20) {
            nodes[0].datagram(now, WALL_MS, &forge(&b, &nodes[0].me().clone(), Message::Gossip, some)).unwrap();
        }
        // What the last message named came in together.
        let known = nodes[0].members().len();
        assert!((MAX_KNOWN..MAX_KNOWN + 20).contains(&known), "{known}");
        let id = node_at(NOT_HERE, 9);
        let refused = nodes[0].datagram(now, WALL_MS, &forge(&id, &nodes[0].me().clone(), Message::Gossip, &[]));
        assert!(matches!(refused, Err(Refused::Full)), "{refused:?}");
        let known = nodes[1].me().clone();
        nodes[0].datagram(now, WALL_MS, &forge(&known, &nodes[0].me().clone(), Message::Ping(1), &[])).unwrap();
        // The dead make room.
        let dead: Vec<_> = ghosts[..20].iter().map(|it| foca::Member::down(it.id().clone())).collect();
        nodes[0].datagram(now, WALL_MS, &forge(&known, &nodes[0].me().clone(), Message::Gossip, &dead)).unwrap();
        nodes[0].datagram(now, WALL_MS, &forge(&id, &nodes[0].me().clone(), Message::Gossip, &[])).unwrap();
    }

    #[test]
    fn forged_deaths_are_bounded() {
        let (mut nodes, now) = three();
        let b = nodes[1].me().clone();
        let dead = (0..MAX_TIMERS as u32 + 100).map(|at| {
            foca::Member::down(NodeId {
                started_ms: WALL_MS - 100_000 + u64::from(at),
                ..node_at(NOT_HERE, 9 + u64::from(at))
            })
        });
        for some in dead.collect::<Vec<_>>().chunks(20) {
            nodes[0].datagram(now, WALL_MS, &forge(&b, &nodes[0].me().clone(), Message::Gossip, some)).unwrap();
        }
        assert_eq!(nodes[0].timers.len(), MAX_TIMERS);
        assert!(all_listed(&nodes));
    }

    #[test]
    fn namesake_that_looks_for_members_hears_of_it() {
        let ([mut a, ..], now) = three();
        let other = NodeId::new("s", 77, Role::Sidecar, (NOT_HERE, 7071).into(), WALL_MS);
        let mut old = Swim::new(other, wire::envelope("test", "earlier", wire::VERSION), Timing::LAN, SKEW, 1);
        old.look_at(now, [a.me().peer_address]);
        old.tick(now, WALL_MS);
        let Some(Output::Send(_, asked)) = old.output() else { panic!("it looks for members") };
        assert!(matches!(a.datagram(now, WALL_MS, &asked), Err(Refused::OtherUid)));
        let Some(Output::Send(to, answer)) = a.output() else { panic!("it is answered") };
        assert_eq!(to, old.me().peer_address);
        assert!(matches!(old.datagram(now, WALL_MS, &answer), Err(Refused::OtherUid)));
        assert!(old.output().is_none() && a.output().is_none(), "that is the end of it");
        assert_eq!((a.members().len(), old.members().len()), (2, 0));
    }
}
