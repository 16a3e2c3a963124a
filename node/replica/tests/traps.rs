//! Traps, one by one: a few replicas whose links are made, cut and tampered
//! with by hand. Each is something that the simulation found once, and may need
//! a long run to find again.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use bytes::Bytes;
use kvasir_proto::peer::v1::{Entry, Message, Roster, Seat, SeatState, Seen, Want, message::Kind};
use kvasir_replica::clock::{Dot, stamp_at};
use kvasir_replica::replica::{
    Bounds, Change, Coverage, EXPIRE_STEP, HEARD_BEATS, KEPT_DELETES, LinkId, MAX_ENDED, MAX_SEATS, REMEMBER_ENDED_MS,
    REMEMBER_EVICTED_MS, Replica, Settings, TWIN_BEATS, View,
};
use kvasir_replica::session::Session;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

const START_MS: u64 = 10_000_000;
const BEAT_MS: u64 = 1_000;
const ALONE: View = View::ALONE;

/// What happens to a message from one node to another: it may be changed, and
/// goes on its way if that is `true`.
type Tamper<'a> = &'a mut dyn FnMut(usize, usize, &mut Kind) -> bool;

struct Net {
    now_ms: u64,
    nodes: Vec<Replica>,
    /// How many tombstones each keeps for those that are evicted.
    kept_deletes: u64,
    /// By who sends and who takes.
    links: BTreeMap<(usize, usize), LinkId>,
}

impl Net {
    fn empty() -> Self {
        Self { now_ms: START_MS, nodes: Vec::new(), kept_deletes: KEPT_DELETES, links: BTreeMap::new() }
    }

    /// So many nodes, all linked, one founding, and every one a voter.
    fn new(count: usize) -> Self {
        Self::new_that_keeps(KEPT_DELETES, count)
    }

    fn new_that_keeps(kept_deletes: u64, count: usize) -> Self {
        let mut net = Self { kept_deletes, ..Self::empty() };
        for at in 0..count {
            net.start(&format!("n{at}"), count);
        }
        net.link_all();
        net.settle(8);
        assert!(net.nodes.iter().all(Replica::is_ready));
        net
    }

    fn start(&mut self, name: &str, voters: usize) -> usize {
        self.start_with_room(name, voters, None)
    }

    fn start_with_room(&mut self, name: &str, voters: usize, max_memory: Option<u64>) -> usize {
        let settings = Settings { max_memory, ..self.settings(name, voters) };
        self.start_with(settings)
    }

    fn start_with(&mut self, settings: Settings) -> usize {
        self.nodes.push(Replica::new(settings, self.now_ms));
        self.nodes.len() - 1
    }

    fn settings(&self, name: &str, voters: usize) -> Settings {
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
            // One entry a message: a scan can be looked at between its parts.
            bounds: Bounds { message_entries: 1, scan_step: 1, kept_deletes: self.kept_deletes, ..Bounds::default() },
        }
    }

    fn link(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            let id = self.nodes[to].id();
            let link = self.nodes[from].link_up(id);
            self.links.insert((from, to), link);
        }
    }

    fn link_all(&mut self) {
        for a in 0..self.nodes.len() {
            for b in 0..a {
                if !self.links.contains_key(&(a, b)) {
                    self.link(a, b);
                }
            }
        }
    }

    fn cut(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            if let Some(link) = self.links.remove(&(from, to)) {
                self.nodes[from].link_down(link);
            }
        }
    }

    fn cut_off(&mut self, node: usize) {
        for other in 0..self.nodes.len() {
            self.cut(node, other);
        }
    }

    /// One message, if there is one. Links of a node that began anew are gone.
    fn step(&mut self, from: usize, to: usize, tamper: Tamper<'_>) -> bool {
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

    fn give(&mut self, from: usize, to: usize, message: Message) {
        let link = self.links[&(to, from)];
        self.nodes[to].receive(link, message, self.now_ms).expect("nodes make no mistakes");
    }

    /// Until nobody has anything to say.
    fn pass(&mut self, tamper: Tamper<'_>) {
        self.pass_between(|_, _| true, tamper);
    }

    /// Until none of these has anything to say to the other; what the rest has to say waits.
    fn pass_between(&mut self, who: impl Fn(usize, usize) -> bool, tamper: Tamper<'_>) {
        for _ in 0..10_000 {
            let pairs: Vec<_> = self.links.keys().copied().filter(|&(from, to)| who(from, to)).collect();
            if pairs.into_iter().filter(|&(from, to)| self.step(from, to, tamper)).count() == 0 {
                return;
            }
        }
        panic!("they never stop talking");
    }

    fn beats(&mut self, count: usize, tamper: Tamper<'_>) {
        for _ in 0..count {
            self.now_ms += BEAT_MS;
            for node in &mut self.nodes {
                // Who is cut off knows that there are others.
                let unlinked = usize::from(node.linked().next().is_none());
                node.tick(View { unlinked, ..ALONE }, self.now_ms);
            }
            self.pass(tamper);
        }
    }

    fn settle(&mut self, beats: usize) {
        self.beats(beats, &mut |_, _, _| true);
    }

    /// All reach each other again, also those that begin anew meanwhile.
    fn heal(&mut self) {
        for _ in 0..4 {
            self.link_all();
            self.settle(5);
        }
    }

    /// One reaches these again, also when it begins anew meanwhile.
    fn come_back(&mut self, returns: usize, others: Range<usize>) {
        for _ in 0..4 {
            for node in others.clone() {
                if !self.links.contains_key(&(returns, node)) {
                    self.link(returns, node);
                }
            }
            self.settle(5);
        }
    }

    /// Starts one that reaches nobody but its sponsor, and once it is ready not even that.
    fn let_in(&mut self, sponsor: usize, name: &str, voters: usize) -> usize {
        let joins = self.start(name, voters);
        self.link(joins, sponsor);
        self.settle(2);
        assert!(self.nodes[joins].is_ready());
        self.cut_off(joins);
        joins
    }

    /// Two that hold `a`, `b` and `c`, and one that has taken the first of it from the first of them.
    fn half_a_snapshot() -> (Self, usize) {
        let mut net = Self::new(2);
        for key in ["a", "b", "c"] {
            net.put(0, key);
        }
        net.settle(2);
        let joins = net.start("n2", 3);
        net.link(joins, 0);
        net.first_part(joins, 0);
        (net, joins)
    }

    /// Messages until the first of several parts of an answer has got there.
    fn first_part(&mut self, asks: usize, answers: usize) {
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
        assert_eq!(parts, 1, "the answer takes more than one part");
    }

    /// One of three is cut off and replaced by another process of its name, which is linked to the other two.
    fn replaced() -> (Self, usize) {
        let mut net = Self::new(3);
        net.put(2, "old");
        net.settle(2);
        net.cut_off(1);
        let again = net.start("n1", 3);
        net.link(again, 0);
        net.link(again, 2);
        net.settle(3);
        assert!(net.nodes[again].is_ready());
        (net, again)
    }

    /// The node, one of `voters`, founds though it reaches nobody: it hears only later how many there are.
    fn found_alone(&mut self, node: usize, voters: usize) {
        self.nodes[node].set_voters(0);
        self.nodes[node].tick(ALONE, self.now_ms);
        self.nodes[node].set_voters(voters);
    }

    /// Nothing befell the node because of a second process with its name.
    fn is_undisturbed(&self, node: usize) -> bool {
        let origin = self.nodes[node].origin();
        let listed =
            |replica: &Replica| replica.seats().any(|(seat, it)| seat == origin && it.state == SeatState::Member);
        self.nodes[node].serves()
            && self.nodes[node].counters().returns == 0
            && self.nodes.iter().filter(|replica| replica.serves()).all(listed)
    }

    fn put(&mut self, node: usize, key: &'static str) -> Dot {
        let value = Bytes::from_static(b"v");
        self.nodes[node].put(key.into(), value, None, self.now_ms).expect("there is room")
    }

    fn delete(&mut self, node: usize, key: &'static str) -> Dot {
        self.nodes[node].delete(key.into(), self.now_ms).expect("it is there")
    }

    fn holds(&self, node: usize, key: &str) -> bool {
        self.nodes[node].store().get(key.as_bytes()).is_some_and(|record| record.value.is_some())
    }

    fn tombstones(&self, node: usize) -> u64 {
        self.nodes[node].store().tombstones()
    }

    /// The node hears from a peer that its seat is over.
    fn end(&mut self, node: usize, from: usize) {
        let id = self.nodes[node].id();
        let state = SeatState::Ended.into();
        let seat = Seat { origin: id.origin, name: id.name, voter: true, state, since_hlc: 1, ..Seat::default() };
        self.give(from, node, Message { kind: Some(Kind::Roster(Roster { seats: vec![seat] })) });
        assert!(!self.nodes[node].is_ready());
        self.cut_off(node);
    }
}

