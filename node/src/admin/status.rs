//! The document at `/status`: the operator reads it from every member.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::engine::{Epoch, SEAT_STATES};
use crate::overview::{KnownNode, Overview};
use crate::refusals::Refusal;
use crate::reload::Reload;
use crate::tls::Expiry;

/// How a node is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Its name: on Kubernetes the pod's.
    pub name: String,
    /// `member` or `sidecar`.
    pub role: &'static str,
    /// The cluster it belongs to.
    pub cluster: String,
    /// Which of the clusters of that name; empty: there is no telling them apart.
    pub cluster_uid: String,
    /// Whether all that this node hears of is another cluster of that name: of a deleted one, this is what remains.
    pub stale: bool,
    /// The process: 16 hexadecimal digits.
    pub origin: String,
    /// Its release.
    pub version: String,
    /// `joining`, `syncing`, `ready` or `draining`.
    pub phase: &'static str,
    /// Why it is in that phase, for a person.
    pub reason: String,
    /// When its process started, milliseconds since 1970.
    pub started_at_ms: u64,
    /// Origins under which the same process ran before it rejoined, latest last, the last eight: what it held then it
    /// brought along.
    pub former_origins: Vec<String>,
    /// The founding that its map goes back to; `null` until it has a map. Another one than before: what the former map
    /// held is gone, or the two maps were merged.
    pub founding: Option<FoundingStatus>,
    /// Live keys.
    pub keys: u64,
    /// Deleted and expired keys still remembered.
    pub tombstones: u64,
    /// Accounted memory of keys and values.
    pub memory_bytes: u64,
    /// The limit on that; 0: none.
    pub max_memory_bytes: u64,
    /// What that limit comes from: `setting`, `limit` (that of the process), or `none`.
    pub max_memory_from: &'static str,
    /// The memory limit of the process; `null`: none is known.
    pub process_limit_bytes: Option<u64>,
    /// Why the kernel may end the process for the memory that it takes, and what to do.
    pub memory_concern: Option<String>,
    /// Whether writes are refused for lack of memory.
    pub full: bool,
    /// Equal on two nodes that hold the same: 32 hexadecimal digits.
    pub fingerprint: String,
    /// How long it may be behind; `null` with no peer.
    pub lag_ms: Option<u64>,
    /// Seats of the roster in each state.
    pub seats: BTreeMap<&'static str, usize>,
    /// How old the stamp is up to which deletes are forgotten; `null` while
    /// none are.
    pub collected_age_ms: Option<u64>,
    /// Whether a peer's write found no room lately: this node lacks it.
    pub overfull: bool,
    /// How often this node began anew, its life having been ended by others.
    pub returns: u64,
    /// Nodes refused because their clock and this one's are too far apart.
    pub skewed: Vec<SkewedStatus>,
    /// Peers that this node cannot talk to.
    pub unjoinable: Vec<UnjoinableStatus>,
    /// What a node that is not ready waits for, beside those: a line each.
    pub waits_for: Vec<String>,
    /// What peers encrypt with; `null`: nothing is encrypted.
    pub encryption: Option<EncryptionStatus>,
    /// Files that are read again when they change, by their use.
    pub reloads: BTreeMap<&'static str, ReloadStatus>,
    /// This node's certificates, by use: `client` for the client port, `peer`
    /// for links.
    pub certificates: BTreeMap<&'static str, CertificateStatus>,
    /// The others, eldest first.
    pub peers: Vec<PeerStatus>,
    /// The discovery providers.
    pub discovery: Vec<ProviderStatus>,
}

/// When a map began, and by whom.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FoundingStatus {
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// The process that founded it.
    pub by: String,
}

/// A node that has no link for its clock, or this one's.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SkewedStatus {
    /// Its name.
    pub name: String,
    /// How far the clocks are apart, and what to do.
    pub reason: String,
}

/// A peer that this node cannot talk to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UnjoinableStatus {
    /// Where it is, `ip:port`; with the port 0 if it came by itself, and where it listens is not known.
    pub address: String,
    /// Its name, if it is known.
    pub name: Option<String>,
    /// `key`, `plaintext`, `encrypted`, `certificate`, `version`, `clock` or `cluster`.
    pub reason: &'static str,
    /// The same in words, with what to do.
    pub why: String,
}

impl From<Refusal> for UnjoinableStatus {
    fn from(Refusal { address, name, reason, why }: Refusal) -> Self {
        Self { address: address.to_string(), name, reason: reason.as_str(), why }
    }
}

/// The keys of peers, by names that tell nothing of them and are the same on
/// all nodes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EncryptionStatus {
    /// The key that seals.
    pub primary: String,
    /// All keys that open, the primary one first.
    pub keys: Vec<String>,
}

/// A certificate in force.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateStatus {
    /// Until when it is valid, and those that it was made with, milliseconds
    /// since 1970.
    pub not_after_ms: u64,
}

/// How the following of files goes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReloadStatus {
    /// How often something new was taken.
    pub times: u64,
    /// What is wrong with what the files hold now.
    pub error: Option<String>,
}

/// Another node, as this one sees it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// Its process.
    pub origin: String,
    /// `member` or `sidecar`.
    pub role: &'static str,
    /// Where peers reach it, `ip:port`.
    pub address: String,
    /// `alive` or `suspect`.
    pub state: &'static str,
    /// Whether a replication link to it is up.
    pub linked: bool,
    /// The discovery provider that named its address; `null` when other
    /// members told of it.
    pub found_by: Option<&'static str>,
}

/// A discovery provider, as it last answered.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProviderStatus {
    /// `kubernetes`, `dns`, `static`, ...
    pub provider: &'static str,
    /// Addresses it last found, this node's own included.
    pub found: u32,
    /// Why its last round failed.
    pub error: Option<String>,
    /// How often it has failed.
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
            founding: stats.epoch.map(|Epoch { founded_ms, founder }| FoundingStatus {
                at_ms: founded_ms,
                by: format!("{founder:016x}"),
            }),
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
