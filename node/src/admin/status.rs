//! The document at `/status`, which the operator reads from every member.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::engine::{Epoch, SEAT_STATES};
use crate::overview::{KnownNode, Overview};
use crate::refusals::Refusal;
use crate::reload::Reload;
use crate::tls::Expiry;

/// The state of a node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The node's name: on Kubernetes the pod's.
    pub name: String,
    /// `member` or `sidecar`.
    pub role: &'static str,
    /// The name of the node's cluster.
    pub cluster: String,
    /// The UID of the node's cluster; empty if it has none.
    pub cluster_uid: String,
    /// Whether this node hears only of another cluster of that name, because its own cluster was deleted.
    pub stale: bool,
    /// The process's origin: 16 hexadecimal digits.
    pub origin: String,
    /// The node's release.
    pub version: String,
    /// `joining`, `syncing`, `ready` or `draining`.
    pub phase: &'static str,
    /// Why the node is in that phase, for a person.
    pub reason: String,
    /// When the process started, milliseconds since 1970.
    pub started_at_ms: u64,
    /// Origins of this process before it rejoined, latest last, at most eight. It kept the writes of those origins as
    /// its backlog.
    pub former_origins: Vec<String>,
    /// The epoch of the node's map; `null` while it has no map. If the epoch changes, the former map was lost, or the two
    /// maps were merged.
    pub founding: Option<EpochStatus>,
    /// Live keys.
    pub keys: u64,
    /// Deleted and expired keys whose tombstone is kept.
    pub tombstones: u64,
    /// Accounted memory of keys and values.
    pub memory_bytes: u64,
    /// The limit on that; 0 without a limit.
    pub max_memory_bytes: u64,
    /// Where that limit comes from: `setting`, `limit` (that of the process), or `none`.
    pub max_memory_from: &'static str,
    /// The memory limit of the process; `null` if none is known.
    pub process_limit_bytes: Option<u64>,
    /// Why the kernel may kill the process for its memory, and what to do about it.
    pub memory_concern: Option<String>,
    /// Whether writes are refused for lack of memory.
    pub full: bool,
    /// Equal on nodes with equal maps: 32 hexadecimal digits.
    pub fingerprint: String,
    /// How far the node may be behind its linked peers; `null` without a peer.
    pub lag_ms: Option<u64>,
    /// Seats of the roster in each state.
    pub seats: BTreeMap<&'static str, usize>,
    /// The age of the GC watermark, up to which deletes are collected; `null` while there is none.
    pub collected_age_ms: Option<u64>,
    /// Whether a peer's write found no room recently, so that this node lacks it.
    pub overfull: bool,
    /// How often this node was reset and rejoined with a new origin.
    pub returns: u64,
    /// Nodes refused because their clock and this node's are too far apart.
    pub skewed: Vec<SkewedStatus>,
    /// Peers that this node cannot talk to.
    pub unjoinable: Vec<UnjoinableStatus>,
    /// What a node that is not ready waits for besides those peers: a line each.
    pub waits_for: Vec<String>,
    /// The keys of the peer port; `null` without encryption.
    pub encryption: Option<EncryptionStatus>,
    /// Files that are reloaded when they change, by use.
    pub reloads: BTreeMap<&'static str, ReloadStatus>,
    /// This node's certificates, by use: `client` for the client port, `peer` for links.
    pub certificates: BTreeMap<&'static str, CertificateStatus>,
    /// The other nodes, eldest first.
    pub peers: Vec<PeerStatus>,
    /// The discovery providers.
    pub discovery: Vec<ProviderStatus>,
}

/// The epoch of a map.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EpochStatus {
    /// When the map was founded, milliseconds since 1970.
    pub at_ms: u64,
    /// The origin of the process that founded the map.
    pub by: String,
}

/// A node without a link because its clock and this node's are too far apart.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SkewedStatus {
    /// The node's name.
    pub name: String,
    /// How far the clocks are apart, and what to do about it.
    pub reason: String,
}

/// A peer that this node cannot talk to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UnjoinableStatus {
    /// The peer's address, `ip:port`. The port is 0 if the peer dialled, because the port it listens on is unknown.
    pub address: String,
    /// The peer's name, if it is known.
    pub name: Option<String>,
    /// `key`, `plaintext`, `encrypted`, `certificate`, `version`, `clock` or `cluster`.
    pub reason: &'static str,
    /// The reason in words, with what to do about it.
    pub why: String,
}

impl From<Refusal> for UnjoinableStatus {
    fn from(Refusal { address, name, reason, why }: Refusal) -> Self {
        Self { address: address.to_string(), name, reason: reason.as_str(), why }
    }
}

