//! The simulated cluster: nodes with wall clocks of their own, a network, and clients.

mod clients;
mod membership;
mod network;
mod processes;

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use rand::SeedableRng as _;
use rand::rngs::Xoshiro256PlusPlus;

use self::clients::Client;
use self::membership::Member;
use self::network::{OnLink, Packet};
use crate::check::{self, Checked, History};
use crate::plan::{NEAR_MS, Op, Plan};
use crate::prelude::*;

/// When a run begins, in simulated time.
const BEGIN_MS: u64 = 10_000_000;
const SYNC_INTERVAL_MS: u64 = 1_000;
const SESSIONS: usize = 3;
/// One step of simulated time.
const STEP_MS: u64 = 20;
/// A connection over which one side hears nothing for this long is closed.
const SILENCE_MS: u64 = 3_000;
/// Nodes whose clocks are further apart refuse each other.
const MAX_CLOCK_SKEW_MS: u64 = 10_000;
/// Simulated time from healing until all nodes must be equal and all tombstones dropped.
const HEAL_MS: u64 = 120_000;
/// A leaving node waits this long for its peers to cover its writes.
const DRAIN_MS: u64 = 10_000;

/// A process: a replica with a wall clock.
pub struct Node {
    pub replica: Replica,
    pub origin: u64,
    pub name: String,
    /// The number of voters in its configuration.
    pub voters: usize,
    /// The distance of its wall clock from the simulation's, milliseconds.
    skew_ms: i64,
    /// By the peer's place: the link, and when something was last heard on it.
    links: BTreeMap<usize, (LinkId, u64)>,
    leaves_by: Option<u64>,
    /// In runs with membership.
    member: Option<Member>,
    /// The last record of each key, to show that keys never go back.
    pub held: BTreeMap<Bytes, Dot>,
    /// The state at the last check, if nothing was written since.
    pub checked: Option<Checked>,
}

pub struct World<'a> {
    pub plan: &'a Plan,
    rng: Xoshiro256PlusPlus,
    pub now_ms: u64,
    /// By place.
    pub nodes: Vec<Option<Node>>,
    connections: BTreeMap<(usize, usize), u64>,
    next_connection: u64,
    /// Ordered pairs: the second node hears nothing from the first.
    blocked: BTreeSet<(usize, usize)>,
    network: BinaryHeap<Packet<OnLink>>,
    datagrams: BinaryHeap<Packet<Vec<u8>>>,
    sent: u64,
    next_origin: u64,
    healed: bool,
    healed_ms: u64,
    /// After the network has healed: when the set of processes that can reach each other last changed.
    changed_ms: u64,
    /// Processes that left the membership.
    said_goodbye: BTreeSet<u64>,
    pub history: History,
    /// Writes that wait for their ack: place, origin, write.
    waiting: Vec<(usize, u64, Dot, Need)>,
    /// Sessions that write and read, then as many sessions that follow them, see `World::forgets_seats`.
    sessions: [Client; 2 * SESSIONS],
    /// How many voters the cluster is meant to have.
    voters: usize,
    /// Whether maps of two epochs met.
    pub epochs_met: bool,
    trace: bool,
}

impl Node {
    /// Whether a seat has ended, as far as the node knows.
    fn has_ended(&self, origin: u64) -> bool {
        self.replica.seats().any(|(seat, it)| seat == origin && it.state == SeatState::Ended)
    }

    /// Whether the node is about to exit.
    pub const fn leaves(&self) -> bool {
        self.leaves_by.is_some()
    }

