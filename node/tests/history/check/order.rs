//! Nothing older after something newer: on one node in one life, in one session, in one watch.

use std::collections::HashMap;

use super::{Facts, Verdict};
use crate::history::{At, Op, Outcome, Record, Version, What};

/// What a call says about a key.
struct Sight<'a> {
    begin: At,
    end: At,
    what: Saw<'a>,
    /// Knowledge from elsewhere: it binds later observations, and is not checked itself.
    given: bool,
    op: Option<&'a Op>,
}

#[derive(Clone, Copy)]
enum Saw<'a> {
    Put(Version, &'a str),
    /// A write with an unknown value.
    Touched(Version),
    Deleted(Version),
    Found(Version, &'a str),
    Missing,
}

/// The lower bound for what a moment must see.
#[derive(Clone, Copy, Default)]
struct Floor<'a> {
    /// At least this version; and, if it was a value, which one.
    least: Version,
    value: Option<&'a str>,
    /// A newer version than this, or no entry.
    gone: Version,
}

impl<'a> Floor<'a> {
    fn raise(&mut self, version: Version, value: Option<&'a str>) {
        if version > self.least {
            (self.least, self.value) = (version, value);
        }
    }

    /// The bound after this observation, by an observer that had to see `then`.
    fn after(&mut self, saw: Saw<'a>, then: Self) {
        match saw {
            Saw::Put(version, value) | Saw::Found(version, value) => self.raise(version, Some(value)),
            Saw::Touched(version) => self.raise(version, None),
            Saw::Deleted(version) => {
                self.raise(version, None);
                self.gone = self.gone.max(version);
            }
            Saw::Missing => self.gone = self.gone.max(then.least),
        }
    }
}

type Tracks<'a, T> = HashMap<(T, &'a str), Vec<Sight<'a>>>;

/// In one life of a node a version never goes backwards. A write that all nodes have acknowledged is on all nodes. A
/// node is ready only once it holds what its peers hold: the entries that all nodes held, or all seats had
/// acknowledged, before its life began.
pub(super) fn nodes(facts: &Facts, verdict: &mut Verdict) {
    let mut tracks: Tracks<(usize, &str)> = HashMap::new();
    for op in &facts.ops {
        if let Some(life) = facts.life(op.node, op.begin, op.end) {
            see(op, (op.node, life), &mut tracks, facts);
        }
        let Outcome::Wrote { version, peers, all } = op.outcome else { continue };
        let mut give = |node: usize, life| {
            let sight = Sight { begin: op.begin, end: op.end, what: wrote(op, version), given: true, op: None };
            tracks.entry(((node, life), &op.key)).or_default().push(sight);
        };
        let everyone = peers + 1 == facts.nodes;
        for node in 0..facts.nodes {
            if let Some(life) = facts.life(node, op.begin, op.end).filter(|_| everyone) {
                give(node, life);
            }
            // A joining node takes a snapshot of some holder: of any node, or of any other node if it was itself the
            // only one without a seat.
            if everyone || all && only_this_was_away(facts, op, node) {
                facts.lives_after(node, op.end).for_each(|life| give(node, life));
            }
        }
    }
    for (at, settled) in facts.settled.iter().enumerate() {
        // Later lives must show the entries that all nodes held later.
        let next = facts.settled.get(at + 1).map_or(At::MAX, |next| next.begin);
        for node in 0..facts.nodes {
            let now = facts.life(node, settled.begin, settled.end);
            let later = facts.lives_after(node, settled.end).filter(|life| facts.lives[node][life].0 <= next);
            for life in now.into_iter().chain(later) {
                for entry in settled.entries.values() {
                    let what = Saw::Found(entry.version, &entry.value);
                    let sight = Sight { begin: settled.begin, end: settled.end, what, given: true, op: None };
                    tracks.entry(((node, life), &entry.key)).or_default().push(sight);
                }
            }
        }
    }
    judge("calls of one node in order", tracks, facts, verdict);
}

/// Whether all other nodes kept what they held from the beginning of this call until all were equal again.
fn only_this_was_away(facts: &Facts, op: &Op, node: usize) -> bool {
    let settled = facts.settled.iter().find(|settled| settled.begin >= op.end);
    settled.is_some_and(|settled| facts.interrupted(op.begin, settled.end).iter().all(|away| *away == node))
}