/// The keys of the peer port. Their names are equal on all nodes and reveal nothing of the keys.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EncryptionStatus {
    /// The key that encrypts.
    pub primary: String,
    /// All keys that decrypt, the primary key first.
    pub keys: Vec<String>,
}

/// A certificate in use.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateStatus {
    /// When the first certificate of its chain expires, milliseconds since 1970.
    pub not_after_ms: u64,
}

/// The state of reloading some files.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReloadStatus {
    /// How often changed files were loaded.
    pub times: u64,
    /// Why the current files cannot be loaded.
    pub error: Option<String>,
}

/// Another node, as it is known here.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// The node's name.
    pub name: String,
    /// The process's origin.
    pub origin: String,
    /// `member` or `sidecar`.
    pub role: &'static str,
    /// Where peers reach it, `ip:port`.
    pub address: String,
    /// `alive` or `suspect`.
    pub state: &'static str,
    /// Whether a replication link to it is up.
    pub linked: bool,
    /// The discovery provider that found its address; `null` if only other members announced it.
    pub found_by: Option<&'static str>,
}

/// The last answer of a discovery provider.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProviderStatus {
    /// `kubernetes`, `dns`, `static`, ...
    pub provider: &'static str,
    /// How many addresses it found in the last round, this node's included.
    pub found: u32,
    /// Why the last round failed.
    pub error: Option<String>,
    /// How many rounds failed.
    pub failures: u64,
    /// The names of the members that it found, this node included.
    pub members: Vec<String>,
}

impl Status {
    /// The status now.
    pub fn of(overview: &Overview) -> Self {
        let me = overview.me().id;
        let (stats, memory) = (overview.stats(), overview.memory());
        Self {
            name: me.name,
            role: me.role.as_str(),
            cluster: overview.cluster().to_owned(),
            cluster_uid: overview.cluster_uid().to_owned(),
            stale: overview.is_stale(),
            origin: format!("{:016x}", me.origin),
            version: me.version,
            phase: overview.phase().as_str(),
            reason: overview.reason(),
            started_at_ms: me.started_ms,
            former_origins: stats.former_origins.iter().map(|origin| format!("{origin:016x}")).collect(),
            founding: stats
                .epoch
                .map(|Epoch { founded_ms, founder }| EpochStatus { at_ms: founded_ms, by: format!("{founder:016x}") }),
            keys: stats.keys,
            tombstones: stats.tombstones,
            memory_bytes: stats.memory_bytes,
            max_memory_bytes: stats.max_memory.unwrap_or(0),
            max_memory_from: memory.from.as_str(),
            process_limit_bytes: memory.limit.as_ref().map(|limit| limit.bytes),
            memory_concern: memory.concern.clone(),
            full: stats.full,
            fingerprint: format!("{:032x}", stats.fingerprint),
            lag_ms: stats.lag.map(|lag| lag.as_millis() as u64),
            seats: SEAT_STATES.iter().map(|(_, name)| *name).zip(stats.seats).collect(),
            collected_age_ms: stats.collected_age.map(|age| age.as_millis() as u64),
            overfull: stats.overfull,
            returns: stats.counters.returns,
            skewed: overview.skewed().into_iter().map(|(name, reason)| SkewedStatus { name, reason }).collect(),
            unjoinable: overview.unjoinable().into_iter().map(Into::into).collect(),
            waits_for: overview.waits_for(),
            encryption: overview.keys().map(|names| {
                let keys: Vec<_> = names.iter().map(ToString::to_string).collect();
                EncryptionStatus { primary: keys[0].clone(), keys }
            }),
            reloads: overview
                .reloads()
                .into_iter()
                .map(|(what, Reload { times, error })| (what, ReloadStatus { times, error }))
                .collect(),
            certificates: overview
                .expiries()
                .into_iter()
                .map(|(of, Expiry { not_after_ms })| (of, CertificateStatus { not_after_ms }))
                .collect(),
            peers: overview.peers().into_iter().map(PeerStatus::of).collect(),
            discovery: overview
                .discovery()
                .providers
                .iter()
                .map(|p| ProviderStatus {
                    provider: p.provider,
                    found: p.found(),
                    error: p.error.clone(),
                    failures: p.failures,
                    members: overview.found_by(p),
                })
                .collect(),
        }
    }
}

impl PeerStatus {
    fn of(node: KnownNode) -> Self {
        let KnownNode { id, state, linked, found_by } = node;
        Self {
            name: id.name,
            origin: format!("{:016x}", id.origin),
            role: id.role.as_str(),
            address: id.peer_address.to_string(),
            state: state.as_str(),
            linked,
            found_by,
        }
    }
}
