//! The part of the spec about the authentication and the rights of clients.
//!
//! Knows nothing of how members implement it.

// `KubeSchema` declares a copy of each struct inside a function, `pub` as the original is.
#![allow(unreachable_pub)]

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::discovery::SecretKey;

/// How clients of members authenticate, in any of these ways, and what they may do. Sidecars serve only their own pod, on
/// loopback, and do not authenticate clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.tokensSecret) || has(self.clientCaSecret) || has(self.serviceAccounts)")
    .message("give at least one of tokensSecret, clientCaSecret and serviceAccounts under access: without any, no client could authenticate"))]
pub struct Access {
    /// By a bearer token: the key of a Secret with a YAML map of names to tokens. Subjects are `token:NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_secret: Option<SecretKey>,
    /// By a certificate: the key of a Secret with the authorities of clients (PEM). Needs `tls` on the client port. Subjects
    /// are `cert:NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca_secret: Option<SecretKey>,
    /// By the token of a Kubernetes `ServiceAccount`, which the API server reviews. Needs a `ClusterRoleBinding` that lets the
    /// members' own `ServiceAccount` request reviews. Subjects are `serviceaccount:NAMESPACE/NAME` and `group:NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_accounts: Option<ServiceAccounts>,
    /// Which clients may do what; a call that no rule allows is refused. A change restarts no member. Unset: all authenticated
    /// clients may do everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub rules: Option<Vec<AccessRule>>,
}

/// Authentication by tokens of Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccounts {
    /// Accepted audiences; a token must have one of them. Unset: the API server's, whose tokens are valid elsewhere too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 256)))]
    pub audiences: Option<Vec<String>>,
    /// How long an answer of the API server is cached, from 1s to 10m. Unset: 1m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]+(ms|s|m|h))+$') && duration(self) >= duration('1s') && duration(self) <= duration('10m')")
        .message("set reviewTtl to at least 1s and at most 10m, such as 30s or 1m"))]
    pub review_ttl: Option<String>,
}

/// What some clients may do with the keys under a prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccessRule {
    /// The clients, such as `token:app`, `cert:app`, `serviceaccount:NAMESPACE/NAME`, `group:NAME`, or `*` for all that
    /// authenticated.
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 320)))]
    #[x_kube(validation = Rule::new("self.all(subject, subject == '*' || subject.matches('^(token|cert|serviceaccount|group):.'))")
        .message("write every subject as token:NAME, cert:NAME, serviceaccount:NAMESPACE/NAME, group:NAME or *"))]
    pub subjects: Vec<String>,
    /// Prefix of the keys. Unset: all keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub prefix: Option<String>,
    /// What the clients may do: read, write, delete and watch keys; admin reads the state and the events of the cluster.
    #[schemars(length(min = 1, max = 5), inner(length(max = 16)))]
    #[x_kube(validation = Rule::new("self.all(verb, verb in ['read', 'write', 'delete', 'watch', 'admin'])")
        .message("give verbs of read, write, delete, watch and admin"))]
    pub verbs: Vec<String>,
}
