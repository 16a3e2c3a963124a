//! The simulated cluster: nodes with wall clocks of their own, connections, a
//! network, and the clients.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use bytes::Bytes;
use kvasir_proto::peer::v1::Message;
use kvasir_replica::clock::Dot;
use kvasir_replica::replica::{Bounds, Change, Coverage, LinkId, Replica, Settings, View};
use kvasir_replica::store::Store;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt as _, SeedableRng as _};

use crate::check::{Acked, History, Write};
use crate::plan::{Op, Plan};

pub const SYNC_INTERVAL_MS: u64 = 1_000;
/// One step of simulated time.
const STEP_MS: u64 = 20;
/// A connection over which one side hears nothing for this long is closed.
const SILENCE_MS: u64 = 3_000;
/// Simulated time from healing until all must be equal, and all forgotten that may be.
const HEAL_MS: u64 = 120_000;
/// A leaving node waits this long for its writes to be held.
const DRAIN_MS: u64 = 3_000;

/// A replica behind a wall clock of its own.
pub struct Node {
    pub replica: Replica,
    pub origin: u64,
    pub name: String,
    /// Its wall clock's distance from the simulation's, milliseconds.
    pub skew_ms: i64,
    /// Peers by place, the link to each, and when it was last heard of.
    links: BTreeMap<usize, (LinkId, u64)>,
    leaves_by: Option<u64>,
    /// What each key's record was, to show that it never goes back.
    pub held: BTreeMap<Bytes, Dot>,
}

struct Packet {
    due_ms: u64,
    number: u64,
    from: usize,
    to: usize,
    /// The connection it belongs to: another one never delivers it.
    connection: u64,
    message: Message,
}

impl Packet {
    fn key(&self) -> (std::cmp::Reverse<u64>, std::cmp::Reverse<u64>) {
        (std::cmp::Reverse(self.due_ms), std::cmp::Reverse(self.number))
    }
}
impl PartialEq for Packet {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}
impl Eq for Packet {}
impl PartialOrd for Packet {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Packet {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

/// A client that sends its token along.
#[derive(Default)]
pub struct Session {
    token: BTreeMap<u64, (u64, (u64, u64))>,
    last: BTreeMap<u8, Dot>,
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
    network: BinaryHeap<Packet>,
    sent: u64,
    next_origin: u64,
    healed: bool,
    pub history: History,
    /// Writes that wait to be held by so many peers: where, in which life.
    waiting: Vec<(usize, u64, Dot, usize)>,
    sessions: [Session; 3],
    trace: bool,
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

fn key_of(key: u8) -> Bytes {
    Bytes::from(vec![b'a' + key])
}

impl<'a> World<'a> {
    pub fn new(plan: &'a Plan, trace: bool) -> Self {
        let mut world = Self {
            plan,
            rng: Xoshiro256PlusPlus::seed_from_u64(plan.seed ^ 0x5eed),
            now_ms: 10_000_000,
            nodes: (0..plan.voters + plan.sidecars).map(|_| None).collect(),
            connections: BTreeMap::new(),
            next_connection: 1,
            blocked: BTreeSet::new(),
            network: BinaryHeap::new(),
            sent: 0,
            next_origin: 1,
            healed: false,
            history: History::default(),
            waiting: Vec::new(),
            sessions: Default::default(),
            trace,
        };
        if trace {
            println!("{:#?}", Plan { ops: Vec::new(), ..plan.clone() });
        }
        for place in 0..world.nodes.len() {
            world.start(place);
        }
        world
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>9} ms  {}", self.now_ms - 10_000_000, what());
        }
    }

    pub fn live(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().flatten()
    }

    fn start(&mut self, place: usize) {
        let origin = self.next_origin;
        self.next_origin += 1;
        let skew_ms = self.rng.random_range(-400..400);
        let voter = place < self.plan.voters;
        // A sidecar's pod gets a new name each time.
        let name = if voter { format!("n{place}") } else { format!("s{place}-{origin}") };
        let wall = self.now_ms.saturating_add_signed(skew_ms);
        let room = self.plan.room.filter(|_| place == 0 && !self.healed);
        let settings = Settings {
            origin,
            name: name.clone(),
            voter,
            started_ms: wall,
            voters: self.plan.voters,
            evict_after_ms: self.plan.evict_after_ms,
            sync_interval_ms: SYNC_INTERVAL_MS,
            max_clock_skew_ms: 10_000,
            max_memory: room.map(|(entries, _)| entries * Store::cost_of(1, 8)),
            evict_ending: room.is_some_and(|(_, evict)| evict),
            may_found: voter,
            serve_alone: voter,
            join_timeout_ms: 10_000,
            // Small, so that cursors fall behind the log and deltas come in many parts.
            bounds: Bounds {
                log_entries: self.rng.random_range(2..40),
                message_entries: self.rng.random_range(1..6),
                scan_step: self.rng.random_range(1..8),
            },
        };
        let mut replica = Replica::new(settings, wall);
        replica.watch(true);
        self.say(|| format!("{name} starts as origin {origin}"));
        let links = BTreeMap::new();
        self.nodes[place] =
            Some(Node { replica, origin, name, skew_ms, links, leaves_by: None, held: BTreeMap::new() });
    }

