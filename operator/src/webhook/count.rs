//! Which application pods have their sidecar, and a word to those that do not.
//!
//! The webhook fails open by default, so a pod can come through without: it is counted, and told so by an event. Knows
//! nothing of the webhook's requests; it looks at the pods themselves.
//!
//! # For the controller
//!
//! ```text
//! // Reconcile a cluster when one of its application pods changes:
//! controller.watches(Api::<PartialObjectMeta<Pod>>::all(client), count::watch_config(), count::cluster_of)
//!
//! // In the status step, with one `count::Warned` for the controller's life:
//! let sidecars = count::sidecars(&client, namespace, name).await?;
//! status.sidecars = sidecars.status();
//! warned.tell(&client, namespace, name, &sidecars).await?;  // writes once for each pod without a sidecar
//! ```

use std::collections::{HashMap, HashSet};

use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Pod},
        events::v1::Event,
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ListParams, ObjectMeta, PartialObjectMeta, PostParams},
};
use kube_runtime::{reflector::ObjectRef, watcher};
use kvasir_crds::{KvCluster, SidecarStatus};
use parking_lot::Mutex;

use super::{CLUSTER_LABEL, INJECT_ANNOTATION, SIDECAR_NAME};
use crate::api_error::ApiError;

/// Reason of the event on a pod without its sidecar.
pub const REASON: &str = "SidecarMissing";
/// Who says so.
const CONTROLLER: &str = "kvasir.dev/operator";

/// Why the pods could not be counted or told.
#[derive(Debug, thiserror::Error)]
pub enum CountError {
    /// Listing failed.
    #[error("cannot list the pods with a sidecar of {cluster}, check that the operator may list pods: {source}")]
    List {
        /// The cluster, as namespace/name.
        cluster: String,
        /// What the API server said.
        source: ApiError,
    },
    /// Writing an event failed.
    #[error("cannot write an event on pod {pod}, check that the operator may create events: {source}")]
    Event {
        /// The pod, as namespace/name.
        pod: String,
        /// What the API server said.
        source: ApiError,
    },
}

/// The application pods of one cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sidecars {
    /// How many have their sidecar.
    pub injected: usize,
    /// Those that should have one and have not, by name.
    pub missing: Vec<Missing>,
}

/// A pod that came through without its sidecar.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Missing {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Whether it is on the host's network, for which there are no sidecars.
    pub host_network: bool,
    /// Whether something else would make the pod again, were it deleted.
    pub has_owner: bool,
}

impl Sidecars {
    /// The numbers, for the status.
    pub fn status(&self) -> SidecarStatus {
        let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        SidecarStatus { injected: number(self.injected), missing: number(self.missing.len()) }
    }
}

/// Looks at every application pod of a cluster that is not finished, not going, and has not declined.
pub async fn sidecars(client: &Client, namespace: &str, cluster: &str) -> Result<Sidecars, CountError> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let params = ListParams::default().labels(&format!("{CLUSTER_LABEL}={cluster}"));
    let pods = pods.list(&params).await.map_err(|source| CountError::List {
        cluster: format!("{namespace}/{cluster}"),
        source: ApiError::from(source),
    })?;
    Ok(count(&pods.items))
}

/// Which pods the controller has to watch.
pub fn watch_config() -> watcher::Config {
    watcher::Config::default().labels(CLUSTER_LABEL)
}

/// The cluster that a change of this pod is news for; the pod's metadata is enough to tell.
pub fn cluster_of(pod: PartialObjectMeta<Pod>) -> Option<ObjectRef<KvCluster>> {
    let namespace = pod.namespace()?;
    let cluster = pod.metadata.labels?.remove(CLUSTER_LABEL)?;
    Some(ObjectRef::new(&cluster).within(&namespace))
}

fn count(pods: &[Pod]) -> Sidecars {
    let mut sidecars = Sidecars::default();
    for pod in pods.iter().filter(|pod| should_have_one(pod)) {
        if has_sidecar(pod) {
            sidecars.injected += 1;
        } else {
            sidecars.missing.push(Missing {
                name: pod.name_any(),
                uid: pod.uid().unwrap_or_default(),
                host_network: pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or_default(),
                has_owner: !pod.owner_references().is_empty(),
            });
        }
    }
    sidecars.missing.sort_by(|one, other| one.name.cmp(&other.name));
    sidecars
}

