//! What must hold once the cluster has healed and settled.

use std::collections::BTreeMap;

use super::history::{Acked, Delete, History, covers};
use crate::prelude::*;
use crate::world::{Node, World};

/// Far beyond every clock difference and TTL of a run.
const LATER_MS: u64 = 60_000;

/// The largest dot of each key that any ready node holds.
pub fn survivors(world: &World) -> BTreeMap<Bytes, Dot> {
    let mut best: BTreeMap<Bytes, Dot> = BTreeMap::new();
    for node in world.live().filter(|n| n.replica.is_ready()) {
        for (key, &dot) in &node.held {
            let held = best.entry(key.clone()).or_default();
            *held = dot.max(*held);
        }
    }
    best
}

/// Whether a node waits for a process that is gone for good, and whose seat is not evicted in the time of a run.
pub fn waits_for_gone(world: &World, node: &Node) -> bool {
    let replica = &node.replica;
    let is_gone = |origin| world.live().all(|n| n.origin != origin);
    // No seat is evicted if too many voters are gone at once.
    let voters = replica.seats().filter(|(o, seat)| seat.is_live() && seat.voter && !is_gone(*o)).count();
    let is_minority = voters < replica.holders(u64::MAX).majority;
    (world.plan.evict_after_ms > 60_000 || is_minority) && replica.seats().any(|(o, seat)| seat.is_live() && is_gone(o))
}

/// Whether all these nodes are ready and equal.
pub fn equal<'a>(nodes: impl Iterator<Item = &'a Node>) -> Result<(), String> {
    let mut first = None;
    for node in nodes {
        let replica = &node.replica;
        if !replica.is_ready() {
            return Err(format!("{} is not ready", node.name));
        }
        let state = (replica.founding(), node.map(), replica.store().fingerprint(), replica.store().buckets());
        let first = first.get_or_insert_with(|| state.clone());
        if *first != state {
            return Err(format!("{} differs: {:?} and {:?}", node.name, first, state));
        }
    }
    Ok(())
}

/// Whether all nodes are ready and equal, have reissued their backlogs, and have dropped the tombstones that they can drop.
pub fn settled(world: &World) -> Result<(), String> {
    equal(world.live())?;
    for node in world.live() {
        let replica = &node.replica;
        if replica.counters().returns > world.plan.max_resets {
            return Err(format!("{} reset {} times", node.name, replica.counters().returns));
        }
        if waits_for_gone(world, node) {
            continue;
        }
        if replica.refused().is_some() {
            return Err(format!("{} has lost its name and is still there", node.name));
        }
        if replica.seats().any(|(_, seat)| seat.is_live() && seat.returning) {
            return Err(format!("{} waits for a backlog", node.name));
        }
        if holds_unneeded_tombstones(replica, world.plan.remember_ended_ms) {
            return Err(format!("{} holds {} tombstones", node.name, replica.store().tombstones()));
        }
    }
    Ok(())
}

/// Tombstones are kept only if they may have to beat a write of a process that was evicted, or lately replaced.
fn holds_unneeded_tombstones(replica: &Replica, remember_ended_ms: u64) -> bool {
    let now_ms = ms_of(replica.collected());
    let may_rejoin = |seat: &Seat| match seat.state {
        SeatState::Evicted => true,
        SeatState::Ended => seat.agreed > 0 && ms_of(seat.since) + remember_ended_ms > now_ms,
        SeatState::Joining | SeatState::Member => false,
    };
    let gone = replica.seats().filter(|(_, seat)| may_rejoin(seat));
    let kept_above = gone.map(|(_, seat)| seat.agreed).min().unwrap_or(u64::MAX);
    let since = |r: &Record| r.expires_ms.map_or(r.dot.hlc, |end| r.dot.hlc.max(stamp_at(end)));
    let mut tombstones = replica.store().scan(None).filter(|(_, r)| r.value.is_none()).map(|(_, r)| since(r));
    tombstones.any(|since| since <= kept_above || since > replica.collected())
}

/// The map in which all nodes agree, at the end of a run.
struct Final<'a> {
    world: &'a World<'a>,
    history: &'a History,
    node: &'a Node,
    map: BTreeMap<Bytes, Dot>,
    now_ms: u64,
}

