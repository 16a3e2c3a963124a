//! Whole clusters of replicas in one thread, on a network that loses, doubles,
//! delays, reorders and cuts, with crashes and restarts, by seed.
//!
//! `SEEDS=n` runs n seeds (default 1000) and `SEED=s` one, with its trace.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use kvasir_node::clock::Dot;
use kvasir_node::replica::{Bounds, LinkId, Replica, Settings, View};
use kvasir_proto::peer::v1::Message;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

const KEYS: u8 = 12;
const SYNC_INTERVAL_MS: u64 = 1_000;
/// Simulated time from healing until all must be equal.
const HEAL_MS: u64 = 60_000;

/// What a node of the simulation is: a replica behind a wall clock of its own.
struct Node {
    replica: Replica,
    origin: u64,
    /// Its wall clock's distance from the simulation's, milliseconds.
    skew_ms: u64,
    /// Peers by name, and the link to each.
    links: BTreeMap<usize, LinkId>,
    /// `seen` as it was, to show that it never goes back.
    seen: BTreeMap<u64, u64>,
}

struct Packet {
    due_ms: u64,
    from: usize,
    to: usize,
    /// The connection it belongs to: another one never delivers it.
    connection: u64,
    message: Message,
}

/// One write, as the model keeps it.
#[derive(Clone, Debug, PartialEq)]
struct Write {
    key: Bytes,
    value: Option<Bytes>,
    expires_ms: Option<u64>,
}

struct Faults {
    loss: f64,
    duplicate: f64,
    /// Messages take 1 to this many milliseconds each, so they overtake one another.
    delay_ms: u64,
}

