//! Members that are killed, deleted and replaced: no acknowledged write is lost, and clients do not notice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::DeleteParams;
use kvasir_client::{Client, PutOptions};
use kvasir_e2e::trial::{held, is_ready, restarts, same};
use kvasir_e2e::{run, until};

#[test]
fn a_killed_container_returns_with_every_key() {
    run("kill", async |t| {
        t.cluster("demo", 3).await?;
        let keys = t.fill("demo", 200).await?;
        t.all_hold("demo", &keys).await?;
        let pod = t.api::<Pod>().get("demo-1").await?;
        let status = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref()?.first());
        let container = status.and_then(|status| status.container_id.clone()).context("no container ID")?;
        let origin = t.speak_to(&pod)?.who_am_i().await?.member.origin;
        if !t.lab.kill_container(&container).await? {
            eprintln!("kill: only the throwaway cluster can kill -9 a container; not tested here");
            return Ok(());
        }
        until("the container to be started again and ready", async || {
            let pod = t.api::<Pod>().get("demo-1").await?;
            ensure!(restarts(&pod) == 1 && is_ready(&pod), "{:?}", pod.status);
            Ok(())
        })
        .await?;
        // Ready means synced: the test does not wait here.
        let pod = t.api::<Pod>().get("demo-1").await?;
        let client = t.speak_to(&pod)?;
        same(&keys, &held(&client).await?)?;
        ensure!(client.who_am_i().await?.member.origin != origin, "it is the same process");
        // It replicates again, in both directions.
        client.put("after-the-kill", "back", PutOptions::default()).await?;
        let mut keys = keys;
        keys.insert("after-the-kill".into(), b"back".to_vec());
        t.all_hold("demo", &keys).await?;
        t.settled("demo", 3).await
    });
}

#[test]
fn a_deleted_pod_returns_with_every_key() {
    run("delete-pod", async |t| {
        t.cluster("demo", 3).await?;
        let keys = t.fill("demo", 200).await?;
        let old = t.api::<Pod>().get("demo-2").await?;
        t.api::<Pod>().delete("demo-2", &DeleteParams::default()).await?;
        until("another demo-2, ready", async || {
            let pod = t.api::<Pod>().get("demo-2").await?;
            ensure!(pod.uid() != old.uid() && is_ready(&pod), "{:?}", pod.status);
            Ok(())
        })
        .await?;
        let new = t.api::<Pod>().get("demo-2").await?;
        same(&keys, &held(&t.speak_to(&new)?).await?)?;
        t.all_hold("demo", &keys).await?;
        t.settled("demo", 3).await
    });
}

/// The acknowledged writes, by key.
type Acknowledged = BTreeMap<String, Vec<u8>>;

/// Writers that use the Service.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<Result<Acknowledged>>>,
}

impl Load {
    /// Several writers, each with its own keys; each reads back now and then. A failed call ends its writer.
    fn start(clients: Vec<Client>) -> Self {
        let (stop, total) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let writer = |(w, client): (usize, Client)| {
            let (stop, total) = (Arc::clone(&stop), Arc::clone(&total));
            tokio::spawn(async move {
                let mut acknowledged = Acknowledged::new();
                while !stop.load(Ordering::Relaxed) {
                    let n = acknowledged.len();
                    let (key, value) = (format!("load-{w}-{n:06}"), format!("{w} {n}").into_bytes());
                    let began = Instant::now();
                    let put = client.put(key.clone(), value.clone(), PutOptions::default()).await;
                    put.with_context(|| format!("put {key} failed after {:?}", began.elapsed()))?;
                    acknowledged.insert(key.clone(), value);
                    total.fetch_add(1, Ordering::Relaxed);
                    if n.is_multiple_of(10) {
                        client.exists(key.clone()).await.with_context(|| format!("exists {key} failed"))?;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Ok(acknowledged)
            })
        };
        let tasks = clients.into_iter().enumerate().map(writer).collect();
        Self { stop, acknowledged: total, tasks }
    }

    /// Waits until this many more writes are acknowledged.
    async fn goes_on(&self, writes: usize) -> Result<()> {
        let enough = self.acknowledged.load(Ordering::Relaxed) + writes;
        until("the load to go on", async || {
            let now = self.acknowledged.load(Ordering::Relaxed);
            ensure!(now >= enough, "{now} writes, not yet {enough}");
            Ok(())
        })
        .await
    }

    /// Stops the writers, and returns every acknowledged write.
    async fn finish(self) -> Result<Acknowledged> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Acknowledged::new();
        for task in self.tasks {
            all.append(&mut task.await.context("a writer panicked")??);
        }
        Ok(all)
    }
}

/// A rolling restart under load loses no write either.
#[test]
fn a_rolling_restart_under_load_fails_no_call() {
    run("rolling", async |t| {
        t.cluster("demo", 3).await?;
        let before = t.member_pods("demo").await?;
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(t.speak_to_service("demo").await?);
        }
        let load = Load::start(clients);
        load.goes_on(100).await?;
        t.kubectl(&["rollout", "restart", "statefulset/demo"]).await?;
        load.goes_on(100).await?;
        t.kubectl(&["rollout", "status", "statefulset/demo", "--timeout=240s"]).await?;
        load.goes_on(100).await?;
        let acknowledged = load.finish().await?;
        t.settled("demo", 3).await?;

        let after = t.member_pods("demo").await?;
        for (old, new) in before.iter().zip(&after) {
            ensure!(old.name_any() == new.name_any() && old.uid() != new.uid(), "{} was not restarted", old.name_any());
        }
        eprintln!("rolling: {} writes were acknowledged", acknowledged.len());
        t.all_hold("demo", &acknowledged).await
    });
}