#[test]
fn an_old_map_that_is_taken_up_again_is_told_to_watchers() {
    let mut net = Net::new(2);
    net.put(0, "k");
    net.settle(2);
    net.nodes[1].watch(true);
    net.end(1, 0);
    net.nodes[1].take_changes();
    // The other is gone for good.
    net.now_ms += BEAT_MS;
    net.found_alone(1, 2);
    assert!(net.nodes[1].is_ready() && net.holds(1, "k"));
    assert!(net.nodes[1].take_changes().contains(&Change::Reset));
}

#[test]
fn what_a_node_vouched_for_stays_said_when_it_would_not_vouch_now() {
    let mut net = Net::new(2);
    net.put(0, "k");
    net.settle(2);
    net.delete(0, "k");
    net.beats(10, &mut |from, _, kind| from == 0 || !matches!(kind, Kind::Report(_)));
    assert_eq!((net.tombstones(0), net.tombstones(1)), (1, 0), "the second had the word of both, the first had not");
    // Without a majority it vouches for nothing.
    net.nodes[0].set_voters(5);
    net.settle(3);
    assert_eq!(net.tombstones(0), 0);
}

#[test]
fn repair_makes_maps_equal_that_vectors_call_equal() {
    let mut net = Net::new(2);
    net.put(0, "k");
    // A key that got spoilt in somebody's memory, which nothing but the maps' fingerprints tells.
    net.pass(&mut |_, _, kind| {
        if let Kind::Push(push) = kind {
            push.entries.iter_mut().for_each(|entry| entry.key = Bytes::from_static(b"spoilt"));
        }
        true
    });
    assert!(!net.holds(1, "k") && net.holds(1, "spoilt"));
    net.settle(10);
    for node in 0..2 {
        assert!(net.holds(node, "k") && net.holds(node, "spoilt"), "node {node}");
        assert!(net.nodes[node].counters().divergences > 0);
    }
}

#[test]
fn what_a_peer_says_of_a_write_that_this_node_never_made_counts_for_nothing() {
    let mut net = Net::new(2);
    let own = net.nodes[0].origin();
    net.cut(0, 1);
    net.put(1, "k");
    net.link(0, 1);
    let mut told = 0;
    net.beats(4, &mut |from, _, kind| {
        if let Kind::Delta(delta) = kind
            && from == 1
            && delta.last
        {
            told += 1;
            delta.seen.push(Seen { origin: own, beyond: stamp_at(START_MS + 60_000), ..Seen::default() });
        }
        true
    });
    assert!(told > 0 && net.holds(0, "k"));
    assert_eq!(net.nodes[0].vector()[&own].beyond, 0);
}

#[test]
fn a_node_that_restarted_is_one_holder_and_not_two() {
    let mut net = Net::new(3);
    let dot = net.put(0, "k");
    net.settle(1);
    assert_eq!(net.nodes[0].holders(dot.hlc).peers, 2);
    // Its new life is let in before the old one's link is known to be down, and nobody has told yet that the old one is over.
    let again = net.start("n1", 3);
    net.link(0, again);
    net.beats(HEARD_BEATS as usize + 1, &mut |from, to, kind| {
        from != 1 && (to > 1 || !matches!(kind, Kind::Roster(_)))
    });
    assert!(net.nodes[again].is_ready() && net.holds(again, "k"));
    let holders = net.nodes[0].holders(dot.hlc);
    assert_eq!((holders.peers, holders.voters), (2, 3));
}

#[test]
fn however_many_are_gone_peers_take_the_roster() {
    let mut net = Net::new(3);
    // Nothing is collected while one cannot be reached, and is not given up on.
    net.cut_off(2);
    net.settle(1);
    let later = net.nodes[0].collected() + (60_000 << 16);
    let ended = |at: u64| Seat {
        origin: 1_000 + at,
        name: format!("ended{at}"),
        state: SeatState::Ended.into(),
        since_hlc: later + at,
        ..Seat::default()
    };
    for from in (0..5_000).step_by(500) {
        let seats: Vec<_> = (from..from + 500).map(ended).collect();
        net.give(1, 0, Message { kind: Some(Kind::Roster(Roster { seats })) });
        net.settle(3);
        for node in 0..2 {
            assert!(net.nodes[node].seats().count() <= MAX_SEATS / 2 + 3, "node {node}");
        }
    }
    net.put(0, "k");
    net.settle(1);
    assert!(net.holds(1, "k"));
}

#[test]
fn repair_brings_back_nothing_that_was_forgotten() {
    let mut net = Net::new(2);
    net.put(0, "k");
    net.settle(2);
    let dot = net.delete(0, "k");
    net.settle(10);
    assert_eq!((net.tombstones(0), net.tombstones(1)), (0, 0));
    net.nodes[0].watch(true);
    let mut answers = 0;
    net.beats(10, &mut |from, _, kind| {
        match kind {
            Kind::Digest(digest) if from == 1 => digest.fingerprint_lo ^= 1,
            // As if it had been sent before the other forgot it.
            Kind::Delta(delta) if from == 1 => {
                answers += 1;
                let key = Bytes::from_static(b"k");
                delta.entries =
                    vec![Entry { key, hlc: dot.hlc, origin: dot.origin, deleted: true, ..Entry::default() }];
            }
            _ => {}
        }
        true
    });
    assert!(answers > 0 && net.nodes[0].counters().divergences > 0);
    let wrote = |change: &Change| matches!(change, Change::Wrote(..));
    assert!(!net.nodes[0].take_changes().iter().any(wrote));
}

#[test]
fn what_is_forgotten_is_not_taken_again_though_nobody_knows_its_writer_any_more() {
    let mut net = Net::new(2);
    net.put(0, "k");
    net.settle(2);
    let dot = net.delete(0, "k");
    net.settle(10);
    assert!(net.nodes[0].collected() > dot.hlc);
    let mut answers = 0;
    net.beats(3, &mut |from, _, kind| {
        match kind {
            Kind::Digest(digest) if from == 1 => digest.seen_hash ^= 1,
            // As one would send that has yet to forget the writer.
            Kind::Delta(delta) if from == 1 => {
                answers += 1;
                let (key, value) = (Bytes::from_static(b"k"), Bytes::from_static(b"v"));
                delta.entries = vec![Entry { key, value, hlc: dot.hlc - 1, origin: 77, ..Entry::default() }];
            }
            _ => {}
        }
        true
    });
    assert!(answers > 0 && !net.holds(0, "k") && !net.nodes[0].vector().contains_key(&77));
}

#[test]
fn a_session_is_told_when_a_write_was_lost_with_its_node() {
    let mut net = Net::new(3);
    net.cut_off(2);
    let lost = net.put(2, "k");
    let founding = net.nodes[0].founding();
    assert_eq!(net.nodes[0].coverage(lost, founding), Coverage::Behind);
    let again = net.start("n2", 3);
    net.link(again, 0);
    net.link(again, 1);
    net.settle(15);
    assert!(net.nodes[again].is_ready());
    for node in [0, 1, again] {
        assert_eq!(net.nodes[node].coverage(lost, founding), Coverage::Lost, "node {node}");
    }
}

#[test]
fn a_session_waits_for_a_write_of_one_who_was_never_heard_of() {
    let mut net = Net::new(4);
    let sponsor = 3;
    net.cut_off(sponsor);
    let joins = net.let_in(sponsor, "n4", 4);
    let (dot, founding) = (net.put(joins, "k"), net.nodes[joins].founding());
    net.settle(12);
    // Where its sponsor was given up on, all that anybody knows of was taken in up to later than that.
    assert!(net.nodes[0].collected() > dot.hlc);
    assert_eq!(net.nodes[0].coverage(dot, founding), Coverage::Behind);
    // Since then something may have been forgotten.
    let forgotten = Dot { hlc: founding.0, origin: 77 };
    assert_eq!(net.nodes[0].coverage(forgotten, founding), Coverage::Behind);
    net.now_ms += REMEMBER_ENDED_MS;
    net.settle(10);
    assert_eq!(net.nodes[0].coverage(dot, founding), Coverage::Behind);
    assert_eq!(net.nodes[0].coverage(forgotten, founding), Coverage::Covered);
    net.heal();
    assert!(net.holds(0, "k"));
    assert_eq!(net.nodes[0].coverage(dot, founding), Coverage::Covered);
}

