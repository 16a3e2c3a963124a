//! Which application pods have their sidecar, and an event for those that do not.
//!
//! The webhook fails open by default, so a pod can come through without a sidecar. Such pods are counted and get an event. Knows
//! nothing of the webhook's requests: it looks at the pods themselves, as a watch reports them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::{Stream, StreamExt};
use k8s_openapi::{
    api::{
        core::v1::{Container, ContainerStatus, ObjectReference, Pod, PodSpec, PodStatus},
        events::v1::Event,
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ListParams, ObjectMeta, PostParams},
};
use kube_runtime::{
    WatchStreamExt,
    reflector::{self, ObjectRef, Store},
    watcher,
};
use kvasir_crds::{KvCluster, SidecarStatus};
use parking_lot::Mutex;

use super::sidecar;
use crate::{
    api_server::ApiError,
    names::{CLUSTER_LABEL, CONTAINER, INJECT_ANNOTATION, OPERATOR, PREFIX},
    pod_status::{GRACE, broken, oom_killed, waiting},
};

/// Reason of the event on a pod without its sidecar.
pub const REASON: &str = "SidecarMissing";
/// Controller that the event names.
const CONTROLLER: &str = "kvasir.dev/operator";

/// How long a running sidecar may take to hold what the members hold, which is when its application starts.
const STARTS_WITHIN: SignedDuration = SignedDuration::from_secs(30);

/// Why the pods could not be listed or warned.
#[derive(Debug, thiserror::Error)]
pub enum PodsError {
    /// The pods could not be listed.
    #[error("cannot list the pods with a sidecar of {cluster}, check that the operator may list pods: {source}")]
    List {
        /// The cluster, as namespace/name.
        cluster: String,
        /// The error.
        source: ApiError,
    },
    /// An event could not be written.
    #[error("cannot write an event on pod {pod}, check that the operator may create events: {source}")]
    Event {
        /// The pod, as namespace/name.
        pod: String,
        /// The error.
        source: ApiError,
    },
}

/// The application pods of a cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sidecars {
    /// The number of pods with their sidecar.
    pub injected: usize,
    /// Pods whose sidecar belongs to an earlier `KvCluster` of the same name, and which the members refuse; by name.
    pub stale: Vec<String>,
    /// Pods without the sidecar that they ask for, by name.
    pub missing: Vec<Missing>,
    /// Pods whose sidecar does not run, by name.
    pub failing: Vec<Failing>,
    /// When sidecars were last killed because they were out of memory, with the names of their pods, latest first.
    pub killed: Vec<(String, Timestamp)>,
    /// When the newest pod of each owner was created, by the owner's name.
    pub newest: BTreeMap<String, Timestamp>,
}

/// A pod whose sidecar does not run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Failing {
    /// Name of the pod.
    pub name: String,
    /// Why it does not run, and what to do.
    pub why: String,
}

/// A pod that came through without its sidecar.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Missing {
    /// Name of the pod.
    pub name: String,
    /// UID of the pod.
    pub uid: String,
    /// Whether it is on the host's network, where sidecars are not possible.
    pub host_network: bool,
    /// Whether a controller would create the pod again after a deletion.
    pub has_owner: bool,
}

impl Sidecars {
    /// The numbers for the status.
    pub fn status(&self) -> SidecarStatus {
        let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        SidecarStatus {
            injected: number(self.injected),
            missing: number(self.missing.len()),
            stale: number(self.stale.len()),
            failing: number(self.failing.len()),
            oom_killed_at: self.killed.first().map(|(_, at)| Time(*at)),
        }
    }
}

/// The application pods of all clusters, as a watch reports them. Only the fields that are used are kept, so thousands of pods
/// take little memory, and looking at them costs no request.
#[derive(Clone, Debug)]
pub struct Watched {
    pods: Store<Pod>,
    /// Whether the watch has listed all pods and not failed since.
    is_whole: Arc<AtomicBool>,
}

impl Default for Watched {
    /// Without a watch.
    fn default() -> Self {
        Self { pods: reflector::store().0, is_whole: Arc::default() }
    }
}

/// Stores what a watch by [`watch_config`] reports for as long as the returned stream is read. The stream yields changed pods.
pub fn follow(
    events: impl Stream<Item = watcher::Result<watcher::Event<Pod>>> + Send + 'static,
) -> (Watched, impl Stream<Item = Result<Pod, watcher::Error>> + Send + 'static) {
    let (reader, writer) = reflector::store();
    let is_whole = Arc::new(AtomicBool::new(false));
    let watched = Watched { pods: reader, is_whole: is_whole.clone() };
    let changes = events
        .modify(cut)
        .reflect(writer)
        .inspect(move |event| match event {
            Ok(watcher::Event::InitDone | watcher::Event::Apply(_) | watcher::Event::Delete(_)) => {
                is_whole.store(true, Ordering::Release);
            }
            // A list starts after a failure, and is incomplete before its end.
            Ok(watcher::Event::Init | watcher::Event::InitApply(_)) | Err(_) => {
                is_whole.store(false, Ordering::Release);
            }
        })
        .touched_objects();
    (watched, changes)
}

