//! What the operator reports of a `KvCluster`.
//!
//! Knows nothing of how the numbers are found.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Types of conditions, as `kubectl wait --for=condition=…` takes them.
pub mod condition {
    /// The cluster serves: it was complete once, and at least one member is ready.
    pub const AVAILABLE: &str = "Available";
    /// A change that was asked for is under way.
    pub const PROGRESSING: &str = "Progressing";
    /// Something is wrong that a person may have to mend; the message says what.
    pub const DEGRADED: &str = "Degraded";
}

/// What the operator last saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KvClusterStatus {
    /// Available: the cluster serves. Progressing: a change is under way. Degraded: something is wrong; the message says
    /// what and what to do.
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
    /// Identity of the member's process; a new one at each start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// Ways of discovery by which the other members found it, with commas. Unset: none of them did, or none says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found_by: Option<String>,
}

/// Application pods labelled for this cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SidecarStatus {
    /// Pods that have their sidecar.
    #[serde(default)]
    pub injected: i32,
    /// Pods that came through without: delete them, so that they are made anew with one.
    #[serde(default)]
    pub missing: i32,
    /// Pods whose sidecar is of an earlier `KvCluster` of this name: delete them, so that they are created again.
    #[serde(default)]
    pub stale: i32,
}