#[test]
fn a_session_is_told_that_all_who_had_heard_of_a_writer_are_gone() {
    let mut net = Net::new(3);
    let (knows, alone) = (2, 1);
    net.cut_off(alone);
    net.cut_off(0);
    let writer = net.let_in(knows, "n0", 3);
    net.link(writer, knows);
    let (dot, founding) = (net.put(writer, "k"), net.nodes[writer].founding());
    net.settle(1);
    assert!(net.holds(knows, "k"));
    net.cut_off(knows);
    net.cut_off(writer);
    let again = [net.start("n0", 3), net.start("n2", 3)];
    net.link(again[0], alone);
    net.link(again[1], alone);
    net.link(again[0], again[1]);
    net.settle(15);
    for node in [alone, again[0], again[1]] {
        assert!(net.nodes[node].is_ready() && net.nodes[node].collected() > dot.hlc && !net.holds(node, "k"));
        assert_eq!(net.nodes[node].coverage(dot, founding), Coverage::Lost, "node {node}");
    }
}

#[test]
fn a_session_is_told_of_a_loss_after_the_hour_in_which_it_might_have_come_back() {
    let mut net = Net::new(3);
    let gone = 2;
    net.cut_off(gone);
    let (dot, founding) = (net.put(gone, "k"), net.nodes[0].founding());
    net.settle(12);
    assert_eq!(net.nodes[0].coverage(dot, founding), Coverage::Behind, "it may come back");
    net.now_ms += REMEMBER_EVICTED_MS;
    net.settle(10);
    for node in 0..2 {
        assert!(net.nodes[node].collected() > dot.hlc);
        assert_eq!(net.nodes[node].coverage(dot, founding), Coverage::Lost, "node {node}");
    }
}

#[test]
fn a_session_is_told_that_a_later_founding_is_gone() {
    let mut net = Net::new(2);
    net.settle(10);
    let (node, (founded, by)) = (&net.nodes[0], net.nodes[0].founding());
    let all = node.collected();
    assert!(all > 0);
    assert_eq!(node.coverage_of_all(all, (founded, by)), Coverage::Covered);
    assert_eq!(node.coverage_of_all(all, (founded - 1, by)), Coverage::Lost);
    assert_eq!(node.coverage_of_all(all + 1, (founded + 1, by)), Coverage::Behind, "it may be met yet");
    assert_eq!(node.coverage_of_all(all, (founded + 1, by)), Coverage::Lost);
}

#[test]
fn a_part_of_a_snapshot_brings_back_nothing_that_was_deleted() {
    let (mut net, joins) = Net::half_a_snapshot();
    assert!(net.holds(joins, "a") && !net.nodes[joins].is_ready());
    net.cut_off(joins);
    net.found_alone(joins, 3);
    assert!(net.nodes[joins].is_ready());
    net.put(joins, "own");
    net.delete(0, "a");
    net.settle(12);
    net.now_ms += REMEMBER_EVICTED_MS + REMEMBER_ENDED_MS;
    net.settle(10);
    assert_eq!(net.tombstones(0), 0);
    net.heal();
    for node in 0..3 {
        assert!(net.nodes[node].is_ready() && net.holds(node, "own") && net.holds(node, "b"), "node {node}");
        assert!(!net.holds(node, "a"), "node {node} has what was deleted");
    }
}

#[test]
fn one_that_returns_waits_for_the_members_to_agree() {
    let mut net = Net::new(3);
    let (knows, other, returns) = (0, 1, 2);
    net.cut(knows, other);
    net.cut(other, returns);
    net.put(returns, "k");
    net.pass(&mut |_, _, _| true);
    net.cut(knows, returns);
    assert!(net.holds(knows, "k"));
    net.delete(knows, "k");
    // It comes back to the one that has seen neither the write nor the delete.
    net.link(other, returns);
    net.end(returns, other);
    net.link(other, returns);
    net.settle(4);
    assert!(net.nodes[returns].is_ready() && net.nodes[returns].brought() == 1);
    net.link_all();
    net.settle(10);
    for node in 0..3 {
        assert!(!net.holds(node, "k"), "node {node} has what was deleted");
    }
    assert_eq!(net.nodes[returns].brought(), 0);
}

#[test]
fn what_a_dead_node_half_sent_is_asked_for_before_it_counts() {
    let mut net = Net::new(4);
    let dies = 3;
    // Each of two gets another write of the dying node, behind one that nobody got.
    for (key, gets) in [("x", None), ("a", Some(0)), ("b", Some(1))] {
        net.put(dies, key);
        net.pass(&mut |from, to, _| from == dies && Some(to) == gets);
    }
    net.cut_off(dies);
    assert!(net.holds(0, "a") && !net.holds(0, "b") && !net.holds(1, "a") && net.holds(1, "b"));
    let again = net.start("n3", 4);
    for node in 0..3 {
        net.link(node, again);
    }
    // Repair would bring it in the end. It must not be needed: only digests that lead to a Sync get through.
    let mut hashes = [0; 5];
    net.beats(20, &mut |from, to, kind| {
        let Kind::Digest(digest) = kind else { return true };
        hashes[from] = digest.seen_hash;
        hashes[to] != digest.seen_hash
    });
    for node in [0, 1, 2, again] {
        assert!(net.holds(node, "a") && net.holds(node, "b"), "node {node}");
        assert!(net.nodes[node].counters().divergences == 0);
    }
}

#[test]
fn an_answer_to_one_who_was_given_up_on_meanwhile_claims_nothing() {
    let mut net = Net::new_that_keeps(0, 5);
    let (deletes, answers, asks) = (0, 1, 4);
    for key in ["a", "b", "c", "z"] {
        net.put(deletes, key);
    }
    net.settle(2);
    let dot = net.delete(deletes, "z");
    net.beats(3, &mut |_, to, _| to != asks);
    // It reaches only one, whose answer takes several parts. The other three give up on it meanwhile.
    net.cut_off(asks);
    net.link(answers, asks);
    net.first_part(asks, answers);
    for _ in 0..15 {
        net.now_ms += BEAT_MS;
        for node in (0..5).filter(|&node| node != asks) {
            net.nodes[node].tick(ALONE, net.now_ms);
        }
        net.pass_between(|from, to| from != asks && to != asks, &mut |_, _, _| true);
    }
    assert_eq!(net.tombstones(answers), 0, "with the answer half sent, it forgets");
    assert!(net.holds(asks, "z"));
    // That it was given up on is lost on the way.
    net.pass_between(|from, _| from == answers, &mut |_, to, kind| to != asks || !matches!(kind, Kind::Roster(_)));
    assert_eq!(net.nodes[asks].coverage(dot, net.nodes[asks].founding()), Coverage::Behind);
    assert!(net.holds(asks, "z"));
    net.heal();
    for node in 0..5 {
        assert!(net.nodes[node].is_ready() && !net.holds(node, "z"), "node {node} has what was deleted");
    }
}

/// A node that was given up on, and does not know, lets in another, and that one perhaps a third.
#[test]
fn one_whom_nobody_let_in_who_takes_part_begins_anew() {
    for generations in [1, 2] {
        let mut net = Net::new(4);
        let mut joins = 3;
        net.cut_off(joins);
        net.settle(10);
        for name in &["n4", "n5"][..generations] {
            joins = net.let_in(joins, name, 4);
        }
        let dot = net.put(joins, "k");
        // Nothing was forgotten that it lacks, and what it wrote is above all of that: it could not be told by what it holds.
        let collected = net.nodes[0].collected();
        assert!(collected > 0 && collected < dot.hlc);
        let mut taken = 0;
        net.link(joins, 0);
        net.pass(&mut |from, to, kind| {
            taken += usize::from((from, to) == (0, joins) && matches!(kind, Kind::Ack(_)));
            true
        });
        assert_eq!((taken, net.nodes[joins].is_ready()), (0, false), "after {generations}");
        net.heal();
        for (at, node) in net.nodes.iter().enumerate() {
            assert!(node.is_ready() && net.holds(at, "k"), "node {at} has not what it brought, after {generations}");
        }
    }
}

#[test]
fn one_that_is_refused_does_not_take_over_what_the_others_agreed_on() {
    let mut net = Net::new(4);
    let sponsor = 3;
    net.cut_off(sponsor);
    let joins = net.let_in(sponsor, "n4", 4);
    let dot = net.put(joins, "k");
    net.settle(12);
    // All of the others' that it is not told is that they refuse it.
    for node in 0..3 {
        net.link(joins, node);
    }
    net.beats(10, &mut |_, to, kind| to != joins || !matches!(kind, Kind::Delta(_)));
    assert!(net.nodes[joins].is_ready() && net.nodes[0].collected() > dot.hlc);
    for _ in 0..4 {
        net.settle(8);
        net.link_all();
    }
    for node in 0..5 {
        assert!(net.holds(node, "k"), "node {node} has not what it brought");
    }
}

