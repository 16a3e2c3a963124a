//! The loop: fetch, validate, build, apply, status, for one cluster at a time and again whenever something changes.
//!
//! Knows nothing of the rules by which any of the five steps decides.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, Pod, Service, ServiceAccount},
        policy::v1::PodDisruptionBudget,
        rbac::v1::{Role, RoleBinding},
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use kube_runtime::{
    Config, Controller, PredicateConfig, WatchStreamExt,
    controller::{Action, Error as ControllerError},
    predicates, reflector,
    reflector::ObjectRef,
    watcher,
};
use kvasir_crds::{KvCluster, KvClusterStatus};
use parking_lot::Mutex;
use serde_json::json;

use crate::{
    access::{self, AccessError},
    apply::{self, ApplyError, Outcome},
    encryption::{self, keep::KeysError},
    events,
    fetch::{self, FetchError, Live},
    labels,
    metrics::{End, Metrics},
    notice,
    poll::Poller,
    resources,
    status::{self, Obstacle, Sight},
    tls::{self, keep::TlsError},
    validate::{self, ValidatedCluster},
    webhook::count::{self, CountError, Watched},
};

/// Clusters reconciled at the same time.
const AT_ONCE: u16 = 8;
/// Changes closer together than this are looked at together.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// How soon to look again while something is under way.
const SOON: Duration = Duration::from_secs(2);
/// How soon to look again at a cluster at rest.
const LATER: Duration = Duration::from_secs(10);
/// How soon to try again what failed; doubles with each failure in a row.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest wait until what failed is tried again.
const LONGEST_RETRY: Duration = Duration::from_mins(1);

