//! The cluster calls, their types, and the conversion from the wire.

use crate::Error;
use crate::client::Client;
use crate::kv;
use kvasir_proto::v1;
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

/// The role of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// One of the cluster's own nodes, which vote.
    Member,
    /// A full replica in an application's pod, which does not vote or lead.
    Sidecar,
    /// A value that this release of the client does not know.
    Unknown,
}

/// The phase of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Looks for peers.
    Joining,
    /// Takes over what its peers hold.
    Syncing,
    /// Serves reads and writes.
    Ready,
    /// Shuts down: serves reads, refuses writes.
    Draining,
    /// A value that this release of the client does not know.
    Unknown,
}

/// Whether a node is alive, as the answering node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MemberState {
    /// The node answers.
    Alive,
    /// The node did not answer, and counts as dead soon unless it does.
    Suspect,
    /// A value that this release of the client does not know.
    Unknown,
}

/// A node of the cluster, as the answering node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The node's name; on Kubernetes that of its pod.
    pub name: String,
    /// The node's origin, as 16 hexadecimal digits: a random number that is drawn when the process starts, and again at
    /// each reset ([`Status::returns`]).
    pub origin: String,
    /// The node's role.
    pub role: Role,
    /// Where peers reach the node, `ip:port`.
    pub peer_address: String,
    /// Whether the node is alive.
    pub state: MemberState,
    /// When the node took its origin, by its own clock.
    pub started_at: Option<SystemTime>,
    /// The node's release.
    pub version: String,
    /// Whether the answering node has a replication link to it.
    pub linked: bool,
    /// The discovery provider that found the node first; `None` if another node reported it.
    pub found_by: Option<String>,
}

/// The node that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WhoAmI {
    /// The node, as its peers see it.
    pub member: Member,
    /// The name of its cluster.
    pub cluster: String,
    /// The UID of its cluster, on Kubernetes that of the `KvCluster`; empty if there is none.
    pub cluster_uid: String,
    /// The node's phase.
    pub phase: Phase,
}

/// The eldest member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// The leader.
    pub member: Member,
    /// Whether the leader is the node that answered.
    pub is_me: bool,
}

/// The health of the node that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The node.
    pub member: Member,
    /// The node's phase.
    pub phase: Phase,
    /// Live keys.
    pub keys: u64,
    /// Tombstones of deleted and expired keys.
    pub tombstones: u64,
    /// The memory of entries, in bytes.
    pub memory_bytes: u64,
    /// The limit on that memory, if there is one.
    pub max_memory_bytes: Option<u64>,
    /// Equal on two nodes that hold the same map.
    pub fingerprint: String,
    /// How far the node may be behind its peers; `None` if it has no peer.
    pub lag: Option<Duration>,
    /// The node's discovery providers.
    pub discovery: Vec<DiscoveryStatus>,
    /// The number of seats of the roster in each state: `joining`, `member`, `evicted` and `ended`.
    pub seats: BTreeMap<String, u32>,
    /// The age of the timestamp up to which tombstones were dropped; `None` if none were.
    pub collected_age: Option<Duration>,
    /// Whether the node recently had no room for a peer's write, which it lacks now.
    pub overfull: bool,
    /// How often the node was evicted and rejoined with a new origin since its process started.
    pub returns: u64,
    /// The peers that the node refuses because their clocks and its own are too far apart.
    pub skewed: Vec<SkewedPeer>,
    /// When the node's map was founded; `None` until it has a map. If this becomes later, the former map is gone, or two
    /// maps were merged.
    pub founded_at: Option<SystemTime>,
    /// The peers of the last half minute that the node cannot talk to.
    pub unjoinable: Vec<UnjoinablePeer>,
    /// What else the node waits for while it is not ready, one line each.
    pub waits_for: Vec<String>,
}

/// A peer that the answering node cannot talk to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnjoinablePeer {
    /// The peer's address, `ip:port`; port 0 if the peer connected and its listening port is unknown.
    pub address: String,
    /// The peer's name, if it is known.
    pub name: Option<String>,
    /// The reason as one word: `key`, `plaintext`, `encrypted`, `certificate`, `version`, `clock`, `cluster`, or a word of a
    /// later release.
    pub reason: String,
    /// The reason as a sentence, with what to do.
    pub why: String,
}

/// A peer that is refused because its clock and the answering node's are too far apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkewedPeer {
    /// The peer's name.
    pub name: String,
    /// How far the clocks are apart, and what to do.
    pub reason: String,
}

/// A discovery provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveryStatus {
    /// `kubernetes`, `nats`, `dns`, `static`, or the name of another provider.
    pub provider: String,
    /// How many addresses the provider found in its last round.
    pub found: u32,
    /// Why the last round failed, if it did.
    pub error: Option<String>,
    /// How many rounds failed since the node started.
    pub failures: u64,
    /// The names of the members that the provider found, including the node itself.
    pub members: Vec<String>,
}