#[test]
fn one_whose_seat_was_forgotten_meanwhile_begins_anew() {
    let mut net = Net::new(4);
    // Whom a node let in that is there all the time.
    let late = net.start("n4", 4);
    net.link_all();
    net.settle(3);
    net.put(late, "k");
    net.settle(2);
    net.cut_off(late);
    net.delete(0, "k");
    net.settle(10);
    // Longer than anybody remembers it.
    net.now_ms += REMEMBER_EVICTED_MS + REMEMBER_ENDED_MS;
    net.settle(10);
    assert!((0..4).all(|node| net.nodes[node].seats().all(|(origin, _)| origin != net.nodes[late].origin())));
    assert!(net.nodes[late].is_ready() && net.holds(late, "k"));
    net.link(late, 0);
    net.pass(&mut |_, _, _| true);
    assert!(!net.nodes[late].is_ready());
    net.heal();
    for node in 0..5 {
        assert!(net.nodes[node].is_ready() && !net.holds(node, "k"), "node {node} has what was deleted");
    }
}

#[test]
fn one_that_was_let_in_knows_who_was_given_up_on() {
    let mut net = Net::new(4);
    let late = 3;
    net.cut_off(late);
    net.settle(10);
    let joins = net.start("n4", 4);
    net.link(joins, 0);
    // All that is told it of who takes part is in the snapshot.
    let mut told = |_, to, kind: &mut Kind| to != joins || !matches!(kind, Kind::Roster(_));
    net.pass(&mut told);
    assert!(net.nodes[joins].is_ready());
    // The other's writes are in the vector that came with it, as those of one who takes part.
    net.link(joins, late);
    net.pass(&mut told);
    assert!(!net.nodes[late].is_ready());
}

#[test]
fn two_that_founded_alone_bring_together_what_each_had() {
    let mut net = Net::empty();
    for (name, key) in [("n0", "a"), ("n1", "b")] {
        let node = net.start(name, 0);
        net.nodes[node].tick(ALONE, net.now_ms);
        net.put(node, key);
    }
    for _ in 0..10 {
        net.now_ms += BEAT_MS;
        net.nodes.iter_mut().for_each(|node| node.tick(ALONE, net.now_ms));
    }
    // Each by itself is a majority of those it knows.
    assert!(net.nodes.iter().all(|node| node.collected() > 0));
    for _ in 0..4 {
        if net.links.is_empty() {
            net.link(0, 1);
        }
        net.settle(5);
    }
    for node in 0..2 {
        assert!(net.holds(node, "a") && net.holds(node, "b"), "node {node}");
    }
}

#[test]
fn of_two_that_refuse_each_other_one_stays() {
    let mut net = Net::new(5);
    let (sponsor, dies) = (3, 4);
    for node in 0..3 {
        net.cut(node, sponsor);
        net.cut(node, dies);
    }
    net.settle(10);
    // On the smaller side one is replaced, on the larger side all three are.
    net.cut_off(dies);
    let late = net.let_in(sponsor, "n4", 5);
    let mut members = vec![0, 1, 2];
    for name in ["n0", "n1", "n2"] {
        let new = net.start(name, 5);
        net.cut_off(members.remove(0));
        for &member in &members {
            net.link(new, member);
        }
        net.settle(3);
        members.push(new);
    }
    // Each was let in by someone whom the other knows to be gone.
    let member = members[2];
    net.link(late, member);
    let (voter, state, since_hlc) = (true, SeatState::Ended.into(), 1);
    let ended =
        (1..=3).map(|origin| Seat { origin, name: origin.to_string(), voter, state, since_hlc, ..Seat::default() });
    net.give(member, late, Message { kind: Some(Kind::Roster(Roster { seats: ended.collect() })) });
    net.pass(&mut |_, _, _| true);
    assert_eq!([member, late].map(|node| net.nodes[node].is_ready()), [true, false]);
}

#[test]
fn one_that_leaves_lets_nobody_in_if_there_is_another() {
    for leaves_first in [true, false] {
        let mut net = Net::new(3);
        for key in ["a", "b", "c"] {
            net.put(0, key);
        }
        net.settle(2);
        let joins = net.start("n3", 3);
        if leaves_first {
            net.nodes[0].leave(net.now_ms);
        }
        net.link(joins, 0);
        net.first_part(joins, 0);
        net.link(joins, 1);
        net.link(joins, 2);
        net.pass_between(|from, to| from != 0 && to != 0, &mut |_, _, _| true);
        if !leaves_first {
            net.nodes[0].leave(net.now_ms);
        }
        net.pass(&mut |_, _, _| true);
        net.cut_off(0);
        net.settle(3);
        let node = &net.nodes[joins];
        assert_eq!((node.is_ready(), node.counters().returns), (true, 0), "{leaves_first}");
    }
}

#[test]
fn who_let_one_in_may_leave_before_all_have_met_it() {
    let mut net = Net::new(3);
    let (sponsor, meets) = (0, 1);
    let joins = net.start("n3", 3);
    net.link(joins, sponsor);
    net.settle(3);
    net.nodes[sponsor].leave(net.now_ms);
    net.pass(&mut |_, _, _| true);
    net.cut_off(sponsor);
    net.link(joins, meets);
    net.settle(3);
    let node = &net.nodes[joins];
    assert_eq!((node.is_ready(), node.counters().returns), (true, 0));
}

#[test]
fn a_delete_is_final_though_who_knew_what_it_deleted_is_gone() {
    let mut net = Net::new(5);
    let (deletes, returns) = (0, 4);
    for node in 1..4 {
        net.cut(returns, node);
    }
    net.put(returns, "k");
    net.pass(&mut |_, _, _| true);
    net.cut_off(returns);
    // The delete gets to the others, and nothing of what its node has taken in.
    net.delete(deletes, "k");
    net.pass(&mut |from, _, kind| from != deletes || matches!(kind, Kind::Push(_)));
    net.cut_off(deletes);
    net.nodes[1].watch(true);
    net.settle(15);
    let evicted = net.nodes[1].take_changes().into_iter().filter(|change| matches!(change, Change::Evicted(_)));
    assert_eq!(evicted.count(), 2);
    net.come_back(returns, 1..4);
    for node in 1..5 {
        assert!(net.nodes[node].is_ready() && !net.holds(node, "k"), "node {node} has what was deleted");
    }
}

#[test]
fn what_is_written_just_after_a_start_needs_no_heartbeat_to_arrive() {
    for seed in 0..1_000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut net = Net::empty();
        for name in ["n0", "n1"] {
            net.start(name, 2);
        }
        net.link(0, 1);
        // Messages to each of the two, in order, with anything between their being sent and taken.
        let mut ways = [VecDeque::new(), VecDeque::new()];
        let send = |net: &mut Net, ways: &mut [VecDeque<Message>; 2], from: usize| {
            let message = net.nodes[from].poll_send(net.links[&(from, 1 - from)], net.now_ms);
            let sent = message.is_some();
            ways[1 - from].extend(message);
            sent
        };
        let take = |net: &mut Net, ways: &mut [VecDeque<Message>; 2], to: usize| {
            let Some(message) = ways[to].pop_front() else { return false };
            net.give(1 - to, to, message);
            true
        };
        while !net.nodes.iter().all(Replica::is_ready) {
            assert!(net.now_ms < START_MS + 60_000, "seed {seed}: they are never ready");
            let at = rng.random_range(0..2);
            match rng.random_range(0..8) {
                0 => {
                    net.now_ms += rng.random_range(0..10);
                    net.nodes[at].tick(ALONE, net.now_ms);
                }
                1..=4 => _ = send(&mut net, &mut ways, at),
                _ => _ = take(&mut net, &mut ways, at),
            }
        }
        let dot = net.put(0, "k");
        // No time passes.
        while (0..2).fold(false, |any, at| send(&mut net, &mut ways, at) | take(&mut net, &mut ways, at) | any) {}
        assert!(net.holds(1, "k"), "seed {seed}");
        let holders = net.nodes[0].holders(dot.hlc);
        assert_eq!((holders.peers, holders.lacking), (1, 0), "seed {seed}");
    }
}

#[test]
fn one_that_leaves_hands_on_what_one_that_left_had_told_it_alone() {
    let mut net = Net::new(3);
    let (stays, last, first) = (0, 1, 2);
    net.cut(first, stays);
    net.put(first, "k");
    net.pass(&mut |_, _, _| true);
    net.nodes[first].drain();
    assert_eq!(net.nodes[first].uncovered(), (0, 0), "all that it is linked to hold it");
    net.nodes[first].leave(net.now_ms);
    net.pass(&mut |_, _, _| true);
    net.cut_off(first);
    net.nodes[last].drain();
    assert!(net.nodes[last].uncovered() == (1, 1) && !net.holds(stays, "k"));
    net.settle(2);
    assert!(net.nodes[last].uncovered() == (0, 0) && net.holds(stays, "k"));
}

