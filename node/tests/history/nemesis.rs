//! The faults. A round is drawn from the seed; at its end all nodes run and all links work again.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvasir_proto::v1::cluster_client::ClusterClient;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::sleep;

use crate::history::{At, History, Record, micros};
use crate::namespaces::Network;
use crate::node::{EVICT_AFTER, Node, channel, status};

/// A disturbed node may be slow for this long afterwards: TCP retries cut connections at its own pace.
const AFTERWARDS: Duration = Duration::from_secs(4);
/// A node that was started answers within this time, or the run fails.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// The kinds of faults, drawn with equal probability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Kill,
    Leave,
    Freeze,
    FreezeLong,
    Cut,
    CutOneWay,
    Isolate,
    IsolateLong,
    Deafen,
    Split,
    SplitLong,
    Loss,
    Narrow,
    Unplug,
}

impl Kind {
    const ALL: [Self; 14] = [
        Self::Kill,
        Self::Leave,
        Self::Freeze,
        Self::FreezeLong,
        Self::Cut,
        Self::CutOneWay,
        Self::Isolate,
        Self::IsolateLong,
        Self::Deafen,
        Self::Split,
        Self::SplitLong,
        Self::Loss,
        Self::Narrow,
        Self::Unplug,
    ];

    /// Whether a node may lose its map or be reset.
    const fn interrupts(self) -> bool {
        matches!(self, Self::Kill | Self::Leave | Self::FreezeLong | Self::IsolateLong | Self::SplitLong)
    }
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    /// The target; for a cut, both ends.
    nodes: Vec<usize>,
    /// Delay after the beginning of the previous fault.
    after: Duration,
    /// Duration.
    lasts: Duration,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} for {} ms", self.kind, self.nodes, self.lasts.as_millis())
    }
}

/// Draws rounds.
pub(crate) struct Plan {
    rng: Xoshiro256PlusPlus,
    nodes: usize,
    deck: Vec<Kind>,
}

impl Plan {
    pub(crate) fn new(seed: u64, nodes: usize) -> Self {
        Self { rng: Xoshiro256PlusPlus::seed_from_u64(seed), nodes, deck: Vec::new() }
    }

    /// Faults in quick succession. At most half of the nodes plus one are interrupted, so at least one node holds its
    /// map throughout.
    pub(crate) fn round(&mut self, faults: usize) -> Vec<Fault> {
        let rng = &mut self.rng;
        let mut order: Vec<usize> = (0..self.nodes).collect();
        order.shuffle(rng);
        // Rounds with few interrupted nodes test writes with few acknowledgements better.
        let victims = order[..[1, 1, 2, 2, 3][rng.random_range(0..5)]].to_vec();
        let mut round = Vec::new();
        while round.len() < faults {
            let kind = self.deck.pop().unwrap_or_else(|| {
                self.deck = Kind::ALL.to_vec();
                self.deck.shuffle(rng);
                self.deck.pop().expect("there are kinds")
            });
            let from = if kind.interrupts() { &victims } else { &order };
            let count = match kind {
                Kind::Cut | Kind::CutOneWay | Kind::Split => 2,
                Kind::SplitLong => victims.len().min(2),
                Kind::Loss => 0,
                _ => 1,
            };
            let nodes = from.sample(rng, count).copied().collect();
            let short = Duration::from_millis(rng.random_range(200..2_000));
            let long = EVICT_AFTER + Duration::from_millis(rng.random_range(2_000..4_000));
            let lasts = match kind {
                Kind::FreezeLong | Kind::IsolateLong | Kind::SplitLong => long,
                Kind::Cut | Kind::CutOneWay | Kind::Loss if rng.random_ratio(1, 3) => long,
                _ => short,
            };
            round.push(Fault { kind, nodes, after: Duration::from_millis(rng.random_range(200..2_500)), lasts });
        }
        round
    }
}

/// Applies the faults of a plan to the nodes.
pub(crate) struct Nemesis {
    history: History,
    nodes: Vec<AsyncMutex<Node>>,
    network: Mutex<Network>,
    done: Mutex<BTreeMap<Kind, usize>>,
    broken: Mutex<Vec<String>>,
}

impl Nemesis {
    pub(crate) fn new(nodes: Vec<Node>, network: Network, history: History) -> Arc<Self> {
        Arc::new(Self {
            history,
            nodes: nodes.into_iter().map(AsyncMutex::new).collect(),
            network: Mutex::new(network),
            done: Mutex::default(),
            broken: Mutex::default(),
        })
    }

    /// How often each kind was applied.
    pub(crate) fn done(&self) -> BTreeMap<Kind, usize> {
        self.done.lock().expect("no thread panics with the lock").clone()
    }

    /// Processes that ended by themselves, with an error, or not at all.
    pub(crate) fn broken(&self) -> Vec<String> {
        self.broken.lock().expect("no thread panics with the lock").clone()
    }

    fn breaks(&self, what: String) {
        self.broken.lock().expect("no thread panics with the lock").push(what);
    }

