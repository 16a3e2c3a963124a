//! Binds the members' `ServiceAccount` to its role.

use k8s_openapi::api::rbac::v1::{RoleBinding, RoleRef, Subject};

use super::metadata::metadata;
use crate::cluster::ValidatedCluster;

/// Builds the binding.
pub fn build(cluster: &ValidatedCluster) -> RoleBinding {
    RoleBinding {
        metadata: metadata(cluster, cluster.name.clone()),
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".to_owned(),
            kind: "Role".to_owned(),
            name: cluster.name.clone(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name: cluster.name.clone(),
            namespace: Some(cluster.namespace.clone()),
            ..Subject::default()
        }]),
    }
}