    fn remove(&mut self, place: usize) {
        if let Some(node) = self.nodes[place].take() {
            self.history.gone(node.origin);
        }
        for other in 0..self.nodes.len() {
            self.disconnect(place, other);
        }
    }

    fn disconnect(&mut self, a: usize, b: usize) {
        if self.connections.remove(&pair(a, b)).is_some() {
            for (x, y) in [(a, b), (b, a)] {
                if let Some(node) = &mut self.nodes[x]
                    && let Some((link, _)) = node.links.remove(&y)
                {
                    node.replica.link_down(link);
                }
            }
        }
    }

    /// Every pair that is alive and can talk gets a connection.
    fn connect(&mut self) {
        for a in 0..self.nodes.len() {
            for b in a + 1..self.nodes.len() {
                let cut = self.blocked.contains(&(a, b)) || self.blocked.contains(&(b, a));
                if cut || self.connections.contains_key(&(a, b)) {
                    continue;
                }
                let [Some(x), Some(y)] = self.nodes.get_disjoint_mut([a, b]).expect("a < b < len") else { continue };
                let (from_x, from_y) = (x.replica.id(), y.replica.id());
                x.links.insert(b, (x.replica.link_up(from_y), self.now_ms));
                y.links.insert(a, (y.replica.link_up(from_x), self.now_ms));
                self.connections.insert((a, b), self.next_connection);
                self.next_connection += 1;
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, message: &Message) {
        let (loss, duplicate, delay) = if self.healed {
            (0.0, 0.0, 3)
        } else {
            let slow = pair(from, to) == pair(self.plan.slow.0, self.plan.slow.1);
            (self.plan.loss, self.plan.duplicate, self.plan.delay_ms * if slow { 10 } else { 1 })
        };
        let connection = self.connections[&pair(from, to)];
        let copies = if duplicate > 0.0 && self.rng.random_bool(duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            if self.blocked.contains(&(from, to)) || loss > 0.0 && self.rng.random_bool(loss) {
                continue;
            }
            self.sent += 1;
            let due_ms = self.now_ms + self.rng.random_range(1..=delay);
            self.network.push(Packet { due_ms, number: self.sent, from, to, connection, message: message.clone() });
        }
    }

    /// One step: time, sends, deliveries, checks.
    fn step(&mut self) {
        self.now_ms += STEP_MS;
        self.connect();
        for place in 0..self.nodes.len() {
            let Some(node) = &mut self.nodes[place] else { continue };
            let now = self.now_ms.saturating_add_signed(node.skew_ms);
            let alone = node.links.is_empty();
            node.replica.tick(View { answered: true, unlinked: usize::from(alone) }, now);
            self.absorb(place);
            let Some(node) = &mut self.nodes[place] else { continue };
            let links: Vec<_> = node.links.iter().map(|(&to, &(link, heard))| (to, link, heard)).collect();
            for (to, link, heard) in links {
                if self.now_ms - heard > SILENCE_MS {
                    self.disconnect(place, to);
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
        while self.network.peek().is_some_and(|p| p.due_ms <= self.now_ms) {
            let Some(packet) = self.network.pop() else { break };
            if self.connections.get(&pair(packet.from, packet.to)) != Some(&packet.connection) {
                continue;
            }
            let Some(node) = &mut self.nodes[packet.to] else { continue };
            let Some(link) = node.links.get_mut(&packet.from) else { continue };
            link.1 = self.now_ms;
            let link = link.0;
            let now = self.now_ms.saturating_add_signed(node.skew_ms);
            if std::env::var_os("MESSAGES").is_some() && self.trace {
                println!(
                    "{:>9} ms    {} -> {}: {:?}",
                    self.now_ms - 10_000_000,
                    packet.from,
                    packet.to,
                    packet.message.kind
                );
            }
            let Some(node) = &mut self.nodes[packet.to] else { continue };
            node.replica.receive(link, packet.message, now).expect("clocks are near each other and messages are whole");
            self.absorb(packet.to);
        }
        self.settle_acks();
        self.finish_leaving();
    }

    /// Takes note of what a replica did by itself.
    fn absorb(&mut self, place: usize) {
        let Some(node) = &mut self.nodes[place] else { return };
        let changes = node.replica.take_changes();
        let origin = node.replica.origin();
        if origin != node.origin {
            let before = std::mem::replace(&mut node.origin, origin);
            node.held.clear();
            self.history.interrupted(before);
            let name = node.name.clone();
            self.say(|| format!("{name} begins anew as origin {origin}"));
            for other in 0..self.nodes.len() {
                self.disconnect(place, other);
            }
        }
        let mut last: Option<(Bytes, Dot, Write)> = None;
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
                }
                Change::Reset => node.held.clear(),
                Change::Evicted(seat) => {
                    let name = node.name.clone();
                    self.say(|| format!("{name} gives up on {seat:?}"));
                }
                Change::Expired(..) => {}
            }
        }
    }

    fn settle_acks(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        for (place, origin, dot, ack) in waiting {
            let Some(node) = self.nodes[place].as_ref().filter(|n| n.origin == origin) else { continue };
            if self.history.was_interrupted(origin, dot) {
                continue;
            }
            if node.replica.holders(dot.hlc).peers < ack {
                self.waiting.push((place, origin, dot, ack));
                continue;
            }
            // Whoever covers it now is a holder.
            let holders: Vec<u64> = self
                .live()
                .filter(|n| {
                    n.replica.vector().get(&dot.origin).is_some_and(|c| c.seen >= dot.hlc) && n.replica.is_ready()
                })
                .map(|n| n.origin)
                .collect();
            assert!(holders.len() > ack, "{dot:?} was acknowledged by {ack} peers but only {holders:?} hold it");
            self.history.acked.push(Acked { dot, holders, at: self.history.now() });
        }
    }

    fn finish_leaving(&mut self) {
        for place in 0..self.nodes.len() {
            let Some(node) = &mut self.nodes[place] else { continue };
            let Some(by) = node.leaves_by else { continue };
            let covered = node.replica.uncovered() == (0, 0) && !node.links.is_empty();
            if covered || self.now_ms >= by {
                let name = node.name.clone();
                if !covered {
                    self.history.crashed = true;
                }
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
                self.history.gone(self.nodes[place].take().map_or(0, |node| node.origin));
                // What is on its way arrives: the connections are closed, not cut.
                let mut rest: Vec<_> = std::mem::take(&mut self.network).into_sorted_vec();
                while let Some(packet) = rest.pop() {
                    let meant = self.connections.get(&pair(packet.from, packet.to)) == Some(&packet.connection);
                    if packet.from == place && meant && self.rng.random_bool(0.5) {
                        if let Some(node) = &mut self.nodes[packet.to]
                            && let Some(&(link, _)) = node.links.get(&place)
                        {
                            let now = self.now_ms.saturating_add_signed(node.skew_ms);
                            node.replica.receive(link, packet.message, now).expect("messages are whole");
                            self.absorb(packet.to);
                        }
                    } else if packet.from != place {
                        self.network.push(packet);
                    }
                }
                self.remove(place);
            }
        }
    }

    fn act(&mut self, op: &Op) {
        match *op {
            Op::Put { node, key, ttl_ms, ack } => {
                let Some(dot) = self.put(node, key, ttl_ms) else { return };
                let origin = dot.origin;
                if ack > 0 {
                    self.waiting.push((node, origin, dot, ack));
                }
            }
            Op::Delete { node: place, key } => {
                let Some(node) = self.nodes[place].as_mut().filter(|n| n.replica.is_ready()) else { return };
                let now = self.now_ms.saturating_add_signed(node.skew_ms);
                let vector = node.replica.vector().clone();
                let before = node.replica.store().get(&key_of(key)).map(|r| r.dot);
                if let Some(dot) = node.replica.delete(key_of(key), now) {
                    self.history.deleted(key_of(key), dot, vector, before);
                    self.waiting.push((place, dot.origin, dot, 1));
                    self.absorb(place);
                }
            }
            Op::SessionPut { session, node, key } => {
                if let Some(dot) = self.put(node, key, None)
                    && let Some(node) = &self.nodes[node]
                {
                    let founding = node.replica.founding();
                    let session = &mut self.sessions[session];
                    session.token.insert(dot.origin, (dot.hlc, founding));
                    let last = session.last.entry(key).or_default();
                    *last = dot.max(*last);
                }
            }
            Op::Read { session, node, key } => self.read(session, node, key),
            Op::Reset(a, b) => self.disconnect(a, b),
            Op::Block(a, b) if a != b => {
                self.say(|| format!("nothing gets from {a} to {b}"));
                self.blocked.insert((a, b));
            }
            Op::Split(side) => {
                self.say(|| format!("partition {side:b}"));
                for a in 0..self.nodes.len() {
                    for b in 0..self.nodes.len() {
                        if (side >> a & 1) != (side >> b & 1) {
                            self.blocked.insert((a, b));
                        }
                    }
                }
            }
            Op::Mend => {
                self.say(|| "the network mends".into());
                self.blocked.clear();
            }
            Op::Crash(node) => {
                if self.nodes[node].is_some() && self.live().count() > 1 {
                    self.say(|| format!("node {node} crashes"));
                    self.history.crashed = true;
                    self.remove(node);
                }
            }
            Op::Start(node) => {
                if self.nodes[node].is_none() {
                    self.start(node);
                }
            }
            Op::Leave(node) => {
                let by = self.now_ms + DRAIN_MS;
                let several = self.live().count() > 1;
                if let Some(node) = self.nodes[node].as_mut().filter(|_| several) {
                    node.leaves_by.get_or_insert(by);
                }
            }
            Op::Jump(node, by) => {
                if let Some(node) = &mut self.nodes[node] {
                    node.skew_ms = (node.skew_ms + by).clamp(-3_500, 3_500);
                    let (name, skew) = (node.name.clone(), node.skew_ms);
                    self.say(|| format!("the clock of {name} is now {skew} ms off"));
                }
            }
            Op::Block(..) | Op::Nothing => {}
        }
    }

    fn put(&mut self, place: usize, key: u8, ttl_ms: Option<u64>) -> Option<Dot> {
        let node = self.nodes[place].as_mut().filter(|n| n.replica.is_ready() && n.leaves_by.is_none())?;
        let now = self.now_ms.saturating_add_signed(node.skew_ms);
        let value = Bytes::from(format!("{:08}", self.history.len()));
        let dot = node.replica.put(key_of(key), value, ttl_ms.map(|t| now + t), now).ok();
        self.absorb(place);
        dot
    }

    fn read(&mut self, session: usize, place: usize, key: u8) {
        let Some(node) = self.nodes[place].as_ref().filter(|n| n.replica.is_ready()) else { return };
        let name = node.name.clone();
        let asked: Vec<Coverage> = self.sessions[session]
            .token
            .iter()
            .map(|(&origin, &(hlc, founding))| node.replica.coverage(Dot { hlc, origin }, founding))
            .collect();
        if asked.contains(&Coverage::Lost) {
            self.sessions[session] = Session::default();
            return;
        }
        if asked.contains(&Coverage::Behind) {
            return;
        }
        let now = self.now_ms.saturating_add_signed(node.skew_ms);
        let record = node.replica.store().get(&key_of(key)).map(|r| r.dot);
        let founding = node.replica.founding();
        let last = self.sessions[session].last.get(&key).copied();
        if let Some(last) = last {
            let fine = record >= Some(last) || self.history.ended(&key_of(key), last, now + 8_000);
            assert!(fine, "a session saw {last:?} of key {key}, and {record:?} at {name}");
        }
        if let Some(dot) = record {
            let session = &mut self.sessions[session];
            let token = session.token.entry(dot.origin).or_default();
            *token = (dot.hlc, founding).max(*token);
            let last = session.last.entry(key).or_default();
            *last = dot.max(*last);
        }
    }

    pub fn run(mut self) {
        let plan = self.plan;
        let begin = self.now_ms;
        for (at, op) in &plan.ops {
            while self.now_ms < begin + at {
                self.step();
                if self.rng.random_bool(0.02) {
                    crate::check::always(&self);
                }
            }
            self.act(op);
        }
        self.heal();
    }

    fn heal(&mut self) {
        self.say(|| "everything heals".into());
        crate::check::always(self);
        self.blocked.clear();
        self.healed = true;
        self.network.clear();
        for place in 0..self.nodes.len() {
            // A node without room never holds all: it is given a new life with more.
            // One that is about to leave is gone.
            let leaves = self.nodes[place].as_ref().is_some_and(|n| n.leaves_by.is_some());
            if leaves || plan_is_cramped(self.plan, place) && self.nodes[place].is_some() {
                self.history.crashed = true;
                self.remove(place);
            }
        }
        let survivors = crate::check::survivors(self);
        for place in 0..self.nodes.len() {
            if self.nodes[place].is_none() {
                self.start(place);
            }
        }
        let end = self.now_ms + HEAL_MS;
        loop {
            for _ in 0..50 {
                self.step();
            }
            match crate::check::settled(self) {
                Ok(()) => break,
                Err(why) => {
                    if self.trace && self.now_ms >= end {
                        self.live().for_each(|node| println!("{}\n{:#?}", node.name, node.replica));
                    }
                    assert!(self.now_ms < end, "not settled after {HEAL_MS} ms: {why}");
                }
            }
        }
        crate::check::always(self);
        crate::check::at_the_end(self, &survivors);
    }
}

fn plan_is_cramped(plan: &Plan, place: usize) -> bool {
    plan.room.is_some() && place == 0
}