/// Why a cluster could not be reconciled.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// Something could not be read.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// Something could not be put in place.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The keys for encryption could not be looked at or made.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The nodes' certificate could not be looked at or made.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// What tells clients apart could not be looked at.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The application pods could not be looked at or told.
    #[error(transparent)]
    Count(#[from] CountError),
    /// The status could not be written.
    #[error("cannot write the status: {0}")]
    Status(#[source] Box<kube::Error>),
    /// An event could not be written.
    #[error("cannot write an event, check that the operator may create events: {0}")]
    Event(#[source] Box<kube::Error>),
}

/// What every reconcile needs.
pub struct Context {
    client: Client,
    namespace: Option<String>,
    node_image: String,
    token_review_role: String,
    metrics: Metrics,
    poller: Poller,
    told: count::Warned,
    applications: Watched,
    failures: Mutex<HashMap<ObjectRef<KvCluster>, u32>>,
}

impl Context {
    /// Members of clusters that name no image have this one. Clusters outside `namespace` are left alone; none: every
    /// namespace is looked after. `token_review_role` is the `ClusterRole` that members need to have tokens reviewed.
    pub fn new(
        client: Client,
        namespace: Option<String>,
        node_image: String,
        token_review_role: String,
        metrics: Metrics,
    ) -> Self {
        Self {
            client,
            namespace,
            node_image,
            token_review_role,
            metrics,
            poller: Poller::default(),
            told: count::Warned::default(),
            applications: Watched::default(),
            failures: Mutex::default(),
        }
    }
}

/// Reconciles all clusters until `shutdown` resolves. `ready` becomes true once the clusters are known.
pub async fn run(context: Context, ready: Arc<AtomicBool>, shutdown: impl Future<Output = ()> + Send + Sync + 'static) {
    let (reader, writer) = reflector::store();
    // The operator's own writes of a status are no reason to look again: a status that counts keys under steady writes
    // would otherwise follow itself without end.
    let clusters = watcher(scope::<KvCluster>(&context), watcher::Config::default())
        .default_backoff()
        .reflect(writer)
        // Not by `wait_until_ready` in a task of its own: the store wakes only one of those that wait, and the controller
        // waits as well.
        .inspect_ok(move |event| {
            if matches!(event, watcher::Event::InitDone) {
                ready.store(true, Ordering::Release);
            }
        })
        .applied_objects()
        .predicate_filter(predicates::generation, PredicateConfig::default());
    let applications = watcher(scope::<Pod>(&context), count::watch_config()).default_backoff();
    let (watched, changes) = count::follow(applications);
    let context = Context { applications: watched, ..context };
    let owned = || watcher::Config::default().labels(&format!("{}={}", labels::MANAGED_BY, labels::OPERATOR));
    let members = watcher::Config::default().labels(labels::MEMBER_OF);
    Controller::for_stream(clusters, reader)
        .with_config(Config::default().concurrency(AT_ONCE).debounce(DEBOUNCE))
        .owns(scope::<ServiceAccount>(&context), owned())
        .owns(scope::<Role>(&context), owned())
        .owns(scope::<RoleBinding>(&context), owned())
        .owns(scope::<ConfigMap>(&context), owned())
        .owns(scope::<Service>(&context), owned())
        .owns(scope::<StatefulSet>(&context), owned())
        .owns(scope::<PodDisruptionBudget>(&context), owned())
        .watches(scope::<Pod>(&context), members, cluster_of_member)
        .watches_stream(changes, count::cluster_of)
        .graceful_shutdown_on(shutdown)
        .run(reconcile, retry, Arc::new(context))
        .for_each(|outcome| async {
            match outcome {
                // A pod may outlive its cluster, or name one that never was; a failure is said where it happens.
                Ok(_) | Err(ControllerError::ObjectNotFound(_) | ControllerError::ReconcilerFailed(..)) => {}
                Err(error) => tracing::warn!(%error, "watching the API server failed, trying again"),
            }
        })
        .await;
}

/// Where objects of a kind are looked at: in one namespace, or in all.
fn scope<K>(context: &Context) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    match &context.namespace {
        Some(namespace) => Api::namespaced(context.client.clone(), namespace),
        None => Api::all(context.client.clone()),
    }
}

fn cluster_of_member(pod: Pod) -> Option<ObjectRef<KvCluster>> {
    let namespace = pod.namespace()?;
    let cluster = pod.metadata.labels?.remove(labels::MEMBER_OF)?;
    Some(ObjectRef::new(&cluster).within(&namespace))
}

async fn reconcile(cluster: Arc<KvCluster>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let began = Instant::now();
    // On the heap: with everything that is read of a cluster in it, it is large.
    let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    let outcome = Box::pin(reconcile_once(&context, &namespace, &name)).await;
    context.metrics.reconciled(if outcome.is_ok() { End::Done } else { End::Failed }, began.elapsed());
    if outcome.is_ok() {
        context.failures.lock().remove(&ObjectRef::from_obj(&*cluster));
    }
    outcome
}

#[expect(clippy::needless_pass_by_value, reason = "the controller hands over what it has")]
fn retry(cluster: Arc<KvCluster>, error: &ReconcileError, context: Arc<Context>) -> Action {
    let mut failures = context.failures.lock();
    let count = failures.entry(ObjectRef::from_obj(&*cluster)).or_default();
    let wait = backoff(*count);
    *count = count.saturating_add(1);
    tracing::warn!(
        namespace = cluster.namespace().unwrap_or_default(),
        cluster = cluster.name_any(),
        %error,
        retry_seconds = wait.as_secs(),
        "reconcile failed"
    );
    Action::requeue(wait)
}

fn backoff(failures: u32) -> Duration {
    FIRST_RETRY.saturating_mul(2_u32.saturating_pow(failures)).min(LONGEST_RETRY)
}

async fn reconcile_once(context: &Context, namespace: &str, name: &str) -> Result<Action, ReconcileError> {
    let client = &context.client;
    let Some(cluster) = fetch::cluster(client, namespace, name).await? else {
        return Ok(Action::await_change());
    };
    if cluster.metadata.deletion_timestamp.is_some() {
        // The garbage collector takes what is owned; making it again would be in its way.
        return Ok(Action::await_change());
    }
    let live = match Box::pin(fetch::live(client, namespace, name)).await {
        Ok(live) => live,
        Err(error) => {
            // "Nothing is wrong" would stand there for as long as this lasts.
            let unseen = status::unseen(&cluster, &error.to_string(), Timestamp::now());
            if cluster.status.as_ref() != Some(&unseen)
                && let Err(error) = write_status(context, &cluster, namespace, &unseen).await
            {
                tracing::warn!(namespace, cluster = name, %error, "the status goes on to say what is not known any more");
            }
            return Err(error.into());
        }
    };

    let mut failure = None;
    let mut obstacle = None;
    let mut concern = None;
    let mut outcome = Outcome::Unchanged;
    match validate::validate(&cluster, &context.node_image) {
        Ok(valid) => match Box::pin(carry_out(context, &valid, &live)).await {
            Ok(done) => (outcome, concern) = done,
            Err((found, error)) => (obstacle, failure) = (Some(found), error),
        },
        Err(invalid) => obstacle = Some(Obstacle { reason: invalid.reason(), message: invalid.to_string() }),
    }

    let status = observe(context, &cluster, &live, obstacle, concern, outcome).await?;
    if let Some(error) = failure {
        return Err(error);
    }
    Ok(Action::requeue(if status::is_steady(&status) { LATER } else { SOON }))
}

/// Puts everything of a cluster in place, and says what somebody should mend all the same; if it cannot be, says what is in
/// the way, and what is worth another try.
async fn carry_out(
    context: &Context,
    cluster: &ValidatedCluster,
    live: &Live,
) -> Result<(Outcome, Option<Obstacle>), (Obstacle, Option<ReconcileError>)> {
    let (client, metrics) = (&context.client, &context.metrics);
    // First keys and certificates: members that start without them, or are made anew with others, are of no use.
    let began = live.stateful_set.is_some();
    if let Err(error) = encryption::keep::keep(client, metrics, cluster, began).await {
        let obstacle = Obstacle { reason: error.reason(), message: error.to_string() };
        return Err((obstacle, error.is_passing().then_some(error.into())));
    }
    if let Err(error) = tls::keep::keep(client, metrics, cluster).await {
        let obstacle = Obstacle { reason: error.reason(), message: error.to_string() };
        return Err((obstacle, error.is_passing().then_some(error.into())));
    }
    let concern = access::look(client, cluster, &context.token_review_role).await.map_err(|error| {
        let obstacle = Obstacle { reason: error.reason(), message: error.to_string() };
        (obstacle, error.is_passing().then_some(error.into()))
    })?;
    let desired = resources::build(cluster);
    let outcome = apply::apply(client, metrics, &cluster.owner, &desired, live).await.map_err(|error| {
        let obstacle = Obstacle { reason: error.reason(), message: error.to_string() };
        (obstacle, Some(error.into()))
    })?;
    Ok((outcome, concern))
}

/// Looks at pods and members, and writes the status and the events if there is news.
async fn observe(
    context: &Context,
    cluster: &KvCluster,
    live: &Live,
    obstacle: Option<Obstacle>,
    concern: Option<Obstacle>,
    outcome: Outcome,
) -> Result<KvClusterStatus, ReconcileError> {
    let (client, name) = (&context.client, cluster.name_any());
    let namespace = cluster.namespace().unwrap_or_default();
    let answers = context.poller.poll(addresses(&live.pods)).await;
    let now = Timestamp::now();
    let mut unseen = Vec::new();
    let sidecars = context.applications.sidecars(client, &namespace, &name, &cluster.uid().unwrap_or_default(), now).await;
    let sidecars = sidecars.map_err(|error| unseen.push(error.to_string())).ok();
    let warnings = events::look(client, &namespace, &waiting(&live.pods)).await.unwrap_or_else(|error| {
        unseen.push(format!("events cannot be read, check that the operator may list events: {error}"));
        Vec::new()
    });
    let after = status::status(&Sight {
        cluster,
        obstacle,
        concern,
        stateful_set: live.stateful_set.as_ref(),
        changed: outcome == Outcome::Updated,
        pods: &live.pods,
        answers: &answers,
        sidecars: sidecars.as_ref(),
        warnings: &warnings,
        unseen: &unseen,
        now,
    });
    if cluster.status.as_ref() != Some(&after) {
        write_status(context, cluster, &namespace, &after).await?;
    }
    let before = cluster.status.clone().unwrap_or_default();
    for notice in notice::notices(cluster, live.stateful_set.as_ref(), outcome, &before, &after, sidecars.as_ref()) {
        tracing::info!(namespace, cluster = name, reason = notice.reason, "{}", notice.note);
        context.metrics.wrote("Event");
        notice::publish(client, cluster, &notice).await.map_err(|error| ReconcileError::Event(Box::new(error)))?;
    }
    if let Some(sidecars) = &sidecars {
        context.told.tell(client, &namespace, &name, sidecars).await?;
    }
    Ok(after)
}

/// The member pods that are not ready: of these what Kubernetes says is of interest.
fn waiting(pods: &[Pod]) -> Vec<String> {
    pods.iter().filter(|pod| !status::is_ready(pod)).map(ResourceExt::name_any).collect()
}

async fn write_status(
    context: &Context,
    cluster: &KvCluster,
    namespace: &str,
    status: &KvClusterStatus,
) -> Result<(), ReconcileError> {
    context.metrics.wrote("KvCluster");
    let api: Api<KvCluster> = Api::namespaced(context.client.clone(), namespace);
    let patch = json!({
        "apiVersion": KvCluster::api_version(&()),
        "kind": KvCluster::kind(&()),
        // Of this very object, not of a later one of its name.
        "metadata": { "uid": cluster.uid() },
        "status": status,
    });
    let params = PatchParams::apply(labels::OPERATOR).force();
    match api.patch_status(&cluster.name_any(), &params, &Patch::Apply(&patch)).await {
        Ok(_) => Ok(()),
        // Deleted meanwhile.
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(ReconcileError::Status(Box::new(error))),
    }
}

/// The members that can be asked: those with an address whose container may run.
fn addresses(pods: &[Pod]) -> Vec<(String, IpAddr)> {
    pods.iter()
        .filter_map(|pod| {
            let status = pod.status.as_ref()?;
            let address = status.pod_ip.as_ref()?.parse().ok()?;
            (status.phase.as_deref() == Some("Running")).then(|| (pod.name_any(), address))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_are_tried_less_and_less() {
        assert_eq!(backoff(0), Duration::from_secs(1));
        assert_eq!(backoff(3), Duration::from_secs(8));
        assert_eq!(backoff(6), LONGEST_RETRY);
        assert_eq!(backoff(u32::MAX), LONGEST_RETRY);
    }

    #[test]
    fn only_running_members_are_asked() {
        let pod = |phase: &str, address: Option<&str>| -> Pod {
            serde_json::from_value(json!({
                "metadata": { "name": "demo-0" },
                "status": { "phase": phase, "podIP": address },
            }))
            .unwrap()
        };
        let pods = [
            pod("Running", Some("10.0.0.1")),
            pod("Pending", Some("10.0.0.2")),
            pod("Running", None),
            pod("Running", Some("fd00::1")),
        ];
        let asked: Vec<String> = addresses(&pods).into_iter().map(|(_, address)| address.to_string()).collect();
        assert_eq!(asked, ["10.0.0.1", "fd00::1"]);
    }
}
