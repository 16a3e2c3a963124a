//! Members that start and cannot reach the others, or cannot talk to them: they wait, and found no second cluster.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams};
use kvasir_client::PutOptions;
use kvasir_crds::KvCluster;
use kvasir_e2e::trial::is_ready;
use kvasir_e2e::{Trial, alone, run, until};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// How long an answer on the admin port may take.
const ANSWER: Duration = Duration::from_secs(5);
/// How long nothing else may happen.
const QUIET: Duration = Duration::from_secs(30);

/// The message of the Degraded condition, if it is true.
async fn complaint(t: &Trial, cluster: &str) -> Result<String> {
    let status = t.get(cluster).await?.status.unwrap_or_default();
    let degraded = status.conditions.iter().find(|it| it.type_ == "Degraded").context("no Degraded condition")?;
    ensure!(degraded.status == "True", "{degraded:?}");
    Ok(format!("{}: {}", degraded.reason, degraded.message))
}

async fn set_image(t: &Trial, cluster: &str, image: Option<&str>) -> Result<()> {
    let patch = json!({ "spec": { "image": image } });
    t.api::<KvCluster>().patch(cluster, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

#[test]
fn an_incompatible_release_stops_at_its_first_pod() {
    run("release", async |t| {
        let Some(next) = t.lab.image_of_another_release().await? else {
            eprintln!("release: only the throwaway cluster can be given another image; not tested here");
            return Ok(());
        };
        t.cluster("demo", 3).await?;
        let keys = t.fill("demo", 1000).await?;
        t.all_hold("demo", &keys).await?;
        let before = t.member_pods("demo").await?;
        set_image(t, "demo", Some(&next)).await?;
        until("the condition to say why the rollout is stuck", async || {
            let said = complaint(t, "demo").await?;
            ensure!(said.contains("demo-2 cannot talk to") && said.contains("version 1 of the protocol"), "{said}");
            Ok(())
        })
        .await?;
        // A mistake would show within this time: the node has looked for peers longer, and the StatefulSet replaces the
        // next pod once one is ready.
        let began = Instant::now();
        while began.elapsed() < QUIET {
            let pods = t.member_pods("demo").await?;
            for (old, new) in before.iter().zip(&pods).take(2) {
                ensure!(old.uid() == new.uid() && is_ready(new), "{} was replaced: {:?}", old.name_any(), new.status);
            }
            ensure!(!pods.get(2).is_some_and(is_ready), "demo-2 is ready");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        for pod in t.member_pods("demo").await?.iter().take(2) {
            kvasir_e2e::trial::same(&keys, &kvasir_e2e::trial::held(&t.speak_to(pod)?).await?)?;
        }
        let status = t.node_status("demo-2").await?;
        ensure!(status["keys"] == 0 && status["unjoinable"].as_array().is_some_and(|it| it.len() >= 2), "{status}");
        // Returning to the old release needs no further steps.
        set_image(t, "demo", None).await?;
        t.settled("demo", 3).await?;
        t.all_hold("demo", &keys).await
    });
}

/// The answer of a member's admin port, without the API server.
async fn readyz(pod: &Pod) -> Result<(u16, String)> {
    let ip = pod.status.as_ref().and_then(|status| status.pod_ip.as_ref()).context("no address")?;
    let ask = async {
        let mut stream = TcpStream::connect(format!("{ip}:7072")).await?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no HTTP")?;
        Ok::<_, anyhow::Error>((code, answer))
    };
    tokio::time::timeout(ANSWER, ask).await.context("no answer")?
}

/// All members' processes are killed while the API server is away: no new process accepts writes.
async fn all_wait(t: &Trial, pods: &[Pod]) -> Result<()> {
    for pod in pods {
        let status = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref()?.first());
        let container = status.and_then(|status| status.container_id.clone()).context("no container ID")?;
        t.lab.kill_container(&container).await?;
    }
    for pod in pods {
        until(&format!("{} to be back and to wait", pod.name_any()), async || {
            let (code, why) = readyz(pod).await?;
            ensure!(code == 503 && why.contains("reaches 1 of 3 voters"), "{code}: {why}");
            Ok(())
        })
        .await?;
    }
    let began = Instant::now();
    while began.elapsed() < QUIET {
        for pod in pods {
            let (code, why) = readyz(pod).await?;
            ensure!(code == 503, "{} is ready: {why}", pod.name_any());
            let put = t.speak_to(pod)?.put("lost", "v", PutOptions::default()).await;
            ensure!(put.is_err(), "{} took a write", pod.name_any());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

/// Members that start while the API server is away wait for each other.
#[test]
fn members_found_without_the_api_server() {
    alone("api-away", async |t| {
        t.cluster("demo", 3).await?;
        let keys = t.fill("demo", 50).await?;
        t.all_hold("demo", &keys).await?;
        let pods = t.member_pods("demo").await?;
        if !t.lab.control(&["kill", "kube-apiserver"]).await? {
            eprintln!("api-away: only the throwaway cluster can do without its API server; not tested here");
            return Ok(());
        }
        let waited = all_wait(t, &pods).await;
        // On success and on failure, other tests need the API server.
        t.lab.control(&["start", "kube-apiserver"]).await?;
        let back = Instant::now();
        waited?;
        for pod in &pods {
            until(&format!("{} to have found the others", pod.name_any()), async || {
                let (code, why) = readyz(pod).await?;
                ensure!(code == 200, "{code}: {why}");
                Ok(())
            })
            .await?;
        }
        eprintln!("api-away: all were ready {:?} after the API server was started", back.elapsed());
        t.settled("demo", 3).await?;
        let keys = t.fill("demo", 50).await?;
        t.all_hold("demo", &keys).await
    });
}
