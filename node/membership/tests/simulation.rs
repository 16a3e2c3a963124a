//! The membership protocol on a simulated network that loses and delays datagrams and can be partitioned. The clock jumps from
//! event to event, so hours pass in a moment; each seed always gives the same run.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use kvasir_membership::{Event, MemberState, NodeId, Output, Refused, Role, Swim, Timing, leader, wire};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

/// The wall clock at the start, in 2026.
const WALL_MS: u64 = 1_790_000_000_000;
/// The default of a node.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(10);

struct Node {
    swim: Swim,
    alive: bool,
    events: Vec<(Duration, Event)>,
}

/// Time of arrival, number, addressee, datagram.
type InFlight = (Duration, u64, usize, Vec<u8>);

struct World {
    now: Duration,
    rng: Xoshiro256PlusPlus,
    /// Node `n` listens at 10.0.0.n.
    nodes: Vec<Node>,
    in_flight: BinaryHeap<Reverse<InFlight>>,
    sent: u64,
    bytes: u64,
    loss: f64,
    /// Each node's side of the partition.
    side: Vec<u8>,
    /// The error of each node's wall clock in milliseconds.
    clocks: Vec<i64>,
    /// Datagrams refused for a start in the future: none as long as all clocks are right.
    ahead: usize,
    faults: Vec<String>,
}

fn address(node: usize) -> SocketAddr {
    let [.., high, low] = (node as u32).to_be_bytes();
    ([10, 0, high, low], 7071).into()
}