impl Watched {
    /// Looks at every application pod of a cluster that has not finished, is not being deleted, and has not declined. While the
    /// watch is broken the API server is asked instead, because the stored pods may be out of date. `uid` is the cluster's, which
    /// distinguishes its sidecars from those of an earlier cluster of its name.
    pub async fn sidecars(
        &self,
        client: &Client,
        namespace: &str,
        cluster: &str,
        uid: &str,
        now: Timestamp,
    ) -> Result<Sidecars, PodsError> {
        if !self.is_whole.load(Ordering::Acquire) {
            return list(client, namespace, cluster, uid, now).await;
        }
        let pods = self.pods.state_filter(|pod| {
            let labelled = pod.labels().get(CLUSTER_LABEL).is_some_and(|name| name == cluster);
            labelled && pod.metadata.namespace.as_deref() == Some(namespace)
        });
        Ok(count(pods.iter().map(AsRef::as_ref), uid, now))
    }
}

async fn list(
    client: &Client,
    namespace: &str,
    cluster: &str,
    uid: &str,
    now: Timestamp,
) -> Result<Sidecars, PodsError> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let params = ListParams::default().labels(&format!("{CLUSTER_LABEL}={cluster}"));
    let pods = pods.list(&params).await.map_err(|source| PodsError::List {
        cluster: format!("{namespace}/{cluster}"),
        source: ApiError::from(source),
    })?;
    Ok(count(&pods.items, uid, now))
}

/// Removes the fields of a pod that are not used.
fn cut(pod: &mut Pod) {
    let metadata = std::mem::take(&mut pod.metadata);
    let ours = |map: Option<BTreeMap<String, String>>| {
        let mut map = map?;
        map.retain(|key, _| key.starts_with(PREFIX));
        Some(map)
    };
    pod.metadata = ObjectMeta {
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        resource_version: metadata.resource_version,
        creation_timestamp: metadata.creation_timestamp,
        deletion_timestamp: metadata.deletion_timestamp,
        owner_references: metadata.owner_references,
        labels: ours(metadata.labels),
        annotations: ours(metadata.annotations),
        ..ObjectMeta::default()
    };
    pod.spec = pod.spec.take().map(|spec| PodSpec {
        host_network: spec.host_network,
        node_name: spec.node_name,
        init_containers: spec.init_containers.map(|containers| {
            let sidecars = containers.into_iter().filter(|container| container.name == CONTAINER);
            let cut = |one: Container| Container {
                name: one.name,
                restart_policy: one.restart_policy,
                env: one.env.map(|mut variables| {
                    variables.retain(|variable| variable.name == sidecar::CLUSTER_UID_VARIABLE);
                    variables
                }),
                ..Container::default()
            };
            sidecars.map(cut).collect()
        }),
        ..PodSpec::default()
    });
    pod.status = pod.status.take().map(|status| PodStatus {
        phase: status.phase,
        init_container_statuses: status.init_container_statuses.map(|mut containers| {
            containers.retain(|container| container.name == CONTAINER);
            containers
        }),
        ..PodStatus::default()
    });
}

/// The pods that the controller must watch.
pub fn watch_config() -> watcher::Config {
    watcher::Config::default().labels(CLUSTER_LABEL)
}

/// The cluster to reconcile after a change of this pod.
pub fn cluster_of(pod: Pod) -> Option<ObjectRef<KvCluster>> {
    let namespace = pod.namespace()?;
    let cluster = pod.metadata.labels?.remove(CLUSTER_LABEL)?;
    Some(ObjectRef::new(&cluster).within(&namespace))
}

