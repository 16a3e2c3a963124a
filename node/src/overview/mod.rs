//! What this node knows of itself and of the other nodes. The gRPC service `Cluster`, `/status`, the probes and the
//! metrics all read this one view. Knows nothing of gRPC or HTTP.

mod observed;
mod reasons;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{broadcast, watch};
use tracing::{info, warn};

pub use self::observed::Observed;
use crate::config::{Config, MaxMemoryFrom};
use crate::discovery::{ProviderStatus, View};
use crate::encryption::KeyId;
use crate::engine::{Engine, Evicted, Phase, Stats};
use crate::membership::{self, Event, MemberInfo, MemberState, Membership, NodeId};
use crate::memory::Limit;
use crate::refusals::Refusal;
use crate::reload::{Reload, Reloads};
use crate::tls::{Expiries, Expiry};
use crate::transport::Transport;

/// A live view of the cluster, cheap to clone.
#[derive(Clone)]
pub struct Overview {
    me: watch::Receiver<NodeId>,
    cluster: Arc<str>,
    cluster_uid: Arc<str>,
    counters: Arc<membership::MembershipCounters>,
    engine: Arc<Engine>,
    transport: Arc<Transport>,
    events: broadcast::Sender<Event>,
    members: watch::Receiver<Arc<Vec<MemberInfo>>>,
    discovery: watch::Receiver<Arc<View>>,
    reloads: Reloads,
    expiries: Expiries,
    leaving: watch::Receiver<bool>,
    memory: Arc<MemoryBounds>,
}

/// The parts of a node that an [`Overview`] reads.
pub struct OverviewParts<'a> {
    /// The cluster's name.
    pub cluster: &'a str,
    /// The cluster's UID; empty if it has none.
    pub cluster_uid: &'a str,
    /// The members.
    pub membership: &'a Membership,
    /// The data.
    pub engine: Arc<Engine>,
    /// The links.
    pub transport: Arc<Transport>,
    /// What discovery found.
    pub discovery: watch::Receiver<Arc<View>>,
    /// Files that are reloaded when they change.
    pub reloads: Reloads,
    /// The node's certificates.
    pub expiries: Expiries,
    /// What bounds the node's memory.
    pub memory: MemoryBounds,
    /// Turns true when the node begins to shut down.
    pub leaving: watch::Receiver<bool>,
}

/// What bounds the memory of this node.
#[derive(Clone, Debug)]
pub struct MemoryBounds {
    /// Where `maxMemory` comes from.
    pub from: MaxMemoryFrom,
    /// The memory limit of the process.
    pub limit: Option<Limit>,
    /// Why the kernel may kill the process for its memory, and what to do about it.
    pub concern: Option<String>,
}

impl MemoryBounds {
    /// The bounds of a node with these settings.
    pub fn of(config: &Config) -> Self {
        let (from, limit) = (config.max_memory_from, config.memory_limit.clone());
        Self { from, limit, concern: config.memory_concern() }
    }

    /// Logs the bounds, once at the start.
    pub fn log(&self, max_memory: Option<u64>) {
        let (from, limit) = (self.from.as_str(), self.limit.as_ref().map(|limit| limit.bytes));
        let file = self.limit.as_ref().map(|limit| limit.file.display());
        match &self.concern {
            None => info!(max_memory, from, limit, file = file.map(tracing::field::display), "entries have a limit"),
            Some(concern) => warn!(max_memory, from, limit, "{concern}"),
        }
    }
}

/// A node, this one or another, as it is known here.
#[derive(Clone, Debug)]
pub struct KnownNode {
    /// The node's identity.
    pub id: NodeId,
    /// Whether the node answers probes.
    pub state: MemberState,
    /// Whether a link to the node is up. True for this node.
    pub linked: bool,
    /// The discovery provider that found its address; `None` if only other members announced it.
    pub found_by: Option<&'static str>,
}

impl Overview {
    /// Of these parts.
    pub fn new(parts: OverviewParts<'_>) -> Self {
        let OverviewParts {
            cluster,
            cluster_uid,
            membership,
            engine,
            transport,
            discovery,
            reloads,
            expiries,
            memory,
            leaving,
        } = parts;
        Self {
            me: membership.me(),
            cluster: cluster.into(),
            cluster_uid: cluster_uid.into(),
            counters: membership.counters(),
            engine,
            transport,
            events: membership.events(),
            members: membership.members(),
            discovery,
            reloads,
            expiries,
            leaving,
            memory: Arc::new(memory),
        }
    }

