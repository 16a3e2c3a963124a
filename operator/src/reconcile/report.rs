//! The last step of a reconcile: looks at members and pods, and writes status and events if anything changed.
//!
//! Knows nothing of what the status says.

use std::net::IpAddr;

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use kvasir_crds::{KvCluster, KvClusterStatus};
use serde_json::json;

use super::{
    apply::{Applied, Outcome},
    context::Context,
    error::ReconcileError,
    fetch::Live,
    news, notice,
    status::{self, Observed},
    warnings::{self, Warning},
};
use crate::{names, obstacle::Obstacle, pod_status, webhook::pods::Sidecars};

/// How this reconcile carried out the spec.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// What keeps the spec from being carried out.
    pub(super) obstacle: Option<Obstacle>,
    /// What a person should fix although the spec is carried out.
    pub(super) concern: Option<Obstacle>,
    /// What was applied.
    pub(super) applied: Applied,
}

/// Observes the cluster, and writes status and events.
pub(super) async fn report(
    context: &Context,
    cluster: &KvCluster,
    live: &Live,
    progress: Progress,
) -> Result<KvClusterStatus, ReconcileError> {
    let Progress { obstacle, concern, applied: Applied { stateful_set: outcome, notices: replaced, .. } } = progress;
    let answers = context.poller.poll(addresses(&live.pods)).await;
    let now = Timestamp::now();
    let mut unknown = Vec::new();
    let sidecars = sidecars(context, cluster, now).await.map_err(|error| unknown.push(error)).ok();
    let warnings = warnings(context, cluster, &live.pods).await.unwrap_or_else(|error| {
        unknown.push(error);
        Vec::new()
    });
    let after = status::status(&Observed {
        cluster,
        obstacle,
        concern,
        stateful_set: live.stateful_set.as_ref(),
        changed: outcome == Outcome::Updated,
        pods: &live.pods,
        answers: &answers,
        sidecars: sidecars.as_ref(),
        warnings: &warnings,
        unknown: &unknown,
        now,
    });
    if cluster.status.as_ref() != Some(&after) {
        write_status(context, cluster, &after).await?;
    }
    let before = cluster.status.clone().unwrap_or_default();
    let news = news::news(cluster, live.stateful_set.as_ref(), outcome, &before, &after, sidecars.as_ref());
    let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    for notice in replaced.into_iter().chain(news) {
        tracing::info!(namespace, cluster = name, reason = notice.reason, "{}", notice.note);
        context.metrics.wrote("Event");
        notice::publish(&context.client, cluster, &notice)
            .await
            .map_err(|error| ReconcileError::Event(error.into()))?;
    }
    if let Some(sidecars) = &sidecars {
        context.warned.warn(&context.client, &namespace, &name, sidecars).await?;
    }
    Ok(after)
}

async fn sidecars(context: &Context, cluster: &KvCluster, now: Timestamp) -> Result<Sidecars, String> {
    let applications = context.applications.lock().clone();
    let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    let uid = cluster.uid().unwrap_or_default();
    let sidecars = applications.sidecars(&context.client, &namespace, &name, &uid, now).await;
    sidecars.map_err(|error| error.to_string())
}

async fn warnings(context: &Context, cluster: &KvCluster, pods: &[Pod]) -> Result<Vec<Warning>, String> {
    let not_ready: Vec<_> = pods.iter().filter(|pod| !pod_status::is_ready(pod)).map(ResourceExt::name_any).collect();
    warnings::read(&context.client, &cluster.namespace().unwrap_or_default(), &not_ready)
        .await
        .map_err(|error| format!("events cannot be read, check that the operator may list events: {error}"))
}

/// Writes the status of a cluster whose objects could not be read: an old status would claim what is no longer known.
pub(super) async fn report_unknown(context: &Context, cluster: &KvCluster, why: &str) {
    let unknown = status::unknown(cluster, why, Timestamp::now());
    if cluster.status.as_ref() == Some(&unknown) {
        return;
    }
    if let Err(error) = write_status(context, cluster, &unknown).await {
        let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
        tracing::warn!(namespace, cluster = name, %error, "the status is out of date and could not be written");
    }
}

async fn write_status(context: &Context, cluster: &KvCluster, status: &KvClusterStatus) -> Result<(), ReconcileError> {
    context.metrics.wrote("KvCluster");
    let api: Api<KvCluster> = Api::namespaced(context.client.clone(), &cluster.namespace().unwrap_or_default());
    let patch = json!({
        "apiVersion": KvCluster::api_version(&()),
        "kind": KvCluster::kind(&()),
        // Of this very object, not of a later one of the same name.
        "metadata": { "uid": cluster.uid() },
        "status": status,
    });
    let params = PatchParams::apply(names::OPERATOR).force();
    match api.patch_status(&cluster.name_any(), &params, &Patch::Apply(&patch)).await {
        Ok(_) => Ok(()),
        // Deleted in the meantime.
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(ReconcileError::Status(error.into())),
    }
}

/// Name and address of the members that can be polled: those that are running.
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
    fn report_polls_running_members_only() {
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
        let polled: Vec<String> = addresses(&pods).into_iter().map(|(_, address)| address.to_string()).collect();
        assert_eq!(polled, ["10.0.0.1", "fd00::1"]);
    }
}
