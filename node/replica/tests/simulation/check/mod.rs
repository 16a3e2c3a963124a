//! The guarantees, checked against the history of all writes.

mod end;
mod history;

use std::collections::BTreeSet;

pub use self::end::{at_the_end, equal, settled, survivors, waits_for_gone};
pub use self::history::{Acked, History, Write, covers};
use crate::prelude::*;
use crate::world::{Node, World};

/// How long after the cluster has healed it is certain which of two processes has a name.
const NAMES_MS: u64 = 30_000;

/// Everything of a replica on which the invariant depends.
#[derive(PartialEq)]
pub struct Checked {
    vector: Vector,
    founding: (u64, u64),
    collected: u64,
    forgotten: u64,
    is_collected: bool,
    fingerprint: u128,
}

impl Checked {
    /// The epoch of the node's map.
    pub const fn founding(&self) -> (u64, u64) {
        self.founding
    }

    fn is_of(&self, replica: &Replica) -> bool {
        let store = replica.store();
        (self.founding, self.collected, self.forgotten, self.fingerprint)
            == (replica.founding(), replica.collected(), replica.forgotten(), store.fingerprint())
            && self.is_collected == store.is_collected(self.forgotten)
            && self.vector == *replica.vector()
    }

    fn of(replica: &Replica) -> Self {
        let (collected, forgotten, store) = (replica.collected(), replica.forgotten(), replica.store());
        Self {
            vector: replica.vector().clone(),
            founding: replica.founding(),
            collected,
            forgotten,
            is_collected: store.is_collected(forgotten),
            fingerprint: store.fingerprint(),
        }
    }
}

/// Checks what holds at every moment.
///
/// A node that has not changed since the last check needs no new check, because the set of tombstones that may be
/// dropped only grows.
pub fn always(world: &mut World) {
    one_serves(world);
    let mut changed = BTreeSet::new();
    for (place, node) in world.nodes.iter_mut().enumerate() {
        let Some(node) = node.as_mut().filter(|n| n.replica.is_ready()) else { continue };
        if !node.checked.as_ref().is_some_and(|checked| checked.is_of(&node.replica)) {
            node.checked = Some(Checked::of(&node.replica));
            changed.insert(place);
        }
    }
    if changed.is_empty() {
        return;
    }
    for node in changed.iter().filter_map(|place| world.nodes[*place].as_ref()) {
        world.history.add_stable(&node.replica);
    }
    for node in changed.iter().filter_map(|place| world.nodes[*place].as_ref()) {
        holds_what_it_covers(world, node);
        never_goes_back(world, node);
    }
    equal_vectors_mean_equal_maps(world, &changed);
}

/// Of each key a node holds the last write that it covers, and no older one.
fn holds_what_it_covers(world: &World, node: &Node) {
    let (replica, late) = (&node.replica, world.now_ms + world.plan.apart_ms());
    let too_late = replica.counters().too_late;
    assert!(too_late == 0 || !world.plan.remembers_deletes(), "{} dropped {too_late} writes of its backlog", node.name);
    for (key, dots) in &world.history.by_key {
        let held = replica.store().get(key).map(|r| r.dot);
        let last = dots.iter().rev().find(|dot| covers(replica.vector(), **dot));
        if let Some(dot) = last.filter(|dot| held < Some(**dot)) {
            let is_dropped = held.is_none() && world.history.has_ended(key, *dot, late);
            assert!(is_dropped, "{} covers {dot:?} of {key:?} but holds {held:?}", node.name);
        }
    }
}

/// A key's record stays, until a larger dot replaces it or its tombstone is dropped.
fn never_goes_back(world: &World, node: &Node) {
    let (replica, late) = (&node.replica, world.now_ms + world.plan.apart_ms());
    for (key, dot) in &node.held {
        let held = replica.store().get(key).map(|r| r.dot);
        if held != Some(*dot) {
            let is_dropped =
                held.is_none() && dot.hlc <= replica.forgotten() && world.history.has_ended(key, *dot, late);
            assert!(is_dropped, "{} held {dot:?} under {key:?} and holds {held:?} now", node.name);
        }
    }
}

/// Vectors are compared as digests compare them: a node that adopted a write does not cover what lies in the gap below.
fn equal_vectors_mean_equal_maps(world: &World, changed: &BTreeSet<usize>) {
    let comparable = |n: &&Node| {
        let r = &n.replica;
        r.is_ready() && r.store().is_collected(r.forgotten()) && r.vector().values().all(|c| c.beyond == 0)
    };
    let wrote = |n: &Node| -> Vec<(u64, u64, u64)> {
        let collected = n.replica.collected();
        let origins = n.replica.vector().iter().map(|(&o, c)| (o, c.last, c.last.min(c.seen)));
        origins.filter(|(_, last, _)| *last > collected).collect()
    };
    let standing = |n: &Node| (n.replica.founding(), n.replica.collected(), n.replica.forgotten());
    let places = world.nodes.iter().enumerate();
    let nodes: Vec<_> = places.filter_map(|(at, n)| Some((at, n.as_ref().filter(comparable)?))).collect();
    for (at, (i, a)) in nodes.iter().enumerate() {
        for (_, b) in nodes[at + 1..].iter().filter(|(j, _)| changed.contains(i) || changed.contains(j)) {
            if standing(a) == standing(b) && wrote(a) == wrote(b) {
                assert_eq!(a.map(), b.map(), "{} and {} cover the same", a.name, b.name);
                assert_eq!(a.replica.store().fingerprint(), b.replica.store().fingerprint());
            }
        }
    }
}

/// Without `serve_alone`, a node founds with a majority of the voters, and with no peer that it hears of and cannot talk to.
/// A map that is founded while another exists is empty, and no client can tell.
pub fn founding(world: &World, place: usize) {
    let Some(node) = &world.nodes[place] else { return };
    if world.plan.serve_alone {
        return;
    }
    let apart: Vec<usize> = world.apart_from(place).collect();
    assert!(apart.is_empty(), "{} founds though it cannot talk to the nodes {apart:?}", node.name);
    let linked: BTreeSet<_> = node.replica.linked().collect();
    let seats = node.replica.seats().filter(|(origin, seat)| seat.voter && linked.contains(origin));
    let names: BTreeSet<_> = seats.map(|(_, seat)| &seat.name).chain([&node.name]).collect();
    assert!(names.len() > node.voters / 2, "{} founds with {names:?}, of {} voters", node.name, node.voters);
}

/// At most one of two processes with one name serves clients, once they have had time to meet. In a plan without other
/// faults, the two never serve at the same time, and the seat of the serving process never ends.
fn one_serves(world: &World) {
    let Some(twin) = world.plan.twin else { return };
    let serving: Vec<_> = world.twins().filter(|node| node.replica.serves() && !node.leaves()).collect();
    let met = twin.calm || world.healed_for_ms().is_some_and(|ms| ms > NAMES_MS);
    assert!(!met || serving.len() < 2, "two processes serve as n{}", twin.of);
    if twin.calm {
        for node in serving {
            // (Of two epochs at the start, one may give way.)
            assert_ne!(node.replica.ended_because(), Stranger::Ended, "{} was affected by its twin", node.name);
        }
    }
}
