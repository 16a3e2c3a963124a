//! Histories that break one promise, each next to one that keeps it.

use super::{Verdict, check};
use crate::history::{At, Call, Entry, Op, Outcome, Record, Version, What};

const NODES: usize = 3;
const MS: At = 1000;
/// How long a call of these histories takes.
const TAKES: At = 5 * MS;

/// Builds a history; each record advances its clock.
struct Story {
    now: At,
    records: Vec<Record>,
    /// For each node, how often it lost its map.
    lives: [u64; NODES],
}

impl Story {
    fn new() -> Self {
        let mut story = Self { now: 0, records: Vec::new(), lives: [0; NODES] };
        story.look();
        story
    }

    /// All nodes report their lives.
    fn look(&mut self) {
        for node in 0..NODES {
            let life = format!("{node}/{}", self.lives[node]);
            self.records.push(Record::Life { node, life, begin: self.now, end: self.now + 1 });
        }
        self.now += 2;
    }

    /// A node loses its map.
    fn interrupt(&mut self, node: usize) {
        self.look();
        self.lives[node] += 1;
        self.look();
    }

    fn at(&mut self, node: usize, key: &str, call: Call, outcome: Outcome) -> &mut Op {
        self.look();
        let (begin, end) = (self.now, self.now + TAKES);
        self.now = end + MS;
        let deadline = 1000 * MS;
        let op = Op { client: 0, node, session: None, begin, end, deadline, key: key.into(), call, outcome };
        self.records.push(Record::Op(op));
        self.look();
        let last = self.records.iter_mut().rev().find_map(|record| match record {
            Record::Op(op) => Some(op),
            _ => None,
        });
        last.expect("it was pushed")
    }

    fn put(&mut self, node: usize, key: &str, value: &str, hlc: u64, peers: usize) -> &mut Op {
        let outcome = Outcome::Wrote { version: version(hlc, node), peers, all: peers + 1 == NODES };
        self.at(node, key, put(value, None), outcome)
    }

    fn delete(&mut self, node: usize, key: &str, hlc: u64, peers: usize) -> &mut Op {
        let outcome = Outcome::Wrote { version: version(hlc, node), peers, all: peers + 1 == NODES };
        self.at(node, key, Call::Delete, outcome)
    }

    fn found(&mut self, node: usize, key: &str, value: &str, (hlc, by): (u64, usize)) -> &mut Op {
        self.at(node, key, Call::Get, Outcome::Found { value: value.into(), version: version(hlc, by) })
    }

    fn missing(&mut self, node: usize, key: &str) -> &mut Op {
        self.at(node, key, Call::Get, Outcome::Missing)
    }

    fn settled(&mut self, entries: &[(&str, &str, u64, usize)]) {
        self.look();
        let entry = |&(key, value, hlc, by): &(&str, &str, u64, usize)| Entry {
            key: key.into(),
            value: value.into(),
            version: version(hlc, by),
        };
        let (begin, end) = (self.now, self.now + TAKES);
        self.records.push(Record::Settled { begin, end, entries: entries.iter().map(entry).collect() });
        self.now = end + MS;
        self.look();
    }

    fn watched(&mut self, key: &str, hlc: u64, what: What) {
        self.records.push(Record::Watched {
            stream: 0,
            node: 0,
            at: self.now,
            key: key.into(),
            version: version(hlc, 0),
            what,
        });
    }

    fn verdict(&self) -> Verdict {
        check(&self.records, NODES)
    }

    fn kept(&self) {
        assert_eq!(self.verdict().violations, Vec::<String>::new());
    }

    /// Exactly one promise is broken, with this message.
    fn broken(&self, words: &str) {
        let violations = self.verdict().violations;
        assert!(violations.len() == 1 && violations[0].contains(words), "{violations:#?}");
    }
}

fn version(hlc: u64, node: usize) -> Version {
    Version { hlc, origin: node as u64 }
}

fn put(value: &str, ttl_ms: Option<u64>) -> Call {
    Call::Put { value: value.into(), ttl_ms }
}

fn cut() -> Outcome {
    Outcome::Failed { code: "Cancelled".into(), message: "Timeout expired".into(), cut: true }
}