#[test]
fn a_clock_that_was_ahead_once_is_held_against_nobody() {
    let mut net = Net::new(2);
    net.put(0, "k");
    net.settle(1);
    net.nodes[0].tick(ALONE, net.now_ms + 3_600_000);
    // One whose stamps are not raised yet, too.
    let joins = net.start("n2", 2);
    net.link(joins, 0);
    for node in 0..3 {
        net.settle(1);
        net.put(node, ["a", "b", "c"][node]);
    }
    net.settle(2);
    // What one has of another is passed on as ever.
    net.settle(3);
    let end_ms = Some(net.now_ms + 60_000);
    net.nodes[0].put("ends".into(), "v".into(), end_ms, net.now_ms).unwrap();
    net.settle(5);
    let all = ["k", "a", "b", "c", "ends"];
    for node in 0..3 {
        assert_eq!(all.map(|key| net.holds(node, key)), [true; 5], "{node}");
    }
}

#[test]
fn who_is_gone_is_no_holder_though_its_link_is_still_there() {
    let mut net = Net::new(3);
    let dot = net.put(0, "k");
    net.pass(&mut |_, _, _| true);
    assert_eq!(net.nodes[0].holders(dot.hlc).peers, 2);
    let (gone, again) = (1, net.start("n1", 3));
    net.link(again, 0);
    // Of its new life no more is heard than that it was let in.
    net.beats(HEARD_BEATS as usize + 1, &mut |from, to, kind| {
        let said = matches!(kind, Kind::Roster(_) | Kind::Report(_)) || matches!(kind, Kind::Sync(sync) if !sync.ready);
        from != gone && to != gone && (from != again || said)
    });
    assert!(net.nodes[again].is_ready());
    assert_eq!(net.nodes[0].holders(dot.hlc).peers, 1);
}

#[test]
fn a_write_does_not_wait_for_the_end_of_an_answer() {
    let mut net = Net::new(3);
    let keys: Vec<&str> = "a b c d e f g h i j k l m n o p q r s t".split(' ').collect();
    let (leaves, answers, asks) = (0, 1, 2);
    net.cut_off(asks);
    for key in &keys {
        net.put(leaves, key);
    }
    net.pass(&mut |_, _, _| true);
    net.nodes[leaves].leave(net.now_ms);
    net.pass(&mut |_, _, _| true);
    net.cut_off(leaves);
    net.link(asks, answers);
    net.first_part(asks, answers);
    net.put(answers, "x");
    for _ in 0..4 {
        net.step(answers, asks, &mut |_, _, _| true);
    }
    assert!(net.holds(asks, "x") && !net.holds(asks, "t"));
    net.settle(1);
    assert!(net.holds(asks, "t"));
}

#[test]
fn one_without_room_for_the_map_asks_for_it_now_and_then() {
    let mut net = Net::new(2);
    for key in ["a", "b", "c", "d"] {
        net.put(0, key);
    }
    net.settle(1);
    let joins = net.start_with_room("n2", 2, Some(100));
    net.link(joins, 0);
    net.link(joins, 1);
    let (mut asked, mut parts) = (0, 0);
    net.beats(5, &mut |_, _, kind| {
        asked += usize::from(matches!(kind, Kind::Sync(sync) if sync.want == Want::Snapshot as i32));
        parts += usize::from(matches!(kind, Kind::Delta(delta) if !delta.entries.is_empty()));
        true
    });
    assert!(!net.nodes[joins].is_ready() && net.nodes[joins].is_overfull());
    assert!((3..=6).contains(&asked) && parts <= 2 * asked, "{asked} and {parts}");
}

#[test]
fn all_that_ends_is_told_however_much_ends_at_once() {
    let mut net = Net::new(2);
    net.nodes[1].leave(net.now_ms);
    net.pass(&mut |_, _, _| true);
    net.cut_off(1);
    net.nodes[0].set_voters(1);
    net.nodes[0].watch(true);
    let count = 5 * EXPIRE_STEP / 2;
    for n in 0..count {
        let end_ms = Some(net.now_ms + 1);
        net.nodes[0].put(n.to_string().into(), "v".into(), end_ms, net.now_ms).unwrap();
    }
    net.now_ms += 60 * BEAT_MS;
    net.settle(10);
    let told = net.nodes[0].take_changes().iter().filter(|change| matches!(change, Change::Expired(..))).count();
    assert_eq!((told, net.nodes[0].store().len()), (count, 0));
}

#[test]
fn a_session_is_behind_on_one_that_was_given_up_on_and_does_not_know_it() {
    let mut net = Net::new(3);
    net.cut_off(2);
    net.settle(8);
    let mut session = Session::default();
    session.saw(net.put(0, "k"));
    net.settle(8);
    session.shorten(&net.nodes[0]).unwrap();
    let lone = Session::default().encode().len();
    assert_eq!(session.encode().len(), lone, "everybody has it, as far as they know");
    let coverage = |net: &Net| [0, 1, 2].map(|node| session.coverage(&net.nodes[node]));
    assert!(net.nodes[2].is_ready());
    assert_eq!(coverage(&net), [Coverage::Covered, Coverage::Covered, Coverage::Behind]);
    net.heal();
    assert_eq!(coverage(&net), [Coverage::Covered; 3]);
}

#[test]
fn what_was_taken_as_it_is_does_not_stand_for_what_was_lost_before_it() {
    let mut net = Net::new(3);
    net.cut(2, 0);
    net.pass(&mut |_, _, _| true);
    let mut session = Session::default();
    // The first is lost on its way, the second is the last that is heard: a session may have seen both.
    session.saw(net.put(2, "a"));
    net.step(2, 1, &mut |_, _, _| false);
    session.saw(net.put(2, "b"));
    net.step(2, 1, &mut |_, _, _| true);
    net.cut_off(2);
    assert!(net.holds(1, "b") && !net.holds(1, "a"));
    net.settle(12);
    for node in &net.nodes[..2] {
        assert!(node.counters().adoptions > 0 && node.store().get(b"b").is_some());
        assert_ne!(session.coverage(node), Coverage::Covered);
    }
}

#[test]
fn an_answer_that_was_lost_is_asked_for_again() {
    let mut net = Net::new(2);
    net.put(0, "k");
    // Nothing of the pushes gets there, nor of the answer when the gap is seen.
    let mut lost = 0;
    net.beats(3, &mut |from, _, kind| {
        let loses = match kind {
            Kind::Push(push) => !push.entries.is_empty(),
            Kind::Delta(_) => from == 0,
            _ => false,
        };
        lost += usize::from(loses);
        !loses
    });
    assert!(lost > 1 && !net.holds(1, "k"));
    net.settle(5);
    assert!(net.holds(1, "k"));
}

#[test]
fn what_an_older_connection_left_is_dropped() {
    let mut net = Net::new(2);
    net.put(0, "k");
    let mut left = None;
    net.step(0, 1, &mut |_, _, kind| {
        left = Some(kind.clone());
        false
    });
    assert!(matches!(&left, Some(Kind::Push(push)) if push.entries.len() == 1));
    let old = net.links[&(1, 0)];
    net.cut(0, 1);
    net.link(0, 1);
    // The newer one is up, and nothing but that has come over it.
    net.pass(&mut |from, _, kind| from == 1 || !matches!(kind, Kind::Push(_) | Kind::Delta(_)));
    net.nodes[1].receive(old, Message { kind: left }, net.now_ms).expect("it is no fault of the peer");
    assert!(!net.holds(1, "k"));
    net.settle(6);
    assert!(net.holds(1, "k"));
}

#[test]
fn of_two_that_return_one_with_a_write_and_one_with_its_delete_the_delete_stands() {
    // Whichever of the two comes first.
    for (writes, deletes) in [(3, 4), (4, 3)] {
        let mut net = Net::new(5);
        for gone in [writes, deletes] {
            net.cut_off(gone);
        }
        net.link(writes, deletes);
        net.put(writes, "k");
        net.pass(&mut |_, _, _| true);
        net.cut(writes, deletes);
        net.delete(deletes, "k");
        net.settle(12);
        // The others have given up on both.
        for returns in [writes, deletes] {
            net.link(0, returns);
            net.end(returns, 0);
        }
        assert!(net.nodes[writes].brought() == 1 && net.nodes[deletes].brought() == 1);
        net.heal();
        for node in 0..5 {
            assert!(net.nodes[node].is_ready() && net.nodes[node].brought() == 0);
            assert!(!net.holds(node, "k"), "node {node} has what {deletes} had deleted");
        }
    }
}

