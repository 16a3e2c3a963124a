//! Whether a history keeps the promises. Not everything can be known from outside: which nodes held a write, which of
//! two writes came first. Each rule concludes only what the history proves, and counts how often it could, so that a run
//! without conclusions is visible.

mod identity;
mod loss;
mod order;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::history::{At, Call, Entry, Op, Outcome, Record, Version};

/// A value may still be read this long after its TTL: the TTL starts between the put's beginning and end, and ends at a
/// whole millisecond.
const TTL_LATE: At = 100_000;
/// A value may be gone this long before its TTL is over.
const TTL_EARLY: At = 2_000;

/// The result of the checks.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Each broken promise, and how it was broken.
    pub(crate) violations: Vec<String>,
    /// How often each rule could conclude something.
    pub(crate) concluded: BTreeMap<&'static str, usize>,
}

impl Verdict {
    fn count(&mut self, rule: &'static str) {
        *self.concluded.entry(rule).or_default() += 1;
    }

    fn broken(&mut self, what: String) {
        self.violations.push(what);
    }
}

/// Checks the history of a cluster of this many nodes.
pub(crate) fn check(records: &[Record], nodes: usize) -> Verdict {
    let facts = Facts::new(records, nodes);
    let mut verdict = Verdict::default();
    identity::check(records, &facts, &mut verdict);
    order::nodes(&facts, &mut verdict);
    order::sessions(&facts, &mut verdict);
    order::watches(records, &mut verdict);
    loss::acknowledged(&facts, &mut verdict);
    loss::deletes(records, &facts, &mut verdict);
    loss::ended(&facts, &mut verdict);
    loss::fixed(&facts, &mut verdict);
    loss::sessions(&facts, &mut verdict);
    hangs(records, &facts, &mut verdict);
    verdict
}

/// A requested write.
struct Write<'a> {
    op: &'a Op,
    /// None for a delete, and for a touch, which does not name the value.
    value: Option<&'a str>,
    delete: bool,
    touch: bool,
    ttl: Option<At>,
    /// None: the write may have been applied, then or later.
    version: Option<Version>,
    /// How many other nodes acknowledged it.
    peers: usize,
}

/// A moment at which all nodes held the same and no call was in flight.
struct Settled<'a> {
    begin: At,
    end: At,
    entries: HashMap<&'a str, &'a Entry>,
}

struct Left {
    node: usize,
    origin: u64,
    begin: At,
}

/// A history, indexed for the rules.
struct Facts<'a> {
    nodes: usize,
    ops: Vec<&'a Op>,
    writes: HashMap<&'a str, Vec<Write<'a>>>,
    /// The lives of each node, each with the span in which the node was certainly in that life.
    lives: Vec<HashMap<&'a str, (At, At)>>,
    settled: Vec<Settled<'a>>,
    /// Nodes that left and reported that others hold what they wrote.
    left: Vec<Left>,
    down: Vec<(usize, At, At)>,
    stalled: Vec<(At, At)>,
    /// For each acknowledged value, its version at that time.
    first: HashMap<&'a str, Version>,
}

impl<'a> Facts<'a> {
    fn new(records: &'a [Record], nodes: usize) -> Self {
        let mut facts = Self {
            nodes,
            ops: Vec::new(),
            writes: HashMap::new(),
            lives: vec![HashMap::new(); nodes],
            settled: Vec::new(),
            left: Vec::new(),
            down: Vec::new(),
            stalled: Vec::new(),
            first: HashMap::new(),
        };
        for record in records {
            match record {
                Record::Op(op) => facts.add(op),
                Record::Life { node, life, begin, end } => {
                    let (from, to) = facts.lives[*node].entry(life).or_insert((*end, *begin));
                    (*from, *to) = ((*from).min(*end), (*to).max(*begin));
                }
                Record::Settled { begin, end, entries } => facts.settled.push(Settled {
                    begin: *begin,
                    end: *end,
                    entries: entries.iter().map(|entry| (entry.key.as_str(), entry)).collect(),
                }),
                Record::Left { node, origin, begin, covered: true, .. } => {
                    facts.left.push(Left { node: *node, origin: *origin, begin: *begin });
                }
                Record::Down { node, begin, end } => facts.down.push((*node, *begin, *end)),
                Record::Stalled { begin, end } => facts.stalled.push((*begin, *end)),
                Record::Left { .. } | Record::Watched { .. } | Record::Fault { .. } => {}
            }
        }
        facts.settled.sort_by_key(|settled| settled.begin);
        facts
    }

