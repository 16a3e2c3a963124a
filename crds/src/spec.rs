//! The spec, and the rules that the API server checks.
//!
//! Rules are CEL rather than patterns and bounds, because the message of a CEL rule can say what to do. Knows nothing of what the
//! operator builds from a spec.

// `KubeSchema` declares a copy of each struct inside a function, `pub` as the original is.
#![allow(unreachable_pub)]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{CustomResource, KubeSchema};
pub use kvasir_formats::defaults::{EMPTY_NODE_BYTES, LEAST_MEMORY_LIMIT};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{
    access::Access,
    discovery::Discovery,
    security::{Encryption, Tls},
    status::KvClusterStatus,
};

/// Longest name of a `KvCluster`: `NAME-xxxxxxxxxx` must fit into a label of the member pods.
pub const MAX_NAME: usize = 52;
/// The most members of a cluster: each has a link to every other.
pub const MAX_REPLICAS: i32 = 64;

/// The desired state of a `KvCluster`.
#[derive(Clone, Debug, PartialEq, CustomResource, KubeSchema, Serialize, Deserialize)]
#[kube(
    group = "kvasir.dev",
    version = "v1alpha1",
    kind = "KvCluster",
    plural = "kvclusters",
    singular = "kvcluster",
    shortname = "kvc",
    namespaced,
    doc = "A replicated in-memory key/value store: every member holds every key, and any member accepts writes.",
    status = "KvClusterStatus",
    derive = "PartialEq",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.ready", description = "Ready and desired members"),
    printcolumn(name = "Keys", type_ = "integer", json_path = ".status.keys", description = "Number of keys"),
    printcolumn(name = "Converged", type_ = "boolean", json_path = ".status.converged", description = "Whether all members hold the same keys"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version", description = "Version of the members"),
    printcolumn(name = "Redundant", type_ = "string", priority = 1, json_path = ".status.conditions[?(@.type=='Redundant')].status", description = "Whether any one pod or Kubernetes node may fail without the loss of a key"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 52 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("choose a metadata.name of at most 52 lower-case letters, digits and dashes that starts with a letter and ends with a letter or digit: Services and pods are named after it"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.maxMemory) || !isQuantity(self.maxMemory) || !has(self.resources) || !has(self.resources.limits) || !('memory' in self.resources.limits) || !isQuantity(string(self.resources.limits['memory'])) || !quantity(self.maxMemory).add(quantity('24Mi')).isGreaterThan(quantity(string(self.resources.limits['memory'])))")
    .message("set maxMemory at least 24Mi lower than resources.limits.memory, or leave it out to use what fits: an empty node takes that much, and would be killed before it is full"))]
#[x_kube(validation = Rule::new("has(self.maxMemory) || !has(self.resources) || !has(self.resources.limits) || !('memory' in self.resources.limits) || !isQuantity(string(self.resources.limits['memory'])) || !quantity(string(self.resources.limits['memory'])).isLessThan(quantity('50Mi'))")
    .message("set resources.limits.memory to at least 50Mi: with less a node has no room for entries and does not start"))]
#[x_kube(validation = Rule::new("has(self.encryption) == has(oldSelf.encryption) && (!has(self.encryption) || self.encryption == oldSelf.encryption)")
    .message("leave encryption as it is: members with and without it, or with other keys, cannot talk to each other, and all keys would be lost while members are replaced. To exchange keys change the Secret; to start or stop encryption create a new KvCluster"))]
#[x_kube(validation = Rule::new("!has(self.encryption) || !has(self.tls) || !has(self.tls.peers) || !self.tls.peers")
    .message("give one of encryption and tls.peers: true, not both: either protects the links between nodes"))]
#[x_kube(validation = Rule::new("(has(self.tls) && has(self.tls.peers) && self.tls.peers) == (has(oldSelf.tls) && has(oldSelf.tls.peers) && oldSelf.tls.peers) && (!has(self.tls) || !has(self.tls.peers) || !self.tls.peers || self.tls == oldSelf.tls)")
    .message("leave tls.peers as it is, and with peers: true all of tls: members with and without it, or of another authority, cannot talk to each other, and all keys would be lost while members are replaced. Create a new KvCluster instead"))]
#[x_kube(validation = Rule::new("!has(self.access) || !has(self.access.clientCaSecret) || (has(self.tls) && (!has(self.tls.client) || self.tls.client))")
    .message("set tls on the client port for access.clientCaSecret: clients present certificates over TLS"))]