fn node_of(address: SocketAddr) -> Option<usize> {
    match address {
        SocketAddr::V4(v4) => {
            let [_, _, high, low] = v4.ip().octets();
            Some(usize::from(high) << 8 | usize::from(low))
        }
        SocketAddr::V6(_) => None,
    }
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            now: Duration::ZERO,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            nodes: Vec::new(),
            in_flight: BinaryHeap::new(),
            sent: 0,
            bytes: 0,
            loss: 0.0,
            side: Vec::new(),
            clocks: Vec::new(),
            ahead: 0,
            faults: Vec::new(),
        }
    }

    fn wall_ms(&self, node: usize) -> u64 {
        (WALL_MS + self.now.as_millis() as u64).strict_add_signed(self.clocks[node])
    }

    fn swim(&mut self, node: usize) -> Swim {
        let wall = self.wall_ms(node);
        let id =
            NodeId::new(&format!("n{node}"), self.rng.random_range(1..u64::MAX), Role::Member, address(node), wall);
        Swim::new(id, wire::envelope("sim", "", wire::VERSION), Timing::LAN, MAX_CLOCK_SKEW, self.rng.random())
    }

    /// Starts another node, for which discovery finds `seeds`.
    fn start(&mut self, seeds: &[usize]) -> usize {
        self.start_with_clock(seeds, 0)
    }

    fn start_with_clock(&mut self, seeds: &[usize], clock_ms: i64) -> usize {
        let node = self.nodes.len();
        self.clocks.push(clock_ms);
        let mut swim = self.swim(node);
        swim.set_addresses(self.now, seeds.iter().copied().map(address));
        self.nodes.push(Node { swim, alive: true, events: Vec::new() });
        self.side.push(0);
        node
    }

    /// Restarts the node: same name and address, new origin.
    fn restart(&mut self, node: usize, seeds: &[usize], clock_back: Duration) {
        self.clocks[node] = -(clock_back.as_millis() as i64);
        let mut swim = self.swim(node);
        swim.set_addresses(self.now, seeds.iter().copied().map(address));
        self.nodes[node].swim = swim;
        self.nodes[node].alive = true;
    }

    fn cluster(seed: u64, size: usize) -> Self {
        let mut world = Self::new(seed);
        for node in 0..size {
            // The first node is the only seed, and has none itself.
            world.start(if node == 0 { &[] } else { &[0] });
        }
        world
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            for node in 0..self.nodes.len() {
                self.collect(node);
            }
            let next_datagram = self.in_flight.peek().map(|Reverse((at, ..))| *at);
            let next_timer = self
                .nodes
                .iter()
                .enumerate()
                .filter(|(_, node)| node.alive)
                .map(|(at, node)| (node.swim.deadline(), at))
                .min();
            let next = [next_datagram, next_timer.map(|(at, _)| at)].into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(next);
            if next_datagram == Some(next) {
                let Some(Reverse((_, _, to, datagram))) = self.in_flight.pop() else { unreachable!() };
                if self.nodes[to].alive {
                    let wall_ms = self.wall_ms(to);
                    let result = self.nodes[to].swim.datagram(self.now, wall_ms, &datagram);
                    match result {
                        Ok(()) => {}
                        Err(Refused::Ahead { .. }) => self.ahead += 1,
                        Err(refused) => panic!("{refused}"),
                    }
                }
            } else if let Some((_, node)) = next_timer {
                let wall_ms = self.wall_ms(node);
                self.nodes[node].swim.tick(self.now, wall_ms);
            }
        }
    }

    fn collect(&mut self, from: usize) {
        while let Some(output) = self.nodes[from].swim.output() {
            match output {
                Output::Send(to, datagram) => {
                    self.sent += 1;
                    self.bytes += datagram.len() as u64;
                    let Some(to) = node_of(to).filter(|to| *to < self.nodes.len()) else { continue };
                    if self.side[from] != self.side[to] || self.rng.random_bool(self.loss) {
                        continue;
                    }
                    let delay = Duration::from_micros(self.rng.random_range(100..5_000));
                    self.in_flight.push(Reverse((self.now + delay, self.sent, to, datagram)));
                }
                Output::Event(event) => {
                    let now = self.now;
                    self.nodes[from].events.push((now, event));
                }
                Output::Members(_) => {}
                Output::Fault(error) => self.faults.push(format!("{:?} n{from}: {error}", self.now)),
            }
        }
    }

    fn crash(&mut self, node: usize) {
        self.nodes[node].alive = false;
    }

    fn leave(&mut self, node: usize) {
        self.nodes[node].swim.leave(self.now);
        self.collect(node);
        self.nodes[node].alive = false;
    }

    /// The origins of the members that a node lists.
    fn listed(&self, node: usize) -> BTreeSet<u64> {
        self.nodes[node].swim.members().iter().map(|member| member.id.origin).collect()
    }

    fn living(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].alive)
    }

    /// Whether every live node lists exactly the other live nodes of its side.
    fn settled(&self) -> bool {
        self.living().all(|node| {
            let others: BTreeSet<_> = self
                .living()
                .filter(|other| *other != node && self.side[*other] == self.side[node])
                .map(|other| self.nodes[other].swim.me().origin)
                .collect();
            self.listed(node) == others
        })
    }

    /// Runs until all nodes agree, and returns how long that took.
    #[track_caller]
    fn settle(&mut self, limit: Duration) -> Duration {
        let started = self.now;
        while !self.settled() {
            assert!(self.since(started) < limit, "not settled after {limit:?}: {:?}", self.lists());
            self.run(Duration::from_millis(10));
        }
        self.since(started)
    }

    fn since(&self, then: Duration) -> Duration {
        self.now.saturating_sub(then)
    }

    fn lists(&self) -> Vec<(usize, Vec<String>)> {
        let names = |node: usize| self.nodes[node].swim.members().iter().map(|it| it.id.name.clone()).collect();
        self.living().map(|node| (node, names(node))).collect()
    }

    fn events(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.nodes.iter().flat_map(|node| &node.events).filter(|(_, event)| wanted(event)).count()
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn seed_makes_all_nodes_find_each_other() {
    for size in [2, 3, 5, 10, 20, 50] {
        let mut world = World::cluster(size as u64, size);
        let took = world.settle(5 * SECOND);
        assert!(took < 3 * SECOND, "{size} nodes took {took:?}");
        assert_eq!(world.events(|event| matches!(event, Event::Joined(_))), size * (size - 1));
        assert_eq!(world.events(|event| matches!(event, Event::Failed(_) | Event::Left(_))), 0);
        assert_eq!(world.faults, [""; 0]);
        let leaders: BTreeSet<_> = world
            .living()
            .map(|node| {
                let swim = &world.nodes[node].swim;
                leader(swim.me(), &swim.members()).unwrap().origin
            })
            .collect();
        assert_eq!(leaders.len(), 1, "all nodes find the same leader");
    }
}

/// `MINUTES` sets the simulated time of all sizes and seeds together; `make sim` runs 10,000.
#[test]
fn hours_of_loss_kill_no_member() {
    const SIZES: [usize; 5] = [2, 3, 5, 10, 20];
    /// The length of each run, which is a cluster of its own.
    const MINUTES: u64 = 20;
    let minutes = std::env::var("MINUTES").map_or(200_u64, |minutes| minutes.parse().expect("MINUTES is a number"));
    let runs = minutes.div_ceil(MINUTES);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let run = next.fetch_add(1, Ordering::Relaxed);
                    if run >= runs {
                        return;
                    }
                    let size = SIZES[run as usize % SIZES.len()];
                    let mut world = World::cluster(run, size);
                    world.loss = 0.05;
                    world.settle(10 * SECOND);
                    world.run(Duration::from_mins(MINUTES));
                    assert!(world.settled(), "{size} nodes, seed {run}: {:?}", world.lists());
                    let deaths = world.events(|event| matches!(event, Event::Failed(_) | Event::Renewed(_)));
                    assert_eq!(deaths, 0, "{size} nodes, seed {run}");
                    assert_eq!(world.faults, [""; 0]);
                }
            });
        }
    });
    println!("{} simulated minutes with 5 % loss, and no false death", runs * MINUTES);
}