#[test]
fn a_write_lives_while_a_holder_does() {
    // Acknowledged by one other node: it may be lost with two nodes, not with one.
    for (interrupted, lost) in [(0, true), (1, true), (2, false)] {
        let mut story = Story::new();
        story.put(0, "k", "v", 10, 1);
        (0..interrupted).for_each(|node| story.interrupt(node));
        story.settled(&[]);
        if lost { story.broken("a write is lost") } else { story.kept() }
    }
    // Acknowledged by no other node: it may be lost with any interrupted node.
    let mut story = Story::new();
    story.put(0, "k", "v", 10, 0);
    story.interrupt(0);
    story.settled(&[]);
    story.kept();
}

#[test]
fn loss_ignores_a_write_that_a_newer_one_replaced() {
    let mut story = Story::new();
    story.put(0, "k", "v", 10, 2);
    story.put(1, "k", "w", 11, 2);
    story.settled(&[("k", "w", 11, 1)]);
    story.kept();

    let mut story = Story::new();
    story.put(1, "k", "w", 9, 0);
    story.put(0, "k", "v", 10, 2);
    story.settled(&[("k", "w", 9, 1)]);
    story.broken("a write is lost");

    let mut story = Story::new();
    story.put(0, "k", "v", 10, 2);
    story.delete(1, "k", 11, 2);
    story.settled(&[]);
    story.kept();

    // A delete without an answer may have been applied.
    let mut story = Story::new();
    story.put(0, "k", "v", 10, 2);
    story.at(1, "k", Call::Delete, Outcome::Failed { code: "Unavailable".into(), message: String::new(), cut: false });
    story.settled(&[]);
    story.kept();

    // A delete too old to win over the write did not remove it.
    let mut story = Story::new();
    story.delete(1, "k", 9, 2);
    story.put(0, "k", "v", 10, 2);
    story.settled(&[]);
    story.broken("a write is lost");
}

#[test]
fn what_a_leaving_node_handed_over_lives() {
    let left = |covered, interrupted| {
        let mut story = Story::new();
        story.put(0, "k", "v", 10, 0);
        story.look();
        let begin = story.now;
        story.records.push(Record::Left { node: 0, origin: 0, begin, end: begin + MS, covered });
        story.interrupt(0);
        if interrupted {
            story.interrupt(1);
        }
        story.settled(&[]);
        story
    };
    left(true, false).broken("a write is lost");
    left(true, true).kept();
    left(false, false).kept();
}

#[test]
fn what_all_held_lives_while_any_of_them_does() {
    for (interrupted, lost) in [(2, true), (3, false)] {
        let mut story = Story::new();
        story.put(0, "k", "v", 10, 0);
        story.settled(&[("k", "v", 10, 0)]);
        (0..interrupted).for_each(|node| story.interrupt(node));
        story.settled(&[]);
        if lost { story.broken("what all held") } else { story.kept() }
    }
}

#[test]
fn a_delete_is_final_for_what_it_had_covered() {
    // The only value that existed.
    let mut story = Story::new();
    story.put(0, "u", "v", 10, 0);
    story.delete(1, "u", 11, 2);
    story.interrupt(1);
    story.settled(&[]);
    story.kept();
    story.found(2, "u", "v", (12, 2));
    story.broken("was deleted for good");

    // Its holders are lost: no evidence remains.
    let mut story = Story::new();
    story.put(0, "u", "v", 10, 0);
    story.delete(1, "u", 11, 0);
    story.interrupt(1);
    story.settled(&[("u", "v", 10, 0)]);
    story.kept();

    // One of two values: only some histories show whether the delete had seen it.
    let of_two = |seen: bool| {
        let mut story = Story::new();
        story.put(2, "k", "x", 5, 0);
        story.put(0, "k", "v", 10, 0);
        if seen {
            story.found(1, "k", "v", (10, 0));
        }
        story.delete(1, "k", 11, 2);
        // Reissued by an evicted node.
        story.settled(&[("k", "v", 12, 2)]);
        story
    };
    of_two(true).broken("was deleted for good");
    of_two(false).kept();
}