struct Sim {
    rng: StdRng,
    now_ms: u64,
    nodes: Vec<Option<Node>>,
    /// Connections by pair of names, smaller first; numbered.
    connections: BTreeMap<(usize, usize), u64>,
    next_connection: u64,
    cut: BTreeSet<(usize, usize)>,
    network: Vec<Packet>,
    faults: Faults,
    next_origin: u64,
    history: HashMap<Dot, Write>,
    crashed: bool,
    trace: bool,
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl Sim {
    fn new(seed: u64, trace: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let size = rng.random_range(3..=7);
        let faults = Faults {
            loss: rng.random_range(0.0..0.25),
            duplicate: rng.random_range(0.0..0.2),
            delay_ms: rng.random_range(1..200),
        };
        let mut sim = Self {
            rng,
            now_ms: 1_000_000,
            nodes: (0..size).map(|_| None).collect(),
            connections: BTreeMap::new(),
            next_connection: 1,
            cut: BTreeSet::new(),
            network: Vec::new(),
            faults,
            next_origin: 1,
            history: HashMap::new(),
            crashed: false,
            trace,
        };
        for name in 0..size {
            sim.start(name);
        }
        sim
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>9} ms  {}", self.now_ms, what());
        }
    }

    fn start(&mut self, name: usize) {
        let origin = self.next_origin;
        self.next_origin += 1;
        let skew_ms = self.rng.random_range(0..500);
        let settings = Settings {
            origin,
            sync_interval_ms: SYNC_INTERVAL_MS,
            max_clock_skew_ms: 10_000,
            max_memory: None,
            may_found: true,
            serve_alone: true,
            join_timeout_ms: 10_000,
            // Small, so that cursors fall behind the log and deltas come in many parts.
            bounds: Bounds {
                log_entries: self.rng.random_range(2..40),
                message_entries: self.rng.random_range(1..6),
                scan_step: self.rng.random_range(1..8),
            },
        };
        let replica = Replica::new(settings, self.now_ms + skew_ms);
        self.nodes[name] = Some(Node { replica, origin, skew_ms, links: BTreeMap::new(), seen: BTreeMap::new() });
        self.say(|| format!("n{name} starts as origin {origin}"));
    }

    fn crash(&mut self, name: usize) {
        self.say(|| format!("n{name} crashes"));
        self.crashed = true;
        self.nodes[name] = None;
        for other in 0..self.nodes.len() {
            self.disconnect(name, other);
        }
    }

    fn disconnect(&mut self, a: usize, b: usize) {
        if self.connections.remove(&pair(a, b)).is_some() {
            self.say(|| format!("n{a} and n{b} lose their connection"));
            for (x, y) in [(a, b), (b, a)] {
                if let Some(node) = &mut self.nodes[x]
                    && let Some(link) = node.links.remove(&y)
                {
                    node.replica.link_down(link);
                }
            }
        }
    }

    /// Every pair that is alive and not cut gets a connection.
    fn connect(&mut self) {
        for a in 0..self.nodes.len() {
            for b in a + 1..self.nodes.len() {
                if self.cut.contains(&(a, b)) || self.connections.contains_key(&(a, b)) {
                    continue;
                }
                let [Some(x), Some(y)] = self.nodes.get_disjoint_mut([a, b]).expect("a < b < len") else { continue };
                x.links.insert(b, x.replica.link_up(y.origin));
                y.links.insert(a, y.replica.link_up(x.origin));
                self.connections.insert((a, b), self.next_connection);
                self.next_connection += 1;
            }
        }
    }

    /// One step of 10 simulated milliseconds: time, sends, deliveries, checks.
    fn step(&mut self) {
        self.now_ms += 10;
        self.connect();
        for name in 0..self.nodes.len() {
            let Some(node) = &mut self.nodes[name] else { continue };
            let now = self.now_ms + node.skew_ms;
            let unlinked = self.connections.len(); // any figure above 0 will do where it matters
            let view = View { answered: true, unlinked: if node.links.is_empty() { unlinked } else { 0 } };
            node.replica.tick(view, now);
            for (&to, &link) in &node.links {
                // At most a few a step, as on a socket that drains.
                for _ in 0..4 {
                    let Some(message) = node.replica.poll_send(link, now) else { break };
                    let connection = self.connections[&pair(name, to)];
                    let copies = if self.rng.random_bool(self.faults.duplicate) { 2 } else { 1 };
                    for _ in 0..copies {
                        if self.rng.random_bool(self.faults.loss) {
                            continue;
                        }
                        let due_ms = self.now_ms + self.rng.random_range(1..=self.faults.delay_ms);
                        self.network.push(Packet { due_ms, from: name, to, connection, message: message.clone() });
                    }
                }
            }
        }
        let now = self.now_ms;
        let (mut due, later): (Vec<_>, Vec<_>) = self.network.drain(..).partition(|p| p.due_ms <= now);
        self.network = later;
        due.sort_by_key(|p| p.due_ms);
        for packet in due {
            if self.connections.get(&pair(packet.from, packet.to)) != Some(&packet.connection) {
                continue;
            }
            let Some(node) = &mut self.nodes[packet.to] else { continue };
            let link = node.links[&packet.from];
            node.replica
                .receive(link, packet.message, now + node.skew_ms)
                .expect("clocks are near each other and messages are whole");
        }
        for node in self.nodes.iter_mut().flatten() {
            for (origin, before) in &node.seen {
                assert!(node.replica.seen()[origin] >= *before, "seen went back at origin {}", node.origin);
            }
            node.seen.clone_from(node.replica.seen());
        }
    }

    /// A client's write at some node.
    fn write(&mut self) {
        let name = self.rng.random_range(0..self.nodes.len());
        let key = Bytes::from(vec![b'a' + self.rng.random_range(0..KEYS)]);
        let delete = self.rng.random_bool(0.3);
        let ttl = self.rng.random_bool(0.2).then(|| self.rng.random_range(1..5_000));
        let Some(node) = &mut self.nodes[name] else { return };
        if !node.replica.is_ready() {
            return;
        }
        let now = self.now_ms + node.skew_ms;
        let (dot, write) = if delete {
            let Some(dot) = node.replica.delete(key.clone(), now) else { return };
            (dot, Write { key, value: None, expires_ms: None })
        } else {
            let value = Bytes::from(format!("{}@{}", self.history.len(), node.origin));
            let expires_ms = ttl.map(|t| now + t);
            let dot = node.replica.put(key.clone(), value.clone(), expires_ms, now).expect("no limit is set");
            (dot, Write { key, value: Some(value), expires_ms })
        };
        self.say(|| format!("n{name} writes {dot:?} {write:?}"));
        assert!(self.history.insert(dot, write).is_none(), "a dot was given twice");
    }

    /// For every write that `seen` covers, the map holds it or one that beats it.
    fn check_covered(&self) {
        for node in self.nodes.iter().flatten() {
            for (dot, write) in &self.history {
                if node.replica.seen().get(&dot.origin).is_some_and(|&seen| seen >= dot.hlc) {
                    let held = node.replica.store().get(&write.key).map(|r| r.dot);
                    assert!(held >= Some(*dot), "origin {} covers {dot:?} but holds {held:?}", node.origin);
                }
            }
        }
    }

    fn map(node: &Node) -> BTreeMap<Bytes, Dot> {
        node.replica.store().scan(None).map(|(k, r)| (k.clone(), r.dot)).collect()
    }

    fn live(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().flatten()
    }

    fn run(&mut self) {
        let size = self.nodes.len();
        let steps = self.rng.random_range(300..1_500);
        for _ in 0..steps {
            match self.rng.random_range(0..400) {
                0..60 => self.write(),
                60..66 => {
                    let (a, b) = (self.rng.random_range(0..size), self.rng.random_range(0..size));
                    self.disconnect(a, b);
                }
                66..69 => {
                    // A partition into two sides, or between two nodes.
                    let half = self.rng.random_range(1..1 << size);
                    for a in 0..size {
                        for b in a + 1..size {
                            if (half >> a & 1) != (half >> b & 1) {
                                self.cut.insert((a, b));
                                self.disconnect(a, b);
                            }
                        }
                    }
                    self.say(|| format!("partition {half:b}"));
                }
                69..73 => self.cut.clear(),
                73..75 => {
                    let name = self.rng.random_range(0..size);
                    if self.live().count() > 1 && self.nodes[name].is_some() {
                        self.crash(name);
                    }
                }
                75..80 => {
                    let name = self.rng.random_range(0..size);
                    if self.nodes[name].is_none() {
                        self.start(name);
                    }
                }
                _ => {}
            }
            self.step();
            if self.rng.random_bool(0.02) {
                self.check_covered();
            }
        }
        self.heal();
    }

    fn heal(&mut self) {
        self.say(|| "everything heals".into());
        self.cut.clear();
        self.faults = Faults { loss: 0.0, duplicate: 0.0, delay_ms: 3 };
        self.network.clear();
        for name in 0..self.nodes.len() {
            if self.nodes[name].is_none() {
                self.start(name);
            }
        }
        // The model: the largest dot that any survivor holds wins its key. A
        // write that only dead nodes held is lost; no other may be.
        let mut model: BTreeMap<Bytes, Dot> = BTreeMap::new();
        for node in self.live() {
            for (key, dot) in Self::map(node) {
                let best = model.entry(key).or_default();
                *best = dot.max(*best);
            }
        }
        if !self.crashed {
            let mut all: BTreeMap<Bytes, Dot> = BTreeMap::new();
            for (dot, write) in &self.history {
                let best = all.entry(write.key.clone()).or_default();
                *best = (*dot).max(*best);
            }
            assert_eq!(model, all, "without a crash no write is lost");
        }
        let end = self.now_ms + HEAL_MS;
        while self.now_ms < end {
            self.step();
        }
        self.check_covered();
        let now = self.now_ms + 1_000; // past every skew
        for node in self.live() {
            assert!(node.replica.is_ready(), "origin {} is not ready", node.origin);
            assert_eq!(Self::map(node), model, "origin {} differs from the model", node.origin);
            for (key, record) in node.replica.store().scan(None) {
                let write = &self.history[&record.dot];
                assert_eq!((&write.key, write.expires_ms), (key, record.expires_ms));
                let expired = write.expires_ms.is_some_and(|end| end <= now);
                let expected = if expired { None } else { write.value.as_ref() };
                assert_eq!(record.live(now), expected, "the content of {:?} at origin {}", record.dot, node.origin);
            }
        }
        let prints: BTreeSet<u128> = self.live().map(|n| n.replica.store().fingerprint()).collect();
        assert_eq!(prints.len(), 1, "equal maps have equal fingerprints");
    }
}

#[test]
fn clusters_converge_to_the_model_whatever_the_network_does() {
    let number = |name: &str| std::env::var(name).ok().map(|v| v.parse::<u64>().expect("SEED and SEEDS are numbers"));
    if let Some(seed) = number("SEED") {
        return Sim::new(seed, true).run();
    }
    let seeds = number("SEEDS").unwrap_or(1_000);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for seed in (thread..seeds).step_by(threads as usize) {
                    let failed = std::panic::catch_unwind(|| Sim::new(seed, false).run()).is_err();
                    assert!(
                        !failed,
                        "seed {seed} failed; replay it with: SEED={seed} cargo test -p kvasir-node --test simulation -- --nocapture"
                    );
                }
            });
        }
    });
}
