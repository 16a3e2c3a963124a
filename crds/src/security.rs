//! What keeps others out: the parts of the spec for what nodes say to each other and to their clients.
//!
//! Knows nothing of what a member makes of them.

// `KubeSchema` declares a copy of each struct inside a function, `pub` as the original is.
#![allow(unreachable_pub)]

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// What peers encrypt with: a cookie and keys, in a Secret. To exchange the keys, change the Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.secretRef) != (has(self.generate) && self.generate)")
    .message("give exactly one of secretRef and generate: true under encryption, or leave encryption out"))]
pub struct Encryption {
    /// The Secret with the cookie and the keys, which somebody made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<KeyFileRef>,
    /// Whether the operator makes the Secret, `NAME-encryption`, with one key. It never changes what is in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generate: Option<bool>,
}

/// A Secret in the cluster's namespace that holds a file with `cookie` and `keys`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyFileRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in it. Unset: `peers.yaml`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub key: Option<String>,
}

/// TLS: where certificates come from, and what they are for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.operator), has(self.secretRef), has(self.issuerRef)].filter(given, given).size() == 1")
    .message("give exactly one of operator: {}, secretRef and issuerRef under tls, or leave tls out"))]
#[x_kube(validation = Rule::new("!has(self.client) || self.client || (has(self.peers) && self.peers)")
    .message("leave tls out: with client: false and without peers: true it is for nothing"))]
pub struct Tls {
    /// The operator makes an authority of the cluster's own, signs certificates and renews both, in the Secret `NAME-tls`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<OperatorAuthority>,
    /// Somebody made the certificate, and renews it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<CertificateRef>,
    /// cert-manager makes the certificate, in the Secret `NAME-issued-tls`, and renews it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer_ref: Option<IssuerRef>,
    /// Whether members serve their clients over TLS, and in no other way. Unset: yes. A sidecar serves its own pod alone, on
    /// loopback and without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<bool>,
    /// Whether nodes, sidecars too, speak mutual TLS among themselves; not together with `encryption`, and fixed once the
    /// cluster is made. It covers links (TCP) only: membership datagrams (UDP) are neither encrypted nor authentic, which
    /// `encryption` would make them. Unset: no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<bool>,
}

/// The operator's own authority; there is nothing to set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct OperatorAuthority {}

/// A Secret in the cluster's namespace with `tls.crt` and `tls.key`; for `peers` `ca.crt` too, and the certificate with the
/// name `NAME-peers.NAMESPACE.svc`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CertificateRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// An issuer of cert-manager.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct IssuerRef {
    /// Name of the issuer.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its kind. Unset: `Issuer`, in the cluster's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub kind: Option<String>,
    /// The group of that kind. Unset: `cert-manager.io`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub group: Option<String>,
}
