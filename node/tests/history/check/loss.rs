//! Which writes must survive, and which must not.

use std::collections::{HashMap, HashSet};

use super::{Facts, Settled, TTL_LATE, Verdict, Write, found};
use crate::history::{At, Call, Outcome, Record, Version};

/// A write survives while one of its holders does. The holders are the nodes that acknowledged it, those it was handed
/// over to, and all nodes once all were equal.
pub(super) fn acknowledged(facts: &Facts, verdict: &mut Verdict) {
    for (key, writes) in &facts.writes {
        for write in writes {
            let Some(version) = write.version else { continue };
            let Some(settled) = facts.settled.iter().find(|settled| settled.begin >= write.op.end) else { continue };
            if !facts.has_holder(write, settled.end) {
                continue;
            }
            verdict.count(if write.peers > 0 { "acknowledged writes that live" } else { "writes that live" });
            if !stands(facts, key, version, write.value, settled) {
                let what = format!("{:?} {:?}", write.op, settled.entries.get(key));
                verdict.broken(format!("a write is lost although {} more nodes held it: {what}", write.peers));
            }
        }
    }
    for pair in facts.settled.windows(2) {
        if facts.interrupted(pair[0].begin, pair[1].end).len() >= facts.nodes {
            continue;
        }
        for (key, entry) in &pair[0].entries {
            verdict.count("entries that all held and that live");
            if !stands(facts, key, entry.version, Some(&entry.value), &pair[1]) {
                let now = pair[1].entries.get(key);
                verdict.broken(format!(
                    "what all held at {} is lost at {}: {entry:?}, now {now:?}",
                    pair[0].end, pair[1].end
                ));
            }
        }
    }
}

/// Whether an entry at least as new is there, or may be gone by now.
fn stands(facts: &Facts, key: &str, version: Version, value: Option<&str>, settled: &Settled) -> bool {
    match settled.entries.get(key) {
        Some(entry) => entry.version >= version,
        None => facts.may_be_gone(key, version, value, settled.end),
    }
}

/// A delete is final for everything that it covered.
pub(super) fn deletes(records: &[Record], facts: &Facts, verdict: &mut Verdict) {
    // Where each value was read: node, from when to when.
    let mut reads: HashMap<&str, Vec<(usize, At, At)>> = HashMap::new();
    for op in &facts.ops {
        for (_, value, _) in found(op) {
            reads.entry(value).or_default().push((op.node, op.begin, op.end));
        }
    }
    // Values that are gone for good, each with the moment since when.
    let mut dead: HashMap<&str, (At, &Write)> = HashMap::new();
    for writes in facts.writes.values() {
        // A concurrent touch elsewhere may carry a value's end and not its delete.
        if writes.iter().any(|write| write.touch) {
            continue;
        }
        for delete in writes.iter().filter(|write| write.delete) {
            let Some(settled) = facts.settled.iter().find(|settled| settled.begin >= delete.op.end) else { continue };
            if delete.version.is_none() || !facts.has_holder(delete, settled.end) {
                continue;
            }
            for put in writes.iter().filter(|write| covered(facts, delete, write, writes, &reads)) {
                verdict.count("deleted values that stay away");
                let value = put.value.expect("a put has a value");
                let since = dead.entry(value).or_insert((settled.begin, delete));
                since.0 = since.0.min(settled.begin);
            }
        }
    }
    let mut alive = |value: &str, at: At, what: String| {
        if let Some((since, delete)) = dead.get(value).filter(|(since, _)| *since <= at) {
            verdict.broken(format!("{value:?} was deleted for good by {since} by {:?}, and is in {what}", delete.op));
        }
    };
    for record in records {
        match record {
            Record::Op(op) => {
                for (_, value, _) in found(op) {
                    alive(value, op.begin, format!("{op:?}"));
                }
            }
            Record::Settled { begin, entries, .. } => {
                for entry in entries {
                    alive(&entry.value, *begin, format!("all maps at {begin}: {entry:?}"));
                }
            }
            _ => {}
        }
    }
}