    pub fn map(&self) -> BTreeMap<Bytes, Dot> {
        self.replica.store().scan(None).map(|(key, record)| (key.clone(), record.dot)).collect()
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
            voters: plan.voters,
            epochs_met: false,
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

    fn trace(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>9} ms  {}", self.now_ms - BEGIN_MS, what());
        }
    }

    /// Whether deletes are kept for as long as a node may rejoin with an older write.
    ///
    /// A map of another epoch is reissued however late, because all of it may exist nowhere else.
    pub fn remembers_deletes(&self) -> bool {
        // Deletes are not kept for a sidecar that alone holds the map of a former epoch, nor for a twin.
        let voters_only = self.plan.sidecars == 0 && self.plan.twin.is_none();
        !self.epochs_met || self.plan.remembers_deletes() && !self.plan.scales() && voters_only
    }

    /// How long ago everything healed.
    pub fn healed_for_ms(&self) -> Option<u64> {
        self.healed.then(|| self.now_ms - self.healed_ms)
    }

    pub fn live(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().flatten()
    }

    pub fn run(mut self) {
        let begin = self.now_ms;
        for (at, op) in &self.plan.ops {
            while self.now_ms < begin + at {
                self.step();
                check::always(&mut self);
            }
            self.act(op);
        }
        self.heal();
    }

    /// One step: time, messages out, messages in, checks.
    fn step(&mut self) {
        self.now_ms += STEP_MS;
        if self.plan.membership {
            self.run_membership();
            self.dial();
        } else {
            self.connect_all();
        }
        for place in 0..self.nodes.len() {
            self.tick(place);
            self.absorb(place);
            self.dismiss(place);
            self.send_all(place);
        }
        self.deliver();
        self.settle_acks();
        self.finish_leaving();
    }

    /// Heals everything, waits until the cluster comes to rest, and checks what is left.
    fn heal(&mut self) {
        self.trace(|| "everything heals".into());
        check::always(self);
        let stays_full = self.heal_faults();
        let survivors = check::survivors(self);
        for place in 0..self.nodes.len() {
            if self.nodes[place].is_none() && self.is_wanted(place) && !self.is_taken(place) {
                self.start(place);
            }
            self.configure(place);
        }
        self.replace_twin();
        if stays_full {
            self.until(|world| check::equal(world.roomy().map(|(_, node)| node)));
        }
        self.until(|world| {
            if stays_full {
                world.delete_all();
            }
            check::settled(world).and_then(|()| world.met())
        });
        check::at_the_end(self, &survivors);
        // Each node covers what a session saw, or reports the loss.
        let end = self.now_ms + HEAL_MS;
        while let Some(why) = self.session_behind() {
            assert!(self.now_ms < end, "{why} for {HEAL_MS} ms");
            self.step();
            check::always(self);
        }
        self.read_all();
    }

    /// Ends all faults. Returns whether a node stays full.
    fn heal_faults(&mut self) -> bool {
        for node in self.nodes.iter_mut().flatten() {
            node.skew_ms = node.skew_ms.clamp(-NEAR_MS, NEAR_MS);
        }
        self.blocked.clear();
        self.healed = true;
        self.healed_ms = self.now_ms;
        self.changed_ms = self.now_ms;
        self.network.clear();
        let stays_full = self.plan.room.is_some_and(|room| room.stays);
        for place in 0..self.nodes.len() {
            // A full node never holds everything: it restarts with more memory. A node that is about to leave counts as
            // gone.
            let leaves = self.nodes[place].as_ref().is_some_and(Node::leaves);
            let restarts = self.may_be_full(place) && !stays_full && self.nodes[place].is_some();
            if leaves || restarts {
                self.history.crashed = true;
                self.remove(place);
            }
        }
        stays_full
    }

    /// Steps until something is so.
    fn until(&mut self, done: impl Fn(&mut Self) -> Result<(), String>) {
        let end = self.now_ms + HEAL_MS;
        loop {
            for _ in 0..50 {
                self.step();
                check::always(self);
            }
            self.expect_met();
            let Err(why) = done(self) else { return };
            if self.trace && self.now_ms >= end {
                self.live().for_each(|node| println!("{}\n{:#?}", node.name, node.replica));
            }
            assert!(self.now_ms < end, "not settled after {HEAL_MS} ms: {why}");
        }
    }

    fn may_be_full(&self, place: usize) -> bool {
        self.plan.room.is_some_and(|room| place == room.node)
    }

    /// The nodes that have room, by place.
    fn roomy(&self) -> impl Iterator<Item = (usize, &Node)> {
        let places = self.nodes.iter().enumerate().filter(|(place, _)| !self.may_be_full(*place));
        places.filter_map(|(place, node)| Some((place, node.as_ref()?)))
    }

    /// Deletes every key, at a node that has room. A backlog may be reissued afterwards.
    fn delete_all(&mut self) {
        let roomy = self.roomy().next().map(|(place, _)| place);
        if let Some(node) = roomy {
            (0..self.plan.keys).for_each(|key| self.act(&Op::Delete { node, key }));
        }
    }
}
