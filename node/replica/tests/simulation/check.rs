//! What was promised, as a naive model sees it: the history of all writes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use kvasir_proto::peer::v1::{SeatState, Stranger};
use kvasir_replica::clock::{Dot, ms_of, stamp_at};
use kvasir_replica::replica::{KEPT_DELETES, Replica, Seat, Vector};
use kvasir_replica::store::Record;

use crate::world::{Node, World};

/// Once all has healed, it is certain after this long which of two processes has a name.
const NAMES_MS: u64 = 30_000;
/// Far past every skew and TTL of a run.
const LATER_MS: u64 = 60_000;

#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    pub key: Bytes,
    pub value: Option<Bytes>,
    pub expires_ms: Option<u64>,
    /// The client's write whose content this is.
    pub root: Dot,
}

/// A write that so many said they hold.
#[derive(Debug)]
pub struct Acked {
    pub dot: Dot,
    pub holders: Vec<u64>,
    pub at: u64,
}

/// A client's delete, and what the node that took it, the first, and the others had covered.
struct Delete {
    key: Bytes,
    dot: Dot,
    covered: Vec<(u64, Vector)>,
    before: Option<Dot>,
    at: u64,
}

#[derive(Default)]
pub struct History {
    writes: HashMap<Dot, Write>,
    by_key: BTreeMap<Bytes, BTreeSet<Dot>>,
    deletes: Vec<Delete>,
    pub acked: Vec<Acked>,
    /// Of each founding, the writes that all who took part had taken in.
    agreed: HashSet<((u64, u64), Dot)>,
    /// Processes that lost their map, and when they last did.
    interrupted: HashMap<u64, u64>,
    events: u64,
    /// Whether any memory was lost.
    pub crashed: bool,
    /// Whether one that is gone had come back too late for what it brought.
    pub too_late: bool,
}

impl History {
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    pub const fn now(&self) -> u64 {
        self.events
    }

    pub fn get(&self, dot: Dot) -> Option<&Write> {
        self.writes.get(&dot)
    }

    pub fn add(&mut self, dot: Dot, write: Write) {
        self.events += 1;
        self.by_key.entry(write.key.clone()).or_default().insert(dot);
        assert!(self.writes.insert(dot, write).is_none(), "a dot was given twice");
    }

    pub fn reissued(&mut self, old: Dot, new: Dot) {
        let root = self.writes[&old].root;
        if let Some(write) = self.writes.get_mut(&new) {
            write.root = root;
        }
    }

    /// A write of the key that is later than what was reissued as `new`, and that was taken in before where that
    /// happened: by the node, or by all who took part.
    pub fn later(&self, new: Dot, replica: &Replica) -> Option<Dot> {
        let Write { key, root, .. } = &self.writes[&new];
        let taken_in = |dot: &&Dot| {
            replica.vector().get(&dot.origin).is_some_and(|c| c.seen >= dot.hlc)
                || self.agreed.contains(&(replica.founding(), **dot))
        };
        let later = self.by_key[key].range(root..).filter(|dot| **dot != new && self.writes[*dot].root > *root);
        later.copied().find(|dot| taken_in(&dot))
    }

    /// Notes what all who took part had taken in, as a node knows it.
    fn agree(&mut self, replica: &Replica) {
        let agreed = Dot { hlc: replica.collected(), origin: u64::MAX };
        for dot in self.by_key.values().flat_map(|dots| dots.range(..=agreed)) {
            if replica.vector().get(&dot.origin).is_some_and(|c| c.seen >= dot.hlc) {
                self.agreed.insert((replica.founding(), *dot));
            }
        }
    }

    pub fn deleted(&mut self, key: Bytes, dot: Dot, covered: Vec<(u64, Vector)>, before: Option<Dot>) {
        let at = self.events;
        self.deletes.push(Delete { key, dot, covered, before, at });
    }

    pub fn gone(&mut self, origin: u64) {
        self.interrupted(origin);
    }

    pub fn interrupted(&mut self, origin: u64) {
        self.events += 1;
        self.interrupted.insert(origin, self.events);
    }

    /// Whether the process lost the map in which it made the write.
    pub fn was_interrupted(&self, origin: u64, _dot: Dot) -> bool {
        self.interrupted.contains_key(&origin)
    }

    /// Whether one of those who held it has held it ever since.
    pub fn has_holder(&self, acked: &Acked) -> bool {
        self.has_holder_but(acked, |_| false)
    }

