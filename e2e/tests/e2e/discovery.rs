//! Each discovery provider on a real cluster: members form one cluster, the status reports which provider found each,
//! and a replaced pod is found at its new address.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Pod, Secret, Service};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, PostParams};
use kvasir_crds::{KvClusterStatus, condition};
use kvasir_e2e::lab::workspace;
use kvasir_e2e::{Trial, run, until};
use serde_json::json;

#[test]
fn members_find_each_other_by_kubernetes() {
    run("by-kubernetes", async |t| {
        example(t, "kubernetes").await?;
        found_again(t, "kubernetes").await
    });
}

#[test]
fn members_find_each_other_by_dns() {
    run("by-dns", async |t| {
        example(t, "dns").await?;
        found_again(t, "dns").await
    });
}

#[test]
fn members_find_each_other_by_srv_records() {
    run("by-srv", async |t| {
        let discovery = json!({ "dns": { "domainName": format!("_peer._tcp.demo-peers.{}.svc", t.namespace) } });
        t.ask_for_cluster("demo", json!({ "replicas": 3, "discovery": discovery })).await?;
        found_again(t, "dns").await
    });
}

#[test]
fn members_find_each_other_by_a_list() {
    run("by-static", async |t| {
        example(t, "static").await?;
        found_again(t, "static").await
    });
}

#[test]
fn members_find_each_other_by_nats() {
    run("by-nats", async |t| {
        // The Secret is in the example.
        example(t, "nats").await?;
        start_nats(t).await?;
        found_again(t, "nats").await
    });
}

/// One working provider is enough to serve; a failing one is reported until it works.
#[test]
fn a_failing_provider_next_to_a_working_one_is_shown() {
    run("two-ways", async |t| {
        let secret = json!({ "metadata": { "name": "nats" }, "stringData": { "password": "hush" } });
        t.api::<Secret>().create(&PostParams::default(), &serde_json::from_value(secret)?).await?;
        let password = json!({ "name": "nats", "key": "password" });
        let nats = json!({ "server": ["nats://nats:4222"], "user": "kvasir", "passwordSecret": password });
        let spec = json!({ "replicas": 2, "discovery": { "nats": nats, "dns": {} } });
        t.ask_for_cluster("demo", spec).await?;
        t.settled("demo", 2).await?;
        until("Degraded to tell of NATS", async || {
            let status = t.get("demo").await?.status.unwrap_or_default();
            let degraded = verdict(&status, condition::DEGRADED)?;
            ensure!(degraded.0 && degraded.1 == "DiscoveryFailing", "{}", json!(status.conditions));
            ensure!(degraded.2.contains("demo-0 cannot find peers by nats"), "{}", json!(status.conditions));
            ensure!(verdict(&status, condition::AVAILABLE)?.0, "{}", json!(status.conditions));
            found_by(&status, "dns")
        })
        .await?;
        start_nats(t).await?;
        until("nothing to be wrong, and both providers to be reported", async || {
            let status = t.get("demo").await?.status.unwrap_or_default();
            ensure!(!verdict(&status, condition::DEGRADED)?.0, "{}", json!(status.conditions));
            // If two providers know an address, the first in the settings counts.
            found_by(&status, "nats")
        })
        .await
    });
}

/// Applies the example of a provider.
async fn example(t: &Trial, way: &str) -> Result<()> {
    let file = workspace().join(format!("examples/discovery/{way}.yaml"));
    t.kubectl(&["apply", "-f", &file.to_string_lossy()]).await.map(drop)
}

/// Three members form a cluster by this provider, and again after one of their pods is replaced.
async fn found_again(t: &Trial, way: &str) -> Result<()> {
    t.kubectl(&["wait", "--for=condition=Available", "kvcluster/demo", "--timeout=180s"]).await?;
    t.settled("demo", 3).await?;
    let keys = t.fill("demo", 30).await?;
    t.all_hold("demo", &keys).await?;
    well(t, way).await?;

    let before = t.member_pods("demo").await?.into_iter().find(|pod| pod.name_any() == "demo-1");
    let before = before.context("demo-1 is not there")?.uid();
    t.api::<Pod>().delete("demo-1", &DeleteParams::default()).await?;
    until("demo-1 to be replaced", async || {
        let pods = t.member_pods("demo").await?;
        ensure!(pods.iter().any(|pod| pod.name_any() == "demo-1" && pod.uid() != before), "{} pods", pods.len());
        Ok(())
    })
    .await?;
    t.settled("demo", 3).await?;
    t.all_hold("demo", &keys).await?;
    well(t, way).await
}

/// Waits until the status reports that this provider found every member, and that nothing is wrong.
async fn well(t: &Trial, way: &str) -> Result<()> {
    until(&format!("every member to be found by {way}"), async || {
        let status = t.get("demo").await?.status.unwrap_or_default();
        ensure!(!verdict(&status, condition::DEGRADED)?.0, "{}", json!(status.conditions));
        found_by(&status, way)
    })
    .await
}

fn found_by(status: &KvClusterStatus, way: &str) -> Result<()> {
    let all = status.members.iter().all(|member| member.found_by.as_deref() == Some(way));
    ensure!(all && !status.members.is_empty(), "{}", json!(status.members));
    Ok(())
}

/// Whether a condition holds, its reason and its message.
fn verdict(status: &KvClusterStatus, kind: &str) -> Result<(bool, String, String)> {
    let condition = status.conditions.iter().find(|condition| condition.type_ == kind);
    let condition = condition.with_context(|| format!("no condition {kind}"))?;
    Ok((condition.status == "True", condition.reason.clone(), condition.message.clone()))
}

/// A NATS server that requires the password in the Secret nats, as a pod behind a Service.
async fn start_nats(t: &Trial) -> Result<()> {
    let pod = json!({
        "metadata": { "name": "nats", "labels": { "app": "nats" } },
        "spec": {
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "nats",
                "image": t.lab.nats_image,
                "imagePullPolicy": "IfNotPresent",
                "command": ["/nats-server", "-a", "0.0.0.0", "-p", "4222", "--user", "kvasir", "--pass", "$(PASSWORD)"],
                "env": [{ "name": "PASSWORD", "valueFrom": { "secretKeyRef": { "name": "nats", "key": "password" } } }],
                "readinessProbe": { "tcpSocket": { "port": 4222 }, "periodSeconds": 1 },
                "securityContext": {
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] },
                },
            }],
        },
    });
    let service = json!({
        "metadata": { "name": "nats" },
        "spec": { "selector": { "app": "nats" }, "ports": [{ "port": 4222 }] },
    });
    t.api::<Pod>().create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
    t.api::<Service>().create(&PostParams::default(), &serde_json::from_value(service)?).await?;
    Ok(())
}
