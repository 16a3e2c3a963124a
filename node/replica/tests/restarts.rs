//! A cluster whose nodes restart thousands of times remembers a few processes, not thousands.
//!
//! The network delivers everything at once, so that hours pass in seconds.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvasir_replica::protocol::{Bounds, LinkId, REMEMBER_ENDED_MS, Replica, Settings, View};

const NODES: usize = 3;
const RESTARTS: u64 = 10_000;
/// The time between two restarts. Nodes restart in turn.
const LIFE_MS: u64 = 30_000;
const STEP_MS: u64 = 5_000;

struct Cluster {
    now_ms: u64,
    next_origin: u64,
    nodes: Vec<Replica>,
    links: BTreeMap<(usize, usize), LinkId>,
}

impl Cluster {
    fn new() -> Self {
        let mut cluster = Self { now_ms: 1_000_000, next_origin: 1, nodes: Vec::new(), links: BTreeMap::new() };
        for place in 0..NODES {
            let replica = cluster.replica(place);
            cluster.nodes.push(replica);
        }
        cluster.connect();
        cluster
    }

    fn replica(&mut self, place: usize) -> Replica {
        let origin = self.next_origin;
        self.next_origin += 1;
        let settings = Settings {
            origin,
            name: format!("n{place}"),
            voter: true,
            started_ms: self.now_ms,
            voters: NODES,
            evict_after_ms: 60_000,
            sync_interval_ms: STEP_MS,
            max_clock_skew_ms: 10_000,
            max_memory: None,
            evict_ending: false,
            may_found: true,
            serve_alone: false,
            join_timeout_ms: 10_000,
            bounds: Bounds::default(),
        };
        Replica::new(settings, self.now_ms)
    }

    fn connect(&mut self) {
        for a in 0..NODES {
            for b in 0..NODES {
                if a != b && !self.links.contains_key(&(a, b)) {
                    let peer = self.nodes[b].id();
                    self.links.insert((a, b), self.nodes[a].link_up(peer));
                }
            }
        }
    }

    /// The node's memory is lost. The others notice at once.
    fn restart(&mut self, place: usize) {
        let gone: Vec<_> = self.links.keys().copied().filter(|(a, b)| *a == place || *b == place).collect();
        for (a, b) in gone {
            let link = self.links.remove(&(a, b)).expect("listed");
            self.nodes[a].link_down(link);
        }
        self.nodes[place] = self.replica(place);
        self.connect();
    }

    fn run(&mut self, ms: u64) {
        for _ in 0..ms / STEP_MS {
            self.now_ms += STEP_MS;
            for node in &mut self.nodes {
                node.tick(View::ALONE, self.now_ms);
            }
            let mut quiet = false;
            while !quiet {
                quiet = true;
                for (&(from, to), &link) in &self.links {
                    while let Some(message) = self.nodes[from].poll_send(link, self.now_ms) {
                        quiet = false;
                        let back = self.links[&(to, from)];
                        self.nodes[to].receive(back, message, self.now_ms).expect("messages are whole");
                    }
                }
            }
        }
    }
}

/// After ten thousand restarts there are three seats, and three entries in the vector.
#[test]
fn restarts_leave_no_seats_behind() {
    let mut cluster = Cluster::new();
    cluster.run(LIFE_MS);
    let mut most = 0;
    for life in 0..RESTARTS {
        let place = (life % NODES as u64) as usize;
        cluster.restart(place);
        cluster.run(LIFE_MS);
        let now_ms = cluster.now_ms;
        let node = &mut cluster.nodes[place];
        assert!(node.is_ready(), "process {life} is ready");
        // Each process writes a key, and deletes the key of the process before it.
        node.put(format!("life {life}").into(), Bytes::from_static(b"value"), None, now_ms).expect("no limit");
        node.delete(format!("life {}", life.saturating_sub(1)).into(), now_ms);
        most = cluster.nodes.iter().map(|n| n.vector().len().max(n.seats().count())).max().unwrap_or(0).max(most);
    }
    let remembered = (REMEMBER_ENDED_MS / LIFE_MS) as usize;
    assert!(most > remembered / 2, "only {most} seats at once: nothing was tested");
    assert!(most < remembered + 20, "{most} seats at once, more than ended in the last 10 minutes");

    cluster.run(REMEMBER_ENDED_MS + 60_000);
    for node in &cluster.nodes {
        assert_eq!((node.vector().len(), node.seats().count()), (NODES, NODES));
        assert_eq!((node.store().len(), node.store().tombstones()), (1, 0), "one key, and no tombstone");
        assert_eq!(node.store().fingerprint(), cluster.nodes[0].store().fingerprint());
    }
}
