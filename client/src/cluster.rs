//! The cluster calls, their types, and how they are read from the wire.

use crate::Error;
use crate::client::Client;
use crate::kv;
use kvasir_proto::v1;
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

/// What a node is to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// A node of the cluster proper.
    Member,
    /// A full replica beside an application; never leads, never votes.
    Sidecar,
    /// One that this release does not know.
    Unknown,
}

/// Where a node is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Looking for peers.
    Joining,
    /// Taking in what its peers hold.
    Syncing,
    /// Serves reads and writes.
    Ready,
    /// Was told to stop: serves reads, refuses writes.
    Draining,
    /// One that this release does not know.
    Unknown,
}

/// How sure the answering node is that a member is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MemberState {
    /// It answers.
    Alive,
    /// It did not answer, and is given up on soon unless it objects.
    Suspect,
    /// One that this release does not know.
    Unknown,
}

/// A node of the cluster as another one sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name: on Kubernetes the pod's.
    pub name: String,
    /// Which life of the node it is: a random number drawn at its start, and again whenever it begins anew
    /// ([`Status::returns`]), as 16 hexadecimal digits.
    pub origin: String,
    /// What it is to the cluster.
    pub role: Role,
    /// Where its peers reach it, `ip:port`.
    pub peer_address: String,
    /// Whether it is alive.
    pub state: MemberState,
    /// When this life of it began, by its own clock.
    pub started_at: Option<SystemTime>,
    /// Its release.
    pub version: String,
    /// Whether a replication link to it is up.
    pub linked: bool,
    /// Which discovery provider named it first; none when other members told of it.
    pub found_by: Option<String>,
}

/// The node that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WhoAmI {
    /// The node as its peers see it.
    pub member: Member,
    /// The cluster that it belongs to.
    pub cluster: String,
    /// Which of the clusters of that name: on Kubernetes the `KvCluster`'s UID. Empty: it has none.
    pub cluster_uid: String,
    /// Where it is in its life.
    pub phase: Phase,
}

/// The eldest member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// Who that is.
    pub member: Member,
    /// Whether it is the node that answered.
    pub is_me: bool,
}

/// The health of the node that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The node.
    pub member: Member,
    /// Where it is in its life.
    pub phase: Phase,
    /// Live keys.
    pub keys: u64,
    /// Deleted and expired keys still remembered.
    pub tombstones: u64,
    /// The memory that keys and values account for, in bytes.
    pub memory_bytes: u64,
    /// The limit on it, if there is one.
    pub max_memory_bytes: Option<u64>,
    /// Equal on two nodes that hold the same.
    pub fingerprint: String,
    /// How far behind its peers the node may be; none when it has no peer.
    pub lag: Option<Duration>,
    /// Each way by which it looks for peers.
    pub discovery: Vec<DiscoveryStatus>,
    /// How many seats of the roster are in each state: `joining`, `member`, `evicted` and `ended`.
    pub seats: BTreeMap<String, u32>,
    /// How old the stamp is up to which deletes are forgotten; none while none are.
    pub collected_age: Option<Duration>,
    /// Whether a peer's write found no room lately: the node lacks it.
    pub overfull: bool,
    /// How often the node began anew since its process started, its life having been ended by others.
    pub returns: u64,
    /// The nodes that it refuses because their clock and its own are too far apart.
    pub skewed: Vec<SkewedPeer>,
    /// When the map that the node holds was founded; none until it has one. Later than before: the former map is gone, or
    /// two maps were merged.
    pub founded_at: Option<SystemTime>,
    /// The peers that it heard of in the last half minute and cannot talk to.
    pub unjoinable: Vec<UnjoinablePeer>,
    /// What it waits for while it is not ready, beside those, a line each.
    pub waits_for: Vec<String>,
}

/// A peer that the answering node cannot talk to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnjoinablePeer {
    /// Where it is, `ip:port`; with the port 0 if it came by itself, and where it listens is not known.
    pub address: String,
    /// Its name, if it is known.
    pub name: Option<String>,
    /// What is the matter, in a word: `key`, `plaintext`, `encrypted`, `certificate`, `version`, `clock`, `cluster`, or what
    /// a later release has.
    pub reason: String,
    /// The same in words, with what to do.
    pub why: String,
}

/// A node that is refused because its clock and the answering one's are too far apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkewedPeer {
    /// The node's name.
    pub name: String,
    /// How far the clocks are apart, and what to do.
    pub reason: String,
}

/// One way of looking for peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveryStatus {
    /// `kubernetes`, `nats`, `dns`, `static`, or the name of a provider of the user's own.
    pub provider: String,
    /// How many addresses it last found.
    pub found: u32,
    /// Why its last round failed, if it did.
    pub error: Option<String>,
    /// How often it has failed since the node started.
    pub failures: u64,
    /// The names of the members that it found, the node itself included.
    pub members: Vec<String>,
}

impl Client {
    /// All nodes that the answering one knows to be alive or suspects, itself included, eldest first.
    pub async fn members(&self) -> Result<Vec<Member>, Error> {
        let answer = self
            .call(|via| {
                let mut cluster = self.cluster(via);
                async move { cluster.members(v1::MembersRequest {}).await }
            })
            .await?;
        Ok(answer.members.into_iter().map(member).collect())
    }

    /// The health of the answering node.
    pub async fn status(&self) -> Result<Status, Error> {
        let answer = self
            .call(|via| {
                let mut cluster = self.cluster(via);
                async move { cluster.status(v1::StatusRequest {}).await }
            })
            .await?;
        status(answer)
    }

    /// The answering node.
    pub async fn who_am_i(&self) -> Result<WhoAmI, Error> {
        let answer = self
            .call(|via| {
                let mut cluster = self.cluster(via);
                async move { cluster.who_am_i(v1::WhoAmIRequest {}).await }
            })
            .await?;
        who_am_i(answer)
    }

    /// The eldest member, as the answering node sees it.
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
        collected_age: kv::duration(wire.collected_age, "valid age of what is forgotten")?,
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