fn count<'a>(pods: impl IntoIterator<Item = &'a Pod>, uid: &str, now: Timestamp) -> Sidecars {
    let mut sidecars = Sidecars::default();
    for pod in pods.into_iter().filter(|pod| should_have_one(pod)) {
        if let (Some(owner), Some(created)) = (pod.owner_references().first(), pod.creation_timestamp()) {
            let newest = sidecars.newest.entry(owner.name.clone()).or_insert(created.0);
            *newest = (*newest).max(created.0);
        }
        let Some(of) = sidecar::cluster_uid(pod) else {
            sidecars.missing.push(Missing {
                name: pod.name_any(),
                uid: pod.uid().unwrap_or_default(),
                host_network: pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or_default(),
                has_owner: !pod.owner_references().is_empty(),
            });
            continue;
        };
        if of == uid {
            sidecars.injected += 1;
        } else {
            sidecars.stale.push(pod.name_any());
        }
        let containers = pod.status.as_ref().and_then(|it| it.init_container_statuses.as_deref()).unwrap_or_default();
        let sidecar = containers.iter().find(|container| container.name == CONTAINER);
        if let Some(why) = sidecar.and_then(|sidecar| fails(pod, sidecar, now)) {
            sidecars.failing.push(Failing { name: pod.name_any(), why });
        }
        if let Some(at) = oom_killed(containers, CONTAINER) {
            sidecars.killed.push((pod.name_any(), at));
        }
    }
    sidecars.stale.sort();
    sidecars.missing.sort_by(|one, other| one.name.cmp(&other.name));
    sidecars.failing.sort_by(|one, other| one.name.cmp(&other.name));
    sidecars.killed.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
    sidecars
}

/// Why a pod's sidecar does not run, or delays its application.
fn fails(pod: &Pod, sidecar: &ContainerStatus, now: Timestamp) -> Option<String> {
    if let Some(why) = broken(sidecar) {
        return Some(why);
    }
    if sidecar.started == Some(true) {
        return None;
    }
    let running = sidecar.state.as_ref().and_then(|state| state.running.as_ref()).and_then(|it| it.started_at.as_ref());
    if let Some(since) = running {
        return (now.duration_since(since.0) >= STARTS_WITHIN).then(|| {
            format!(
                "it has been running since {} and does not hold what the members hold: it cannot reach them, or has much to receive. See its \
                 logs, container {CONTAINER}",
                since.0
            )
        });
    }
    // Only a pod that is scheduled waits for its volumes or its image.
    pod.spec.as_ref()?.node_name.as_ref()?;
    let since = pod.creation_timestamp()?.0;
    let (reason, _) = waiting(sidecar)?;
    (now.duration_since(since) >= STARTS_WITHIN.max(GRACE)).then(|| {
        format!(
            "{reason} since {since}: see kubectl describe pod {}, for a volume or an image that is not there",
            pod.name_any()
        )
    })
}

fn should_have_one(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let finished = matches!(phase, Some("Succeeded" | "Failed"));
    let declined = pod.annotations().get(INJECT_ANNOTATION).is_some_and(|value| value == "false");
    !finished && !declined && pod.metadata.deletion_timestamp.is_none()
}

/// Remembers which pods got an event because they have no sidecar.
///
/// After a restart it starts empty, but the event's name contains the pod's UID, so no event is written twice.
#[derive(Debug, Default)]
pub struct Warned(Mutex<HashMap<ObjectRef<KvCluster>, HashSet<String>>>);

impl Warned {
    /// Writes an event on each pod without a sidecar that has none yet.
    pub async fn warn(
        &self,
        client: &Client,
        namespace: &str,
        cluster: &str,
        sidecars: &Sidecars,
    ) -> Result<(), PodsError> {
        let key = ObjectRef::new(cluster).within(namespace);
        let events: Api<Event> = Api::namespaced(client.clone(), namespace);
        for pod in self.unwarned(&key, sidecars) {
            match events.create(&PostParams::default(), &event(namespace, cluster, pod)).await {
                Ok(_) => tracing::warn!(namespace, cluster, pod = pod.name, "a pod came through without its sidecar"),
                // Written before a restart.
                Err(kube::Error::Api(status)) if status.is_already_exists() => {}
                Err(source) => {
                    let pod = format!("{namespace}/{}", pod.name);
                    return Err(PodsError::Event { pod, source: ApiError::from(source) });
                }
            }
            self.0.lock().entry(key.clone()).or_default().insert(pod.uid.clone());
        }
        Ok(())
    }

    /// The pods without an event; forgets pods that are gone.
    fn unwarned<'a>(&self, key: &ObjectRef<KvCluster>, sidecars: &'a Sidecars) -> Vec<&'a Missing> {
        let mut clusters = self.0.lock();
        if sidecars.missing.is_empty() {
            clusters.remove(key);
            return Vec::new();
        }
        let warned = clusters.entry(key.clone()).or_default();
        warned.retain(|uid| sidecars.missing.iter().any(|pod| pod.uid == *uid));
        sidecars.missing.iter().filter(|pod| !warned.contains(&pod.uid)).collect()
    }
}

fn event(namespace: &str, cluster: &str, pod: &Missing) -> Event {
    let remedy = if pod.host_network {
        format!(
            "sidecars are not possible on the host's network: drop hostNetwork, or annotate the pod {INJECT_ANNOTATION}: \"false\""
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
             again, check that the operator runs, and the warnings of kubectl when the pod is created."
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
        reporting_instance: Some(OPERATOR.into()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests;
