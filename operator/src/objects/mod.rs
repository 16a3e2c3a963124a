//! The objects of a cluster: one file and one pure function for each, from the validated cluster to the object.
//!
//! [`container`] and [`files`] are shared with the webhook, which builds sidecars. Knows nothing of live objects.

pub mod client_service;
pub mod config_map;
pub mod container;
mod discovery;
pub mod files;
pub mod headless_service;
mod metadata;
pub mod pod_disruption_budget;
pub mod role;
pub mod role_binding;
pub mod service_account;
pub mod stateful_set;

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, Service, ServiceAccount},
    policy::v1::PodDisruptionBudget,
    rbac::v1::{Role, RoleBinding},
};

use crate::cluster::ValidatedCluster;

/// All objects of a cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterObjects {
    /// The members' `ServiceAccount`.
    pub service_account: ServiceAccount,
    /// The rights of members.
    pub role: Role,
    /// Grants these rights.
    pub role_binding: RoleBinding,
    /// The members' configuration.
    pub config_map: ConfigMap,
    /// The Service by which members find each other.
    pub headless_service: Service,
    /// The Service for clients.
    pub client_service: Service,
    /// The members.
    pub stateful_set: StatefulSet,
    /// How many members may be evicted at once; `None` for a single member, which could never be evicted.
    pub pod_disruption_budget: Option<PodDisruptionBudget>,
}

/// Builds all objects of a cluster.
pub fn build(cluster: &ValidatedCluster) -> ClusterObjects {
    ClusterObjects {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cluster::validate::tests::valid, names};

    #[test]
    fn objects_are_labelled_and_owned() {
        let ClusterObjects {
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
            assert_eq!(metadata.labels, Some(names::labels("demo")), "{metadata:?}");
            let owner = &metadata.owner_references.unwrap()[0];
            assert_eq!((owner.kind.as_str(), owner.name.as_str(), owner.controller), ("KvCluster", "demo", Some(true)));
        }
    }
}