    /// The same, not counting some.
    pub fn has_holder_but(&self, acked: &Acked, but: impl Fn(u64) -> bool) -> bool {
        let held = |origin| self.interrupted.get(origin).is_none_or(|last| *last <= acked.at);
        acked.holders.iter().any(|origin| held(origin) && !but(*origin))
    }

    /// Whether a write may be gone at `now_ms`: it, or a later one of its key,
    /// was a delete or has ended.
    pub fn ended(&self, key: &Bytes, dot: Dot, now_ms: u64) -> bool {
        self.by_key.get(key).into_iter().flat_map(|dots| dots.range(dot..)).any(|d| {
            let write = &self.writes[d];
            write.value.is_none() || write.expires_ms.is_some_and(|end| end <= now_ms)
        })
    }
}

fn map(node: &Node) -> BTreeMap<Bytes, Dot> {
    node.replica.store().scan(None).map(|(k, r)| (k.clone(), r.dot)).collect()
}

/// All of a replica on which depends what holds at every moment.
#[derive(PartialEq)]
pub struct Checked {
    vector: Vector,
    founding: (u64, u64),
    collected: u64,
    forgotten: u64,
    forgot: bool,
    fingerprint: u128,
}

impl Checked {
    /// The founding that the node's map went back to.
    pub const fn founding(&self) -> (u64, u64) {
        self.founding
    }

    fn is_of(&self, replica: &Replica) -> bool {
        let store = replica.store();
        (self.founding, self.collected, self.forgotten, self.fingerprint)
            == (replica.founding(), replica.collected(), replica.forgotten(), store.fingerprint())
            && self.forgot == store.is_collected(self.forgotten)
            && self.vector == *replica.vector()
    }

    fn of(replica: &Replica) -> Self {
        let (collected, forgotten, store) = (replica.collected(), replica.forgotten(), replica.store());
        Self {
            vector: replica.vector().clone(),
            founding: replica.founding(),
            collected,
            forgotten,
            forgot: store.is_collected(forgotten),
            fingerprint: store.fingerprint(),
        }
    }
}

/// Holds at every moment. Of a node at which nothing has changed since the last
/// time it holds still: what may be forgotten only grows.
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
        world.history.agree(&node.replica);
    }
    let world = &*world;
    let late = world.now_ms + world.plan.apart_ms();
    for node in changed.iter().filter_map(|place| world.nodes[*place].as_ref()) {
        let replica = &node.replica;
        let too_late = replica.counters().too_late;
        assert!(too_late == 0 || !world.plan.remembers_deletes(), "{} dropped {too_late} writes", node.name);
        // It holds the last of each key that it covers, and so none that is older.
        for (key, dots) in &world.history.by_key {
            let covers = |dot: &&Dot| replica.vector().get(&dot.origin).is_some_and(|c| c.seen >= dot.hlc);
            let held = replica.store().get(key).map(|r| r.dot);
            if let Some(dot) = dots.iter().rev().find(covers).filter(|dot| held < Some(**dot)) {
                let forgotten = held.is_none() && world.history.ended(key, *dot, late);
                assert!(forgotten, "{} covers {dot:?} of {key:?} but holds {held:?}", node.name);
            }
        }
        for (key, dot) in &node.held {
            let held = replica.store().get(key).map(|r| r.dot);
            if held != Some(*dot) {
                let forgotten =
                    held.is_none() && dot.hlc <= replica.forgotten() && world.history.ended(key, *dot, late);
                assert!(forgotten, "{} held {dot:?} under {key:?} and now {held:?}", node.name);
            }
        }
    }
    // Equal vectors, equal maps. As in a digest: who adopted a write above a gap does not cover what lies in the gap.
    let comparable = |n: &Node| {
        let r = &n.replica;
        r.is_ready() && r.store().is_collected(r.forgotten()) && r.vector().values().all(|c| c.beyond == 0)
    };
    let wrote = |n: &Node| -> Vec<(u64, u64, u64)> {
        let collected = n.replica.collected();
        let origins = n.replica.vector().iter().map(|(&o, c)| (o, c.last, c.last.min(c.seen)));
        origins.filter(|(_, last, _)| *last > collected).collect()
    };
    let places = world.nodes.iter().enumerate();
    let nodes: Vec<_> = places.filter_map(|(at, n)| Some((at, n.as_ref().filter(|n| comparable(n))?))).collect();
    for (at, (i, a)) in nodes.iter().enumerate() {
        for (_, b) in nodes[at + 1..].iter().filter(|(j, _)| changed.contains(i) || changed.contains(j)) {
            let (x, y) = (&a.replica, &b.replica);
            let standing = |r: &Replica| (r.founding(), r.collected(), r.forgotten());
            if standing(x) == standing(y) && wrote(a) == wrote(b) {
                assert_eq!(map(a), map(b), "{} and {} took in the same", a.name, b.name);
                assert_eq!(x.store().fingerprint(), y.store().fingerprint());
            }
        }
    }
}