    fn add(&mut self, op: &'a Op) {
        self.ops.push(op);
        let (value, ttl_ms) = match &op.call {
            Call::Put { value, ttl_ms } => (Some(value.as_str()), *ttl_ms),
            Call::Delete => (None, None),
            Call::Touch { ttl_ms } => (None, *ttl_ms),
            Call::Get | Call::List => return,
        };
        let (version, peers) = match &op.outcome {
            Outcome::Wrote { version, peers, .. } => (Some(*version), *peers),
            Outcome::Failed { .. } => (None, 0),
            _ => return,
        };
        if let (Some(value), Some(version)) = (value, version) {
            self.first.insert(value, version);
        }
        let (delete, touch) = (op.call == Call::Delete, matches!(op.call, Call::Touch { .. }));
        let ttl = ttl_ms.map(|ms| ms * 1000);
        self.writes.entry(&op.key).or_default().push(Write { op, value, delete, touch, ttl, version, peers });
    }

    fn writes_of(&self, key: &str) -> &[Write<'a>] {
        self.writes.get(key).map_or(&[], Vec::as_slice)
    }

    /// The life that a node was in during the whole span.
    fn life(&self, node: usize, begin: At, end: At) -> Option<&'a str> {
        self.lives[node].iter().find(|(_, (from, to))| *from <= begin && end <= *to).map(|(life, _)| *life)
    }

    /// The lives of a node that began after a moment.
    fn lives_after(&self, node: usize, at: At) -> impl Iterator<Item = &'a str> {
        let lives = &self.lives[node];
        let before = lives.values().filter(|(_, to)| *to >= at).map(|(from, _)| *from).min();
        lives.iter().filter(move |(_, (from, _))| before.is_some_and(|before| before < *from)).map(|(life, _)| *life)
    }

    /// The nodes that may have lost, during the span, what they held at its beginning.
    fn interrupted(&self, begin: At, end: At) -> HashSet<usize> {
        (0..self.nodes).filter(|node| self.life(*node, begin, end).is_none()).collect()
    }

    /// Whether some holder of a write kept it until `end` at least: the node that accepted it and those that
    /// acknowledged it; or, if that node has left, one of those that it handed over to.
    fn has_holder(&self, write: &Write, end: At) -> bool {
        let interrupted = self.interrupted(write.op.begin, end);
        let handed_over = |left: &&Left| {
            left.node == write.op.node
                && left.begin >= write.op.end
                && write.version.is_some_and(|version| version.origin == left.origin)
        };
        interrupted.len() <= write.peers
            || self.left.iter().filter(handed_over).any(|left| {
                let others = self.interrupted(left.begin, end);
                others.iter().all(|node| *node == write.op.node)
            })
    }

    /// Whether a key with a known `version` may be absent by now: an entry at least as new was deleted or has expired.
    /// `value` is the known value: a reissued write has a newer version than the delete that had seen it.
    fn may_be_gone(&self, key: &str, version: Version, value: Option<&str>, by: At) -> bool {
        let first = value.map_or(version, |value| self.first.get(value).copied().unwrap_or_default());
        let least = version.min(first);
        self.writes_of(key).iter().any(|write| {
            let gone = write.delete || write.ttl.is_some_and(|ttl| write.op.begin + ttl <= by + TTL_EARLY);
            gone && write.op.begin <= by && write.version.is_none_or(|version| version >= least)
        })
    }
}

/// What a call read, with the values.
fn found(op: &Op) -> Vec<(&str, &str, Version)> {
    match &op.outcome {
        Outcome::Found { value, version } => vec![(&op.key, value, *version)],
        Outcome::Listed(entries) => entries.iter().map(|e| (e.key.as_str(), e.value.as_str(), e.version)).collect(),
        _ => Vec::new(),
    }
}

/// No call hangs: each is answered by its deadline, if its node runs and is reachable.
fn hangs(records: &[Record], facts: &Facts, verdict: &mut Verdict) {
    let overlaps = |op: &Op, begin: At, end: At| op.begin <= end && begin <= op.end;
    for record in records {
        let Record::Op(op) = record else { continue };
        let Outcome::Failed { cut, .. } = &op.outcome else { continue };
        if facts.stalled.iter().any(|(begin, end)| overlaps(op, *begin, *end)) {
            continue;
        }
        // The client's own deadline, independent of the node.
        if op.end > op.begin + op.deadline + 2_000_000 {
            verdict.broken(format!("a call outlasts its deadline: {op:?}"));
        }
        // For a session, the node may wait until just before the deadline.
        let down = facts.down.iter().any(|(node, begin, end)| *node == op.node && overlaps(op, *begin, *end));
        if op.session.is_none() && !down {
            verdict.count("calls without an answer at a node that was well");
            if *cut {
                verdict.broken(format!("a node that was well gave no answer by the deadline: {op:?}"));
            }
        }
    }
}