/// Whichever of the two rejoins first, and though neither had seen what the other wrote.
#[test]
fn returners_reissue_only_the_later_write() {
    for (writes, deletes) in [(3, 4), (4, 3)] {
        for delete_is_later in [true, false] {
            let mut net = Net::new(5);
            net.put(0, "k");
            net.settle(2);
            net.cut_off(writes);
            net.cut_off(deletes);
            for deleting in [!delete_is_later, delete_is_later] {
                net.settle(1);
                if deleting {
                    net.delete(deletes, "k")
                } else {
                    net.put(writes, "k")
                };
            }
            net.settle(12);
            for returns in [writes, deletes] {
                net.link(0, returns);
                net.end(returns, 0);
            }
            net.heal();
            for node in 0..5 {
                assert!(net.nodes[node].is_ready() && net.nodes[node].brought() == 0);
                assert_eq!(net.holds(node, "k"), !delete_is_later, "node {node}");
            }
        }
    }
}

#[test]
fn returner_brings_back_nothing_deleted_later() {
    let mut net = Net::new(3);
    let away = 2;
    for key in ["before", "after", "rewritten"] {
        net.put(0, key);
    }
    net.settle(2);
    net.cut_off(away);
    net.put(away, "before");
    net.settle(1);
    // One delete while the node is a member, one once it is evicted, and one that is older than the write.
    net.delete(0, "before");
    net.settle(8);
    assert!(net.nodes[0].seats().any(|(_, seat)| seat.state == SeatState::Evicted));
    net.put(away, "after");
    net.delete(0, "rewritten");
    net.settle(1);
    let last = net.delete(1, "after");
    net.put(away, "rewritten");
    net.settle(12);
    assert!(net.nodes[0].collected() > last.hlc && net.tombstones(0) == 3, "all that take part hold the deletes");
    // A newcomer holds them as well, and may be whom the returner gets its map from.
    let joins = net.start("n3", 3);
    net.link(joins, 0);
    net.settle(4);
    assert_eq!(net.tombstones(joins), 3);
    net.heal();
    for node in 0..4 {
        assert!(net.nodes[node].is_ready() && net.nodes[node].brought() == 0);
        assert!(!net.holds(node, "before") && !net.holds(node, "after") && net.holds(node, "rewritten"), "node {node}");
    }
    assert_eq!((net.nodes[away].counters().reissued, net.nodes[away].counters().too_late), (1, 0));
    net.settle(12);
    assert!((0..4).all(|node| net.tombstones(node) == 0), "deletes are kept for as long as they may be needed");
}

#[test]
fn too_many_deletes_make_a_returner_too_late() {
    let mut net = Net::new_that_keeps(2, 3);
    let away = 2;
    net.put(0, "k");
    net.settle(2);
    net.cut_off(away);
    net.put(away, "k");
    net.put(away, "alone");
    net.settle(8);
    net.delete(0, "k");
    net.settle(12);
    assert_eq!(net.tombstones(0), 1, "there is room for two");
    for key in ["a", "b", "c"] {
        net.put(0, key);
        net.delete(0, key);
        net.settle(8);
    }
    assert_eq!(net.tombstones(0), 2);
    net.put(away, "recent");
    net.heal();
    for node in 0..3 {
        assert!(net.nodes[node].is_ready() && net.nodes[node].brought() == 0);
        assert!(!net.holds(node, "k") && !net.holds(node, "alone") && net.holds(node, "recent"), "node {node}");
    }
    let counters = net.nodes[away].counters();
    assert_eq!((counters.reissued, counters.too_late), (1, 2), "what is not brought back is counted");
}

/// It got its map from a member that had not heard of the delete.
#[test]
fn returner_waits_for_what_members_wrote_before() {
    let mut net = Net::new(5);
    let (away, deletes) = (4, 1);
    net.put(0, "k");
    net.settle(2);
    net.cut_off(away);
    net.put(away, "k");
    net.settle(12);
    net.delete(deletes, "k");
    net.link(0, away);
    net.end(away, 0);
    (0..away).for_each(|node| net.link(away, node));
    let mut hide = |from, _, kind: &mut Kind| from != deletes || !matches!(kind, Kind::Push(_) | Kind::Delta(_));
    net.beats(10, &mut hide);
    assert!(net.nodes[away].is_ready() && net.nodes[away].brought() == 1);
    net.settle(10);
    assert_eq!((net.nodes[away].brought(), net.nodes[away].counters().reissued), (0, 0));
    assert!((0..5).all(|node| !net.holds(node, "k")));
}

#[test]
fn founder_apart_brings_back_nothing_deleted_later() {
    let mut net = Net::empty();
    for name in ["n0", "n1"] {
        net.start(name, 3);
    }
    net.link_all();
    net.settle(8);
    let alone = net.start("n2", 3);
    net.found_alone(alone, 3);
    assert!(net.nodes[alone].is_ready());
    net.put(alone, "k");
    net.put(alone, "own");
    net.settle(1);
    net.put(0, "k");
    net.settle(1);
    let dot = net.delete(0, "k");
    net.settle(12);
    assert!(net.nodes[0].collected() > dot.hlc);
    net.heal();
    for node in 0..3 {
        assert!(net.nodes[node].is_ready() && net.nodes[node].brought() == 0);
        assert!(!net.holds(node, "k") && net.holds(node, "own"), "node {node}");
    }
    assert_eq!(net.nodes[alone].counters().returns, 1);
    net.settle(12);
    assert!((0..3).all(|node| net.tombstones(node) == 0));
}

/// Neither of two sidecars returns, and one of them had half sent a write.
#[test]
fn deletes_go_an_hour_after_the_eviction() {
    let mut net = Net::new(3);
    for name in ["s3", "s4"] {
        let sidecar = Settings { voter: false, ..net.settings(name, 0) };
        net.start_with(sidecar);
    }
    net.link_all();
    net.settle(8);
    let (dies, evicted) = (3, 4);
    net.put(dies, "lost");
    net.pass(&mut |from, _, _| from != dies);
    net.put(dies, "k");
    for to in 0..dies {
        net.step(dies, to, &mut |_, _, _| true);
    }
    net.cut_off(dies);
    net.cut_off(evicted);
    net.settle(12);
    assert!(net.nodes[0].counters().adoptions > 0);
    net.delete(0, "k");
    net.settle(12);
    assert_eq!(net.tombstones(0), 1);
    net.now_ms += REMEMBER_EVICTED_MS;
    net.settle(12);
    assert!((0..3).all(|node| net.tombstones(node) == 0));
}

#[test]
fn what_was_issued_again_and_deleted_does_not_come_back_with_another_who_returns() {
    let mut net = Net::new(5);
    let (first, second) = (4, 3);
    for gone in [first, second] {
        net.cut_off(gone);
    }
    net.link(first, second);
    let dot = net.put(first, "k");
    net.pass(&mut |_, _, _| true);
    net.cut(first, second);
    net.settle(12);
    // The others have given up on both.
    net.link(0, first);
    net.end(first, 0);
    (0..3).for_each(|node| net.link(first, node));
    net.beats(6, &mut |from, _, kind| {
        if let Kind::Delta(delta) = kind
            && from == first
        {
            delta.seen.retain(|seen| seen.origin != dot.origin);
        }
        true
    });
    let returned = &net.nodes[first];
    assert!(returned.is_ready() && returned.brought() == 1);
    assert_eq!(returned.counters().reissued, 0, "the others do not know of it yet");
    // They hear that there is such a write, and not that it was issued again.
    let mut hide = |from: usize, _: usize, kind: &mut Kind| {
        if let Kind::Delta(delta) = kind
            && from == first
        {
            delta.seen.iter_mut().filter(|it| it.origin == dot.origin && it.hlc >= dot.hlc).for_each(|seen| {
                (seen.hlc, seen.last) = (0, 0);
            });
        }
        true
    };
    for _ in 0..10 {
        if net.nodes[first].counters().reissued == 0 {
            net.beats(1, &mut hide);
        }
    }
    assert!((0..3).all(|node| net.holds(node, "k")));
    net.delete(first, "k");
    net.pass(&mut hide);
    net.cut_off(first);
    net.settle(12);
    assert!((0..3).all(|node| !net.holds(node, "k") && net.tombstones(node) == 1));
    net.link(0, second);
    net.end(second, 0);
    assert_eq!(net.nodes[second].brought(), 1);
    net.come_back(second, 0..3);
    assert!(net.nodes[second].is_ready() && net.nodes[second].brought() == 0);
    for node in 0..4 {
        assert!(!net.holds(node, "k"), "node {node} has what was deleted");
    }
}

