//! A few replicas, and links that carry messages when a test says so.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::prelude::*;

/// The wall clock when a test begins, milliseconds.
pub const START_MS: u64 = 10_000_000;
/// The interval of heartbeats.
pub const BEAT_MS: u64 = 1_000;
pub const ALONE: View = View::ALONE;

/// Sees each message with its sender and its receiver, and may change it. Returns whether the message arrives.
type Tamper<'a> = &'a mut dyn FnMut(usize, usize, &mut Kind) -> bool;

pub struct Net {
    pub now_ms: u64,
    pub nodes: Vec<Replica>,
    /// How many tombstones each node keeps for evicted nodes.
    kept_deletes: u64,
    /// By sender and receiver.
    pub links: BTreeMap<(usize, usize), LinkId>,
}

impl Net {
    pub fn empty() -> Self {
        Self { now_ms: START_MS, nodes: Vec::new(), kept_deletes: KEPT_DELETES, links: BTreeMap::new() }
    }

    /// `count` voters of one epoch, all of them linked and ready.
    pub fn new(count: usize) -> Self {
        Self::new_that_keeps(KEPT_DELETES, count)
    }

    /// The same, with a limit on the deletes that are kept for evicted nodes.
    pub fn new_that_keeps(kept_deletes: u64, count: usize) -> Self {
        let mut net = Self { kept_deletes, ..Self::empty() };
        for at in 0..count {
            net.start(&format!("n{at}"), count);
        }
        net.link_all();
        net.settle(8);
        assert!(net.nodes.iter().all(Replica::is_ready));
        net
    }

    /// Two nodes that hold `a`, `b` and `c`, and a newcomer that has the first part of the first node's snapshot.
    pub fn with_partial_snapshot() -> (Self, usize) {
        let mut net = Self::new(2);
        for key in ["a", "b", "c"] {
            net.put(0, key);
        }
        net.settle(2);
        let newcomer = net.start("n2", 3);
        net.link(newcomer, 0);
        net.deliver_first_part(newcomer, 0);
        (net, newcomer)
    }

    /// Node 1 of three is cut off, and a new process under its name is linked to the other two.
    pub fn with_replaced_node() -> (Self, usize) {
        let mut net = Self::new(3);
        net.put(2, "old");
        net.settle(2);
        net.cut_off(1);
        let successor = net.start_successor();
        net.settle(3);
        assert!(net.nodes[successor].is_ready());
        (net, successor)
    }

    /// Of three nodes, starts a process with the name of node 1, linked to the other two.
    pub fn start_successor(&mut self) -> usize {
        let successor = self.start("n1", 3);
        self.link(successor, 0);
        self.link(successor, 2);
        successor
    }

    /// A partial write: the first write is lost on its way to all, and the second one, of `k`, arrives at the nodes before the writer.
    pub fn partial_write(&mut self, writer: usize) {
        self.put(writer, "lost");
        self.deliver(&mut |from, _, _| from != writer);
        self.put(writer, "k");
        for to in 0..writer {
            self.step(writer, to, &mut |_, _, _| true);
        }
    }

    pub fn settings(&self, name: &str, voters: usize) -> Settings {
        Settings {
            origin: self.nodes.len() as u64 + 1,
            name: name.to_owned(),
            voter: true,
            started_ms: self.now_ms,
            voters,
            evict_after_ms: 3 * BEAT_MS,
            sync_interval_ms: BEAT_MS,
            max_clock_skew_ms: 10_000,
            max_memory: None,
            evict_ending: false,
            may_found: true,
            serve_alone: false,
            join_timeout_ms: 60_000,
            // One entry in a message, so that a test can act between two parts of a delta.
            bounds: Bounds { message_entries: 1, scan_step: 1, kept_deletes: self.kept_deletes, ..Bounds::default() },
        }
    }

    pub fn start(&mut self, name: &str, voters: usize) -> usize {
        self.start_with(self.settings(name, voters))
    }

    pub fn start_with(&mut self, settings: Settings) -> usize {
        self.nodes.push(Replica::new(settings, self.now_ms));
        self.nodes.len() - 1
    }

    /// Starts a voter that reaches only its sponsor, and no node at all once it is ready.
    pub fn join_through(&mut self, sponsor: usize, name: &str, voters: usize) -> usize {
        let newcomer = self.start(name, voters);
        self.link(newcomer, sponsor);
        self.settle(2);
        assert!(self.nodes[newcomer].is_ready());
        self.cut_off(newcomer);
        newcomer
    }

    /// Makes a node found although it reaches no other node: it learns only later how many `voters` there are.
    pub fn found_alone(&mut self, node: usize, voters: usize) {
        self.nodes[node].set_voters(0);
        self.nodes[node].tick(ALONE, self.now_ms);
        self.nodes[node].set_voters(voters);
    }

    /// A peer's roster says that the node's seat has ended.
    pub fn end_seat(&mut self, node: usize, peer: usize) {
        let id = self.nodes[node].id();
        let state = SeatState::Ended.into();
        let seat = Seat { origin: id.origin, name: id.name, voter: true, state, since_hlc: 1, ..Seat::default() };
        self.give_roster(peer, node, vec![seat]);
        assert!(!self.nodes[node].is_ready());
        self.cut_off(node);
    }
}