pub struct KvClusterSpec {
    /// Number of members, from 1 to 64. Every member holds every key.
    #[serde(default = "default_replicas")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 64")
        .message("set replicas to a number from 1 to 64: every member has a link to every other, and without members nothing is stored"))]
    pub replicas: i32,
    /// Image of the members and sidecars. Unset: the operator's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    #[x_kube(validation = Rule::new("self.matches('^[^\\\\s]+$')")
        .message("set image to a reference such as registry.example/kvasir:0.1.0, or leave it out for the operator's own"))]
    pub image: Option<String>,
    /// Resources of each member and each sidecar. Unset: requests of 50m CPU and 64Mi memory for a member, of 10m and 32Mi for a
    /// sidecar, and no limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// How often nodes compare what they hold, from 100ms to 60s. Writes are sent at once; the comparison repairs what was lost.
    #[serde(default = "default_sync_interval")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]+(ms|s|m|h))+$')")
        .message("write syncInterval as whole numbers with a unit (ms, s, m, h), such as 500ms or 1s"))]
    #[x_kube(validation = Rule::new("!self.matches('^([0-9]+(ms|s|m|h))+$') || (duration(self) >= duration('100ms') && duration(self) <= duration('60s'))")
        .message("set syncInterval to at least 100ms and at most 60s"))]
    pub sync_interval: String,
    /// Memory for entries on each node, such as 256Mi. A full node refuses writes and still answers reads. Unset: what fits
    /// into the memory limit of the node's container. Without a memory limit entries are not limited, and the condition
    /// `MemoryBounded` is False.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("isQuantity(self)")
        .message("write maxMemory as a quantity such as 256Mi or 1Gi"))]
    #[x_kube(validation = Rule::new("!isQuantity(self) || quantity(self).compareTo(quantity('1Mi')) >= 0")
        .message("set maxMemory to at least 1Mi, or leave it out to use what fits into resources.limits.memory"))]
    pub max_memory: Option<String>,
    /// What a node at maxMemory does with a write: noeviction refuses the write; ttl-first deletes values with a TTL on all
    /// nodes, those that end first going first. Unset: noeviction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self in ['noeviction', 'ttl-first']")
        .message("set maxMemoryPolicy to noeviction or ttl-first, or leave it out for noeviction"))]
    pub max_memory_policy: Option<String>,
    /// How long a node may be unreachable, from 10s to 24h, before a majority of the members evicts it. Only then can deletes be
    /// collected that the node has not received. An evicted node rejoins as a new node. Unset: 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]+(ms|s|m|h))+$')")
        .message("write evictAfter as whole numbers with a unit (ms, s, m, h), such as 90s or 5m"))]
    #[x_kube(validation = Rule::new("!self.matches('^([0-9]+(ms|s|m|h))+$') || (duration(self) >= duration('10s') && duration(self) <= duration('24h'))")
        .message("set evictAfter to at least 10s and at most 24h"))]
    pub evict_after: Option<String>,
    /// How members find each other: one provider, or several together. Unset: kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discovery: Option<Discovery>,
    /// How long a starting member waits for members that it cannot reach, from 0s to 90s; then a majority of the members starts
    /// without the rest. Unset: 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]+(ms|s|m|h))+$') && duration(self) <= duration('90s')")
        .message("set joinTimeout to at most 90s, such as 500ms or 10s"))]
    pub join_timeout: Option<String>,
    /// Whether a member that finds no ready member within `joinTimeout` becomes ready with an empty map, although others may hold
    /// one; it keeps looking for them. Unset: no. With `replicas: 1` there are no others, and the member starts in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serve_alone: Option<bool>,
    /// The keys that nodes, including sidecars, use to encrypt what they send each other; fixed once the cluster is created.
    /// Unset: no encryption.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// The certificate for TLS on the client port and for mutual TLS between nodes. Unset: no TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// How clients of members authenticate, and what they may do. Unset: all clients may do everything without authentication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
}

impl Default for KvClusterSpec {
    fn default() -> Self {
        Self {
            replicas: default_replicas(),
            image: None,
            resources: None,
            sync_interval: default_sync_interval(),
            max_memory: None,
            max_memory_policy: None,
            evict_after: None,
            discovery: None,
            join_timeout: None,
            serve_alone: None,
            encryption: None,
            tls: None,
            access: None,
        }
    }
}

fn default_replicas() -> i32 {
    3
}

fn default_sync_interval() -> String {
    "1s".to_owned()
}

/// Requests and limits of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What the container is guaranteed, such as cpu: 100m and memory: 128Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "quantities")]
    #[x_kube(validation = Rule::new("self.all(name, isQuantity(string(self[name])) && !quantity(string(self[name])).isLessThan(quantity('0')))")
        .message("write every request as a quantity that is not negative, such as cpu: 100m or memory: 128Mi"))]
    pub requests: Option<BTreeMap<String, Quantity>>,
    /// The most that the container may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "quantities")]
    #[x_kube(validation = Rule::new("self.all(name, isQuantity(string(self[name])) && !quantity(string(self[name])).isLessThan(quantity('0')))")
        .message("write every limit as a quantity that is not negative, such as cpu: 100m or memory: 128Mi"))]
    pub limits: Option<BTreeMap<String, Quantity>>,
}

/// A map of quantities. The type's own schema describes a quantity in 40 lines without bounds, so that no CEL rule over it fits
/// into the API server's cost budget.
fn quantities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": { "x-kubernetes-int-or-string": true, "maxLength": 32 },
    })
}
