//! Reads a `KvCluster` and its live objects.
//!
//! From the API server each time, not from a cache: a cache that lags behind the operator's own writes would make it write again.
//! Knows nothing of the desired objects.

use std::fmt::Debug;

use futures::try_join;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, Pod, Service, ServiceAccount},
        policy::v1::PodDisruptionBudget,
        rbac::v1::{Role, RoleBinding},
    },
};
use kube::{Api, Client, Resource, api::ListParams};
use kvasir_crds::KvCluster;
use serde::de::DeserializeOwned;

use crate::{api_server::ApiError, names};

/// An object could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {kind} {name}, check that the operator has the right: {source}")]
pub struct FetchError {
    kind: String,
    name: String,
    source: ApiError,
}

/// The live objects under the names of a cluster's objects, whether they belong to the cluster or not.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// The members' `ServiceAccount`.
    pub service_account: Option<ServiceAccount>,
    /// The members' role.
    pub role: Option<Role>,
    /// The binding of the members to their role.
    pub role_binding: Option<RoleBinding>,
    /// The members' configuration.
    pub config_map: Option<ConfigMap>,
    /// The Service by which members find each other.
    pub headless_service: Option<Service>,
    /// The Service for clients.
    pub client_service: Option<Service>,
    /// The `StatefulSet` of the members.
    pub stateful_set: Option<StatefulSet>,
    /// The budget of the members.
    pub pod_disruption_budget: Option<PodDisruptionBudget>,
    /// The member pods.
    pub pods: Vec<Pod>,
}

/// Reads the `KvCluster` itself.
pub async fn cluster(client: &Client, namespace: &str, name: &str) -> Result<Option<KvCluster>, FetchError> {
    get(client, namespace, name.to_owned()).await
}

/// Reads all objects of a cluster.
pub async fn live(client: &Client, namespace: &str, name: &str) -> Result<Live, FetchError> {
    let own = || name.to_owned();
    let (
        service_account,
        role,
        role_binding,
        config_map,
        headless_service,
        client_service,
        stateful_set,
        pod_disruption_budget,
        pods,
    ) = try_join!(
        get(client, namespace, own()),
        get(client, namespace, own()),
        get(client, namespace, own()),
        get(client, namespace, own()),
        get(client, namespace, names::headless_service(name)),
        get(client, namespace, own()),
        get(client, namespace, own()),
        get(client, namespace, own()),
        pods(client, namespace, name),
    )?;
    Ok(Live {
        service_account,
        role,
        role_binding,
        config_map,
        headless_service,
        client_service,
        stateful_set,
        pod_disruption_budget,
        pods,
    })
}

async fn get<K>(client: &Client, namespace: &str, name: String) -> Result<Option<K>, FetchError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    api.get_opt(&name).await.map_err(|source| FetchError {
        kind: K::kind(&()).into_owned(),
        name,
        source: ApiError::from(source),
    })
}

async fn pods(client: &Client, namespace: &str, name: &str) -> Result<Vec<Pod>, FetchError> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let params = ListParams::default().labels(&names::selector_text(name));
    let list = api.list(&params).await.map_err(|source| FetchError {
        kind: "Pods".to_owned(),
        name: format!("of {name}"),
        source: ApiError::from(source),
    })?;
    Ok(list.items)
}
