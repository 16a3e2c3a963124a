//! The part of the spec about discovery, with the names of the node's own settings.
//!
//! Knows nothing of how members implement it. A field that is left out has the node's default, or a value that only the
//! operator knows.

// `KubeSchema` declares a copy of each struct inside a function, `pub` as the original is.
#![allow(unreachable_pub)]

use std::collections::BTreeMap;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// How members find each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.kubernetes) || has(self.nats) || has(self.dns) || has(self.static)")
    .message("give at least one of kubernetes, nats, dns and static under discovery, or leave discovery out for kubernetes"))]
pub struct Discovery {
    /// Members watch the pods of their cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<KubernetesDiscovery>,
    /// Members meet on a NATS subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nats: Option<NatsDiscovery>,
    /// Members look up a DNS name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<DnsDiscovery>,
    /// Members have a fixed list.
    #[serde(default, rename = "static", skip_serializing_if = "Option::is_none")]
    pub fixed: Option<StaticDiscovery>,
}

/// Discovery by watching pods. Nothing needs to be set: the operator knows its members' namespace, labels and ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct KubernetesDiscovery {
    /// Namespace of the pods. If it is not the cluster's own, it needs a Role that lets the members' `ServiceAccount` get, list
    /// and watch pods there. Unset: the cluster's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// Name of the container port that peers listen on. Unset: peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15))]
    pub discovery_port_name: Option<String>,
    /// Name of the container port that clients use. Unset: client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15))]
    pub port_name: Option<String>,
    /// Labels of the pods. Unset: those of the cluster's members.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minProperties" = 1, "maxProperties" = 16))]
    pub pod_labels: Option<BTreeMap<String, String>>,
}

/// Discovery over NATS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.user) == has(self.passwordSecret)")
    .message("give user and passwordSecret together, or neither"))]
#[x_kube(validation = Rule::new("[has(self.user), has(self.tokenSecret), has(self.credentialsSecret)].filter(given, given).size() <= 1")
    .message("give one way to log in: user and passwordSecret, or tokenSecret, or credentialsSecret"))]
pub struct NatsDiscovery {
    /// URLs of the NATS servers, such as `nats://nats.default.svc:4222`, or with `tls://` for encryption. The first server that
    /// answers is used.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 512)))]
    #[x_kube(validation = Rule::new("self.all(url, url.matches('^(nats|tls)://[^@/]+$'))")
        .message("write every server as nats://HOST:4222 or tls://HOST:4222, without user and password: put those into user and passwordSecret"))]
    pub server: Vec<String>,
    /// Subject on which the members of this cluster, and no others, find each other. Unset: `kvasir.NAMESPACE.NAME.UID`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(validation = Rule::new("self.matches('^[^\\\\s.*>]+([.][^\\\\s.*>]+)*$')")
        .message("write subject as words with dots between them, without * and >, such as kvasir.demo"))]
    pub subject: Option<String>,
    /// How long to wait for a server's answer, from 10ms to 1m. Unset: 5s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]+(ms|s|m|h))+$') && duration(self) >= duration('10ms') && duration(self) <= duration('1m')")
        .message("set timeout to at least 10ms and at most 1m, such as 500ms or 5s"))]
    pub timeout: Option<String>,
    /// How many attempts to connect are `reconnectWait` apart. After that the wait doubles each time, up to 30s, without an end
    /// of the attempts. Unset: 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_join_attempts: Option<i32>,
    /// How long to wait between two attempts to connect, from 10ms to 5m. Unset: 2s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]+(ms|s|m|h))+$') && duration(self) >= duration('10ms') && duration(self) <= duration('5m')")
        .message("set reconnectWait to at least 10ms and at most 5m, such as 500ms or 2s"))]
    pub reconnect_wait: Option<String>,
    /// Peer port that members announce. Unset: their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub discovery_port: Option<i32>,
    /// Name or address that every member announces. Leave it unset unless all members are reached through one address. Unset:
    /// each member's own address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub host: Option<String>,
    /// User to log in as; with `passwordSecret`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub user: Option<String>,
    /// Key of a Secret with the user's password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_secret: Option<SecretKey>,
    /// Key of a Secret with the token to log in with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret: Option<SecretKey>,
    /// Key of a Secret with the credentials (JWT and seed) to log in with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret: Option<SecretKey>,
    /// Key of a Secret with the authorities of the servers' certificates. The image contains no authorities, so `tls://` needs
    /// it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret: Option<SecretKey>,
}

/// A key of a Secret in the cluster's namespace. It is mounted, so a change of the Secret needs no restart of the members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKey {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// Discovery by DNS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.port) || !has(self.domainName) || !self.domainName.startsWith('_')")
    .message("leave out port: a domainName that begins with _ names SRV records, which contain the port"))]
pub struct DnsDiscovery {
    /// Name whose addresses are the members', or name of SRV records that list the members, such as
    /// `_peer._tcp.demo-peers.default.svc`. Unset: the name of the cluster's own headless Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub domain_name: Option<String>,
    /// Whether to look up IPv6 addresses too. Unset: no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<bool>,
    /// Peer port of the members. Unset: 7071.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<i32>,
    /// DNS servers, as IP:PORT. Unset: those of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8), inner(length(min = 1, max = 64)))]
    pub server: Option<Vec<String>>,
}

/// Discovery by a fixed list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StaticDiscovery {
    /// Peer addresses of the members, such as `demo-0.demo-peers.default.svc:7071` or `[fd00::1]:7071`. Names are resolved
    /// repeatedly; a member may be in its own list.
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 320)))]
    #[x_kube(validation = Rule::new("self.all(host, host.matches('^([^\\\\s:/\\\\[\\\\]]+|\\\\[[0-9a-fA-F:.]+\\\\]):[1-9][0-9]{0,4}$'))")
        .message("write every host as NAME:7071, 10.0.0.1:7071 or [fd00::1]:7071"))]
    pub hosts: Vec<String>,
}
