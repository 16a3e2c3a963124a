//! Who clients are and what they may do: that part of the spec.
//!
//! Knows nothing of what a member makes of it.

// `KubeSchema` declares a copy of each struct inside a function, `pub` as the original is.
#![allow(unreachable_pub)]

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::discovery::SecretKey;

/// How clients of members show who they are, in any of these ways, and what they may do. Sidecars serve their own pod alone,
/// on loopback, and ask nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.tokensSecret) || has(self.clientCaSecret) || has(self.serviceAccounts)")
    .message("give at least one of tokensSecret, clientCaSecret and serviceAccounts under access: without, nobody could show who it is"))]
pub struct Access {
    /// By a bearer token: where the YAML map of names to tokens is. Subjects are `token:NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_secret: Option<SecretKey>,
    /// By a certificate: where the authorities of clients are (PEM). Needs `tls` on the client port. Subjects are `cert:NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca_secret: Option<SecretKey>,
    /// By the token of a Kubernetes `ServiceAccount`, which the API server is asked about. Needs a `ClusterRoleBinding` that lets
    /// the members' own do so. Subjects are `serviceaccount:NAMESPACE/NAME` and `group:NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_accounts: Option<ServiceAccounts>,
    /// Who may do what; what no rule allows is refused. A change restarts nobody. Unset: whoever showed who it is may do
    /// everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub rules: Option<Vec<AccessRule>>,
}

/// Tokens of Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccounts {
    /// Whom a token must be meant for, one of these. Unset: the API server, whose tokens are good elsewhere too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 256)))]
    pub audiences: Option<Vec<String>>,
    /// How long the API server's answer is good for, from 1s to 10m. Unset: 1m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]+(ms|s|m|h))+$') && duration(self) >= duration('1s') && duration(self) <= duration('10m')")
        .message("set reviewTtl to at least 1s and at most 10m, such as 30s or 1m"))]
    pub review_ttl: Option<String>,
}

/// Who may do what to keys that begin with a prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccessRule {
    /// Such as `token:app`, `cert:app`, `serviceaccount:NAMESPACE/NAME`, `group:NAME`, or `*` for whoever showed who it is.
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 320)))]
    #[x_kube(validation = Rule::new("self.all(subject, subject == '*' || subject.matches('^(token|cert|serviceaccount|group):.'))")
        .message("write every subject as token:NAME, cert:NAME, serviceaccount:NAMESPACE/NAME, group:NAME or *"))]
    pub subjects: Vec<String>,
    /// What the keys begin with. Unset: nothing, so all keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub prefix: Option<String>,
    /// What they may do: read, write, delete and watch keys; and admin, which looks at the cluster's state and events.
    #[schemars(length(min = 1, max = 5), inner(length(max = 16)))]
    #[x_kube(validation = Rule::new("self.all(verb, verb in ['read', 'write', 'delete', 'watch', 'admin'])")
        .message("give verbs of read, write, delete, watch and admin"))]
    pub verbs: Vec<String>,
}
