//! The production replica in a simulated network: how long a write takes to reach all nodes, and what it costs. Every run
//! gives the same figures.
//!
//! A message takes 1 ms on its link, and links keep order. A node does one thing at a time, and works [`MESSAGE_US`] on each
//! message. Without that cost a write would take 1 ms for any number of nodes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::path::Path;

use bytes::Bytes;
use kvasir_proto::peer::v1::Message;
use kvasir_replica::clock::Dot;
use kvasir_replica::protocol::{Bounds, Change, LinkId, Replica, Settings, View};
use prost::Message as _;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt as _, SeedableRng as _};

use crate::chart::{self, Panel};
use crate::report::{Report, number, quantile, table, whole};

const SIZES: [usize; 4] = [3, 10, 30, 100];
const LINK_US: u64 = 1_000;
/// How long a node works on each message that it sends or receives, microseconds: about as long as a real node works on a
/// write, see `throughput`.
const MESSAGE_US: u64 = 10;
/// As in the engine.
const TICK_US: u64 = 20_000;
const FRAME_HEADER: usize = 4;
const VALUE_BYTES: usize = 64;
/// The time for all nodes to become ready, know each other and settle.
const SETTLE_US: u64 = 15_000_000;
const IDLE_US: u64 = 20_000_000;
const WRITES: usize = 2_000;
/// In the whole cluster, so that the load is the same for all sizes.
const WRITES_PER_SECOND: u64 = 200;
const START_MS: u64 = 1_790_000_000_000;

enum What {
    /// A message on a link that may be down by now.
    Arrives {
        link: LinkId,
        message: Message,
    },
    Tick,
    Write(usize),
}

struct Event {
    at_us: u64,
    number: u64,
    node: usize,
    what: What,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Event {}
impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Event {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_us, self.number).cmp(&(other.at_us, other.number))
    }
}

struct Node {
    replica: Replica,
    /// By link: the peer's place, and its link to this node.
    links: BTreeMap<LinkId, (usize, LinkId)>,
    busy_until_us: u64,
}

/// A write that not all nodes hold yet: when it was made, and how many nodes hold it.
struct Write {
    at_us: u64,
    held: usize,
}

#[derive(Clone, Copy, Default)]
struct Traffic {
    messages: u64,
    bytes: u64,
}

struct World {
    now_us: u64,
    nodes: Vec<Node>,
    events: BinaryHeap<Reverse<Event>>,
    numbers: u64,
    traffic: Traffic,
    writes: BTreeMap<Dot, Write>,
    took_us: Vec<u64>,
}

impl World {
    fn new(size: usize) -> Self {
        let settings = |n: usize| Settings {
            origin: n as u64 + 1,
            name: format!("node-{n}"),
            voter: true,
            started_ms: START_MS,
            voters: size,
            evict_after_ms: 300_000,
            sync_interval_ms: 1_000,
            max_clock_skew_ms: 10_000,
            max_memory: None,
            evict_ending: false,
            may_found: true,
            serve_alone: true,
            join_timeout_ms: 10_000,
            bounds: Bounds::default(),
        };
        let node = |n| {
            let mut replica = Replica::new(settings(n), START_MS);
            replica.watch(true);
            Node { replica, links: BTreeMap::new(), busy_until_us: 0 }
        };
        let mut world = Self {
            now_us: 0,
            nodes: (0..size).map(node).collect(),
            events: BinaryHeap::new(),
            numbers: 0,
            traffic: Traffic::default(),
            writes: BTreeMap::new(),
            took_us: Vec::new(),
        };
        for a in 0..size {
            for b in 0..a {
                world.connect(a, b);
            }
            // Ticks are spread over the interval, as if the processes had started at different moments.
            world.schedule(TICK_US * a as u64 / size as u64, a, What::Tick);
        }
        world
    }

    fn connect(&mut self, a: usize, b: usize) {
        let (id_a, id_b) = (self.nodes[a].replica.id(), self.nodes[b].replica.id());
        let (link_a, link_b) = (self.nodes[a].replica.link_up(id_b), self.nodes[b].replica.link_up(id_a));
        self.nodes[a].links.insert(link_a, (b, link_b));
        self.nodes[b].links.insert(link_b, (a, link_a));
    }

    /// When many nodes found at once, the map of the others has a stability watermark by the time that a few meet it: these
    /// few reset, which ends their links.
    fn reconnect_after_reset(&mut self, place: usize) {
        let node = &mut self.nodes[place];
        if node.replica.linked().next().is_some() {
            return;
        }
        for (peer, link) in std::mem::take(&mut node.links).into_values() {
            self.nodes[peer].replica.link_down(link);
            self.nodes[peer].links.remove(&link);
            self.connect(place, peer);
        }
    }

    fn schedule(&mut self, at_us: u64, node: usize, what: What) {
        self.numbers += 1;
        self.events.push(Reverse(Event { at_us, number: self.numbers, node, what }));
    }

    fn run_until(&mut self, end_us: u64) -> anyhow::Result<()> {
        while let Some(Reverse(next)) = self.events.peek()
            && next.at_us <= end_us
        {
            let Some(Reverse(event)) = self.events.pop() else { break };
            self.now_us = event.at_us;
            self.handle(event)?;
        }
        self.now_us = end_us;
        Ok(())
    }