#[test]
fn versions_of_a_node_do_not_go_backwards_in_one_life() {
    let read_twice = |interrupted: bool, second: u64| {
        let mut story = Story::new();
        story.put(0, "k", "old", 9, 0);
        story.put(0, "k", "new", 10, 0);
        story.found(1, "k", "new", (10, 0));
        if interrupted {
            story.interrupt(1);
        }
        story.found(1, "k", if second == 9 { "old" } else { "new" }, (second, 0));
        story
    };
    read_twice(false, 10).kept();
    read_twice(false, 9).broken("goes backwards");
    read_twice(true, 9).kept();

    let mut story = Story::new();
    story.put(0, "k", "v", 10, 0);
    story.missing(0, "k");
    story.broken("goes backwards");

    let mut story = Story::new();
    story.put(0, "k", "v", 10, 0);
    story.delete(0, "k", 11, 0);
    story.found(0, "k", "v", (10, 0));
    story.broken("goes backwards");

    // A write older than what its node showed.
    let mut story = Story::new();
    story.put(0, "k", "v", 10, 0);
    story.found(1, "k", "v", (10, 0));
    story.put(1, "k", "w", 9, 0);
    story.broken("goes backwards");
}

#[test]
fn calls_at_the_same_time_have_no_order() {
    let mut story = Story::new();
    story.put(0, "k", "old", 9, 0);
    story.put(0, "k", "new", 10, 0);
    story.found(1, "k", "new", (10, 0));
    let together = story.now - 4 * MS;
    story.found(1, "k", "old", (9, 0)).begin = together;
    story.kept();
}

#[test]
fn what_all_acknowledged_all_have() {
    let after = |peers| {
        let mut story = Story::new();
        story.put(0, "k", "v", 10, peers);
        story.missing(1, "k");
        story
    };
    after(2).broken("goes backwards");
    after(1).kept();
}

#[test]
fn a_new_process_holds_what_all_voters_held_before() {
    let after = |all: bool, other: Option<usize>, ready_with: Option<u64>| {
        let mut story = Story::new();
        story.put(0, "k", "old", 9, 2);
        // The last node is unreachable, and the others perhaps do not wait for it.
        let outcome = Outcome::Wrote { version: version(10, 0), peers: 1, all };
        story.at(0, "k", put("new", None), outcome);
        story.interrupt(2);
        if let Some(node) = other {
            story.interrupt(node);
        }
        match ready_with {
            None => story.missing(2, "k"),
            Some(hlc) => story.found(2, "k", if hlc == 9 { "old" } else { "new" }, (hlc, 0)),
        };
        story.settled(&[("k", "new", 10, 0)]);
        story
    };
    after(true, None, Some(10)).kept();
    after(true, None, Some(9)).broken("goes backwards");
    after(true, None, None).broken("goes backwards");
    after(false, None, Some(9)).kept();
    // Entries that all nodes held are there in every later life, even if many nodes were away.
    let mut story = Story::new();
    story.put(0, "k", "v", 10, 0);
    story.settled(&[("k", "v", 10, 0)]);
    story.interrupt(1);
    story.interrupt(2);
    story.kept();
    story.missing(2, "k");
    story.broken("goes backwards");
    // It may have joined through another node that was away.
    after(true, Some(1), Some(9)).kept();
}

#[test]
fn a_listing_leaves_nothing_out() {
    let listed = |entries: Vec<Entry>| {
        let mut story = Story::new();
        story.put(0, "k/1", "v", 10, 0);
        story.put(0, "k/2", "w", 11, 0);
        story.at(0, "k/", Call::List, Outcome::Listed(entries));
        story
    };
    let entry = |key: &str, value: &str, hlc| Entry { key: key.into(), value: value.into(), version: version(hlc, 0) };
    listed(vec![entry("k/1", "v", 10), entry("k/2", "w", 11)]).kept();
    listed(vec![entry("k/2", "w", 11)]).broken("goes backwards");
}

#[test]
fn a_session_sees_nothing_older_wherever_it_goes() {
    let story = |session: Option<u64>| {
        let mut story = Story::new();
        story.put(0, "k", "v", 10, 0).session = session;
        story.missing(1, "k").session = session;
        story
    };
    story(Some(7)).broken("goes backwards");
    story(None).kept();
}