impl Final<'_> {
    fn at(&self, key: &Bytes) -> Option<Dot> {
        self.map.get(key).copied()
    }

    /// Whether the key has this write or a later one, or may have no value.
    fn stands(&self, key: &Bytes, dot: Dot) -> bool {
        let at = self.at(key);
        at >= Some(dot) || at.is_none() && self.history.has_ended(key, dot, self.now_ms)
    }
}

pub fn at_the_end(world: &World, survivors: &BTreeMap<Bytes, Dot>) {
    let node = world.live().next().expect("all nodes were started");
    let end = Final { world, history: &world.history, node, map: node.map(), now_ms: world.now_ms + LATER_MS };
    records_are_writes(&end);
    nothing_held_is_lost(&end, survivors);
    acked_writes_live(&end);
    deletes_are_final(&end);
}

fn records_are_writes(end: &Final<'_>) {
    for (key, record) in end.node.replica.store().scan(None) {
        let write = &end.history.writes[&record.dot];
        assert_eq!((&write.key, write.expires_ms), (key, record.expires_ms));
        let has_ended = record.expires_ms.is_some_and(|at| at < end.now_ms);
        assert!(record.value == write.value || has_ended, "{key:?}");
    }
}

/// Every write that a node held when the cluster healed is still there. Without a loss of memory, the last write of
/// each key is there.
fn nothing_held_is_lost(end: &Final<'_>, survivors: &BTreeMap<Bytes, Dot>) {
    let (world, history, node) = (end.world, end.history, end.node);
    // A backlog that is not reissued yet is not lost. Writes of a node that rejoined too late may be lost.
    let reissued =
        !(waits_for_gone(world, node) && node.replica.seats().any(|(_, seat)| seat.is_live() && seat.returning));
    let is_whole = reissued && !history.too_late && world.live().all(|n| n.replica.counters().too_late == 0);
    if !is_whole {
        return;
    }
    if !history.crashed {
        for (key, dots) in &history.by_key {
            let last = dots.last().expect("a key has a write");
            let at = end.at(key);
            let stands = at == Some(*last) || at.is_none() && history.has_ended(key, *last, end.now_ms);
            assert!(stands, "{key:?}: the last write was {last:?}, but at the end there is {at:?}");
        }
    }
    for (key, dot) in survivors {
        assert!(end.stands(key, *dot), "{key:?}: {dot:?} was held, but at the end there is {:?}", end.at(key));
    }
}

/// An acknowledged write lives while one of its holders does.
fn acked_writes_live(end: &Final<'_>) {
    for acked in end.history.acked.iter().filter(|acked| end.history.has_holder(acked)) {
        let key = &end.history.writes[&acked.dot].key;
        assert!(
            end.stands(key, acked.dot),
            "{key:?}: {:?} was acknowledged, but at the end there is {:?}",
            acked.dot,
            end.at(key)
        );
    }
}

/// A delete is final for each write that it had covered.
fn deletes_are_final(end: &Final<'_>) {
    let (world, history) = (end.world, end.history);
    for Delete { key, dot, covered, before, at: when } in &history.deletes {
        let Some(there) = end.at(key) else { continue };
        let root = history.writes[&there].root;
        // A map of another epoch is reissued even if a delete of one of its keys was dropped, because too many deletes
        // were kept.
        if world.epochs_met && world.plan.kept_deletes < KEPT_DELETES && root != there {
            continue;
        }
        // A delete that all its holders lost leaves no evidence.
        let alone = Acked { dot: *dot, holders: vec![dot.origin], at: *when };
        let acked = history.acked.iter().filter(|a| a.dot == *dot);
        if !acked.chain([&alone]).any(|a| history.has_holder(a)) {
            continue;
        }
        // A write that another process had covered counts if that process still has it. It does not count if that
        // process made or just reissued the write that is there: of two concurrent writes either may win.
        let has_map = |origin: &u64| *origin != there.origin && history.kept_map_since(*origin, *when);
        let counts = |origin: &u64| *origin == dot.origin || root < *dot && has_map(origin);
        // Nothing older is brought back once the delete was causally stable.
        let is_stable = root < *dot && world.remembers_deletes() && history.is_stable(&end.node.replica, *dot);
        let was_covered = is_stable
            || *before == Some(root)
            || covered.iter().any(|(origin, vector)| counts(origin) && covers(vector, root));
        assert!(!was_covered || root == *dot, "{key:?}: {there:?} is {root:?}, which {dot:?} had deleted");
    }
}
