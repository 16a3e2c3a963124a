//! The status of a `KvCluster`, as the operator reports it.
//!
//! Knows nothing of how the figures come about.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Types of conditions, for `kubectl wait --for=condition=…`.
pub mod condition {
    /// The cluster serves: it was complete once, and at least one member is ready.
    pub const AVAILABLE: &str = "Available";
    /// A change of the spec is under way.
    pub const PROGRESSING: &str = "Progressing";
    /// Something is wrong that a person may have to fix; the message says what. Unknown: not everything could be read.
    pub const DEGRADED: &str = "Degraded";
    /// Any one pod or Kubernetes node may fail without the loss of a key.
    pub const REDUNDANT: &str = "Redundant";
    /// Each member refuses writes before it is killed for its memory.
    pub const MEMORY_BOUNDED: &str = "MemoryBounded";
}

/// What the operator last observed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KvClusterStatus {
    /// Available: the cluster serves. Progressing: a change is under way. Degraded: something is wrong; the message says
    /// what and what to do. Redundant: any one pod or Kubernetes node may fail without the loss of a key. `MemoryBounded`: each
    /// member refuses writes before it is killed for its memory.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The generation of the spec that this status is about.
    #[serde(default)]
    pub observed_generation: i64,
    /// Number of member pods.
    #[serde(default)]
    pub replicas: i32,
    /// Number of ready member pods.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Ready and desired members, such as 3/3.
    #[serde(default)]
    pub ready: String,
    /// Label selector of the member pods, for the scale subresource.
    #[serde(default)]
    pub selector: String,
    /// The member pods, by their numbers.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub members: Vec<MemberStatus>,
    /// Number of keys: the largest that a member reports. Unset while no member answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<i64>,
    /// The map that the members hold, as last reported. Unset until a member reports one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataStatus>,
    /// Whether all members are ready and hold the same keys, or lag behind by less than two seconds.
    #[serde(default)]
    pub converged: bool,
    /// Version of the members; several, with commas, while they differ.
    #[serde(default)]
    pub version: String,
    /// Application pods that ask for a sidecar of this cluster.
    #[serde(default)]
    pub sidecars: SidecarStatus,
    /// The keys that members encrypt with. Unset without encryption and while no member answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<EncryptionStatus>,
}

/// The map that the members hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataStatus {
    /// When the map was founded; it holds only what was written since. If this changes, the earlier map was lost (see lost), or
    /// two separate maps were merged.
    pub founded_at: MicroTime,
    /// Number of keys when the map was last reported.
    #[serde(default)]
    pub keys: i64,
    /// The last map with keys that was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<LostData>,
}

/// A lost map: all members that held it ended, and others founded an empty one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LostData {
    /// When the lost map was founded.
    pub founded_at: MicroTime,
    /// Number of its keys when it was last reported.
    #[serde(default)]
    pub keys: i64,
    /// When the operator noticed the loss.
    pub noticed_at: Time,
}

/// The keys that members encrypt with, by names that do not reveal them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EncryptionStatus {
    /// The key that members encrypt with; several, with commas, while they differ.
    #[serde(default)]
    pub primary: String,
    /// The keys that every member can decrypt with.
    #[serde(default)]
    pub keys: Vec<String>,
    /// Whether all desired members have the same keys in the same order. Then the next step of a key exchange can follow, after
    /// some time for the sidecars, which do not report here.
    #[serde(default)]
    pub settled: bool,
}

/// A member pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// Name of the pod.
    pub name: String,
    /// Whether the pod is ready.
    #[serde(default)]
    pub ready: bool,
    /// Whether the member reports that it holds what its peers hold.
    #[serde(default)]
    pub synced: bool,
    /// Number of keys. Unset while the member does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<i64>,
    /// How far the member is behind its peers, in milliseconds, rounded to whole seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_ms: Option<i64>,
    /// Version of the member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Kubernetes node of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Origin of the member, new at each start. Kept from the last answer while the member does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// When the map of the member was founded. Kept from the last answer while the member does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub founded_at: Option<MicroTime>,
    /// Since when the member does not answer although its pod is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_since: Option<Time>,
    /// When the member's container was last killed because it was out of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_killed_at: Option<Time>,
    /// Discovery providers by which the other members found it, with commas. Unset: no member reports one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found_by: Option<String>,
}

/// Application pods labelled for this cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SidecarStatus {
    /// Pods with their sidecar.
    #[serde(default)]
    pub injected: i32,
    /// Pods without a sidecar: delete them, so that they are created again with one.
    #[serde(default)]
    pub missing: i32,
    /// Pods whose sidecar does not run: see the Degraded condition.
    #[serde(default)]
    pub failing: i32,
    /// When a sidecar was last killed because it was out of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_killed_at: Option<Time>,
    /// Pods whose sidecar belongs to an earlier `KvCluster` of this name: delete them, so that they are created again.
    #[serde(default)]
    pub stale: i32,
}