/// Links and messages.
impl Net {
    pub fn link(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            let id = self.nodes[to].id();
            let link = self.nodes[from].link_up(id);
            self.links.insert((from, to), link);
        }
    }

    pub fn link_all(&mut self) {
        for a in 0..self.nodes.len() {
            self.link_to(a, 0..a);
        }
    }

    /// Links a node to each other node that it has no link to.
    pub fn link_to(&mut self, node: usize, others: Range<usize>) {
        for other in others {
            if !self.links.contains_key(&(node, other)) {
                self.link(node, other);
            }
        }
    }

    pub fn cut(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            if let Some(link) = self.links.remove(&(from, to)) {
                self.nodes[from].link_down(link);
            }
        }
    }

    pub fn cut_off(&mut self, node: usize) {
        for other in 0..self.nodes.len() {
            self.cut(node, other);
        }
    }

    /// Sends one message, if there is one. The links of a node that reset are gone.
    pub fn step(&mut self, from: usize, to: usize, tamper: Tamper<'_>) -> bool {
        let Some(&link) = self.links.get(&(from, to)) else { return false };
        if !self.nodes[from].is_up(link) {
            self.cut(from, to);
            return false;
        }
        let Some(mut message) = self.nodes[from].poll_send(link, self.now_ms) else { return false };
        if let Some(kind) = &mut message.kind
            && tamper(from, to, kind)
        {
            self.give(from, to, message);
        }
        true
    }

    pub fn give(&mut self, from: usize, to: usize, message: Message) {
        let link = self.links[&(to, from)];
        self.nodes[to].receive(link, message, self.now_ms).expect("replicas send no malformed messages");
    }

    pub fn give_roster(&mut self, from: usize, to: usize, seats: Vec<Seat>) {
        self.give(from, to, Message { kind: Some(Kind::Roster(Roster { seats })) });
    }

    /// Delivers messages until no node has one to send.
    pub fn deliver(&mut self, tamper: Tamper<'_>) {
        self.deliver_between(|_, _| true, tamper);
    }

    /// Delivers messages of these pairs until they have none to send. Other messages wait.
    pub fn deliver_between(&mut self, is_chosen: impl Fn(usize, usize) -> bool, tamper: Tamper<'_>) {
        for _ in 0..10_000 {
            let pairs: Vec<_> = self.links.keys().copied().filter(|&(from, to)| is_chosen(from, to)).collect();
            if pairs.into_iter().filter(|&(from, to)| self.step(from, to, tamper)).count() == 0 {
                return;
            }
        }
        panic!("the nodes never stop sending");
    }

    /// Delivers messages between two nodes until the first of several parts of a delta has arrived.
    pub fn deliver_first_part(&mut self, asks: usize, answers: usize) {
        let mut parts = 0;
        for _ in 0..20 {
            self.step(asks, answers, &mut |_, _, _| true);
            if parts == 0 {
                self.step(answers, asks, &mut |_, _, kind| {
                    parts += usize::from(matches!(kind, Kind::Delta(delta) if !delta.last));
                    true
                });
            }
        }
        assert_eq!(parts, 1, "the delta has more than one part");
    }

    /// Runs this many heartbeats, each with the messages that follow.
    pub fn beats(&mut self, count: usize, tamper: Tamper<'_>) {
        for _ in 0..count {
            self.now_ms += BEAT_MS;
            for node in &mut self.nodes {
                // A node that is cut off knows that there are others.
                let unlinked = usize::from(node.linked().next().is_none());
                node.tick(View { unlinked, ..ALONE }, self.now_ms);
            }
            self.deliver(tamper);
        }
    }

    pub fn settle(&mut self, beats: usize) {
        self.beats(beats, &mut |_, _, _| true);
    }

    /// All nodes reach each other again, also those that reset meanwhile.
    pub fn heal(&mut self) {
        for _ in 0..4 {
            self.link_all();
            self.settle(5);
        }
    }

    /// One node reaches the others again, also after it reset.
    pub fn rejoin(&mut self, node: usize, others: Range<usize>) {
        for _ in 0..4 {
            self.link_to(node, others.clone());
            self.settle(5);
        }
    }
}

/// Clients, and what they would find.
impl Net {
    pub fn put(&mut self, node: usize, key: &'static str) -> Dot {
        let value = Bytes::from_static(b"v");
        self.nodes[node].put(key.into(), value, None, self.now_ms).expect("there is room")
    }

    pub fn delete(&mut self, node: usize, key: &'static str) -> Dot {
        self.nodes[node].delete(key.into(), self.now_ms).expect("the key is there")
    }

    pub fn holds(&self, node: usize, key: &str) -> bool {
        self.nodes[node].store().get(key.as_bytes()).is_some_and(|record| record.value.is_some())
    }

    pub fn tombstones(&self, node: usize) -> u64 {
        self.nodes[node].store().tombstones()
    }

    /// Whether a node was not affected by a second process with its name.
    pub fn is_undisturbed(&self, node: usize) -> bool {
        let origin = self.nodes[node].origin();
        let listed =
            |replica: &Replica| replica.seats().any(|(seat, it)| seat == origin && it.state == SeatState::Member);
        self.nodes[node].serves()
            && self.nodes[node].counters().returns == 0
            && self.nodes.iter().filter(|replica| replica.serves()).all(listed)
    }
}
