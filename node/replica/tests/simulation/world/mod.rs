//! The simulated cluster: nodes with wall clocks of their own, connections, a
//! network, and the clients.

mod clients;
mod membership;
mod network;

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use bytes::Bytes;
use kvasir_proto::peer::v1::{SeatState, Stranger};
use kvasir_replica::clock::Dot;
use kvasir_replica::replica::{Bounds, Change, LOG_MAX_BYTES, LinkId, Need, Replica, Settings};
use kvasir_replica::store::Store;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt as _, SeedableRng as _};

use self::clients::Client;
pub use self::membership::Member;
use self::network::{OnLink, Packet, pair};
use crate::check::{Checked, History, Write};
use crate::plan::{NEAR_MS, Op, Plan};

/// When a run begins, in simulated time.
const BEGIN_MS: u64 = 10_000_000;
pub const SYNC_INTERVAL_MS: u64 = 1_000;
pub const SESSIONS: usize = 3;
/// One step of simulated time.
const STEP_MS: u64 = 20;
/// A connection over which one side hears nothing for this long is closed.
const SILENCE_MS: u64 = 3_000;
/// Nodes whose clocks are further apart refuse each other.
pub const MAX_CLOCK_SKEW_MS: u64 = 10_000;
/// Simulated time from healing until all must be equal, and all forgotten that may be.
const HEAL_MS: u64 = 120_000;
/// A leaving node waits this long for its writes to be held.
const DRAIN_MS: u64 = 10_000;

/// A replica behind a wall clock of its own.
pub struct Node {
    pub replica: Replica,
    pub origin: u64,
    pub name: String,
    /// How many voters there are meant to be, as it was last told.
    pub voters: usize,
    /// Its wall clock's distance from the simulation's, milliseconds.
    pub skew_ms: i64,
    /// Peers by place, the link to each, and when it was last heard of.
    links: BTreeMap<usize, (LinkId, u64)>,
    leaves_by: Option<u64>,
    /// In runs with membership.
    member: Option<Member>,
    /// What each key's record was, to show that it never goes back.
    pub held: BTreeMap<Bytes, Dot>,
    /// As it was when it was checked last, if nothing was written since.
    pub checked: Option<Checked>,
}

pub struct World<'a> {
    pub plan: &'a Plan,
    rng: Xoshiro256PlusPlus,
    pub now_ms: u64,
    pub nodes: Vec<Option<Node>>,
    connections: BTreeMap<(usize, usize), u64>,
    next_connection: u64,
    /// Ordered pairs: the second hears nothing from the first.
    blocked: BTreeSet<(usize, usize)>,
    network: BinaryHeap<Packet<OnLink>>,
    datagrams: BinaryHeap<Packet<Vec<u8>>>,
    sent: u64,
    next_origin: u64,
    healed: bool,
    healed_ms: u64,
    /// When the set of processes that can reach each other last changed, if it
    /// is since all healed.
    changed_ms: u64,
    /// Processes that left the membership.
    said_goodbye: BTreeSet<u64>,
    pub history: History,
    /// Writes that wait to be held by others: where, in which life.
    waiting: Vec<(usize, u64, Dot, Need)>,
    /// Those that write, and then as many that read along where that must not change what they do.
    sessions: [Client; 2 * SESSIONS],
    /// How many voters the cluster is meant to have.
    wanted: usize,
    /// Whether two maps met that went back to different foundings.
    pub founded_apart: bool,
    trace: bool,
}

impl Node {
    /// Whether a seat has ended, as far as it knows.
    pub fn has_ended(&self, origin: u64) -> bool {
        self.replica.seats().any(|(seat, it)| seat == origin && it.state == SeatState::Ended)
    }

    /// Whether it is about to go.
    pub const fn leaves(&self) -> bool {
        self.leaves_by.is_some()
    }
}