/// Whether the node that accepted a delete had seen a put before: because it accepted the put itself, in the same life;
/// because it showed the value; because all nodes held it; or because no other value existed that it could have
/// deleted.
fn covered(
    facts: &Facts,
    delete: &Write,
    put: &Write,
    writes: &[Write],
    reads: &HashMap<&str, Vec<(usize, At, At)>>,
) -> bool {
    let Some(value) = put.value else { return false };
    let deleted = delete.version.expect("its caller looked");
    if writes.iter().filter(|write| write.value.is_some()).count() == 1 {
        return true;
    }
    let Some(version) = put.version.filter(|version| *version < deleted) else { return false };
    let op = delete.op;
    version.origin == deleted.origin
        || reads.get(value).is_some_and(|reads| {
            let here = |(node, begin, end): &(usize, At, At)| {
                *node == op.node && *end <= op.begin && facts.life(*node, *begin, op.end).is_some()
            };
            reads.iter().any(here)
        })
        || facts.settled.iter().any(|settled| {
            settled.end <= op.begin && settled.entries.get(put.op.key.as_str()).is_some_and(|held| held.value == value)
        })
}

/// A value expires with its TTL, everywhere.
pub(super) fn ended(facts: &Facts, verdict: &mut Verdict) {
    let mut ends: HashMap<&str, At> = HashMap::new();
    for writes in facts.writes.values().filter(|writes| !writes.iter().any(|write| write.touch)) {
        for write in writes {
            if let (Some(value), Some(ttl), Some(_)) = (write.value, write.ttl, write.version) {
                ends.insert(value, write.op.end + ttl + TTL_LATE);
            }
        }
    }
    let mut see = |value: &str, at: At, what: &dyn std::fmt::Debug| {
        let Some(end) = ends.get(value) else { return };
        verdict.count("reads of values with an end");
        if at > *end {
            verdict.broken(format!("{value:?} ended by {end}, and was read after {at}: {what:?}"));
        }
    };
    for op in &facts.ops {
        for (_, value, _) in found(op) {
            see(value, op.begin, op);
        }
    }
    for settled in &facts.settled {
        for entry in settled.entries.values() {
            see(&entry.value, settled.begin, entry);
        }
    }
}

/// Keys that all nodes held before the first fault, and no client wrote again, are there whenever a node answers: a
/// node is ready only once it holds what its peers hold.
pub(super) fn fixed(facts: &Facts, verdict: &mut Verdict) {
    let prepared = |settled: &&Settled| settled.entries.keys().any(|key| key.starts_with("f/"));
    let Some(start) = facts.settled.iter().find(prepared) else { return };
    let once = |key: &&str| facts.writes_of(key).len() == 1;
    let keys: HashSet<&str> = start.entries.keys().copied().filter(|key| key.starts_with("f/")).filter(once).collect();
    for op in facts.ops.iter().filter(|op| op.begin >= start.end) {
        let (asked, there): (Vec<&str>, Vec<_>) = match (&op.call, &op.outcome) {
            (Call::Get, Outcome::Found { .. } | Outcome::Missing) if keys.contains(op.key.as_str()) => {
                (vec![&op.key], found(op))
            }
            (Call::List, Outcome::Listed(_)) if op.key == "f/" => (keys.iter().copied().collect(), found(op)),
            _ => continue,
        };
        for key in asked {
            verdict.count("reads of keys that no client changes");
            let entry = start.entries[key];
            let held =
                there.iter().any(|(k, value, version)| *k == key && *value == entry.value && *version == entry.version);
            if !held {
                verdict.broken(format!("{entry:?} was held by all and never changed, and is not in {op:?}"));
            }
        }
    }
}

/// A session is lost only with nodes. An evicted node may be the last to learn of its eviction; when all are equal
/// again, it has been reset.
pub(super) fn sessions(facts: &Facts, verdict: &mut Verdict) {
    let mut starts: HashMap<u64, At> = HashMap::new();
    for op in &facts.ops {
        let Some(session) = op.session else { continue };
        let start = *starts.entry(session).or_insert(op.begin);
        let Outcome::Failed { code, .. } = &op.outcome else { continue };
        let Some(settled) = facts.settled.iter().find(|settled| settled.begin >= op.end) else { continue };
        if code == "DataLoss" {
            verdict.count("sessions that were lost");
            if facts.interrupted(start, settled.end).is_empty() {
                verdict.broken(format!("a session is lost, and no node was since {start}: {op:?}"));
            }
        }
    }
}
