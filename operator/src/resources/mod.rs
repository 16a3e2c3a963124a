//! The objects that a cluster is made of: one file and one pure function for each, spec in, object out.
//!
//! Knows nothing of what is there already.

pub mod client_service;
pub mod config_map;
mod discovery;
pub mod headless_service;
pub mod pod_disruption_budget;
pub mod role;
pub mod role_binding;
pub mod service_account;
pub mod stateful_set;

use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, Service, ServiceAccount},
        policy::v1::PodDisruptionBudget,
        rbac::v1::{Role, RoleBinding},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kvasir_formats::defaults;

use crate::{labels, validate::ValidatedCluster};

/// Port of the gRPC API.
pub const CLIENT_PORT: i32 = defaults::CLIENT_PORT as i32;
/// Port between nodes, TCP and UDP.
pub const PEER_PORT: i32 = defaults::PEER_PORT as i32;
/// Port of health, metrics and status.
pub const ADMIN_PORT: i32 = defaults::ADMIN_PORT as i32;
/// Name of the container in member pods.
pub const CONTAINER: &str = "kvasir";

/// Everything that a cluster is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterResources {
    /// Who the members are.
    pub service_account: ServiceAccount,
    /// What they may do.
    pub role: Role,
    /// That they may.
    pub role_binding: RoleBinding,
    /// How they are set.
    pub config_map: ConfigMap,
    /// Where they find each other.
    pub headless_service: Service,
    /// Where others find them.
    pub client_service: Service,
    /// The members.
    pub stateful_set: StatefulSet,
    /// How many of them may be evicted at once; nothing for a single one, which could then never be.
    pub pod_disruption_budget: Option<PodDisruptionBudget>,
}

/// Builds everything that a cluster is made of.
pub fn build(cluster: &ValidatedCluster) -> ClusterResources {
    ClusterResources {
        service_account: service_account::build(cluster),
        role: role::build(cluster),
        role_binding: role_binding::build(cluster),
        config_map: config_map::build(cluster),
        headless_service: headless_service::build(cluster),
        client_service: client_service::build(cluster),
        stateful_set: stateful_set::build(cluster),
        pod_disruption_budget: pod_disruption_budget::build(cluster),
    }
}

/// Metadata of an object of the cluster.
fn metadata(cluster: &ValidatedCluster, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(cluster.namespace.clone()),
        labels: Some(labels::all(&cluster.name)),
        owner_references: Some(vec![cluster.owner.clone()]),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::tests::valid;

    #[test]
    fn every_object_is_labelled_and_owned() {
        let ClusterResources {
            service_account,
            role,
            role_binding,
            config_map,
            headless_service,
            client_service,
            stateful_set,
            pod_disruption_budget,
        } = build(&valid("{}"));
        for metadata in [
            service_account.metadata,
            role.metadata,
            role_binding.metadata,
            config_map.metadata,
            headless_service.metadata,
            client_service.metadata,
            stateful_set.metadata,
            pod_disruption_budget.unwrap().metadata,
        ] {
            assert_eq!(metadata.namespace.as_deref(), Some("shop"), "{metadata:?}");
            assert_eq!(metadata.labels, Some(labels::all("demo")), "{metadata:?}");
            let owner = &metadata.owner_references.unwrap()[0];
            assert_eq!((owner.kind.as_str(), owner.name.as_str(), owner.controller), ("KvCluster", "demo", Some(true)));
        }
    }
}