    /// Runs a round to its end.
    pub(crate) async fn round(self: &Arc<Self>, faults: Vec<Fault>) {
        let mut running = Vec::new();
        for fault in faults {
            sleep(fault.after).await;
            let nemesis = self.clone();
            running.push(tokio::spawn(async move { nemesis.inflict(fault).await }));
        }
        for fault in running {
            fault.await.expect("a fault is inflicted without a panic");
        }
        for (number, node) in self.nodes.iter().enumerate() {
            if !node.lock().await.runs() {
                self.breaks(format!("n{number} ended by itself"));
            }
        }
    }

    async fn inflict(&self, fault: Fault) {
        let begin = self.history.now();
        let Fault { kind, ref nodes, lasts, .. } = fault;
        match kind {
            Kind::Kill | Kind::Leave | Kind::Freeze | Kind::FreezeLong => self.process(kind, nodes[0], lasts).await,
            Kind::Narrow => {
                Network::narrow(nodes[0], 256);
                sleep(lasts).await;
                Network::widen(nodes[0]);
                self.down(nodes[0], begin);
            }
            Kind::Unplug => {
                Network::plug(nodes[0], false);
                sleep(lasts).await;
                Network::plug(nodes[0], true);
                self.down(nodes[0], begin);
            }
            _ => {
                let percent = if kind == Kind::Loss { 25 } else { 100 };
                let links = self.links(kind, nodes);
                let network = || self.network.lock().expect("no thread panics with the lock");
                for &(from, to) in &links {
                    network().lose(from, to, percent);
                }
                sleep(lasts).await;
                for &(from, to) in &links {
                    network().lose_no_more(from, to, percent);
                }
            }
        }
        *self.done.lock().expect("no thread panics with the lock").entry(kind).or_default() += 1;
        self.history.add(Record::Fault { at: begin, lasted: self.history.now() - begin, what: fault.to_string() });
    }

    /// The links that a fault affects: from, to.
    fn links(&self, kind: Kind, of: &[usize]) -> Vec<(usize, usize)> {
        let all = (0..self.nodes.len()).flat_map(|from| (0..self.nodes.len()).map(move |to| (from, to)));
        let all = all.filter(|(from, to)| from != to);
        let is_in = |node: usize| of.contains(&node);
        match kind {
            Kind::Cut => vec![(of[0], of[1]), (of[1], of[0])],
            Kind::CutOneWay => vec![(of[0], of[1])],
            Kind::Deafen => all.filter(|(_, to)| is_in(*to)).collect(),
            Kind::Isolate | Kind::IsolateLong => all.filter(|(from, to)| is_in(*from) || is_in(*to)).collect(),
            Kind::Split | Kind::SplitLong => all.filter(|(from, to)| is_in(*from) != is_in(*to)).collect(),
            Kind::Loss => all.collect(),
            _ => Vec::new(),
        }
    }

    fn down(&self, node: usize, begin: At) {
        self.history.add(Record::Down { node, begin, end: self.history.now() + micros(AFTERWARDS) });
    }

    async fn process(&self, kind: Kind, number: usize, lasts: Duration) {
        // In sequence, for one process.
        let mut node = self.nodes[number].lock().await;
        let begin = self.history.now();
        match kind {
            Kind::Freeze | Kind::FreezeLong => {
                node.freeze();
                sleep(lasts).await;
                node.thaw();
            }
            Kind::Kill => {
                node.kill();
                sleep(lasts).await;
                node.start();
                answers(number).await;
            }
            _ => {
                self.leave(number, &mut node).await;
                sleep(lasts).await;
                node.start();
                answers(number).await;
            }
        }
        self.down(number, begin);
    }

    async fn leave(&self, number: usize, node: &mut Node) {
        let mut cluster = ClusterClient::new(channel(number));
        let before = status(&mut cluster, Duration::from_secs(2)).await;
        let begin = self.history.now();
        let Some((status, log)) = node.leave().await else {
            self.breaks(format!("n{number} was terminated and does not end"));
            return node.kill();
        };
        if !status.success() {
            self.breaks(format!("n{number} was terminated and ended with {status}"));
        }
        // Another message covers writes that no peer is known to hold.
        let covered =
            ["the peers hold all of this node's writes", "some peers do not hold all of this node's writes yet"]
                .iter()
                .any(|words| log.contains(words));
        let origin = before.and_then(|status| u64::from_str_radix(&status.member?.origin, 16).ok());
        if let Some(origin) = origin {
            self.history.add(Record::Left { node: number, origin, begin, end: self.history.now(), covered });
        }
    }
}

/// Waits until a started node answers at all; whether it becomes ready depends on the cluster.
async fn answers(node: usize) {
    let began = tokio::time::Instant::now();
    while began.elapsed() < ANSWERS_WITHIN {
        let mut cluster = ClusterClient::new(channel(node));
        if status(&mut cluster, Duration::from_millis(500)).await.is_some() {
            return;
        }
        sleep(Duration::from_millis(50)).await;
    }
}