fn should_have_one(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let finished = matches!(phase, Some("Succeeded" | "Failed"));
    let declined = pod.annotations().get(INJECT_ANNOTATION).is_some_and(|value| value == "false");
    !finished && !declined && pod.metadata.deletion_timestamp.is_none()
}

fn has_sidecar(pod: &Pod) -> bool {
    let containers = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    containers
        .filter(|container| container.name == SIDECAR_NAME)
        .any(|container| container.restart_policy.as_deref() == Some("Always"))
}

/// Remembers which pods were told that they have no sidecar.
///
/// After a restart it remembers none; the event's name is made of the pod's uid, so it is not written twice even then.
#[derive(Debug, Default)]
pub struct Warned(Mutex<HashMap<ObjectRef<KvCluster>, HashSet<String>>>);

impl Warned {
    /// Writes an event on each pod without a sidecar that has none yet; nothing if all were told before.
    pub async fn tell(
        &self,
        client: &Client,
        namespace: &str,
        cluster: &str,
        sidecars: &Sidecars,
    ) -> Result<(), CountError> {
        let key = ObjectRef::new(cluster).within(namespace);
        let events: Api<Event> = Api::namespaced(client.clone(), namespace);
        for pod in self.untold(&key, sidecars) {
            match events.create(&PostParams::default(), &event(namespace, cluster, pod)).await {
                Ok(_) => tracing::warn!(namespace, cluster, pod = pod.name, "a pod came through without its sidecar"),
                // Told before this process began.
                Err(kube::Error::Api(status)) if status.is_already_exists() => {}
                Err(source) => {
                    let pod = format!("{namespace}/{}", pod.name);
                    return Err(CountError::Event { pod, source: ApiError::from(source) });
                }
            }
            self.0.lock().entry(key.clone()).or_default().insert(pod.uid.clone());
        }
        Ok(())
    }

    /// Those to be told; forgets pods that are gone.
    fn untold<'a>(&self, key: &ObjectRef<KvCluster>, sidecars: &'a Sidecars) -> Vec<&'a Missing> {
        let mut clusters = self.0.lock();
        if sidecars.missing.is_empty() {
            clusters.remove(key);
            return Vec::new();
        }
        let told = clusters.entry(key.clone()).or_default();
        told.retain(|uid| sidecars.missing.iter().any(|pod| pod.uid == *uid));
        sidecars.missing.iter().filter(|pod| !told.contains(&pod.uid)).collect()
    }
}

fn event(namespace: &str, cluster: &str, pod: &Missing) -> Event {
    let remedy = if pod.host_network {
        format!(
            "a pod on the host's network gets none: drop hostNetwork, or annotate the pod {INJECT_ANNOTATION}: \"false\""
        )
    } else if pod.has_owner {
        format!("delete it so that it is created again: kubectl delete pod -n {namespace} {}", pod.name)
    } else {
        "delete it and create it again".to_owned()
    };
    Event {
        metadata: ObjectMeta {
            name: Some(format!("kvasir-sidecar-missing-{}", pod.uid)),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(Timestamp::now())),
        type_: Some("Warning".into()),
        reason: Some(REASON.into()),
        action: Some("Count".into()),
        note: Some(format!(
            "this pod asks for a sidecar of KvCluster {cluster} and has none; {remedy}. If it comes through without one \
             again, see whether the operator runs and what kubectl warned of at its creation."
        )),
        regarding: Some(ObjectReference {
            api_version: Some(Pod::api_version(&()).into_owned()),
            kind: Some(Pod::kind(&()).into_owned()),
            namespace: Some(namespace.to_owned()),
            name: Some(pod.name.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(CONTROLLER.into()),
        reporting_instance: Some("kvasir-operator".into()),
        ..Event::default()
    }
}

#[cfg(test)]
#[path = "count_tests.rs"]
mod tests;