/// A node that was not told to serve alone founds with a majority of the voters, and with no peer in sight that it cannot
/// talk to: a map that is founded beside another is empty, and nobody is told.
pub fn founding(world: &World, place: usize) {
    let Some(node) = &world.nodes[place] else { return };
    if world.plan.serve_alone {
        return;
    }
    let apart: Vec<usize> = world.apart_from(place).collect();
    assert!(apart.is_empty(), "{} founds though it cannot talk to these", node.name);
    let linked: BTreeSet<_> = node.replica.linked().collect();
    let seats = node.replica.seats().filter(|(origin, seat)| seat.voter && linked.contains(origin));
    let names: BTreeSet<_> = seats.map(|(_, seat)| &seat.name).chain([&node.name]).collect();
    let wanted = node.voters;
    assert!(names.len() > wanted / 2, "{} founds with {names:?}, of {wanted} voters", node.name);
}

/// Of two processes with one name no more than one serves clients, once they have had time to meet. If nothing else
/// happens they never both do, and the seat of the one that does was never ended.
fn one_serves(world: &World) {
    let Some(twin) = world.plan.twin else { return };
    let serving: Vec<_> = world.twins().filter(|node| node.replica.serves() && !node.leaves()).collect();
    let met = twin.calm || world.healed_for_ms().is_some_and(|ms| ms > NAMES_MS);
    assert!(!met || serving.len() < 2, "two processes serve as n{}", twin.of);
    if twin.calm {
        for node in serving {
            // Two foundings may still meet at the start, and one gives way.
            assert_ne!(node.replica.ended_because(), Stranger::Ended, "{} was disturbed by its twin", node.name);
        }
    }
}

/// The largest dot of each key that anyone holds who is ready.
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

/// Whether one that died, and is not started again, is waited for, until it is given up on.
pub fn waits(world: &World, node: &Node) -> bool {
    let replica = &node.replica;
    let gone = |origin| world.live().all(|n| n.origin != origin);
    // By nobody, if too many are gone with it.
    let voters = replica.seats().filter(|(o, seat)| seat.is_live() && seat.voter && !gone(*o)).count();
    let alone = voters < replica.holders(u64::MAX).majority;
    (world.plan.evict_after_ms > 60_000 || alone) && replica.seats().any(|(o, seat)| seat.is_live() && gone(o))
}

/// How often a process may begin anew: each eviction and each founding that does not stand is one. While the question of
/// one node to another is lost, which takes it five seconds to see, a third one may go to and fro between the two. In the
/// known seeds that is not so, and by one of them it is seen that none asks again for what was just refused.
const fn max_returns(known: bool) -> u64 {
    if known { 12 } else { 40 }
}

/// Whether all these are ready, and equal.
pub fn equal<'a>(nodes: impl Iterator<Item = &'a Node>) -> Result<(), String> {
    let mut first = None;
    for node in nodes {
        let replica = &node.replica;
        if !replica.is_ready() {
            return Err(format!("{} is not ready", node.name));
        }
        let alike = (replica.founding(), map(node), replica.store().fingerprint(), replica.store().buckets());
        let first = first.get_or_insert_with(|| alike.clone());
        if *first != alike {
            return Err(format!("{} differs: {:?} and {:?}", node.name, first, alike));
        }
    }
    Ok(())
}

/// Whether all are ready, equal, and have forgotten what may be forgotten.
pub fn settled(world: &World) -> Result<(), String> {
    equal(world.live())?;
    for node in world.live() {
        let replica = &node.replica;
        if replica.counters().returns > max_returns(world.plan.draws) {
            return Err(format!("{} began anew {} times", node.name, replica.counters().returns));
        }
        let waits = waits(world, node);
        if !waits && node.replica.refused().is_some() {
            return Err(format!("{} has lost its name and is there still", node.name));
        }
        if !waits && replica.seats().any(|(_, seat)| seat.is_live() && seat.returning) {
            return Err(format!("{} waits for writes to be issued again", node.name));
        }
        // Kept are those that may have to beat a write of a process that was evicted, or replaced lately, and no others.
        let (at, kept) = (ms_of(replica.collected()), world.plan.remember_ended_ms);
        let may_return = |seat: &Seat| match seat.state {
            SeatState::Evicted => true,
            SeatState::Ended => seat.agreed > 0 && ms_of(seat.since) + kept > at,
            SeatState::Joining | SeatState::Member => false,
        };
        let gone = replica.seats().filter(|(_, seat)| may_return(seat));
        let kept_above = gone.map(|(_, seat)| seat.agreed).min().unwrap_or(u64::MAX);
        let since = |r: &Record| r.expires_ms.map_or(r.dot.hlc, |end| r.dot.hlc.max(stamp_at(end)));
        let mut tombstones = replica.store().scan(None).filter(|(_, r)| r.value.is_none()).map(|(_, r)| since(r));
        if !waits && tombstones.any(|since| since <= kept_above || since > replica.collected()) {
            return Err(format!("{} holds {} tombstones", node.name, replica.store().tombstones()));
        }
    }
    Ok(())
}