#[test]
fn crash_is_detected_by_all_within_3_seconds() {
    let mut slowest = Duration::ZERO;
    for seed in 0..40 {
        for size in [2, 3, 5, 10, 20] {
            let mut world = World::cluster(seed, size);
            world.settle(5 * SECOND);
            // At any point of the probe period. Any node may crash, the seed as well.
            let wait = Duration::from_millis(world.rng.random_range(0..10_000));
            world.run(wait);
            let victim = world.rng.random_range(0..size);
            world.crash(victim);
            let took = world.settle(10 * SECOND);
            assert!(took <= 3 * SECOND, "seed {seed}, {size} nodes: {took:?}");
            slowest = slowest.max(took);
            assert_eq!(world.events(|event| matches!(event, Event::Failed(_))), size - 1);
            assert_eq!(world.events(|event| matches!(event, Event::Left(_) | Event::Renewed(_))), 0);
            assert_eq!(world.faults, [""; 0]);
        }
    }
    assert!(slowest > SECOND, "suspicion alone takes more than a second; {slowest:?} cannot be right");
}

#[test]
fn leave_is_seen_at_once_and_not_as_a_failure() {
    for size in [2, 5, 20, 100] {
        let mut world = World::cluster(3, size);
        // A hundred nodes may need a second round of exchanges until all know all.
        world.settle(21 * SECOND);
        world.leave(size / 2);
        let took = world.settle(SECOND);
        assert!(took < SECOND / 10, "{size} nodes: {took:?}");
        world.run(10 * SECOND);
        assert!(world.settled());
        assert_eq!(world.events(|event| matches!(event, Event::Left(_))), size - 1);
        assert_eq!(world.events(|event| matches!(event, Event::Failed(_))), 0);
        assert_eq!(world.faults, [""; 0]);
    }
}

#[test]
fn leave_is_passed_on_if_some_did_not_hear_it() {
    for seed in 0..20 {
        let mut world = World::cluster(seed, 10);
        world.settle(5 * SECOND);
        world.loss = 0.4;
        world.leave(4);
        world.loss = 0.0;
        world.settle(5 * SECOND);
        assert_eq!(world.events(|event| matches!(event, Event::Left(_))), 9, "seed {seed}");
        assert_eq!(world.events(|event| matches!(event, Event::Failed(_))), 0, "seed {seed}");
    }
}

#[test]
fn restart_replaces_the_former_process_at_once() {
    for seed in 0..20 {
        let mut world = World::cluster(seed, 5);
        world.settle(5 * SECOND);
        world.crash(3);
        world.run(Duration::from_millis(200));
        world.restart(3, &[0], Duration::ZERO);
        let took = world.settle(SECOND);
        assert!(took < SECOND, "{took:?}");
        assert_eq!(
            world.events(|event| matches!(event, Event::Failed(_))),
            4,
            "the former process, once for each other node"
        );
    }
}

