//! The controller: fetch → validate → build → apply → status, for each cluster, whenever something changes.
//!
//! Each verb has its own module: [`fetch`], [`crate::cluster`], [`crate::objects`], [`apply`] (with [`secrets`] before the
//! members) and [`report`], which observes and writes what [`status`] and [`news`] make of it. This module sets up the watches
//! and the queue, and knows nothing of the rules by which the steps decide.

pub mod apply;
mod context;
mod error;
pub mod fetch;
mod news;
pub mod notice;
pub mod poll;
mod report;
pub mod secrets;
pub mod status;
pub mod warnings;

use std::{
    fmt::Debug,
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
};
use kube::{Api, Resource, ResourceExt, api::PartialObjectMeta};
use kube_runtime::{
    Config, Controller, PredicateConfig, WatchStreamExt,
    controller::{Action, Error as ControllerError},
    predicates, reflector,
    reflector::ObjectRef,
    watcher,
};
use kvasir_crds::KvCluster;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use self::{
    apply::Members,
    error::RECONCILE_LIMIT,
    fetch::Live,
    report::{Progress, report, report_unknown},
    secrets::Blocked,
};
pub use self::{
    context::{Context, Settings},
    error::ReconcileError,
};
use crate::{
    api_server::{retry::Retry, watches},
    cluster::{ValidatedCluster, validate},
    metrics::End,
    names, objects,
    obstacle::Obstacle,
    webhook::pods,
};

/// Clusters reconciled at the same time.
const AT_ONCE: u16 = 8;
/// Changes that follow each other within this time are handled by one reconcile.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Time to the next reconcile while a change is under way.
const SOON: Duration = Duration::from_secs(2);
/// Time to the next reconcile of a cluster at rest.
const LATER: Duration = Duration::from_secs(10);
/// Back-off after a failure. Its longest wait is less than [`LATER`], because the cause may have passed.
const RETRY: Retry = Retry { first: Duration::from_secs(1), longest: Duration::from_secs(5) };

/// Reconciles all clusters until `shutdown` resolves. Dropping the future aborts the reconciles that are under way.
pub async fn run(context: Arc<Context>, shutdown: impl Future<Output = ()> + Send + Sync + 'static) {
    let (reader, writer) = reflector::store();
    let (relisted, all) = mpsc::channel(1);
    let after_list = context.clone();
    // The operator's own status writes trigger no reconcile: under steady writes by clients the status changes each time, so
    // each reconcile would trigger the next.
    let watch = context.watches.begin("KvCluster");
    let clusters = watches::events(scope::<KvCluster>(&context), watcher::Config::default(), watch)
        .reflect(writer)
        .inspect_ok(move |event| {
            if matches!(event, watcher::Event::InitDone) {
                // Clusters that failed in the meantime no longer wait. If the channel is full, all are about to be reconciled.
                after_list.failures.lock().clear();
                drop(relisted.clone().try_send(()));
            }
        })
        .applied_objects()
        .predicate_filter(predicates::generation, PredicateConfig::default());
    let applications = context.watches.begin("ApplicationPod");
    let applications = watches::events(scope::<Pod>(&context), pods::watch_config(), applications);
    let (watched, applications) = pods::follow(applications);
    *context.applications.lock() = watched;
    let members = watcher::Config::default().labels(names::MEMBER_OF);
    let members = watches::events(scope::<Pod>(&context), members, context.watches.begin("Pod"));
    // The streams below have no errors, because each watch handles its own. So the back-off that the controller puts around all
    // of them together never starts.
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
        .watches_stream(applications, pods::cluster_of)
        .reconcile_all_on(all)
        .graceful_shutdown_on(shutdown)
        .run(reconcile, retry, context)
        .for_each(|outcome| async {
            match outcome {
                // A pod may outlive its cluster, or name one that never existed. A failed reconcile is logged by `retry`.
                Ok(_) | Err(ControllerError::ObjectNotFound(_) | ControllerError::ReconcilerFailed(..)) => {}
                Err(error) => tracing::warn!(%error, "the controller's queue failed"),
            }
        })
        .await;
}