#[test]
fn a_delete_of_what_was_taken_as_it_is_waits_for_whoever_may_bring_it_again() {
    let mut net = Net::new(5);
    let (dies, returns) = (4, 3);
    // The first is lost on its way to all, the second is the last that is heard.
    net.put(dies, "lost");
    net.pass(&mut |from, _, _| from != dies);
    net.put(dies, "k");
    for to in 0..dies {
        net.step(dies, to, &mut |_, _, _| true);
    }
    net.cut_off(dies);
    net.cut_off(returns);
    assert!((0..dies).all(|node| net.holds(node, "k") && !net.holds(node, "lost")));
    net.settle(10);
    assert!(net.nodes[0].counters().adoptions > 0);
    net.delete(0, "k");
    net.settle(10);
    assert_eq!(net.tombstones(0), 1);
    net.link(0, returns);
    net.end(returns, 0);
    assert_eq!(net.nodes[returns].brought(), 1);
    net.link(0, returns);
    net.heal();
    for node in 0..dies {
        assert!(net.nodes[node].is_ready() && net.nodes[node].brought() == 0);
        assert!(!net.holds(node, "k"), "node {node} has what was deleted");
    }
}

#[test]
fn what_one_that_returned_covers_of_what_was_taken_as_it_is_all_come_to_cover() {
    // Also when there is always a write under way.
    for busy in [false, true] {
        let mut net = Net::new(5);
        let (dies, returns) = (4, 3);
        let mut session = Session::default();
        // Of the first only one hears, the second is the last that is heard by all.
        net.put(dies, "a");
        net.pass(&mut |from, to, _| from != dies || to == returns);
        session.saw(net.put(dies, "b"));
        for to in 0..dies {
            net.step(dies, to, &mut |_, _, _| true);
        }
        net.cut_off(dies);
        net.cut_off(returns);
        assert!((0..returns).all(|node| net.holds(node, "b") && !net.holds(node, "a")));
        net.settle(10);
        assert!(net.nodes[0].counters().adoptions > 0);
        // It will not come back: another process has its name.
        net.start("n4", 5);
        net.nodes.swap_remove(dies);
        (0..returns).for_each(|node| net.link(node, dies));
        net.settle(10);
        net.link(0, returns);
        net.end(returns, 0);
        for other in [0, 1, 2, dies] {
            net.link(returns, other);
        }
        // What it covers gets to nobody until it has issued again what it brought.
        net.beats(10, &mut |from, _, kind| {
            if let Kind::Delta(delta) = kind
                && from == returns
            {
                delta.seen.clear();
            }
            true
        });
        for at in 0..5 {
            assert!(net.nodes[at].is_ready() && net.nodes[at].brought() == 0 && net.holds(at, "a"));
            assert_eq!(session.coverage(&net.nodes[at]) == Coverage::Covered, at == returns);
        }
        for _ in 0..10 {
            if busy {
                net.put(returns, "c");
            }
            net.beats(1, &mut |from, _, kind| {
                from != returns || !matches!(kind, Kind::Push(push) if !push.entries.is_empty())
            });
        }
        for (at, node) in net.nodes.iter().enumerate() {
            assert_eq!(session.coverage(node), Coverage::Covered, "node {at} holds all that came before it");
        }
    }
}

#[test]
fn a_snapshot_misses_nothing_of_what_is_overwritten_meanwhile() {
    let (mut net, joins) = Net::half_a_snapshot();
    net.put(0, "a");
    net.pass(&mut |_, _, _| true);
    assert!(net.nodes[joins].is_ready());
    for key in ["a", "b", "c"] {
        assert!(net.holds(joins, key), "{key}");
    }
}

#[test]
fn one_that_was_forgotten_for_want_of_room_brings_back_nothing_that_was_deleted() {
    let mut net = Net::new(3);
    let late = 2;
    net.put(late, "stays");
    net.put(late, "k");
    net.pass(&mut |_, _, _| true);
    net.cut_off(late);
    // What only it holds is as much in doubt later as what was deleted meanwhile: it is dropped, too, and counted.
    net.put(late, "alone");
    let origin = net.nodes[late].origin();
    net.delete(0, "k");
    net.settle(10);
    assert!(!net.holds(0, "k") && net.tombstones(0) == 1 && net.nodes[0].vector().contains_key(&origin));
    // So many have ended since that there is no place for it in the roster.
    let ended = |at: u64| Seat {
        origin: 1_000 + at,
        name: format!("ended{at}"),
        state: SeatState::Ended.into(),
        since_hlc: net.nodes[0].collected(),
        ..Seat::default()
    };
    let seats: Vec<_> = (0..MAX_ENDED as u64).map(ended).collect();
    net.give(1, 0, Message { kind: Some(Kind::Roster(Roster { seats })) });
    // While a voter is missing, deletes are kept.
    net.nodes[..2].iter_mut().for_each(|node| node.set_voters(2));
    net.settle(3);
    for node in &net.nodes[..2] {
        assert!(node.seats().all(|(it, _)| it != origin) && !node.vector().contains_key(&origin));
        assert_eq!(node.store().tombstones(), 0);
    }
    net.heal();
    for node in 0..3 {
        assert!(net.nodes[node].is_ready() && net.nodes[node].brought() == 0);
        assert!(!net.holds(node, "k"), "node {node} has what was deleted");
    }
    assert_eq!((net.nodes[late].counters().reissued, net.nodes[late].counters().too_late), (0, 2));
}

#[test]
fn a_newcomer_misses_nothing_of_one_that_is_forgotten() {
    let mut net = Net::new(3);
    let goes = 2;
    net.put(goes, "stays");
    net.settle(2);
    let origin = net.nodes[goes].origin();
    net.cut_off(goes);
    net.settle(6);
    net.now_ms += REMEMBER_EVICTED_MS + REMEMBER_ENDED_MS;
    net.settle(10);
    assert!(net.holds(0, "stays") && !net.nodes[0].vector().contains_key(&origin));
    let joins = net.start("n3", 3);
    net.link(joins, 0);
    net.pass(&mut |_, _, _| true);
    assert!(net.nodes[joins].is_ready() && net.holds(joins, "stays"));
    assert!(!net.nodes[joins].vector().contains_key(&origin));
}

#[test]
fn a_sidecar_vouches_for_nothing_until_it_was_told_how_many_voters_there_are() {
    let mut net = Net::empty();
    // One of three that was told to go ahead alone.
    let alone = Settings { serve_alone: true, join_timeout_ms: 0, ..net.settings("n0", 3) };
    let alone = net.start_with(alone);
    net.nodes[alone].tick(ALONE, net.now_ms);
    assert!(net.nodes[alone].is_ready());
    let sidecar = Settings { voter: false, ..net.settings("s", 0) };
    let sidecar = net.start_with(sidecar);
    net.link(alone, sidecar);
    let mut reports = 0;
    net.beats(4, &mut |from, _, kind| {
        let Kind::Report(report) = kind else { return true };
        if from == sidecar {
            reports += 1;
            assert!(report.stable == 0 && !report.standing.is_some_and(|s| s.promised));
        }
        from == sidecar
    });
    assert!(net.nodes[sidecar].is_ready() && reports > 2);
}

/// As many new nodes as `linked`, each linked to the others, after these many milliseconds with a view: whether the first
/// of them founds.
fn founds(linked: usize, voters: usize, after_ms: u64, view: View) -> bool {
    let mut net = Net::empty();
    for at in 0..linked {
        let settings = Settings { join_timeout_ms: 10_000, ..net.settings(&format!("n{at}"), voters) };
        net.start_with(settings);
    }
    net.link_all();
    net.pass(&mut |_, _, _| true);
    net.nodes[0].tick(view, net.now_ms + after_ms);
    net.nodes[0].is_ready()
}

const SOON_MS: u64 = 100;
const LATE_MS: u64 = 10_000;

#[test]
fn founding_waits_for_all_that_are_named() {
    for (linked, voters) in [(1, 0), (1, 1), (2, 0), (2, 3), (3, 3)] {
        assert!(founds(linked, voters, SOON_MS, View::ALONE), "{linked} of {voters}");
        assert!(!founds(linked, voters, SOON_MS, View { unlinked: 1, ..View::ALONE }), "{linked} of {voters}");
        assert!(!founds(linked, voters, SOON_MS, View { answered: false, ..View::ALONE }), "{linked} of {voters}");
    }
}