pub fn at_the_end(world: &World, survivors: &BTreeMap<Bytes, Dot>) {
    let history = &world.history;
    let now = world.now_ms + LATER_MS;
    let node = world.live().next().expect("all were started");
    let end = map(node);
    let at = |key: &Bytes| end.get(key).copied();

    // What is there is what was written.
    for (key, record) in node.replica.store().scan(None) {
        let write = &history.writes[&record.dot];
        assert_eq!((&write.key, write.expires_ms), (key, record.expires_ms));
        assert!(record.value == write.value || record.expires_ms.is_some_and(|end| end < now), "{key:?}");
    }
    // What someone has yet to issue again is not lost.
    let issued = !(waits(world, node) && node.replica.seats().any(|(_, seat)| seat.is_live() && seat.returning));
    // Nor is what came back too late.
    let all_brought = issued && !history.too_late && world.live().all(|n| n.replica.counters().too_late == 0);
    // Without a loss of memory, the last write of each key stands.
    if !history.crashed && all_brought {
        for (key, dots) in &history.by_key {
            let last = dots.last().expect("a key has a write");
            let stands = at(key) == Some(*last) || (at(key).is_none() && history.ended(key, *last, now));
            assert!(stands, "{key:?}: the last write was {last:?}, at the end is {:?}", at(key));
        }
    }
    // Nothing that anyone held when it healed is lost.
    for (key, dot) in survivors.iter().filter(|_| all_brought) {
        let stands = at(key) >= Some(*dot) || (at(key).is_none() && history.ended(key, *dot, now));
        assert!(stands, "{key:?}: {dot:?} was held, at the end is {:?}", at(key));
    }
    // An acknowledged write lives while one of its holders does.
    for acked in &history.acked {
        let dot = &acked.dot;
        if history.has_holder(acked) {
            let key = &history.writes[dot].key;
            let stands = at(key) >= Some(*dot) || (at(key).is_none() && history.ended(key, *dot, now));
            assert!(stands, "{key:?}: {dot:?} was acknowledged, at the end is {:?}", at(key));
        }
    }
    // A delete is final for what it had covered.
    for Delete { key, dot, covered, before, at: when } in &history.deletes {
        let Some(there) = at(key) else { continue };
        // A map of another founding is issued again, though a delete had to be dropped for want of room.
        if world.founded_apart && world.plan.kept_deletes < KEPT_DELETES && history.writes[&there].root != there {
            continue;
        }
        // (One that all its holders lost leaves no evidence.)
        let alone = Acked { dot: *dot, holders: vec![dot.origin], at: *when };
        let told = history.acked.iter().filter(|a| a.dot == *dot);
        if !told.chain([&alone]).any(|a| history.has_holder(a)) {
            continue;
        }
        let root = history.writes[&there].root;
        // What another had covered counts if it is there to tell, and unless it is the later write, or was
        // just issued again by that one: of two writes at once one wins.
        let lives =
            |origin: &u64| *origin != there.origin && history.interrupted.get(origin).is_none_or(|last| last <= when);
        let counts = |origin: &u64| *origin == dot.origin || root < *dot && lives(origin);
        let covers = |vector: &Vector| vector.get(&root.origin).is_some_and(|c| c.seen >= root.hlc);
        // Nor does anything older come back once all who took part had taken the delete in.
        let agreed =
            root < *dot && world.remembers_deletes() && history.agreed.contains(&(node.replica.founding(), *dot));
        let covered =
            agreed || *before == Some(root) || covered.iter().any(|(origin, vector)| counts(origin) && covers(vector));
        assert!(!covered || root == *dot, "{key:?}: {there:?} is {root:?}, which {dot:?} had deleted");
    }
}
