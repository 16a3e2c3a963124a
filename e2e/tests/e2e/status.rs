//! The status of a `KvCluster` when something is wrong: it quotes the component that refused, and never claims that
//! nothing is wrong.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{DeleteParams, ListParams, PostParams};
use kvasir_e2e::{Trial, run, until};
use serde_json::json;

/// A condition of `demo` as it is now.
async fn condition(t: &Trial, kind: &str) -> Result<Condition> {
    let status = t.get("demo").await?.status.unwrap_or_default();
    status.conditions.into_iter().find(|condition| condition.type_ == kind).with_context(|| format!("no {kind}"))
}

/// Waits until a condition of `demo` has this status and contains this text; returns it.
async fn says(t: &Trial, kind: &str, status: &str, words: &[&str]) -> Result<Condition> {
    until(&format!("{kind} to be {status} and to say {words:?}"), async || {
        let condition = condition(t, kind).await?;
        let whole = format!("{}: {}", condition.reason, condition.message);
        ensure!(condition.status == status && words.iter().all(|word| whole.contains(word)), "{condition:?}");
        Ok(condition)
    })
    .await
}

/// The notes of the events on `demo` with this reason.
async fn notes(t: &Trial, reason: &str) -> Result<Vec<String>> {
    let events = t.api::<Event>().list(&ListParams::default()).await?.items;
    let of_cluster = |event: &Event| event.regarding.as_ref().is_some_and(|it| it.kind.as_deref() == Some("KvCluster"));
    let chosen = events.into_iter().filter(|event| of_cluster(event) && event.reason.as_deref() == Some(reason));
    Ok(chosen.filter_map(|event| event.note).collect())
}

/// Waits until the status records this many keys.
async fn remembered(t: &Trial, keys: i64) -> Result<()> {
    until(&format!("status.data to have {keys} keys"), async || {
        let data = t.get("demo").await?.status.unwrap_or_default().data.context("no data")?;
        ensure!(data.keys == keys, "{data:?}");
        Ok(())
    })
    .await
}

/// Waits until the loss of this many keys is reported, and checks that it can be acknowledged.
async fn lost(t: &Trial, keys: i64) -> Result<()> {
    let count = format!("{keys} keys");
    says(t, "Degraded", "True", &["DataLost", &count]).await?;
    let notes = until("the event", async || {
        let notes = self::notes(t, "DataLost").await?;
        ensure!(!notes.is_empty(), "none yet");
        Ok(notes)
    })
    .await?;
    ensure!(notes.len() == 1 && notes[0].contains(&count), "{notes:?}");
    let data = t.get("demo").await?.status.unwrap_or_default().data.context("no data")?;
    let lost = data.lost.context("no loss in the status")?;
    ensure!(lost.keys == keys && lost.founded_at < data.founded_at, "{lost:?} {:?}", data.founded_at);
    let founded_at = json!(lost.founded_at);
    let annotation =
        format!("kvasir.dev/acknowledge-data-loss={}", founded_at.as_str().context("a moment is a string")?);
    t.kubectl(&["annotate", "--overwrite", "kvcluster", "demo", &annotation]).await?;
    says(t, "Degraded", "False", &["AllWell"]).await.map(drop)
}

#[test]
fn a_single_member_that_is_replaced_tells_of_its_keys() {
    run("lost-one", async |t| {
        t.cluster("demo", 1).await?;
        says(t, "Redundant", "False", &["SingleMember"]).await?;
        ensure!(notes(t, "NotRedundant").await?.len() == 1, "{:?}", notes(t, "NotRedundant").await?);
        t.fill("demo", 50).await?;
        remembered(t, 50).await?;
        t.api::<Pod>().delete("demo-0", &DeleteParams::default()).await?;
        lost(t, 50).await
    });
}

#[test]
fn two_members_that_die_together_tell_of_their_keys() {
    run("lost-two", async |t| {
        t.cluster("demo", 2).await?;
        t.fill("demo", 50).await?;
        remembered(t, 50).await?;
        let mut containers = Vec::new();
        for pod in t.member_pods("demo").await? {
            let status = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref()?.first());
            containers.push(status.and_then(|status| status.container_id.clone()).context("no container ID")?);
        }
        let kills = futures::future::try_join_all(containers.iter().map(|id| t.lab.kill_container(id))).await?;
        if kills.contains(&false) {
            eprintln!("lost-two: only the throwaway cluster can kill -9 a container; not tested here");
            return Ok(());
        }
        lost(t, 50).await
    });
}

#[test]
fn members_on_two_nodes_are_redundant() {
    run("redundant", async |t| {
        t.cluster("demo", 1).await?;
        says(t, "Redundant", "False", &["SingleMember"]).await?;
        t.kubectl(&["scale", "kvcluster/demo", "--replicas=2"]).await?;
        t.settled("demo", 2).await?;
        says(t, "Redundant", "True", &["2 Kubernetes nodes"]).await?;
        ensure!(notes(t, "DataLost").await?.is_empty(), "nothing was lost: {:?}", notes(t, "DataLost").await?);
        Ok(())
    });
}

#[test]
fn a_quota_is_reported_in_the_api_server_s_words() {
    run("quota", async |t| {
        let quota = json!({ "metadata": { "name": "small" }, "spec": { "hard": { "pods": "1" } } });
        t.api::<ResourceQuota>().create(&PostParams::default(), &serde_json::from_value(quota)?).await?;
        until("the quota to be counted", async || {
            let status = t.api::<ResourceQuota>().get("small").await?.status.context("no status")?;
            status.used.context("not counted").map(drop)
        })
        .await?;
        t.ask_for_cluster("demo", json!({ "replicas": 2 })).await?;
        says(t, "Degraded", "True", &["FailedCreate", "exceeded quota: small", "Raise the ResourceQuota"]).await?;
        t.api::<ResourceQuota>().delete("small", &DeleteParams::default()).await?;
        // The StatefulSet's controller retries less and less often: a change of the spec triggers it.
        t.kubectl(&["scale", "kvcluster/demo", "--replicas=3"]).await?;
        t.settled("demo", 3).await?;
        says(t, "Degraded", "False", &["AllWell"]).await.map(drop)
    });
}

#[test]
fn an_unschedulable_member_is_reported() {
    run("unschedulable", async |t| {
        let spec = json!({ "replicas": 1, "resources": { "requests": { "cpu": "9999" } } });
        t.ask_for_cluster("demo", spec).await?;
        says(t, "Degraded", "True", &["Unschedulable", "Insufficient cpu", "spec.resources"]).await.map(drop)
    });
}

#[test]
fn a_sidecar_without_its_image_is_reported() {
    run("sidecar-image", async |t| {
        // Members and sidecars use one image: without it neither runs.
        t.ask_for_cluster("demo", json!({ "replicas": 1, "image": "127.0.0.1:9/none:0" })).await?;
        t.start_app("shop", Some("demo"), &t.lab.nodes[0]).await?;
        let degraded = says(t, "Degraded", "True", &["demo-0", "shop", "127.0.0.1:9/none:0"]).await?;
        ensure!(degraded.message.contains("sidecars do not run"), "{degraded:?}");
        let sidecars = t.get("demo").await?.status.unwrap_or_default().sidecars;
        ensure!((sidecars.injected, sidecars.missing, sidecars.failing) == (1, 0, 1), "{sidecars:?}");
        Ok(())
    });
}