impl Client {
    /// Lists all nodes that the answering node considers alive or suspect, including itself, eldest first.
    pub async fn members(&self) -> Result<Vec<Member>, Error> {
        let answer = self
            .call(|via| {
                let mut cluster = self.cluster(via);
                async move { cluster.members(v1::MembersRequest {}).await }
            })
            .await?;
        Ok(answer.members.into_iter().map(member).collect())
    }

    /// Reads the health of the answering node.
    pub async fn status(&self) -> Result<Status, Error> {
        let answer = self
            .call(|via| {
                let mut cluster = self.cluster(via);
                async move { cluster.status(v1::StatusRequest {}).await }
            })
            .await?;
        status(answer)
    }

    /// Asks which node answers.
    pub async fn who_am_i(&self) -> Result<WhoAmI, Error> {
        let answer = self
            .call(|via| {
                let mut cluster = self.cluster(via);
                async move { cluster.who_am_i(v1::WhoAmIRequest {}).await }
            })
            .await?;
        who_am_i(answer)
    }

    /// Asks for the leader: the eldest member, as the answering node sees it.
    pub async fn leader(&self) -> Result<Leader, Error> {
        let answer = self
            .call(|via| {
                let mut cluster = self.cluster(via);
                async move { cluster.leader(v1::LeaderRequest {}).await }
            })
            .await?;
        leader(answer)
    }
}

macro_rules! words {
    ($type:ident from $wire:ident { $($word:literal => $variant:ident),* $(,)? }) => {
        impl From<v1::$wire> for $type {
            fn from(wire: v1::$wire) -> Self {
                match wire {
                    $(v1::$wire::$variant => Self::$variant,)*
                    v1::$wire::Unspecified => Self::Unknown,
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self {
                    $(Self::$variant => $word,)*
                    Self::Unknown => "unknown",
                })
            }
        }
    };
}

words!(Role from Role { "member" => Member, "sidecar" => Sidecar });
words!(Phase from Phase {
    "joining" => Joining,
    "syncing" => Syncing,
    "ready" => Ready,
    "draining" => Draining,
});
words!(MemberState from MemberState { "alive" => Alive, "suspect" => Suspect });

pub(crate) fn member(wire: v1::Member) -> Member {
    Member {
        role: wire.role().into(),
        state: wire.state().into(),
        started_at: wire.started_at.and_then(|at| SystemTime::try_from(at).ok()),
        name: wire.name,
        origin: wire.origin,
        peer_address: wire.peer_address,
        version: wire.version,
        linked: wire.linked,
        found_by: some_text(wire.found_by),
    }
}

pub(crate) fn required(wire: Option<v1::Member>) -> Result<Member, Error> {
    wire.map(member).ok_or(Error::Answer("member"))
}

pub(crate) fn who_am_i(wire: v1::WhoAmIResponse) -> Result<WhoAmI, Error> {
    let phase = wire.phase().into();
    Ok(WhoAmI { member: required(wire.member)?, cluster: wire.cluster, cluster_uid: wire.cluster_uid, phase })
}

pub(crate) fn leader(wire: v1::LeaderResponse) -> Result<Leader, Error> {
    Ok(Leader { member: wire.leader.map(member).ok_or(Error::Answer("leader"))?, is_me: wire.is_me })
}

pub(crate) fn status(wire: v1::StatusResponse) -> Result<Status, Error> {
    Ok(Status {
        phase: wire.phase().into(),
        member: required(wire.member)?,
        keys: wire.keys,
        tombstones: wire.tombstones,
        memory_bytes: wire.memory_bytes,
        max_memory_bytes: (wire.max_memory_bytes > 0).then_some(wire.max_memory_bytes),
        fingerprint: wire.fingerprint,
        lag: kv::duration(wire.lag, "valid lag")?,
        discovery: wire
            .discovery
            .into_iter()
            .map(|v1::DiscoveryStatus { provider, found, error, failures, members }| DiscoveryStatus {
                provider,
                found,
                error: some_text(error),
                failures,
                members,
            })
            .collect(),
        seats: wire.seats.into_iter().collect(),
        collected_age: kv::duration(wire.collected_age, "valid collected_age")?,
        overfull: wire.overfull,
        returns: wire.returns,
        skewed: wire.skewed.into_iter().map(|v1::SkewedPeer { name, reason }| SkewedPeer { name, reason }).collect(),
        founded_at: wire.founded_at.and_then(|at| SystemTime::try_from(at).ok()),
        unjoinable: wire
            .unjoinable
            .into_iter()
            .map(|v1::UnjoinablePeer { address, name, reason, why }| UnjoinablePeer {
                address,
                name: some_text(name),
                reason,
                why,
            })
            .collect(),
        waits_for: wire.waits_for,
    })
}

fn some_text(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}
