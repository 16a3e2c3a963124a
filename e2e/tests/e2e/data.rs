//! Keys: puts and deletes reach all nodes at once, and any gRPC client can use them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;
use kube::api::ListParams;
use kvasir_client::{Client, Error, PutOptions, RetryPolicy};
use kvasir_e2e::lab::command;
use kvasir_e2e::trial::{held, ip, restarts, same};
use kvasir_e2e::{App, Trial, alone, run, until};
use serde_json::{Value, json};

/// A put must reach every other node within a second. This limit is five times as long, because the measurement
/// includes the end of a process in a pod and the way of its output through kubelet and API server, on a busy machine.
const SPREAD: Duration = Duration::from_secs(5);
/// How far apart nodes may expire a key.
const TOGETHER: Duration = Duration::from_millis(250);

/// One sidecar puts keys, and the sidecar on another Kubernetes node gets and deletes them.
#[test]
fn data_spreads_between_sidecars() {
    alone("sidecars", async |t| {
        t.cluster("demo", 3).await?;
        let [first, second] = [&t.lab.nodes[t.lab.nodes.len() - 1], &t.lab.nodes[t.lab.nodes.len() - 2]];
        let writer = t.start_app("writer", Some("demo"), first).await?;
        let reader = t.app("reader", Some("demo"), second).await?;
        t.kubectl(&["wait", "--for=condition=Ready", "pod/writer", "--timeout=120s"]).await?;
        let node = |pod: &k8s_openapi::api::core::v1::Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        ensure!(node(&writer.pod().await?) != node(&reader.pod().await?), "both are on one node");

        // One process in the reader polls, so that no process start is measured.
        for round in 0..5 {
            let key = format!("greeting-{round}");
            let put = async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                writer.kvctl_ok(&["put", &key, "hello"]).await?;
                anyhow::Ok(Instant::now())
            };
            let (put, got) = tokio::try_join!(put, seen(&reader, &key, true))?;
            let took = got.saturating_duration_since(put);
            ensure!(took < SPREAD, "the put was seen after {took:?}");
            ensure!(reader.kvctl_ok(&["get", &key]).await?.trim_end() == "hello", "another value");

            let delete = async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                reader.kvctl_ok(&["delete", &key]).await?;
                anyhow::Ok(Instant::now())
            };
            let (deleted, gone) = tokio::try_join!(delete, seen(&writer, &key, false))?;
            let took = gone.saturating_duration_since(deleted);
            ensure!(took < SPREAD, "the delete was seen after {took:?}");
        }
        // Three members and two sidecars, all of which know each other.
        until("five nodes", async || {
            let table = writer.kvctl_ok(&["members", "-o", "json"]).await?;
            for name in ["demo-0", "demo-1", "demo-2", "writer", "reader"] {
                ensure!(table.contains(name), "no {name} in {table}");
            }
            Ok(())
        })
        .await
    });
}

/// When a key was first seen, or first missing, from inside a pod.
async fn seen(app: &App<'_>, key: &str, there: bool) -> Result<Instant> {
    let code = if there { 0 } else { 3 };
    let script = format!(
        "n=0; until kvctl get {key} >/dev/null 2>&1; [ $? = {code} ]; do n=$((n+1)); [ $n -lt 5000 ] || exit 9; done"
    );
    let output = app.exec(&["sh", "-c", &script]).await?;
    ensure!(output.code == 0, "{} never saw {key} {there}: {output:?}", app.name);
    Ok(Instant::now())
}

#[test]
fn a_ttl_ends_everywhere_at_the_same_moment() {
    alone("ttl", async |t| {
        t.cluster("demo", 3).await?;
        let one = t.app("one", Some("demo"), &t.lab.nodes[0]).await?;
        let two = t.app("two", Some("demo"), &t.lab.nodes[1]).await?;
        let members = t.member_pods("demo").await?;
        let mut clients =
            members.iter().map(|pod| Ok((pod.name_any(), t.speak_to(pod)?))).collect::<Result<Vec<_>>>()?;

        // The sidecars serve on their pods' loopback: this process polls them too, so one clock times all.
        let tunnels = [t.tunnel(&one, 7070).await?, t.tunnel(&two, 7070).await?];
        for (app, tunnel) in [&one, &two].into_iter().zip(&tunnels) {
            let client = Client::builder(tunnel.address.to_string()).connect().await?;
            clients.push((app.name.clone(), client));
        }

        let ttl = Duration::from_secs(3);
        let before = Instant::now();
        clients[0].1.put("brief", "v", PutOptions::with_ttl(ttl)).await?;
        let after = Instant::now();
        let ends = try_join_all(clients.iter().map(|(name, client)| end_of(client, name, "brief"))).await?;
        let widest = ends.iter().map(|end| end.gone - end.there).max().context("there are five")?;
        let latest = ends.iter().map(|end| end.there).max().context("there are five")?;
        let earliest = ends.iter().map(|end| end.gone).min().context("there are five")?;
        let apart = latest.saturating_duration_since(earliest);
        eprintln!(
            "ttl: gone {:?} after the put, at most {widest:?} between two looks, {apart:?} apart",
            earliest - before
        );
        ensure!(apart <= TOGETHER, "one node had the key for {apart:?} after another had lost it");
        // By the clock of the node that accepted the put, which was in flight from `before` to `after`.
        let whole = Duration::from_millis(1); // the resolution of that clock
        ensure!(earliest + whole >= before + ttl, "it ended {:?} after the put", earliest - before);
        ensure!(latest <= after + ttl + TOGETHER, "it was still there {:?} after the put", latest - after);
        Ok(())
    });
}

