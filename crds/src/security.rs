//! The parts of the spec that protect the connections of nodes, with each other and with clients.
//!
//! Knows nothing of how members implement them.

// `KubeSchema` declares a copy of each struct inside a function, `pub` as the original is.
#![allow(unreachable_pub)]

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// The cookie and keys that peers encrypt with, in a Secret. To exchange the keys, change the Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.secretRef) != (has(self.generate) && self.generate)")
    .message("give exactly one of secretRef and generate: true under encryption, or leave encryption out"))]
pub struct Encryption {
    /// An existing Secret with the cookie and the keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<KeyFileRef>,
    /// Whether the operator creates the Secret `NAME-encryption` with one key. The operator never changes its content.
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
    /// Key in the Secret. Unset: `peers.yaml`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub key: Option<String>,
}

/// TLS: the source of the certificate, and its uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.operator), has(self.secretRef), has(self.issuerRef)].filter(given, given).size() == 1")
    .message("give exactly one of operator: {}, secretRef and issuerRef under tls, or leave tls out"))]
#[x_kube(validation = Rule::new("!has(self.client) || self.client || (has(self.peers) && self.peers)")
    .message("leave tls out: with client: false and without peers: true it has no use"))]
pub struct Tls {
    /// The operator creates an authority for the cluster, issues the certificate and renews both, in the Secret `NAME-tls`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<OperatorAuthority>,
    /// An existing Secret with the certificate; the operator does not renew it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<CertificateRef>,
    /// cert-manager issues and renews the certificate, in the Secret `NAME-issued-tls`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer_ref: Option<IssuerRef>,
    /// Whether members serve clients over TLS, and only so. Unset: yes. A sidecar serves only its own pod, on loopback and
    /// without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<bool>,
    /// Whether nodes, including sidecars, use mutual TLS with each other; not together with `encryption`, and fixed once the
    /// cluster is created. It covers links (TCP) only: membership datagrams (UDP) are neither encrypted nor authenticated, unlike
    /// with `encryption`. Unset: no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<bool>,
}

/// The operator's own authority; it has no settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct OperatorAuthority {}

/// A Secret in the cluster's namespace with `tls.crt` and `tls.key`. For `peers` it needs `ca.crt` too, and a certificate with
/// the name `NAME-peers.NAMESPACE.svc`.
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
    /// Kind of the issuer. Unset: `Issuer`, in the cluster's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub kind: Option<String>,
    /// API group of that kind. Unset: `cert-manager.io`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub group: Option<String>,
}
