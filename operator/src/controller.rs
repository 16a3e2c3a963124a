//! The loop: fetch, validate, build, apply, status, for one cluster at a time and again whenever something changes.
//!
//! Knows nothing of the rules by which any of the five steps decides.

use std::{
    collections::HashMap,
    fmt::Debug,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt, TryStreamExt, channel::mpsc};
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
    api::{PartialObjectMeta, Patch, PatchParams},
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
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::timeout;

use crate::{
    access::{self, AccessError},
    api_error::ApiError,
    apply::{self, Applied, ApplyErrors, Members, Outcome},
    encryption::{self, keep::KeysError},
    events,
    fetch::{self, FetchError, Live},
    labels,
    metrics::{End, Metrics},
    notice,
    poll::Poller,
    resources,
    retry::Retry,
    status::{self, Obstacle, Sight},
    tls::{self, keep::TlsError},
    validate::{self, ValidatedCluster},
    watches::{self, Watches},
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
/// How soon to try again what failed. What fails is looked at more often than a cluster at rest: its trouble may be over.
const RETRY: Retry = Retry { first: Duration::from_secs(1), longest: Duration::from_secs(5) };
/// How long one reconcile may take: a cluster is looked at by one at a time, and one that hangs would keep it deaf.
const RECONCILE_LIMIT: Duration = Duration::from_mins(2);

/// Why a cluster could not be reconciled.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// Something could not be read.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// Something could not be put in place.
    #[error(transparent)]
    Apply(#[from] ApplyErrors),
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
    Status(#[source] ApiError),
    /// An event could not be written.
    #[error("cannot write an event, check that the operator may create events: {0}")]
    Event(#[source] ApiError),
    /// It took too long.
    #[error("it took more than {} s and was abandoned: see whether the API server answers", RECONCILE_LIMIT.as_secs())]
    TooLong,
}

/// What every reconcile needs.
pub struct Context {
    client: Client,
    namespace: Option<String>,
    node_image: String,
    token_review_role: String,
    metrics: Metrics,
    watches: Watches,
    poller: Poller,
    told: count::Warned,
    applications: Mutex<Watched>,
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
        watches: Watches,
    ) -> Self {
        Self {
            client,
            namespace,
            node_image,
            token_review_role,
            metrics,
            watches,
            poller: Poller::default(),
            told: count::Warned::default(),
            applications: Mutex::default(),
            failures: Mutex::default(),
        }
    }
}

/// Reconciles all clusters until `shutdown` resolves. Dropped, it abandons the reconciles that are under way.
pub async fn run(context: Arc<Context>, shutdown: impl Future<Output = ()> + Send + Sync + 'static) {
    let (reader, writer) = reflector::store();
    let (heard_again, all) = mpsc::channel(1);
    let after_silence = context.clone();
    // The operator's own writes of a status are no reason to look again: a status that counts keys under steady writes
    // would otherwise follow itself without end.
    let watch = context.watches.begin("KvCluster");
    let clusters = watches::events(scope::<KvCluster>(&context), watcher::Config::default(), watch)
        .reflect(writer)
        .inspect_ok(move |event| {
            if matches!(event, watcher::Event::InitDone) {
                // Whatever failed meanwhile waits no longer. A full channel means that all are about to be looked at.
                after_silence.failures.lock().clear();
                drop(heard_again.clone().try_send(()));
            }
        })
        .applied_objects()
        .predicate_filter(predicates::generation, PredicateConfig::default());
    let applications = context.watches.begin("ApplicationPod");
    let applications = watches::events(scope::<Pod>(&context), count::watch_config(), applications);
    let (watched, applications) = count::follow(applications);
    *context.applications.lock() = watched;
    let members = watcher::Config::default().labels(labels::MEMBER_OF);
    let members = watches::events(scope::<Pod>(&context), members, context.watches.begin("Pod"));
    // The streams below have no errors (each watch handles its own), so the back-off that the controller puts around all of
    // them together never begins.
    Controller::for_stream(clusters, reader)
        .with_config(Config::default().concurrency(AT_ONCE).debounce(DEBOUNCE))
        .owns_stream(owned::<ServiceAccount>(&context, "ServiceAccount"))
        .owns_stream(owned::<Role>(&context, "Role"))
        .owns_stream(owned::<RoleBinding>(&context, "RoleBinding"))
        .owns_stream(owned::<ConfigMap>(&context, "ConfigMap"))
        .owns_stream(owned::<Service>(&context, "Service"))
        .owns_stream(owned::<StatefulSet>(&context, "StatefulSet"))
        .owns_stream(owned::<PodDisruptionBudget>(&context, "PodDisruptionBudget"))
        .watches_stream(members.touched_objects(), cluster_of_member)
        .watches_stream(applications, count::cluster_of)
        .reconcile_all_on(all)
        .graceful_shutdown_on(shutdown)
        .run(reconcile, retry, context)
        .for_each(|outcome| async {
            match outcome {
                // A pod may outlive its cluster, or name one that never was; a failure is said where it happens.
                Ok(_) | Err(ControllerError::ObjectNotFound(_) | ControllerError::ReconcilerFailed(..)) => {}
                Err(error) => tracing::warn!(%error, "the controller's queue failed"),
            }
        })
        .await;
}

/// What happens to the objects of a kind that belong to clusters; their metadata is enough to tell.
fn owned<K>(
    context: &Context,
    kind: &'static str,
) -> impl Stream<Item = watcher::Result<PartialObjectMeta<K>>> + Send + use<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Send + Sync,
    K: 'static,
{
    let config = watcher::Config::default().labels(&format!("{}={}", labels::MANAGED_BY, labels::OPERATOR));
    watches::events(scope::<PartialObjectMeta<K>>(context), config, context.watches.begin(kind)).touched_objects()
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
    let outcome = timeout(RECONCILE_LIMIT, Box::pin(reconcile_once(&context, &namespace, &name)))
        .await
        .unwrap_or(Err(ReconcileError::TooLong));
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
    let wait = RETRY.wait(*count);
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
    let mut applied = Applied::default();
    match validate::validate(&cluster, &context.node_image) {
        Ok(valid) => {
            let prepared = Box::pin(prepare(context, &valid, &live)).await;
            let desired = resources::build(&valid);
            let members = if prepared.is_ok() { Members::Apply } else { Members::LeaveAlone };
            let (client, metrics) = (&context.client, &context.metrics);
            applied = Box::pin(apply::apply(client, metrics, &valid.owner, &desired, &live, members)).await;
            match prepared {
                Ok(found) => concern = found,
                Err((found, error)) => (obstacle, failure) = (Some(found), error),
            }
            if let Some(error) = applied.failure() {
                obstacle = Some(match obstacle {
                    Some(Obstacle { reason, message }) => Obstacle { reason, message: format!("{message}; {error}") },
                    None => Obstacle { reason: error.reason(), message: error.to_string() },
                });
                failure.get_or_insert(error.into());
            }
        }
        Err(invalid) => obstacle = Some(Obstacle { reason: invalid.reason(), message: invalid.to_string() }),
    }

    let status = observe(context, &cluster, &live, obstacle, concern, applied).await?;
    if let Some(error) = failure {
        return Err(error);
    }
    Ok(Action::requeue(if status::is_steady(&status) { LATER } else { SOON }))
}

/// Sees to what members need before they start: keys, certificates, and what tells clients apart. Gives what somebody should
/// mend though the spec is carried out; if members cannot be started, what is in the way, and what is worth another try.
async fn prepare(
    context: &Context,
    cluster: &ValidatedCluster,
    live: &Live,
) -> Result<Option<Obstacle>, (Obstacle, Option<ReconcileError>)> {
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
    access::look(client, cluster, &context.token_review_role).await.map_err(|error| {
        let obstacle = Obstacle { reason: error.reason(), message: error.to_string() };
        (obstacle, error.is_passing().then_some(error.into()))
    })
}

/// Looks at pods and members, and writes the status and the events if there is news.
async fn observe(
    context: &Context,
    cluster: &KvCluster,
    live: &Live,
    obstacle: Option<Obstacle>,
    concern: Option<Obstacle>,
    applied: Applied,
) -> Result<KvClusterStatus, ReconcileError> {
    let (client, name) = (&context.client, cluster.name_any());
    let namespace = cluster.namespace().unwrap_or_default();
    let Applied { stateful_set: outcome, notices: replaced, .. } = applied;
    let answers = context.poller.poll(addresses(&live.pods)).await;
    let now = Timestamp::now();
    let mut unseen = Vec::new();
    let (applications, uid) = (context.applications.lock().clone(), cluster.uid().unwrap_or_default());
    let sidecars = applications.sidecars(client, &namespace, &name, &uid, now).await;
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
    let news = notice::notices(cluster, live.stateful_set.as_ref(), outcome, &before, &after, sidecars.as_ref());
    for notice in replaced.into_iter().chain(news) {
        tracing::info!(namespace, cluster = name, reason = notice.reason, "{}", notice.note);
        context.metrics.wrote("Event");
        notice::publish(client, cluster, &notice).await.map_err(|error| ReconcileError::Event(error.into()))?;
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
        Err(error) => Err(ReconcileError::Status(error.into())),
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
#[path = "controller_tests.rs"]
mod tests;