#[test]
fn restart_with_a_clock_set_back_joins() {
    for (seed, back) in [(1, 1), (2, 5), (3, 9)] {
        let mut world = World::cluster(seed, 5);
        world.settle(5 * SECOND);
        world.crash(3);
        world.run(Duration::from_millis(200));
        world.restart(3, &[0], Duration::from_secs(back));
        let took = world.settle(10 * SECOND);
        assert!(took < 5 * SECOND, "{back} s back: {took:?}");
        assert_eq!(world.ahead, 0);
    }
}

/// The node refuses the others, as they would refuse it in the handshake of a link, until its clock is right.
#[test]
fn clock_far_behind_keeps_out_until_it_is_right() {
    for (seed, back) in [(2, 3600), (3, 86_400)] {
        let mut world = World::cluster(seed, 5);
        world.settle(5 * SECOND);
        world.crash(3);
        world.run(Duration::from_millis(200));
        world.restart(3, &[0], Duration::from_secs(back));
        world.run(30 * SECOND);
        assert_eq!(world.listed(3), BTreeSet::new());
        let sent = world.sent;
        world.run(60 * SECOND);
        assert!(world.sent - sent < 5 * 60 * 50, "{} datagrams", world.sent - sent);
        assert!(world.ahead > 0);
        world.clocks[3] = 0;
        let took = world.settle(10 * SECOND);
        assert!(took < 5 * SECOND, "{back} s back: {took:?}");
    }
}

/// No other node lists a node whose clock is ahead. The others list each other as before.
#[test]
fn clock_far_ahead_keeps_out_until_it_is_right() {
    for (seed, ahead_s) in [(1, 3600), (2, 86_400), (3, 36 * 365 * 86_400)] {
        let mut world = World::cluster(seed, 3);
        world.settle(5 * SECOND);
        let late = world.start_with_clock(&[0, 1, 2], ahead_s * 1000);
        world.run(60 * SECOND);
        for node in 0..3 {
            assert!(
                !world.listed(node).contains(&world.nodes[late].swim.me().origin),
                "{ahead_s} s ahead, node {node}"
            );
            assert_eq!(world.listed(node).len(), 2, "{ahead_s} s ahead, node {node}");
        }
        world.nodes[0..3].iter().for_each(|node| {
            assert!(!node.events.iter().any(|(_, event)| !matches!(event, Event::Joined(_))), "{:?}", node.events);
        });
        world.clocks[late] = 0;
        let took = world.settle(20 * SECOND);
        assert!(took < 5 * SECOND, "{ahead_s} s ahead: {took:?}");
        assert!(world.nodes[late].swim.me().started_ms <= world.wall_ms(late));
    }
}

/// When the nodes start, all clocks have the same error; then one clock after the other is corrected.
#[test]
fn clocks_that_were_wrong_together_recover() {
    for (seed, ahead_s) in [(1, 3600), (2, 86_400), (3, 36 * 365 * 86_400)] {
        let mut world = World::new(seed);
        for node in 0..5 {
            world.start_with_clock(if node == 0 { &[] } else { &[0] }, ahead_s * 1000);
        }
        world.settle(5 * SECOND);
        for node in 0..5 {
            world.clocks[node] = 0;
            world.run(Duration::from_millis(700));
        }
        let took = world.settle(20 * SECOND);
        assert!(took < 10 * SECOND, "{ahead_s} s ahead: {took:?}");
        let sent = world.sent;
        world.run(60 * SECOND);
        assert!(world.sent - sent < 5 * 60 * 50, "{} datagrams", world.sent - sent);
        // A node restarts: its former process is not in the way.
        world.crash(3);
        world.restart(3, &[0], Duration::ZERO);
        assert!(world.settle(20 * SECOND) < 5 * SECOND);
    }
}