impl<'a> World<'a> {
    pub fn new(plan: &'a Plan, trace: bool) -> Self {
        let mut world = Self {
            plan,
            rng: Xoshiro256PlusPlus::seed_from_u64(plan.seed ^ 0x5eed),
            now_ms: BEGIN_MS,
            nodes: (0..plan.voters + plan.sidecars + usize::from(plan.twin.is_some())).map(|_| None).collect(),
            connections: BTreeMap::new(),
            next_connection: 1,
            blocked: BTreeSet::new(),
            network: BinaryHeap::new(),
            datagrams: BinaryHeap::new(),
            sent: 0,
            next_origin: 1,
            healed: false,
            healed_ms: 0,
            changed_ms: BEGIN_MS,
            said_goodbye: BTreeSet::new(),
            history: History::default(),
            waiting: Vec::new(),
            sessions: Default::default(),
            wanted: plan.voters,
            founded_apart: false,
            trace,
        };
        if trace {
            println!("{:#?}", Plan { ops: Vec::new(), ..plan.clone() });
        }
        for place in 0..plan.voters + plan.sidecars {
            world.start(place);
        }
        world
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>9} ms  {}", self.now_ms - BEGIN_MS, what());
        }
    }

    /// Whether deletes are remembered for as long as a node may bring something older along. A map of another founding
    /// is brought along at any time, as all of it may exist nowhere else.
    pub fn remembers_deletes(&self) -> bool {
        // Nobody waits for a sidecar that alone holds the map of a former founding, nor for a voter beside another of its name.
        let alone = self.plan.sidecars == 0 && self.plan.twin.is_none();
        !self.founded_apart || self.plan.remembers_deletes() && !self.plan.scales() && alone
    }

    /// How long ago everything healed.
    pub fn healed_for_ms(&self) -> Option<u64> {
        self.healed.then(|| self.now_ms - self.healed_ms)
    }

    pub fn live(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().flatten()
    }

    fn start(&mut self, place: usize) {
        let origin = self.next_origin;
        self.next_origin += 1;
        let skew_ms = self.rng.random_range(-400..400);
        let twin = self.plan.twin.filter(|_| self.is_twin(place));
        let voter = place < self.plan.voters || twin.is_some();
        // A sidecar's pod gets a new name each time.
        let name = match twin {
            Some(twin) => format!("n{}", twin.of),
            None if voter => format!("n{place}"),
            None => format!("s{place}-{origin}"),
        };
        let wall = self.now_ms.saturating_add_signed(skew_ms);
        let room = self.plan.room.filter(|_| place == self.plan.cramped && (!self.healed || self.plan.stays_cramped));
        let settings = Settings {
            origin,
            name: name.clone(),
            voter,
            started_ms: wall,
            // Sidecars are not told.
            voters: if voter { self.wanted } else { 0 },
            evict_after_ms: self.plan.evict_after_ms,
            sync_interval_ms: SYNC_INTERVAL_MS,
            max_clock_skew_ms: MAX_CLOCK_SKEW_MS,
            max_memory: room.map(|(entries, _)| entries * Store::cost_of(1, 8)),
            evict_ending: room.is_some_and(|(_, evict)| evict),
            may_found: voter,
            serve_alone: voter && self.plan.serve_alone,
            join_timeout_ms: 10_000,
            // Small, so that cursors fall behind the log and deltas come in many parts.
            bounds: Bounds {
                log_entries: self.rng.random_range(2..40),
                log_bytes: LOG_MAX_BYTES,
                message_entries: self.rng.random_range(1..6),
                scan_step: self.rng.random_range(1..8),
                remember_ended_ms: self.plan.remember_ended_ms,
                remember_evicted_ms: self.plan.remember_evicted_ms,
                ended_seats: self.plan.ended_seats,
                kept_deletes: self.plan.kept_deletes,
            },
        };
        let mut replica = Replica::new(settings, wall);
        replica.watch(true);
        self.say(|| format!("{name} starts as origin {origin}"));
        let links = BTreeMap::new();
        self.nodes[place] = Some(Node {
            replica,
            origin,
            name,
            voters: self.wanted,
            skew_ms,
            links,
            leaves_by: None,
            member: None,
            held: BTreeMap::new(),
            checked: None,
        });
        if self.plan.membership {
            self.join(place);
        }
    }

    fn remove(&mut self, place: usize) {
        if let Some(node) = self.nodes[place].take() {
            self.history.gone(node.origin);
            self.history.too_late |= node.replica.counters().too_late > 0;
        }
        for other in 0..self.nodes.len() {
            self.disconnect(place, other);
        }
    }

    /// One step: time, sends, deliveries, checks.
    fn step(&mut self) {
        self.now_ms += STEP_MS;
        if self.plan.membership {
            self.mingle();
            self.dial();
        } else {
            self.connect_all();
        }
        for place in 0..self.nodes.len() {
            let view = self.view(place);
            let Some(node) = &mut self.nodes[place] else { continue };
            let now = self.now_ms.saturating_add_signed(node.skew_ms);
            let waited = !node.replica.is_ready();
            node.replica.tick(view, now);
            // By the clock alone a node becomes ready only if it founds.
            if waited && node.replica.is_ready() {
                let name = node.name.clone();
                self.say(|| format!("{name} founds"));
                crate::check::founding(self, place);
            }
            self.absorb(place);
            self.dismiss(place);
            let Some(node) = &mut self.nodes[place] else { continue };
            let due: Vec<_> = node.replica.due().collect();
            let links: Vec<_> = node.links.iter().map(|(&to, &(link, heard))| (to, link, heard)).collect();
            for (to, link, heard) in links {
                if self.now_ms - heard > SILENCE_MS {
                    self.disconnect(place, to);
                    continue;
                }
                if !due.contains(&link) {
                    continue;
                }
                // At most a few a step, as on a socket that drains.
                for _ in 0..6 {
                    let Some(node) = &mut self.nodes[place] else { break };
                    let Some(message) = node.replica.poll_send(link, now) else { break };
                    self.send(place, to, &message);
                }
            }
        }
        self.deliver();
        self.settle_acks();
        self.finish_leaving();
    }

    /// Takes note of what a replica did by itself.
    fn absorb(&mut self, place: usize) {
        let Some(node) = &mut self.nodes[place] else { return };
        let changes = node.replica.take_changes();
        if !changes.is_empty() {
            node.checked = None;
        }
        let origin = node.replica.origin();
        if origin != node.origin {
            let before = std::mem::replace(&mut node.origin, origin);
            node.held.clear();
            self.history.interrupted(before);
            let founding = node.checked.as_ref().map(Checked::founding);
            let (name, why) = (node.name.clone(), node.replica.ended_because());
            // Its seat may have been ended by nodes whose map goes back to another founding than its own.
            let apart = self.live().any(|n| n.replica.is_ready() && Some(n.replica.founding()) != founding);
            self.founded_apart |= why == Stranger::Foreign || apart;
            self.say(|| format!("{name} begins anew as origin {origin}: {why:?}"));
            for other in 0..self.nodes.len() {
                self.disconnect(place, other);
            }
            self.rejoin(place);
        }
        let mut last: Option<(Bytes, Dot, Write)> = None;
        let replaced = changes.iter().any(|change| matches!(change, Change::Reset));
        for change in changes {
            let Some(node) = &mut self.nodes[place] else { return };
            match change {
                Change::Wrote(key, record) => {
                    if let Some(before) = node.held.insert(key.clone(), record.dot) {
                        assert!(before < record.dot, "{} went back from {before:?} to {:?}", node.name, record.dot);
                    }
                    let (name, own) = (node.name.clone(), record.dot.origin == node.origin);
                    let write = Write {
                        key: key.clone(),
                        value: record.value,
                        expires_ms: record.expires_ms,
                        root: record.dot,
                    };
                    if own && self.history.get(record.dot).is_none() {
                        let dot = record.dot;
                        self.say(|| format!("{name} writes {dot:?} {write:?}"));
                        self.history.add(record.dot, write.clone());
                    }
                    last = Some((key, record.dot, write));
                }
                Change::Reissued(old, new) => {
                    assert!(last.as_ref().is_some_and(|(_, dot, _)| *dot == new));
                    self.say(|| format!("  which is {old:?} again"));
                    self.history.reissued(old, new);
                    let Some(node) = &self.nodes[place] else { return };
                    let later = self.history.later(new, &node.replica);
                    let fine = later.is_none() || !self.remembers_deletes();
                    assert!(fine, "{} reissues {old:?} as {new:?} and had taken in {later:?}", node.name);
                }
                Change::Reset => node.held.clear(),
                Change::Evicted(seat) => {
                    let name = node.name.clone();
                    self.say(|| format!("{name} gives up on {seat:?}"));
                }
                Change::Expired(..) => {}
            }
        }
        // What was put in place of the map was not told write by write.
        if let Some(node) = self.nodes[place].as_mut().filter(|_| replaced) {
            node.held = node.replica.store().scan(None).map(|(key, record)| (key.clone(), record.dot)).collect();
        }
    }

    /// A process whose name is another's ends, once its writes are the others'.
    fn dismiss(&mut self, place: usize) {
        let by = self.now_ms + DRAIN_MS;
        if let Some(node) = self.nodes[place].as_mut().filter(|n| n.replica.is_dismissed() && n.leaves_by.is_none()) {
            node.leaves_by = Some(by);
            node.replica.drain();
            let name = node.name.clone();
            self.say(|| format!("{name} at place {place} has lost its name"));
        }
    }

    /// Whether the place is of a second process with one name.
    pub const fn is_twin(&self, place: usize) -> bool {
        self.plan.twin.is_some() && place + 1 == self.nodes.len()
    }

    /// Whether the other of two processes with one name has that of the place.
    fn is_taken(&self, place: usize) -> bool {
        let twin = self.plan.twin.filter(|twin| twin.of == place);
        twin.is_some() && self.twins().any(|node| node.replica.refused().is_none())
    }

    /// Whoever watches over the voters sees that none has the name of the two any more, and starts one.
    fn replace_twin(&mut self) {
        let Some(twin) = self.plan.twin else { return };
        let mut places = [twin.of, self.nodes.len() - 1].into_iter();
        if self.is_wanted(twin.of)
            && !self.is_taken(twin.of)
            && let Some(place) = places.find(|place| self.nodes[*place].is_none())
        {
            self.start(place);
            self.look(place);
        }
    }

    /// Those of the two processes with one name that are there.
    pub fn twins(&self) -> impl Iterator<Item = &Node> {
        let name = self.plan.twin.map(|twin| format!("n{}", twin.of));
        self.live().filter(move |node| name.as_ref() == Some(&node.name))
    }

    fn finish_leaving(&mut self) {
        for place in 0..self.nodes.len() {
            let Some(node) = &mut self.nodes[place] else { continue };
            let Some(by) = node.leaves_by else { continue };
            let covered = node.replica.uncovered() == (0, 0) && !node.links.is_empty();
            if covered || self.now_ms >= by {
                let name = node.name.clone();
                // It may have come back too late.
                if !covered || node.replica.counters().too_late > 0 {
                    self.history.crashed = true;
                }
                self.history.too_late |= node.replica.counters().too_late > 0;
                let now = self.now_ms.saturating_add_signed(node.skew_ms);
                node.replica.leave(now);
                // Its last words.
                let links: Vec<_> = node.links.iter().map(|(&to, &(link, _))| (to, link)).collect();
                self.say(|| format!("{name} is gone"));
                for (to, link) in links {
                    if let Some(message) = self.nodes[place].as_mut().and_then(|n| n.replica.poll_send(link, now)) {
                        self.send(place, to, &message);
                    }
                }
                self.say_goodbye(place);
                self.history.gone(self.nodes[place].take().map_or(0, |node| node.origin));
                // What is on its way arrives: the connections are closed, not cut.
                let mut rest: Vec<_> = std::mem::take(&mut self.network).into_sorted_vec();
                while let Some(packet) = rest.pop() {
                    let connection = self.connections.get(&pair(packet.from, packet.to));
                    let meant = connection == Some(&packet.content.0);
                    if packet.from == place && meant && self.rng.random_bool(0.5) {
                        if let Some(node) = &mut self.nodes[packet.to]
                            && let Some(&(link, _)) = node.links.get(&place)
                        {
                            self.receive(packet.to, link, packet.content.1);
                        }
                    } else if packet.from != place {
                        self.network.push(packet);
                    }
                }
                self.remove(place);
                if self.healed {
                    self.replace_twin();
                }
            }
        }
    }

    pub fn run(mut self) {
        let plan = self.plan;
        let begin = self.now_ms;
        for (at, op) in &plan.ops {
            while self.now_ms < begin + at {
                self.step();
                if plan.draws {
                    self.rng.random::<u64>();
                }
                crate::check::always(&mut self);
            }
            self.act(op);
        }
        self.heal();
    }

    const fn is_cramped(&self, place: usize) -> bool {
        self.plan.room.is_some() && place == self.plan.cramped
    }

    /// The nodes that have room, by place.
    fn roomy(&self) -> impl Iterator<Item = (usize, &Node)> {
        let places = self.nodes.iter().enumerate().filter(|(place, _)| !self.is_cramped(*place));
        places.filter_map(|(place, node)| Some((place, node.as_ref()?)))
    }

    /// Deletes what there is, where there is room: deletes fit anywhere, and make room. What somebody brought along
    /// may be issued again after it.
    fn delete_all(&mut self) {
        let roomy = self.roomy().next().map(|(place, _)| place);
        if let Some(node) = roomy {
            (0..self.plan.keys).for_each(|key| self.act(&Op::Delete { node, key }));
        }
    }

    /// Goes on until that is so.
    fn until(&mut self, done: impl Fn(&mut Self) -> Result<(), String>) {
        let end = self.now_ms + HEAL_MS;
        loop {
            for _ in 0..50 {
                self.step();
                crate::check::always(self);
            }
            self.expect_met();
            let Err(why) = done(self) else { return };
            if self.trace && self.now_ms >= end {
                self.live().for_each(|node| println!("{}\n{:#?}", node.name, node.replica));
            }
            assert!(self.now_ms < end, "not settled after {HEAL_MS} ms: {why}");
        }
    }

    fn heal(&mut self) {
        self.say(|| "everything heals".into());
        crate::check::always(self);
        for node in self.nodes.iter_mut().flatten() {
            node.skew_ms = node.skew_ms.clamp(-NEAR_MS, NEAR_MS);
        }
        self.blocked.clear();
        self.healed = true;
        self.healed_ms = self.now_ms;
        self.changed_ms = self.now_ms;
        self.network.clear();
        for place in 0..self.nodes.len() {
            // A node without room never holds all: it may be given a new life with more.
            // One that is about to leave is gone.
            let leaves = self.nodes[place].as_ref().is_some_and(|n| n.leaves_by.is_some());
            let roomier = self.is_cramped(place) && !self.plan.stays_cramped;
            if leaves || roomier && self.nodes[place].is_some() {
                self.history.crashed = true;
                self.remove(place);
            }
        }
        let survivors = crate::check::survivors(self);
        for place in 0..self.nodes.len() {
            if self.nodes[place].is_none() && self.is_wanted(place) && !self.is_taken(place) {
                self.start(place);
            }
            self.look(place);
        }
        self.replace_twin();
        let stays_cramped = self.plan.room.is_some() && self.plan.stays_cramped;
        if stays_cramped {
            self.until(|world| crate::check::equal(world.roomy().map(|(_, node)| node)));
        }
        self.until(|world| {
            if stays_cramped {
                world.delete_all();
            }
            crate::check::settled(world).and_then(|()| world.met())
        });
        crate::check::at_the_end(self, &survivors);
        // A node comes to hold what a session saw, or says that it is lost.
        let end = self.now_ms + HEAL_MS;
        while let Some(held_up) = self.holds_up() {
            assert!(self.now_ms < end, "{held_up} for {HEAL_MS} ms");
            self.step();
            crate::check::always(self);
        }
        self.read_all();
    }
}
