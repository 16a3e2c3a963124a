//! The rights of members: they read the pods of their namespace, which is how they find each other.

use k8s_openapi::api::rbac::v1::{PolicyRule, Role};

use super::metadata::metadata;
use crate::cluster::ValidatedCluster;

/// Builds the role.
pub fn build(cluster: &ValidatedCluster) -> Role {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    Role {
        metadata: metadata(cluster, cluster.name.clone()),
        rules: Some(vec![PolicyRule {
            api_groups: Some(words(&[""])),
            resources: Some(words(&["pods"])),
            verbs: words(&["get", "list", "watch"]),
            ..PolicyRule::default()
        }]),
    }
}