/// A session never sees anything older than it has seen, on whatever node.
pub(super) fn sessions(facts: &Facts, verdict: &mut Verdict) {
    let mut tracks: Tracks<u64> = HashMap::new();
    for op in &facts.ops {
        if let Some(session) = op.session {
            see(op, session, &mut tracks, facts);
        }
    }
    judge("calls of one session in order", tracks, facts, verdict);
}

fn wrote(op: &Op, version: Version) -> Saw<'_> {
    use crate::history::Call;
    match &op.call {
        Call::Put { value, .. } => Saw::Put(version, value),
        Call::Delete => Saw::Deleted(version),
        _ => Saw::Touched(version),
    }
}

fn see<'a, T: Copy + Eq + std::hash::Hash>(op: &'a Op, track: T, tracks: &mut Tracks<'a, T>, facts: &Facts<'a>) {
    let mut add = |key: &'a str, what| {
        let sight = Sight { begin: op.begin, end: op.end, what, given: false, op: Some(op) };
        tracks.entry((track, key)).or_default().push(sight);
    };
    match &op.outcome {
        Outcome::Wrote { version, .. } => add(&op.key, wrote(op, *version)),
        Outcome::Found { value, version } => add(&op.key, Saw::Found(*version, value)),
        Outcome::Nothing | Outcome::Missing => add(&op.key, Saw::Missing),
        Outcome::Listed(entries) => {
            let there: HashMap<&str, _> = entries.iter().map(|entry| (entry.key.as_str(), entry)).collect();
            for (key, entry) in &there {
                add(key, Saw::Found(entry.version, &entry.value));
            }
            // A key that was written and is not in the listing is absent.
            for key in facts.writes.keys().filter(|key| key.starts_with(&op.key) && !there.contains_key(*key)) {
                add(key, Saw::Missing);
            }
        }
        Outcome::Failed { .. } => {}
    }
}

fn judge<T: std::fmt::Debug>(rule: &'static str, tracks: Tracks<T>, facts: &Facts, verdict: &mut Verdict) {
    for ((track, key), mut sights) in tracks {
        sights.sort_by_key(|sight| sight.begin);
        let mut floors = vec![Floor::default(); sights.len()];
        let mut by_end: Vec<usize> = (0..sights.len()).collect();
        by_end.sort_by_key(|at| sights[*at].end);
        let mut ended = by_end.into_iter().peekable();
        let mut floor = Floor::default();
        for (at, sight) in sights.iter().enumerate() {
            while let Some(other) = ended.next_if(|other| sights[*other].end < sight.begin) {
                floor.after(sights[other].what, floors[other]);
            }
            floors[at] = floor;
            if sight.given {
                continue;
            }
            verdict.count(rule);
            let kept = match sight.what {
                Saw::Put(version, _) | Saw::Touched(version) | Saw::Deleted(version) => {
                    version > floor.least && version > floor.gone
                }
                Saw::Found(version, _) => version >= floor.least && version > floor.gone,
                Saw::Missing => {
                    let nothing = floor.least == Version::default();
                    nothing || facts.may_be_gone(key, floor.least, floor.value, sight.end)
                }
            };
            if !kept {
                let (least, value, gone) = (floor.least, floor.value, floor.gone);
                verdict.broken(format!(
                    "{track:?}: {key} goes backwards: {least:?} ({value:?}) was there, and what followed {gone:?}; \
                     then {:?}",
                    sight.op
                ));
            }
        }
    }
}

/// For one key, a watch reports nothing older after something newer.
pub(super) fn watches(records: &[Record], verdict: &mut Verdict) {
    let mut reported: HashMap<(u64, &str), Version> = HashMap::new();
    for record in records {
        let Record::Watched { stream, node, at, key, version, what } = record else { continue };
        let last = reported.entry((*stream, key)).or_default();
        // The expiry of a value has the value's version.
        let in_order = if *what == What::Expired { *version >= *last } else { *version > *last };
        verdict.count("events of one watch in order");
        if !in_order {
            verdict.broken(format!(
                "watch {stream} of n{node} reported {what:?} for {key}, {version:?}, after {last:?}, at {at}"
            ));
        }
        *last = (*version).max(*last);
    }
}
