//! What this node knows of itself and of the others, for whoever asks: the
//! gRPC service `Cluster`, `/status`, the probes and the metrics all read
//! this one view. Knows nothing of gRPC or HTTP.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::{broadcast, watch};
use tracing::{info, warn};

use crate::config::{Config, MaxMemoryFrom};
use crate::discovery::{ProviderStatus, View};
use crate::encryption::KeyId;
use crate::engine::{Engine, Evicted, Phase, Stats, wall_ms};
use crate::membership::{self, Event, MemberInfo, MemberState, Membership, NodeId};
use crate::memory::Limit;
use crate::refusals::{Refusal, Refusals, Unjoinable};
use crate::reload::{Reload, Reloads};
use crate::replica::Namesake;
use crate::tls::{Expiries, Expiry};
use crate::transport::Transport;

/// Addresses that are named at most, of those that a node does not reach.
const SHOWN: usize = 8;

/// How long after a datagram of another cluster of the same name that one counts as heard. A node that lost its members
/// looks for them every other second.
const NAMESAKE_HEARD_MS: u64 = 30_000;

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

/// What bounds the memory of this node.
#[derive(Clone, Debug)]
pub struct MemoryBounds {
    /// What `maxMemory` comes from.
    pub from: MaxMemoryFrom,
    /// The memory limit of the process.
    pub limit: Option<Limit>,
    /// Why the kernel may end the process for the memory that it takes, and what to do.
    pub concern: Option<String>,
}

impl MemoryBounds {
    /// Those of a node with these settings.
    pub fn of(config: &Config) -> Self {
        let (from, limit) = (config.max_memory_from, config.memory_limit.clone());
        Self { from, limit, concern: config.memory_concern() }
    }

    /// Tells of them, once at the start.
    pub fn log(&self, max_memory: Option<u64>) {
        let (from, limit) = (self.from.as_str(), self.limit.as_ref().map(|limit| limit.bytes));
        let file = self.limit.as_ref().map(|limit| limit.file.display());
        match &self.concern {
            None => info!(max_memory, from, limit, file = file.map(tracing::field::display), "entries have a limit"),
            Some(concern) => warn!(max_memory, from, limit, "{concern}"),
        }
    }
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

/// Who else there is, as a node that may found a cluster must know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    /// Every discovery provider has answered at least once.
    pub answered: bool,
    /// Addresses of other nodes to which no link is up.
    pub unreached: BTreeSet<SocketAddr>,
    /// Peers that cannot be talked to.
    pub unjoinable: Unjoinable,
}

impl Sight {
    /// An address that was found, or that members told of, counts as unreached until a member that listens there is linked:
    /// until then it is not known what is behind it.
    fn new(me: SocketAddr, members: &[MemberInfo], discovery: &View, refusals: &Refusals, linked: &[u64]) -> Self {
        let own = refusals.own();
        let is_other = |address: &&SocketAddr| **address != me && !own.contains(address);
        let told_of = members.iter().map(|member| &member.id.peer_address);
        let named: BTreeSet<_> = discovery.addresses.keys().chain(told_of).filter(is_other).copied().collect();
        let is_linked = |member: &&MemberInfo| linked.contains(&member.id.origin);
        let reached: BTreeSet<_> = members.iter().filter(is_linked).map(|member| member.id.peer_address).collect();
        // Of a peer that dialled, only the machine is known.
        let is_named = |at: &SocketAddr| match at.port() {
            0 => named.iter().any(|named| named.ip() == at.ip()),
            _ => named.contains(at),
        };
        Self {
            answered: discovery.answered(),
            unjoinable: refusals.unjoinable(is_named, |address| reached.contains(address)),
            unreached: named.difference(&reached).copied().collect(),
        }
    }
}

impl Overview {
    /// `leaving` turns true when the node was told to stop.
    pub fn new(
        membership: &Membership,
        (cluster, cluster_uid): (&str, &str),
        engine: Arc<Engine>,
        transport: Arc<Transport>,
        discovery: watch::Receiver<Arc<View>>,
        leaving: watch::Receiver<bool>,
    ) -> Self {
        let (me, events, members) = (membership.me(), membership.events(), membership.members());
        Self {
            me,
            cluster: cluster.into(),
            cluster_uid: cluster_uid.into(),
            counters: membership.counters(),
            engine,
            transport,
            events,
            members,
            discovery,
            reloads: Reloads::default(),
            expiries: Expiries::default(),
            leaving,
            memory: Arc::new(MemoryBounds { from: MaxMemoryFrom::Nothing, limit: None, concern: None }),
        }
    }

    /// With what bounds the node's memory.
    #[must_use]
    pub fn with_memory(self, memory: MemoryBounds) -> Self {
        Self { memory: Arc::new(memory), ..self }
    }

