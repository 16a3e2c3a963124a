//! The metadata that all objects of a cluster share.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::{cluster::ValidatedCluster, names};

/// Metadata of the cluster's object of this name.
pub(super) fn metadata(cluster: &ValidatedCluster, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(cluster.namespace.clone()),
        labels: Some(names::labels(&cluster.name)),
        owner_references: Some(vec![cluster.owner.clone()]),
        ..ObjectMeta::default()
    }
}
