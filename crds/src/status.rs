//! What the operator reports of a `KvCluster`.
//!
//! Knows nothing of how the numbers are found.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Types of conditions, as `kubectl wait --for=condition=…` takes them.
pub mod condition {
    /// The cluster serves: it was complete once, and at least one member is ready.
    pub const AVAILABLE: &str = "Available";
    /// A change that was asked for is under way.
    pub const PROGRESSING: &str = "Progressing";
    /// Something is wrong that a person may have to mend; the message says what. Unknown: not everything could be looked at.
    pub const DEGRADED: &str = "Degraded";
    /// Any one pod or Kubernetes node may fail and no key is lost.
    pub const REDUNDANT: &str = "Redundant";
    /// No member can be killed for the memory that it takes before it is full and refuses writes.
    pub const MEMORY_BOUNDED: &str = "MemoryBounded";
}

/// What the operator last saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KvClusterStatus {
    /// Available: the cluster serves. Progressing: a change is under way. Degraded: something is wrong; the message says
    /// what and what to do. Redundant: any one pod or Kubernetes node may fail and no key is lost. `MemoryBounded`: a member
    /// that is full refuses writes before it is killed for its memory.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The generation of the spec that this status speaks of.
    #[serde(default)]
    pub observed_generation: i64,
    /// Member pods that exist.
    #[serde(default)]
    pub replicas: i32,
    /// Member pods that are ready.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Ready members of those wanted, such as 3/3.
    #[serde(default)]
    pub ready: String,
    /// Label selector of the member pods, for the scale subresource.
    #[serde(default)]
    pub selector: String,
    /// One line for each member pod, in order of their numbers.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub members: Vec<MemberStatus>,
    /// Keys that the cluster holds: the most that any member counts. Unset while no member answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<i64>,
    /// The map that the members hold, as last seen: it stays while no member answers. Unset before a member has told of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataStatus>,
    /// Whether all members are ready and hold the same, or lag less than two seconds behind.
    #[serde(default)]
    pub converged: bool,
    /// Version that the members run; several, with commas, while they differ.
    #[serde(default)]
    pub version: String,
    /// Application pods of this cluster, with and without their sidecar.
    #[serde(default)]
    pub sidecars: SidecarStatus,
    /// The keys that members encrypt with. Unset without encryption, and while no member answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<EncryptionStatus>,
}

/// The map that the members hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataStatus {
    /// When the map was founded: it holds what was written since, and nothing older. Another moment than before: the former
    /// map is gone (see lost), or two maps that were apart were merged.
    pub founded_at: MicroTime,
    /// Keys that the map held when it was last seen.
    #[serde(default)]
    pub keys: i64,
    /// The last map of this cluster that was lost with keys in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<LostData>,
}

/// A map that is gone: the members that held it ended, and others began an empty one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LostData {
    /// When the lost map was founded.
    pub founded_at: MicroTime,
    /// Keys that it held when it was last seen.
    #[serde(default)]
    pub keys: i64,
    /// When the operator found it gone.
    pub noticed_at: Time,
}

/// The keys that members encrypt with, by names that tell nothing of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EncryptionStatus {
    /// The key that members seal with; several, with commas, while they differ.
    #[serde(default)]
    pub primary: String,
    /// The keys that every member opens.
    #[serde(default)]
    pub keys: Vec<String>,
    /// Whether all members that should be there have the same keys in the same order: the next step of an exchange may be
    /// taken once the sidecars, which are not asked, had their time too.
    #[serde(default)]
    pub settled: bool,
}

/// One member pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// Name of the pod.
    pub name: String,
    /// Whether Kubernetes counts the pod as ready.
    #[serde(default)]
    pub ready: bool,
    /// Whether the member says that it holds what its peers hold.
    #[serde(default)]
    pub synced: bool,
    /// Keys that the member holds. Unset while it does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<i64>,
    /// How far the member is behind its peers, in milliseconds, rounded to whole seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_ms: Option<i64>,
    /// Version that the member runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Kubernetes node that the pod runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Identity of the member's process; a new one at each start. As last told, while the member does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// When the map that the member holds was founded. As last told, while the member does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub founded_at: Option<MicroTime>,
    /// Since when the member does not answer though its pod is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_since: Option<Time>,
    /// When the member's container was last killed for want of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_killed_at: Option<Time>,
    /// Ways of discovery by which the other members found it, with commas. Unset: none of them did, or none says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found_by: Option<String>,
}

/// Application pods labelled for this cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SidecarStatus {
    /// Pods that have their sidecar.
    #[serde(default)]
    pub injected: i32,
    /// Pods that came through without: delete them, so that they are made anew with one.
    #[serde(default)]
    pub missing: i32,
    /// Pods whose sidecar does not run: see the Degraded condition.
    #[serde(default)]
    pub failing: i32,
    /// When a sidecar was last killed for want of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_killed_at: Option<Time>,
    /// Pods whose sidecar is of an earlier `KvCluster` of this name: delete them, so that they are created again.
    #[serde(default)]
    pub stale: i32,
}