    fn handle(&mut self, Event { node: place, what, .. }: Event) -> anyhow::Result<()> {
        let node = &mut self.nodes[place];
        let mut at_us = self.now_us.max(node.busy_until_us);
        let wall = |at_us: u64| START_MS + at_us / 1_000;
        let mut tick = false;
        match what {
            What::Arrives { link, message } => {
                at_us += MESSAGE_US;
                node.replica.receive(link, message, wall(at_us))?;
            }
            What::Tick => {
                node.replica.tick(View::ALONE, wall(at_us));
                tick = true;
            }
            What::Write(n) => {
                let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
                let dot = node.replica.put(Bytes::from(format!("bench/key-{n:08}")), value, None, wall(at_us))?;
                self.writes.insert(dot, Write { at_us: self.now_us, held: 0 });
            }
        }
        self.reconnect_after_reset(place);
        self.absorb(place, at_us);
        let at_us = self.send_all(place, at_us);
        self.nodes[place].busy_until_us = at_us;
        if tick {
            self.schedule(self.now_us + TICK_US, place, What::Tick);
        }
        Ok(())
    }

    /// Records which writes the node holds now.
    fn absorb(&mut self, place: usize, at_us: u64) {
        let size = self.nodes.len();
        for change in self.nodes[place].replica.take_changes() {
            let Change::Wrote(_, record) = change else { continue };
            let Some(write) = self.writes.get_mut(&record.dot) else { continue };
            write.held += 1;
            if write.held == size {
                self.took_us.push(at_us - write.at_us);
                self.writes.remove(&record.dot);
            }
        }
    }

    /// Sends what the node has to send, link by link. Returns when it is done.
    fn send_all(&mut self, place: usize, mut at_us: u64) -> u64 {
        for link in self.nodes[place].replica.due().collect::<Vec<_>>() {
            let (to, their_link) = self.nodes[place].links[&link];
            while let Some(message) = self.nodes[place].replica.poll_send(link, START_MS + at_us / 1_000) {
                at_us += MESSAGE_US;
                self.traffic.messages += 1;
                self.traffic.bytes += (FRAME_HEADER + message.encoded_len()) as u64;
                self.schedule(at_us + LINK_US, to, What::Arrives { link: their_link, message });
            }
        }
        at_us
    }

    /// The traffic in a period of time.
    fn measure(&mut self, time_us: u64) -> anyhow::Result<Traffic> {
        let before = std::mem::take(&mut self.traffic);
        self.run_until(self.now_us + time_us)?;
        let passed = std::mem::replace(&mut self.traffic, before);
        Ok(passed)
    }
}

/// The figures for one number of nodes.
struct Row {
    size: usize,
    median_us: u64,
    p99_us: u64,
    write: (f64, f64),
    idle: (f64, f64),
}

fn measure(size: usize) -> anyhow::Result<Row> {
    let mut world = World::new(size);
    world.measure(SETTLE_US)?;
    let ready = world.nodes.iter().filter(|n| n.replica.is_ready()).count();
    anyhow::ensure!(ready == size, "only {ready} of {size} replicas are ready");
    let idle = world.measure(IDLE_US)?;

    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let mut at_us = world.now_us;
    for n in 0..WRITES {
        // Exponentially distributed pauses: writes are independent of each other.
        let pause = -rng.random_range(f64::MIN_POSITIVE..1.0).ln() * 1e6 / WRITES_PER_SECOND as f64;
        at_us += whole(pause);
        let node = rng.random_range(0..size);
        world.schedule(at_us, node, What::Write(n));
    }
    let time_us = at_us - world.now_us + 5_000_000;
    let load = world.measure(time_us)?;
    anyhow::ensure!(world.took_us.len() == WRITES, "only {} of {WRITES} writes reached all", world.took_us.len());

    let per_second = |count: u64| count as f64 / (IDLE_US as f64 / 1e6);
    let per_write = |count: u64, idle: u64| (count as f64 - per_second(idle) * time_us as f64 / 1e6) / WRITES as f64;
    Ok(Row {
        size,
        median_us: quantile(&mut world.took_us, 0.5),
        p99_us: quantile(&mut world.took_us, 0.99),
        write: (per_write(load.messages, idle.messages), per_write(load.bytes, idle.bytes)),
        idle: (per_second(idle.messages) / size as f64, per_second(idle.bytes) / size as f64),
    })
}

/// Measures, and writes the chart into the folder.
pub(crate) fn run(folder: Option<&Path>) -> anyhow::Result<Report> {
    let mut rows = Vec::new();
    for size in SIZES {
        let began = std::time::Instant::now();
        rows.push(measure(size)?);
        eprintln!("{size} replicas: simulated in {:.1} s", began.elapsed().as_secs_f64());
    }
    if let Some(folder) = folder {
        let points = |of: fn(&Row) -> f64| rows.iter().map(|r| (r.size as f64, of(r))).collect::<Vec<_>>();
        let panels = [
            Panel {
                title: "a write reaches all, ms",
                series: vec![
                    ("p99", points(|r| r.p99_us as f64 / 1e3)),
                    ("median", points(|r| r.median_us as f64 / 1e3)),
                ],
            },
            Panel {
                title: "bytes sent",
                series: vec![
                    ("for each write, by all nodes", points(|r| r.write.1)),
                    ("for each idle second, by a node", points(|r| r.idle.1)),
                ],
            },
        ];
        std::fs::write(folder.join("convergence.svg"), chart::svg("replicas", &panels))?;
    }
    let cells = rows.iter().map(|r| {
        vec![
            r.size.to_string(),
            format!("{:.2} ms", r.median_us as f64 / 1e3),
            format!("{:.2} ms", r.p99_us as f64 / 1e3),
            number(r.write.0),
            number(r.write.1),
            number(r.write.1 / (r.size - 1) as f64),
            number(r.idle.0),
            number(r.idle.1),
        ]
    });
    let head = [
        "replicas",
        "reaches all, median",
        "p99",
        "messages a write",
        "bytes a write",
        "bytes a write and receiver",
        "messages per node and second, idle",
        "bytes per node and second, idle",
    ];
    Ok(Report { name: "convergence", text: table(&head, &cells.collect::<Vec<_>>()) })
}