    /// What bounds the node's memory.
    pub fn memory(&self) -> &MemoryBounds {
        &self.memory
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

    /// Which of the clusters of that name; empty: there is no telling them apart.
    pub fn cluster_uid(&self) -> &str {
        &self.cluster_uid
    }

    /// Whether all that this node hears of is a cluster of its cluster's name that is another one: of a deleted
    /// `KvCluster`, it is what remains.
    pub fn is_stale(&self) -> bool {
        let heard_ms = self.counters.other_uid_ms.load(Relaxed);
        self.members.borrow().is_empty() && wall_ms().saturating_sub(heard_ms) < NAMESAKE_HEARD_MS
    }

    /// What to say of a node that [is stale](Self::is_stale).
    pub fn stale_reason(&self) -> Option<String> {
        self.is_stale().then(|| {
            format!(
                "all that it hears of is another cluster of the name `{}`, with another clusterUid than its own (`{}`): what it \
                 holds is of a deleted cluster. Delete this node, so that it is made again",
                self.cluster, self.cluster_uid
            )
        })
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

    /// Who else there is, with links to these processes.
    pub fn sight(&self, linked: &[u64]) -> Sight {
        let (me, refusals) = (self.me.borrow().peer_address, self.transport.refusals());
        Sight::new(me, &self.members.borrow(), &self.discovery.borrow(), refusals, linked)
    }

    /// Peers that this node cannot talk to, and why.
    pub fn unjoinable(&self) -> Vec<Refusal> {
        self.sight(&self.engine.linked().0).unjoinable.into_all()
    }

    /// What a node that is not ready waits for, beside those that it cannot talk to: a line each.
    pub fn waits_for(&self) -> Vec<String> {
        if !matches!(self.phase(), Phase::Joining | Phase::Syncing) {
            return Vec::new();
        }
        let Sight { answered: _, unreached, unjoinable } = self.sight(&self.engine.linked().0);
        let unjoinable = unjoinable.into_all();
        let silent: Vec<_> = unreached
            .iter()
            .filter(|address| unjoinable.iter().all(|refusal| refusal.address != **address))
            .map(ToString::to_string)
            .collect();
        let founders = self.engine.founders();
        let shown = silent.len().min(SHOWN);
        let more = if silent.len() > shown { ", …" } else { "" };
        let silent =
            founders.filter(|_| shown > 0).map(|_| format!("does not reach {}{more}", silent[..shown].join(", ")));
        let voters =
            founders.filter(|(reached, wanted)| *wanted > 0 && *reached <= wanted / 2).map(|(reached, wanted)| {
                format!("reaches {reached} of {wanted} voters, itself included: a majority of them founds a cluster")
            });
        silent.into_iter().chain(voters).collect()
    }

    /// Why the node is in its phase, in a few words for a person.
    pub fn reason(&self) -> String {
        let peers = self.members.borrow().len();
        if let Some(stale) = self.stale_reason() {
            return stale;
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Role;
    use crate::refusals::Reason;

    fn at(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    fn member(origin: u64, port: u16) -> MemberInfo {
        MemberInfo { id: NodeId::new("n", origin, Role::Member, at(port), 1), state: MemberState::Alive }
    }

    fn found(ports: &[u16], answered: bool) -> View {
        let provider = ProviderStatus { provider: "static", answered, ..ProviderStatus::default() };
        View { addresses: ports.iter().map(|p| (at(*p), "static")).collect(), providers: vec![provider] }
    }

    /// What the node at port 1 sees to which discovery names the ports 1 to 3.
    fn sight(members: &[MemberInfo], linked: &[u64], refusals: &Refusals) -> Sight {
        Sight::new(at(1), members, &found(&[1, 2, 3], true), refusals, linked)
    }

    #[test]
    fn what_was_found_is_unlinked_until_the_member_there_is_linked() {
        let refusals = Refusals::default();
        let seen = |members: &[MemberInfo], linked: &[u64]| sight(members, linked, &refusals).unreached.len();
        assert_eq!(seen(&[], &[]), 2, "my own address is nobody else's");
        assert_eq!(seen(&[member(2, 2)], &[]), 2);
        assert_eq!(seen(&[member(2, 2)], &[2]), 1);
        assert_eq!(seen(&[member(2, 2), member(3, 3)], &[2, 3]), 0);
        assert_eq!(seen(&[member(2, 2), member(3, 3), member(4, 4)], &[2, 3]), 1, "told of by others");
        refusals.is_own(at(3));
        assert_eq!(seen(&[], &[]), 1, "another address of mine");
    }

    #[test]
    fn every_provider_must_have_answered() {
        let answered = |view: &View| Sight::new(at(1), &[], view, &Refusals::default(), &[]).answered;
        assert!(answered(&found(&[], true)) && !answered(&found(&[], false)));
        assert!(answered(&View::default()), "no discovery: alone by choice");
    }

    #[test]
    fn a_refused_peer_is_named_by_whoever_told_of_it() {
        let refusals = Refusals::default();
        for port in [2, 4, 5] {
            refusals.note(at(port), None, Reason::Key, "k");
        }
        refusals.note(at(6), None, Reason::Cluster, "c");
        refusals.note_caller(at(0).ip(), Some("n"), Reason::Clock, "c");
        let ports = |refusals: Vec<Refusal>| refusals.iter().map(|r| r.address.port()).collect::<Vec<_>>();
        let Unjoinable { named, strangers } = sight(&[member(4, 4)], &[], &refusals).unjoinable;
        assert_eq!((ports(named), ports(strangers)), (vec![0, 2, 4], vec![5]));
        // One that is linked can be talked to.
        let Unjoinable { named, .. } = sight(&[member(4, 4)], &[4], &refusals).unjoinable;
        assert_eq!(ports(named), [0, 2]);
    }
}