#[test]
fn a_session_is_lost_only_with_nodes() {
    let story = |interrupted: bool| {
        let mut story = Story::new();
        story.put(0, "k", "v", 10, 0).session = Some(7);
        if interrupted {
            story.interrupt(0);
        }
        let lost = Outcome::Failed { code: "DataLoss".into(), message: String::new(), cut: false };
        story.at(1, "k", Call::Get, lost).session = Some(7);
        story
    };
    let mut whole = story(false);
    whole.settled(&[("k", "v", 10, 0)]);
    whole.broken("a session is lost");
    // An evicted node is the last to learn of its eviction.
    let mut evicted = story(false);
    evicted.interrupt(0);
    evicted.settled(&[("k", "v", 10, 0)]);
    evicted.kept();
    let mut killed = story(true);
    killed.settled(&[]);
    killed.kept();
}

#[test]
fn a_watch_tells_nothing_older_after_something_newer() {
    let mut story = Story::new();
    story.put(0, "k", "v", 10, 0);
    story.watched("k", 10, What::Put("v".into()));
    story.watched("k", 10, What::Expired);
    story.watched("k", 11, What::Deleted);
    story.kept();
    story.watched("k", 11, What::Deleted);
    story.broken("watch 0 of n0");
    story.records.pop();
    story.watched("k", 10, What::Put("v".into()));
    story.broken("watch 0 of n0");
}

#[test]
fn a_value_ends_with_its_ttl_and_not_before() {
    let story = |read_after: At, there: bool| {
        let mut story = Story::new();
        let outcome = Outcome::Wrote { version: version(10, 0), peers: 2, all: true };
        story.at(0, "e", put("v", Some(1000)), outcome);
        story.now += read_after;
        if there {
            story.found(1, "e", "v", (10, 0));
        } else {
            story.missing(1, "e");
        }
        story
    };
    story(500 * MS, true).kept();
    story(1200 * MS, true).broken("ended by");
    story(1200 * MS, false).kept();
    story(500 * MS, false).broken("goes backwards");
}

#[test]
fn keys_that_no_client_changes_are_always_read() {
    let story = |there: bool| {
        let mut story = Story::new();
        story.put(0, "f/1", "v", 10, 1);
        story.settled(&[("f/1", "v", 10, 0)]);
        // A new life of which nothing else is known.
        story.interrupt(2);
        if there {
            story.found(2, "f/1", "v", (10, 0));
        } else {
            story.missing(2, "f/1");
        }
        story
    };
    story(true).kept();
    let violations = story(false).verdict().violations;
    assert!(violations.len() == 2 && violations[0].contains("goes backwards"), "{violations:#?}");
    assert!(violations[1].contains("was held by all"), "{violations:#?}");
}

#[test]
fn a_version_names_one_write_that_was_made() {
    let mut story = Story::new();
    story.put(0, "k", "v", 10, 0);
    story.put(0, "l", "w", 11, 0);
    story.found(1, "k", "v", (10, 0));
    story.kept();
    story.found(2, "k", "v", (11, 0));
    story.broken("and at");

    let mut story = Story::new();
    story.found(0, "k", "made up", (10, 0));
    story.broken("was read under");
}

#[test]
fn no_call_hangs_at_a_node_that_is_well() {
    let hang = |before: Option<Record>| {
        let mut story = Story::new();
        story.records.extend(before);
        story.at(0, "k", Call::Get, cut());
        story
    };
    hang(None).broken("gave no answer");
    hang(Some(Record::Down { node: 1, begin: 0, end: 1000 * MS })).broken("gave no answer");
    hang(Some(Record::Down { node: 0, begin: 0, end: 1000 * MS })).kept();
    hang(Some(Record::Stalled { begin: 0, end: 1000 * MS })).kept();

    let mut story = Story::new();
    story.records.push(Record::Down { node: 0, begin: 0, end: 1000 * MS });
    let op = story.at(0, "k", Call::Get, cut());
    op.end = op.begin + op.deadline + 3_000 * MS;
    story.broken("outlasts its deadline");
}