/// The two moments between which a key expired at a node; their distance depends on the machine, not on the node.
struct End {
    /// The last read that returned the key was sent then.
    there: Instant,
    /// The first answer without the key arrived then.
    gone: Instant,
}

async fn end_of(client: &Client, node: &str, key: &str) -> Result<End> {
    let look = async || anyhow::Ok((Instant::now(), client.get(key).await?.is_some()));
    let mut there = until(&format!("{key} at {node}"), async || {
        let (asked, there) = look().await?;
        ensure!(there, "not yet");
        Ok(asked)
    })
    .await?;
    loop {
        match look().await? {
            (asked, true) => there = asked,
            (_, false) => return Ok(End { there, gone: Instant::now() }),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn a_stock_grpc_client_needs_nothing_but_reflection() {
    run("reflection", async |t| {
        t.cluster("demo", 1).await?;
        let pod = t.member_pods("demo").await?.pop().context("there is one member")?;
        let address = format!("{}:7070", ip(&pod)?);
        let services = command("grpcurl", &["-plaintext", &address, "list"]).await?;
        for service in
            ["kvasir.v1.Kv", "kvasir.v1.Cluster", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"]
        {
            ensure!(services.lines().any(|line| line == service), "{service} is not in {services}");
        }
        // "hello" in base64, which protobuf's JSON uses for bytes.
        let put = ["-plaintext", "-d", r#"{"key":"greeting","value":"aGVsbG8="}"#, &address, "kvasir.v1.Kv/Put"];
        command("grpcurl", &put).await?;
        let get = ["-plaintext", "-d", r#"{"key":"greeting"}"#, &address, "kvasir.v1.Kv/Get"];
        let answer: Value = serde_json::from_str(&command("grpcurl", &get).await?)?;
        ensure!(answer["value"] == "aGVsbG8=", "{answer}");
        let health = command("grpcurl", &["-plaintext", &address, "grpc.health.v1.Health/Check"]).await?;
        ensure!(health.contains("SERVING") && !health.contains("NOT_SERVING"), "{health}");

        let missing = ["-plaintext", "-d", r#"{"key":"missing"}"#, &address, "kvasir.v1.Kv/Get"];
        let refused = command("grpcurl", &missing).await.err().context("a missing key was found")?;
        ensure!(format!("{refused:#}").contains("NotFound"), "{refused:#}");
        let empty = ["-plaintext", "-d", r#"{"key":"","value":""}"#, &address, "kvasir.v1.Kv/Put"];
        let refused = command("grpcurl", &empty).await.err().context("an empty key was taken")?;
        ensure!(format!("{refused:#}").contains("InvalidArgument"), "{refused:#}");
        Ok(())
    });
}

/// A full node also says in its status that it is full.
#[test]
fn a_full_node_refuses_writes_and_serves_reads() {
    run("full", async |t| {
        t.ask_for_cluster("demo", json!({ "replicas": 2, "maxMemory": "1Mi" })).await?;
        t.settled("demo", 2).await?;
        let client = t.speak_to(&t.member_pods("demo").await?[0])?;
        let mut kept = Vec::new();
        let refusal = loop {
            let key = format!("block-{:03}", kept.len());
            match client.put(key.clone(), vec![b'x'; 64 << 10], PutOptions::default()).await {
                Ok(_) => kept.push(key),
                Err(error) => break error,
            }
            ensure!(kept.len() <= 20, "1Mi takes {} blocks of 64Ki", kept.len());
        };
        ensure!(matches!(refusal, Error::Full(_)), "{refusal}");
        ensure!(kept.len() >= 8, "full after {} blocks of 64Ki", kept.len());
        let degraded = async |wanted: &str| {
            until(&format!("Degraded to be {wanted}"), async || {
                let status = t.get("demo").await?.status.unwrap_or_default();
                let degraded = status.conditions.into_iter().find(|condition| condition.type_ == "Degraded");
                let degraded = degraded.context("no Degraded")?;
                ensure!(degraded.status == wanted, "{degraded:?}");
                Ok(degraded.message)
            })
            .await
        };
        let message = degraded("True").await?;
        ensure!(message.contains("maxMemory"), "Degraded does not say what to do: {message}");
        // Every member returns every accepted key, and still refuses puts.
        for pod in t.member_pods("demo").await? {
            let client = t.speak_to(&pod)?;
            for key in &kept {
                until(&format!("{key} at {}", pod.name_any()), async || {
                    client.get(key.clone()).await?.context("not there")
                })
                .await?;
            }
            let again = client.put("one-more", vec![b'x'; 64 << 10], PutOptions::default()).await;
            ensure!(matches!(again, Err(Error::Full(_))), "{}: {again:?}", pod.name_any());
        }
        // Deletes are accepted and make room.
        for key in &kept[..kept.len() / 2] {
            client.delete(key.clone()).await?;
        }
        client.put("room", vec![b'x'; 64 << 10], PutOptions::default()).await?;
        degraded("False").await?;
        Ok(())
    });
}

#[test]
fn full_in_small_containers_none_is_killed() {
    run("small", async |t| {
        t.ask_for_cluster("demo", json!({ "replicas": 3, "resources": { "limits": { "memory": "96Mi" } } })).await?;
        t.settled("demo", 3).await?;
        let app = t.app("app", Some("demo"), &t.lab.nodes[0]).await?;
        let pods = t.member_pods("demo").await?;
        let clients = pods.iter().map(|pod| t.speak_to(pod)).collect::<Result<Vec<_>>>()?;
        let (mut accepted, mut refused) = (BTreeMap::new(), 0);
        for (n, client) in (0..81_u8).zip(clients.iter().cycle()) {
            let (key, value) = (format!("mb-{n:02}"), vec![b'a' + n % 26; 1_000_000]);
            match client.put(key.clone(), value.clone(), PutOptions::default()).await {
                Ok(_) => _ = accepted.insert(key, value),
                Err(Error::Full(_)) => refused += 1,
                Err(error) => bail!("put {key}: {error}"),
            }
        }
        ensure!(refused > 0 && accepted.len() > 20, "{} were accepted, {refused} refused", accepted.len());
        t.all_hold("demo", &accepted).await?;
        let tunnel = t.tunnel(&app, 7070).await?;
        let sidecar = Client::builder(tunnel.address.to_string()).build()?;
        until("the sidecar to hold every key", async || same(&accepted, &held(&sidecar).await?)).await?;
        for pod in t.member_pods("demo").await?.into_iter().chain([app.pod().await?]) {
            ensure!(restarts(&pod) == 0, "{} was started again: {:?}", pod.name_any(), pod.status);
        }
        ensure!(memory_bounded(t).await?.status == "True", "{:?}", memory_bounded(t).await?);
        Ok(())
    });
}

async fn memory_bounded(t: &Trial) -> Result<Condition> {
    let conditions = t.get("demo").await?.status.unwrap_or_default().conditions;
    conditions.into_iter().find(|condition| condition.type_ == "MemoryBounded").context("no MemoryBounded")
}

#[test]
fn a_cluster_without_memory_limits_is_warned_of() {
    run("unlimited", async |t| {
        t.cluster("demo", 1).await?;
        let condition = until("MemoryBounded to be False", async || {
            let condition = memory_bounded(t).await?;
            ensure!(condition.status == "False", "{condition:?}");
            Ok(condition)
        })
        .await?;
        ensure!(condition.reason == "MemoryUnlimited", "{condition:?}");
        ensure!(condition.message.contains("set spec.resources.limits.memory, or spec.maxMemory"), "{condition:?}");
        let warnings = async || -> Result<usize> {
            let events = t.api::<Event>().list(&ListParams::default()).await?.items;
            Ok(events.iter().filter(|event| event.reason.as_deref() == Some("MemoryUnlimited")).count())
        };
        until("a warning event", async || {
            ensure!(warnings().await? == 1, "{} events", warnings().await?);
            Ok(())
        })
        .await?;
        let limit = r#"{"spec":{"resources":{"limits":{"memory":"96Mi"}}}}"#;
        t.kubectl(&["patch", "kvcluster/demo", "--type=merge", "-p", limit]).await?;
        until("MemoryBounded to be True", async || {
            let condition = memory_bounded(t).await?;
            ensure!(condition.status == "True", "{condition:?}");
            Ok(())
        })
        .await?;
        ensure!(warnings().await? == 1, "warned more than once");
        Ok(())
    });
}

#[test]
fn a_client_waits_for_a_cluster_on_its_way() {
    run("patience", async |t| {
        t.ask_for_cluster("demo", json!({ "replicas": 1 })).await?;
        let address = until("the Service", async || {
            let service: k8s_openapi::api::core::v1::Service = t.api().get("demo").await?;
            service.spec.and_then(|spec| spec.cluster_ip).context("no address yet")
        })
        .await?;
        let patient = RetryPolicy { budget: Duration::from_mins(2), ..RetryPolicy::default() };
        let client = Client::builder(format!("{address}:7070")).retry(patient).build()?;
        client.put("early", "bird", PutOptions::default()).await?;
        ensure!(client.exists("early").await?, "the put is not there");
        Ok(())
    });
}