    /// What bounds the node's memory.
    pub fn memory(&self) -> &MemoryBounds {
        &self.memory
    }

    /// Until when this node's certificates are valid, by use.
    pub fn expiries(&self) -> BTreeMap<&'static str, Expiry> {
        self.expiries.read()
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The cluster's UID; empty if it has none.
    pub fn cluster_uid(&self) -> &str {
        &self.cluster_uid
    }

    /// The names of the keys that peers encrypt with, the primary key first; `None` without encryption.
    pub fn keys(&self) -> Option<Vec<KeyId>> {
        self.transport.keys().map(|keys| keys.now().names())
    }

    /// The files that are reloaded when they change, by use.
    pub fn reloads(&self) -> BTreeMap<&'static str, Reload> {
        self.reloads.read()
    }

    /// The node's phase. It is draining from the moment of the shutdown signal, although the engine still accepts writes
    /// of clients that do not know yet.
    pub fn phase(&self) -> Phase {
        if *self.leaving.borrow() { Phase::Draining } else { self.engine.phase() }
    }

    /// Returns the phase once it is not `old`; never returns if the phase cannot change any more.
    pub async fn phase_other_than(&self, old: Phase) -> Phase {
        let (mut engine, mut leaving) = (self.engine.subscribe_phase(), self.leaving.clone());
        loop {
            let now = self.phase();
            if now != old {
                return now;
            }
            let changed = tokio::select! {
                changed = engine.changed() => changed,
                changed = leaving.changed() => changed,
            };
            if changed.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The other nodes, given the origins that are linked.
    pub fn observed(&self, linked: &[u64]) -> Observed {
        let (me, refusals) = (self.me.borrow().peer_address, self.transport.refusals());
        Observed::new(me, &self.members.borrow(), &self.discovery.borrow(), refusals, linked)
    }

    /// Peers that this node cannot talk to, and why.
    pub fn unjoinable(&self) -> Vec<Refusal> {
        self.observed(&self.engine.linked().0).unjoinable.into_all()
    }

    /// The engine's figures.
    pub fn stats(&self) -> Stats {
        self.engine.stats()
    }

    /// The discovery providers as they last answered.
    pub fn discovery(&self) -> Arc<View> {
        self.discovery.borrow().clone()
    }

    /// The names of the nodes that this provider found, this node included, eldest first.
    pub fn found_by(&self, provider: &ProviderStatus) -> Vec<String> {
        let found = |node: &KnownNode| provider.addresses.contains(&node.id.peer_address);
        self.everyone().into_iter().filter(found).map(|node| node.id.name).collect()
    }

    /// Membership events from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Evictions from now on.
    pub fn evictions(&self) -> broadcast::Receiver<Evicted> {
        self.engine.evictions()
    }

    /// Nodes without a link because their clock and this node's are too far apart: name and reason.
    pub fn skewed(&self) -> Vec<(String, String)> {
        self.transport.skewed()
    }

    /// This node.
    pub fn me(&self) -> KnownNode {
        let id = self.me.borrow().clone();
        let found_by = self.discovery.borrow().addresses.get(&id.peer_address).copied();
        KnownNode { id, state: MemberState::Alive, linked: true, found_by }
    }

    /// The other nodes, eldest first.
    pub fn peers(&self) -> Vec<KnownNode> {
        let members = self.members.borrow().clone();
        let linked = self.engine.linked().0;
        let view = self.discovery();
        let mut peers: Vec<_> = members
            .iter()
            .map(|member| KnownNode {
                id: member.id.clone(),
                state: member.state,
                linked: linked.contains(&member.id.origin),
                found_by: view.addresses.get(&member.id.peer_address).copied(),
            })
            .collect();
        peers.sort_by_key(|peer| peer.id.seniority());
        peers
    }

    /// All nodes, this one included, eldest first.
    pub fn everyone(&self) -> Vec<KnownNode> {
        let mut all = self.peers();
        all.push(self.me());
        all.sort_by_key(|node| node.id.seniority());
        all
    }

    /// The leader, which is the eldest member that is not a sidecar, and whether it is this node.
    pub fn leader(&self) -> Option<(KnownNode, bool)> {
        let members = self.members.borrow().clone();
        let me = self.me.borrow().clone();
        let origin = membership::leader(&me, &members)?.origin;
        let leader = self.everyone().into_iter().find(|node| node.id.origin == origin)?;
        Some((leader, origin == me.origin))
    }
}