/// Changes of the objects of a kind that belong to clusters. Their metadata is enough.
fn owned<K>(
    context: &Context,
    kind: &'static str,
) -> impl Stream<Item = watcher::Result<PartialObjectMeta<K>>> + Send + use<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Send + Sync,
    K: 'static,
{
    let config = watcher::Config::default().labels(&format!("{}={}", names::MANAGED_BY, names::OPERATOR));
    watches::events(scope::<PartialObjectMeta<K>>(context), config, context.watches.begin(kind)).touched_objects()
}

/// The objects of a kind in the managed namespaces: one or all.
fn scope<K>(context: &Context) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    match &context.settings.namespace {
        Some(namespace) => Api::namespaced(context.client.clone(), namespace),
        None => Api::all(context.client.clone()),
    }
}

fn cluster_of_member(pod: Pod) -> Option<ObjectRef<KvCluster>> {
    let namespace = pod.namespace()?;
    let cluster = pod.metadata.labels?.remove(names::MEMBER_OF)?;
    Some(ObjectRef::new(&cluster).within(&namespace))
}

async fn reconcile(cluster: Arc<KvCluster>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let start = Instant::now();
    let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    // On the heap: the future holds everything that is read of a cluster.
    let outcome = timeout(RECONCILE_LIMIT, Box::pin(reconcile_once(&context, &namespace, &name)))
        .await
        .unwrap_or(Err(ReconcileError::TooLong));
    context.metrics.reconciled(if outcome.is_ok() { End::Done } else { End::Failed }, start.elapsed());
    if outcome.is_ok() {
        context.failures.lock().remove(&ObjectRef::from_obj(&*cluster));
    }
    outcome
}

#[expect(clippy::needless_pass_by_value, reason = "the signature is the controller's")]
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
    let Some(cluster) = fetch::cluster(&context.client, namespace, name).await? else {
        return Ok(Action::await_change());
    };
    if cluster.metadata.deletion_timestamp.is_some() {
        // The garbage collector deletes what the cluster owns; applying it again would interfere.
        return Ok(Action::await_change());
    }
    let live = match Box::pin(fetch::live(&context.client, namespace, name)).await {
        Ok(live) => live,
        Err(error) => {
            report_unknown(context, &cluster, &error.to_string()).await;
            return Err(error.into());
        }
    };
    let (progress, failure) = match validate(&cluster, &context.settings.node_image) {
        Ok(valid) => carry_out(context, &valid, &live).await,
        Err(invalid) => (Progress { obstacle: Some(Obstacle::of(&invalid)), ..Progress::default() }, None),
    };
    let status = report(context, &cluster, &live, progress).await?;
    match failure {
        Some(error) => Err(error),
        None => Ok(Action::requeue(if status::is_steady(&status) { LATER } else { SOON })),
    }
}

/// Prepares the Secrets, then builds and applies the objects. Returns the error if a retry may succeed.
///
/// Without their Secrets members are not applied: they would not start, or would start with keys that others do not have.
async fn carry_out(context: &Context, cluster: &ValidatedCluster, live: &Live) -> (Progress, Option<ReconcileError>) {
    let (client, metrics) = (&context.client, &context.metrics);
    let (has_members, role) = (live.stateful_set.is_some(), &context.settings.token_review_role);
    let prepared = Box::pin(secrets::prepare(client, metrics, cluster, has_members, role)).await;
    let (members, concern, mut obstacle, mut failure) = match prepared {
        Ok(concern) => (Members::Apply, concern, None, None),
        Err(Blocked { obstacle, retry }) => (Members::LeaveAlone, None, Some(obstacle), retry),
    };
    let desired = objects::build(cluster);
    let mut applied = Box::pin(apply::apply(client, metrics, &cluster.owner, &desired, live, members)).await;
    if let Some(errors) = applied.failure() {
        let failed = Obstacle::of(&errors);
        obstacle = Some(obstacle.map_or_else(|| failed.clone(), |first| first.and(&failed)));
        failure.get_or_insert(errors.into());
    }
    (Progress { obstacle, concern, applied }, failure)
}

#[cfg(test)]
mod tests;
