//! What keeps others out: the parts of the spec for what peers say to each other.
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