#[test]
fn suspect_replaced_elsewhere_is_dead_at_once() {
    let mut world = World::cluster(5, 3);
    world.settle(5 * SECOND);
    world.run(10 * SECOND);
    world.crash(2);
    let crashed = world.now;
    // The same name at another address, like a pod that was replaced.
    world.clocks.push(0);
    let id = NodeId { name: "n2".to_owned(), ..world.swim(3).me().clone() };
    let mut swim = Swim::new(id, wire::envelope("sim", "", wire::VERSION), Timing::LAN, MAX_CLOCK_SKEW, 1);
    swim.set_addresses(world.now, [address(0)]);
    world.nodes.push(Node { swim, alive: true, events: Vec::new() });
    world.side.push(0);
    while !world.nodes[0].swim.members().iter().any(|it| it.state == MemberState::Suspect) && !world.settled() {
        world.run(Duration::from_millis(1));
        assert!(world.since(crashed) < 3 * SECOND);
    }
    let took = world.settle(3 * SECOND);
    assert!(took < Timing::LAN.suspicion / 2, "{took:?}");
}

#[test]
fn reset_fails_the_old_process_and_joins_the_new() {
    for seed in 0..10 {
        let mut world = World::cluster(seed, 4);
        world.settle(5 * SECOND);
        world.nodes.iter_mut().for_each(|node| node.events.clear());
        let (now, old) = (world.now, world.nodes[2].swim.me().clone());
        // The machine's clock may have gone back.
        assert!(world.nodes[2].swim.reset(now, 77, old.started_ms - 5));
        assert!(!world.nodes[2].swim.reset(now, 77, old.started_ms), "it is that process already");
        let took = world.settle(5 * SECOND);
        assert!(took < 3 * SECOND, "seed {seed}: {took:?}");
        for node in [0, 1, 3] {
            let member = world.nodes[node].swim.members().into_iter().find(|it| it.id.name == old.name);
            assert_eq!(member.map(|it| it.id.origin), Some(77), "seed {seed}, node {node}");
            let events: Vec<_> = world.nodes[node].events.iter().map(|(_, event)| event.clone()).collect();
            let ends = |event: &Event| matches!(event, Event::Failed(id) if id.origin == old.origin);
            let joins = |event: &Event| matches!(event, Event::Joined(id) if id.origin == 77);
            let [ended, joined] = &events[..] else { panic!("seed {seed}, node {node}: {events:?}") };
            assert!(ends(ended) && joins(joined), "seed {seed}, node {node}: {events:?}");
        }
    }
}

#[test]
fn partition_that_was_there_from_the_start_heals() {
    for seed in 0..10 {
        let mut world = World::new(seed);
        // All nodes know both seeds, as from discovery.
        for node in 0..8 {
            world.start(&[0, 4]);
            world.side[node] = u8::from(node >= 4);
        }
        world.settle(5 * SECOND);
        world.run(60 * SECOND);
        assert!(world.nodes.iter().all(|node| node.swim.members().len() == 3));
        world.side.fill(0);
        let took = world.settle(10 * SECOND);
        assert!(took < 5 * SECOND, "{took:?}");
    }
}

#[test]
fn partition_heals_with_the_seed_on_either_side() {
    for seed in 0..10 {
        for cut in [1, 2, 3] {
            let mut world = World::cluster(seed, 6);
            world.settle(5 * SECOND);
            for node in 0..cut {
                world.side[node] = 1;
            }
            world.settle(10 * SECOND);
            world.run(Duration::from_mins(5));
            assert!(world.settled());
            world.side.fill(0);
            let took = world.settle(60 * SECOND);
            assert!(took < 30 * SECOND, "seed {seed}, cut {cut}: {took:?}");
        }
    }
}

#[test]
fn partition_of_two_nodes_heals() {
    let mut world = World::cluster(9, 2);
    world.settle(5 * SECOND);
    world.side[1] = 1;
    world.settle(5 * SECOND);
    world.run(Duration::from_mins(10));
    world.side[1] = 0;
    assert!(world.settle(10 * SECOND) < 5 * SECOND);
}

#[test]
fn traffic_of_an_idle_cluster_is_low() {
    for (size, limit) in [(2, 300.0), (3, 300.0), (10, 750.0), (30, 750.0)] {
        let mut world = World::cluster(1, size);
        world.settle(10 * SECOND);
        world.run(60 * SECOND);
        let (before, minutes) = (world.bytes, 5);
        world.run(Duration::from_mins(minutes));
        let each_second = (world.bytes - before) as f64 / size as f64 / (60 * minutes) as f64;
        assert!(each_second < limit, "{size} nodes send {each_second:.0} bytes a second each");
    }
}