#[test]
fn founding_takes_a_majority_of_the_voters() {
    for (linked, voters, does) in
        [(1, 3, false), (2, 3, true), (1, 2, false), (2, 4, false), (3, 4, true), (2, 5, false)]
    {
        for after_ms in [SOON_MS, LATE_MS] {
            assert_eq!(founds(linked, voters, after_ms, View::ALONE), does, "{linked} of {voters}");
        }
    }
}

/// A machine that is gone for good must not keep the others from starting.
#[test]
fn founding_goes_on_without_a_silent_minority() {
    let silent = |unlinked| View { unlinked, ..View::ALONE };
    for (linked, voters, unlinked, does) in [
        (2, 3, 1, true),
        (1, 3, 2, false),
        (1, 1, 1, true),
        (2, 0, 1, true),
        (2, 0, 2, false),
        (1, 0, 1, false),
        (3, 0, 2, true),
    ] {
        let view = silent(unlinked);
        assert_eq!(founds(linked, voters, LATE_MS, view), does, "{linked} of {voters}, {unlinked} silent");
        let unanswered = View { answered: false, ..view };
        assert_eq!(founds(linked, voters, LATE_MS, unanswered), does, "{linked} of {voters}, {unlinked} silent");
    }
    let unanswered = View { answered: false, ..View::ALONE };
    assert!(!founds(1, 0, LATE_MS, unanswered), "nothing is known yet");
    assert!(!founds(3, 3, LATE_MS, View::UNKNOWN), "nothing is known any more");
}

#[test]
fn founding_waits_for_a_peer_of_another_key() {
    let refused = View { refused: 1, unlinked: 1, ..View::ALONE };
    for (linked, voters) in [(1, 0), (2, 0), (1, 1), (2, 3), (3, 3)] {
        assert!(!founds(linked, voters, LATE_MS, refused), "{linked} of {voters}");
    }
    // One that nothing names counts where it is not known how many there are.
    let strange = View { strangers: 1, ..View::ALONE };
    assert!(!founds(1, 0, SOON_MS, strange) && !founds(2, 0, LATE_MS, strange));
    assert!(founds(2, 3, SOON_MS, strange) && founds(1, 1, SOON_MS, strange) && !founds(1, 3, LATE_MS, strange));
}

#[test]
fn founding_counts_a_restarted_voter_once() {
    let mut net = Net::empty();
    for name in ["n0", "n1", "n1"] {
        let settings = Settings { join_timeout_ms: 10_000, ..net.settings(name, 5) };
        net.start_with(settings);
    }
    // Its former process is gone, and the link to it is not down yet.
    net.link(0, 1);
    net.pass(&mut |_, _, _| true);
    net.link(0, 2);
    net.pass_between(|from, to| from != 1 && to != 1, &mut |_, _, _| true);
    assert_eq!(net.nodes[0].linked().count(), 2);
    net.nodes[0].tick(ALONE, net.now_ms + LATE_MS);
    assert!(!net.nodes[0].is_ready(), "two of five");
    assert_eq!(net.nodes[0].founders(), Some((2, 5)));
}

/// Who asks for it gets it.
#[test]
fn founding_alone_where_it_is_asked_for() {
    let mut net = Net::empty();
    let settings = Settings { serve_alone: true, join_timeout_ms: LATE_MS, ..net.settings("n0", 3) };
    net.start_with(settings);
    net.nodes[0].tick(View::UNKNOWN, net.now_ms + LATE_MS - 1);
    assert!(!net.nodes[0].is_ready());
    net.nodes[0].tick(View { refused: 2, ..View::UNKNOWN }, net.now_ms + LATE_MS);
    assert!(net.nodes[0].is_ready());
    assert_eq!(net.nodes[0].founders(), None);
}

#[test]
fn name_of_a_live_process_is_refused() {
    let mut net = Net::new(3);
    let twin = net.start("n1", 3);
    net.link_all();
    net.settle(TWIN_BEATS as usize - 1);
    assert_eq!((net.nodes[twin].is_ready(), net.nodes[twin].refused()), (false, None), "the other may have just died");
    net.settle(2);
    let holder = net.nodes[twin].refused().expect("both live");
    assert_eq!(holder.origin, net.nodes[1].origin());
    assert!(!net.nodes[twin].is_ready() && net.nodes[twin].is_dismissed());
    assert!(net.is_undisturbed(1));
    assert!((0..3).all(|node| net.nodes[node].counters().twins == 1), "each that hears both counts it once");
}

#[test]
fn name_is_refused_whatever_the_clock_says() {
    let mut net = Net::new(3);
    let settings = Settings { started_ms: START_MS - 1_000_000, ..net.settings("n1", 3) };
    let twin = net.start_with(settings);
    net.link_all();
    net.settle(TWIN_BEATS as usize + 1);
    assert!(net.nodes[twin].is_dismissed() && net.is_undisturbed(1));
}

#[test]
fn name_is_refused_though_the_holder_is_far() {
    let mut net = Net::new(3);
    let twin = net.start("n1", 3);
    net.link(twin, 0);
    net.settle(TWIN_BEATS as usize + 1);
    assert!(net.nodes[twin].is_dismissed() && net.is_undisturbed(1));
}

#[test]
fn name_heard_by_one_is_not_given_by_another() {
    let mut net = Net::new(3);
    net.cut(0, 1);
    let twin = net.start("n1", 3);
    // The first hears nothing of the holder, the third does.
    net.link(twin, 0);
    net.link(twin, 2);
    net.settle(TWIN_BEATS as usize + 1);
    assert!(net.nodes[twin].is_dismissed() && net.is_undisturbed(1));
}

#[test]
fn name_of_a_process_without_links_is_taken_at_once() {
    let mut net = Net::new(3);
    net.put(0, "k");
    net.settle(1);
    net.cut_off(1);
    let again = net.start("n1", 3);
    net.link(again, 0);
    net.link(again, 2);
    net.settle(1);
    assert!(net.nodes[again].serves() && net.holds(again, "k"));
    let gone = net.nodes[1].origin();
    assert!(net.nodes[0].seats().any(|(seat, it)| seat == gone && it.state == SeatState::Ended));
}

#[test]
fn name_of_a_silent_process_is_taken_soon() {
    let mut net = Net::new(3);
    let again = net.start("n1", 3);
    net.link(again, 0);
    net.link(again, 2);
    // Its machine lost power: no link was closed.
    let power = &mut |from, to, _: &mut Kind| from != 1 && to != 1;
    net.beats(HEARD_BEATS as usize - 1, power);
    assert!(!net.nodes[again].is_ready());
    net.beats(2, power);
    assert!(net.nodes[again].serves());
}

#[test]
fn name_of_two_newcomers_is_the_first_ones() {
    let mut net = Net::empty();
    for name in ["n0", "n1"] {
        net.start(name, 2);
    }
    net.now_ms += 1;
    let twin = net.start("n0", 2);
    net.link_all();
    net.settle(TWIN_BEATS as usize + 2);
    assert!(net.nodes[twin].is_dismissed());
    assert!(net.is_undisturbed(0) && net.is_undisturbed(1));
}

#[test]
fn name_lost_while_cut_off_loses_no_write() {
    let (mut net, again) = Net::replaced();
    net.put(1, "cut off");
    net.heal();
    assert!(net.is_undisturbed(again));
    assert!(net.nodes[1].is_dismissed() && !net.nodes[1].serves());
    assert!(net.holds(0, "cut off") && net.holds(2, "cut off") && net.holds(again, "cut off"));
    net.nodes[1].drain();
    net.settle(2);
    assert_eq!(net.nodes[1].uncovered(), (0, 0), "it may go");
    let votes = net.nodes[0].seats().filter(|(_, seat)| seat.is_live() && seat.voter).count();
    assert_eq!(votes, 3, "who hands over does not vote");
}

#[test]
fn name_lost_long_ago_brings_back_nothing() {
    let (mut net, _) = Net::replaced();
    // Who wrote it leaves, it is deleted, and both are forgotten.
    let now_ms = net.now_ms;
    net.nodes[2].leave(now_ms);
    net.pass(&mut |_, _, _| true);
    net.cut_off(2);
    let third = net.start("n2", 3);
    net.link(third, 0);
    net.link(third, 3);
    net.settle(3);
    net.delete(0, "old");
    net.settle((REMEMBER_ENDED_MS / BEAT_MS) as usize + 30);
    assert_eq!(net.tombstones(0), 0);
    for _ in 0..4 {
        for other in [0, 3, third] {
            if !net.links.contains_key(&(1, other)) {
                net.link(1, other);
            }
        }
        net.settle(6);
    }
    assert!(net.nodes[1].is_dismissed());
    assert!(!net.holds(0, "old") && !net.holds(1, "old"));
    assert_eq!(net.nodes[1].counters().too_late, 1);
}
