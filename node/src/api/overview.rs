//! What this node knows of itself and of the others, for whoever asks: the
//! gRPC service `Cluster`, `/status`, the probes and the metrics all read
//! this one view. Knows nothing of gRPC or HTTP.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{broadcast, watch};

use crate::discovery::{ProviderStatus, View};
use crate::encryption::KeyId;
use crate::engine::{Engine, Evicted, Phase, Stats};
use crate::membership::{self, Event, MemberInfo, MemberState, Membership, NodeId};
use crate::reload::{Reload, Reloads};
use crate::replica::Namesake;
use crate::tls::{Expiries, Expiry};
use crate::transport::Transport;

/// A live view of the cluster, cheap to clone.
#[derive(Clone)]
pub struct Overview {
    me: watch::Receiver<NodeId>,
    cluster: Arc<str>,
    engine: Arc<Engine>,
    transport: Arc<Transport>,
    events: broadcast::Sender<Event>,
    members: watch::Receiver<Arc<Vec<MemberInfo>>>,
    discovery: watch::Receiver<Arc<View>>,
    reloads: Reloads,
    expiries: Expiries,
    leaving: watch::Receiver<bool>,
}

/// One node, this one or another.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Who it is.
    pub id: NodeId,
    /// Whether it answers.
    pub state: MemberState,
    /// Whether a replication link to it is up. True for this node.
    pub linked: bool,
    /// The discovery provider that named its address; `None` when other
    /// members told of it.
    pub found_by: Option<&'static str>,
}

impl Overview {
    /// `leaving` turns true when the node was told to stop.
    pub fn new(
        membership: &Membership,
        cluster: &str,
        engine: Arc<Engine>,
        transport: Arc<Transport>,
        discovery: watch::Receiver<Arc<View>>,
        leaving: watch::Receiver<bool>,
    ) -> Self {
        let (me, events, members) = (membership.me(), membership.events(), membership.members());
        Self {
            me,
            cluster: cluster.into(),
            engine,
            transport,
            events,
            members,
            discovery,
            reloads: Reloads::default(),
            expiries: Expiries::default(),
            leaving,
        }
    }

    /// With files that are followed, and certificates among them.
    #[must_use]
    pub fn with_files(self, reloads: Reloads, expiries: Expiries) -> Self {
        Self { reloads, expiries, ..self }
    }

    /// Until when this node's certificates are valid, by use.
    pub fn expiries(&self) -> BTreeMap<&'static str, Expiry> {
        self.expiries.read()
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The names of the keys that peers encrypt with, the primary one first;
    /// `None` if they do not.
    pub fn keys(&self) -> Option<Vec<KeyId>> {
        self.transport.keys().map(|keys| keys.now().names())
    }

    /// The files that are read again when they change, by their use.
    pub fn reloads(&self) -> BTreeMap<&'static str, Reload> {
        self.reloads.read()
    }

    /// Where the node is in its life. A node that was told to stop is draining
    /// from that moment, though its engine still takes writes for the clients
    /// that have not heard of it.
    pub fn phase(&self) -> Phase {
        if *self.leaving.borrow() { Phase::Draining } else { self.engine.phase() }
    }

    /// Returns with the new phase when it is no longer `old`; never, once
    /// nothing changes any more.
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

    /// Why the node is in its phase, in a few words for a person.
    pub fn reason(&self) -> String {
        let peers = self.members.borrow().len();
        if let Some(holder) = self.engine.namesake().filter(|_| self.phase() != Phase::Ready) {
            return format!("another process has this node's name: {}", self.process(holder));
        }
        match self.phase() {
            Phase::Joining => {
                let view = self.discovery.borrow().clone();
                let failing: Vec<_> = view
                    .providers
                    .iter()
                    .filter_map(|p| p.error.as_ref().map(|error| format!("; discovery {}: {error}", p.provider)))
                    .collect();
                format!("looking for peers, knows {peers}{}", failing.concat())
            }
            Phase::Syncing => format!("taking in what its {peers} peers hold"),
            Phase::Ready => "holds what its peers hold".to_owned(),
            Phase::Draining => "was told to stop".to_owned(),
        }
    }

    /// Where a process is that has this node's name, for a person.
    pub fn process(&self, Namesake { origin, started_ms }: Namesake) -> String {
        let members = self.members.borrow().clone();
        let at = members.iter().find(|member| member.id.origin == origin).map(|member| member.id.peer_address);
        let at = at.map_or_else(|| "at an address that this node was not told".to_owned(), |at| format!("at {at}"));
        let since = self.engine.now_ms().saturating_sub(started_ms) / 1000;
        format!("{at}, origin {origin:016x}, started {since} s ago")
    }

    /// The engine's figures.
    pub fn stats(&self) -> Stats {
        self.engine.stats()
    }

    /// The discovery providers as they last answered.
    pub fn discovery(&self) -> Arc<View> {
        self.discovery.borrow().clone()
    }

    /// The names of the nodes whose addresses this provider found, this one
    /// included, eldest first.
    pub fn found_by(&self, provider: &ProviderStatus) -> Vec<String> {
        let found = |peer: &Peer| provider.addresses.contains(&peer.id.peer_address);
        self.everyone().into_iter().filter(found).map(|peer| peer.id.name).collect()
    }

    /// What happens to members from now on, as membership sees it.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Members that a majority gives up on, from now on.
    pub fn evictions(&self) -> broadcast::Receiver<Evicted> {
        self.engine.evictions()
    }

    /// Nodes that have no link because their clock and this one's are too far
    /// apart: name, and which way.
    pub fn skewed(&self) -> Vec<(String, String)> {
        self.transport.skewed()
    }

    /// This node.
    pub fn me(&self) -> Peer {
        let id = self.me.borrow().clone();
        let found_by = self.discovery.borrow().addresses.get(&id.peer_address).copied();
        Peer { id, state: MemberState::Alive, linked: true, found_by }
    }

    /// The others, eldest first.
    pub fn peers(&self) -> Vec<Peer> {
        let members = self.members.borrow().clone();
        let linked = self.engine.stats().linked;
        let view = self.discovery();
        let mut peers: Vec<_> = members
            .iter()
            .map(|member| Peer {
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
    pub fn everyone(&self) -> Vec<Peer> {
        let mut all = self.peers();
        all.push(self.me());
        all.sort_by_key(|peer| peer.id.seniority());
        all
    }

    /// The eldest that is a member, not a sidecar; and whether it is this node.
    pub fn leader(&self) -> Option<(Peer, bool)> {
        let members = self.members.borrow().clone();
        let me = self.me.borrow().clone();
        let origin = membership::leader(&me, &members)?.origin;
        let leader = self.everyone().into_iter().find(|peer| peer.id.origin == origin)?;
        Some((leader, origin == me.origin))
    }
}
