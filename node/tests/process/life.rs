//! How a node starts, drains and leaves.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvasir_client::{Client, PutOptions, RetryPolicy};
use tokio::net::{TcpListener, TcpStream};
use tonic::Code;

use crate::harness::{Kv, Node, PATIENCE, cluster, command, eventually, holds_all, loopback, meshed, nodes};

/// How many writes of a load were acknowledged.
#[derive(Clone, Default)]
struct Load(Arc<AtomicUsize>);

impl Load {
    fn acknowledged(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until this many more writes are acknowledged.
    async fn goes_on(&self, writes: usize) {
        let enough = self.0.load(Ordering::Relaxed) + writes;
        eventually("the load goes on", async || {
            let now = self.0.load(Ordering::Relaxed);
            if now >= enough { Ok(()) } else { Err(format!("{now} writes, not yet {enough}")) }
        })
        .await;
    }
}

/// Nodes that take as long as they need to hand over, and do not take a stalled peer for a dead one.
async fn patient_cluster(count: usize) -> Vec<Node> {
    let with = |node: Node| node.with("drain-timeout", "100s").with("swim-suspicion", "20s");
    let mut nodes: Vec<_> = nodes(count).into_iter().map(with).collect();
    nodes.iter_mut().for_each(Node::start);
    for node in &mut nodes {
        node.ready().await;
    }
    meshed(&nodes).await;
    nodes
}

#[tokio::test]
async fn a_draining_node_hands_over_every_acked_write() {
    let mut nodes = patient_cluster(3).await;
    let load = Load::default();
    // The load writes faster than peers receive: at any moment some writes exist only on this node.
    let pad = "v".repeat(100 << 10);
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let (mut kv, pad, load) = (nodes[0].kv(), pad.clone(), load.clone());
            tokio::spawn(async move {
                let mut acknowledged: BTreeMap<String, u64> = BTreeMap::new();
                for number in 0.. {
                    let key = format!("{writer}/{}", number % 4);
                    if kv.put(&key, &format!("{number} {pad}")).await.is_err() {
                        break;
                    }
                    acknowledged.insert(key, number);
                    load.acknowledged();
                }
                acknowledged
            })
        })
        .collect();
    load.goes_on(200).await;
    nodes[0].terminate();
    let status = nodes[0].ended().await;
    assert_eq!(status.code(), Some(0), "{status}");
    let log = nodes[0].log();
    for line in ["the peers hold all of this node's writes", "left the cluster", "stopped"] {
        assert!(log.contains(line), "{line:?} is not in the log");
    }
    let mut acknowledged = BTreeMap::new();
    for writer in writers {
        acknowledged.extend(writer.await.unwrap());
    }
    for node in &nodes[1..] {
        let held = node.kv().all().await.unwrap();
        // A put without an answer may have been applied, so the value may be a later one.
        let number = |key: &String| held.get(key)?.split(' ').next()?.parse::<u64>().ok();
        let lost: Vec<_> = acknowledged.iter().filter(|(key, last)| number(key) < Some(**last)).collect();
        assert!(lost.is_empty(), "{} lacks {lost:?}", node.name);
        eventually("the member is gone", async || {
            let status = node.status().await;
            if status["peers"].as_array().unwrap().len() == 1 { Ok(()) } else { Err(status) }
        })
        .await;
        // The node left; no failure detector had to find out.
        let page = node.metrics().await;
        assert_eq!(page.value("kvasir_membership_events_total{event=\"left\"}"), Some(1.0));
        assert_eq!(page.value("kvasir_membership_events_total{event=\"failed\"}"), Some(0.0));
    }
}

#[tokio::test]
async fn a_node_does_not_end_before_a_peer_has_what_it_took() {
    let with = |node: Node| node.with("sync-interval", "1s").with("drain-timeout", "100s");
    let mut nodes: Vec<_> = nodes(2).into_iter().map(with).collect();
    nodes.iter_mut().for_each(Node::start);
    for node in &mut nodes {
        node.ready().await;
    }
    meshed(&nodes).await;
    nodes[1].freeze();
    let mut kv = nodes[0].kv();
    for key in 0..50 {
        kv.put(&format!("k{key}"), "v").await.unwrap();
    }
    nodes[0].terminate();
    // Longer than the node lingers, and longer than membership waits for a silent peer.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(nodes[0].runs(), "it left with writes that no other node has");
    nodes[1].resume();
    assert_eq!(nodes[0].ended().await.code(), Some(0));
    assert!(nodes[0].log().contains("the peers hold all of this node's writes"));
    assert_eq!(nodes[1].kv().all().await.unwrap().len(), 50);
}

/// The log also says why they could not be handed over.
#[tokio::test]
async fn a_drain_that_times_out_names_writes_at_risk() {
    // A link is closed after ten intervals without a message.
    let with =
        |node: Node| node.with("drain-timeout", "400ms").with("sync-interval", "6s").with("swim-suspicion", "1m");
    let mut nodes: Vec<_> = nodes(2).into_iter().map(with).collect();
    nodes.iter_mut().for_each(Node::start);
    for node in &mut nodes {
        node.ready().await;
    }
    meshed(&nodes).await;
    nodes[1].freeze();
    let mut kv = nodes[0].kv();
    for key in 0..30 {
        kv.put(&format!("key-{key:02}"), "v").await.unwrap();
    }
    nodes[0].terminate();
    assert_eq!(nodes[0].ended().await.code(), Some(0));
    let log = nodes[0].log();
    let words = "no peer is known to hold some of this node's writes";
    let said = log.lines().find(|line| line.contains(words)).unwrap_or_else(|| panic!("{log}"));
    for words in ["WARN", "key-00", "key-19", "no peer acknowledged them in time", "at most 20"] {
        assert!(said.contains(words), "{words:?} is not in {said}");
    }
    assert!(!said.contains("key-20"), "{said}");
}

/// It reports that it is not ready at once.
#[tokio::test]
async fn a_draining_node_serves_until_clients_moved() {
    for _ in 0..ATTEMPTS {
        let mut nodes = cluster(2).await;
        let mut kv = nodes[0].kv();
        kv.put("before", "v").await.unwrap();
        let signal = Instant::now();
        nodes[0].terminate();
        let served = serves_while_draining(&nodes[0], &mut kv).await;
        let took = signal.elapsed();
        match served {
            Ok(()) => return sends_its_client_away(nodes, kv).await,
            // Only a refusal while the node should still serve breaks the promise.
            Err(why) => assert!(took >= LINGERS, "{took:?} after the signal: {why}"),
        }
    }
    panic!("this machine never asked within {LINGERS:?}");
}

/// How long a node with these tests' drain timeout of 4 s keeps serving: a quarter of it.
const LINGERS: Duration = Duration::from_secs(1);
/// A stalled machine may query too late, but not in every attempt.
const ATTEMPTS: usize = 20;

/// Kubernetes learns only after a moment that a node is not ready: clients that arrive until then are served.
async fn serves_while_draining(node: &Node, kv: &mut Kv) -> Result<(), String> {
    eventually("not ready", async || match node.http("/readyz").await {
        Ok((503, body)) if body.starts_with("draining: ") => Ok(()),
        Err(_) => Ok(()), // it has ended, which the calls below find
        other => Err(other),
    })
    .await;
    eventually("nor healthy", async || match crate::observe::ask_health(node, "").await {
        Ok(health) if health == tonic_health::ServingStatus::Serving as i32 => Err("still serving"),
        _ => Ok(()),
    })
    .await;
    kv.put("meanwhile", "v").await.map_err(|status| status.to_string())?;
    let got = kv.get("before").await.map_err(|status| status.to_string())?;
    let (_, status) = node.http("/status").await.map_err(|error| error.to_string())?;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let health = crate::observe::ask_health(node, "").await.map_err(|status| status.to_string())?;
    let (live, _) = node.http("/livez").await.map_err(|error| error.to_string())?;
    assert_eq!(got.as_deref(), Some("v"));
    assert_eq!((&status["phase"], &status["keys"]), (&"draining".into(), &2.into()));
    assert_eq!(health, tonic_health::ServingStatus::NotServing as i32);
    assert_eq!(live, 200, "a drain is no reason to kill");
    Ok(())
}

async fn sends_its_client_away(mut nodes: Vec<Node>, mut kv: Kv) {
    // The client's connection ends, and new ones are refused.
    let refused = eventually("the client is sent away", async || match kv.put("late", "v").await {
        Ok(_) => Err("still taken"),
        Err(status) => Ok(status),
    })
    .await;
    // Cancelled: the call was about to be sent when its connection ended.
    assert!(matches!(refused.code(), Code::Unavailable | Code::Cancelled), "{refused}");
    assert_eq!(nodes[0].ended().await.code(), Some(0));
    assert!(nodes[1].kv().exists("meanwhile").await.unwrap());
}

/// It has no peers to wait for.
#[tokio::test]
async fn a_lonely_node_drains_at_once() {
    let mut node = Node::alone().await.with("drain-timeout", "1h");
    node.kv().put("k", "v").await.unwrap();
    node.terminate();
    assert_eq!(node.ended().await.code(), Some(0));
    assert!(node.log().contains("there is no peer to hand over to"));
}

#[tokio::test]
async fn sigterm_stops_a_node_that_is_joining() {
    // No node is at the other address, and the drain timeout is long.
    let mut node = nodes(2).remove(0).with("join-timeout", "1h");
    node.start();
    eventually("it joins", async || match node.http("/readyz").await {
        Ok((503, body)) if body.starts_with("joining: ") => Ok(()),
        other => Err(other),
    })
    .await;
    let refused = node.kv().put("k", "v").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("joining"), "{refused}");
    assert_eq!(node.kv().get("k").await.unwrap_err().code(), Code::Unavailable);
    assert!(node.cluster().who_am_i(kvasir_proto::v1::WhoAmIRequest {}).await.is_ok());
    node.terminate();
    assert_eq!(node.ended().await.code(), Some(0));
}

/// A Kubernetes Service as its clients see it: an address behind which each new connection leads to some ready node,
/// with some delay.
struct Service {
    address: SocketAddr,
}

/// How long after a node stops being ready new connections still reach it.
const STALE_FOR: Duration = Duration::from_millis(300);

impl Service {
    async fn before(nodes: &[Node]) -> Self {
        let listener = TcpListener::bind(loopback()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let ready: Arc<Mutex<BTreeMap<SocketAddr, bool>>> = Arc::default();
        for node in nodes {
            let (ready, client, admin) = (ready.clone(), node.client, node.admin);
            tokio::spawn(async move {
                loop {
                    let now = is_ready(admin).await;
                    tokio::time::sleep(STALE_FOR).await;
                    ready.lock().unwrap().insert(client, now);
                }
            });
        }
        tokio::spawn(async move {
            loop {
                let (mut from, _) = listener.accept().await.unwrap();
                let to: Vec<_> = ready.lock().unwrap().iter().filter(|(_, r)| **r).map(|(a, _)| *a).collect();
                tokio::spawn(async move {
                    let Some(to) = to.get(rand::random_range(0..to.len().max(1))) else { return };
                    if let Ok(mut to) = TcpStream::connect(to).await {
                        // Either side may break the connection, by design.
                        let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
                    }
                });
            }
        });
        Self { address }
    }
}

async fn is_ready(admin: SocketAddr) -> bool {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let ask = async {
        let mut stream = TcpStream::connect(admin).await?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer.starts_with("HTTP/1.1 200"))
    };
    ask.await.unwrap_or(false)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_loses_no_write_and_no_call() {
    let mut nodes = patient_cluster(3).await;
    let service = Service::before(&nodes).await;
    let stop = Arc::new(AtomicBool::new(false));
    let load = Load::default();
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (stop, load, address) = (stop.clone(), load.clone(), service.address.to_string());
            tokio::spawn(async move {
                // The duration of a call depends on the machine; its success must not.
                let retry = RetryPolicy { budget: PATIENCE, ..RetryPolicy::default() };
                let client = Client::builder(address).retry(retry).connect().await.unwrap();
                let mut acknowledged = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let key = format!("{writer}/{}", acknowledged.len());
                    client.put(&key, "v", PutOptions::default()).await.unwrap_or_else(|error| panic!("{key}: {error}"));
                    acknowledged.push(key);
                    load.acknowledged();
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                acknowledged
            })
        })
        .collect();
    for n in 0..nodes.len() {
        load.goes_on(50).await;
        nodes[n].terminate();
        load.goes_on(50).await;
        assert_eq!(nodes[n].ended().await.code(), Some(0));
        load.goes_on(50).await;
        nodes[n].start();
        nodes[n].ready().await;
        meshed(&nodes).await;
    }
    load.goes_on(50).await;
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = Vec::new();
    for writer in writers {
        acknowledged.extend(writer.await.expect("a call failed"));
    }
    for node in &nodes {
        holds_all(node, &acknowledged).await;
    }
}

#[test]
fn bad_settings_end_with_code_2_and_name_the_field() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let in_file = |text| vec!["--config".to_owned(), file(&format!("{}.yaml", rand::random::<u32>()), text)];
    let flag = |flag: &str, value: &str| vec![format!("--{flag}"), value.to_owned()];
    for (arguments, named) in [
        (in_file("syncInterval: soon\n"), "syncInterval"),
        (in_file("surprise: 1\n"), "surprise"),
        (in_file("maxMemory: 12 potatoes\n"), "maxMemory"),
        (in_file("discovery:\n  dns:\n    port: 70000\n"), "discovery.dns.port"),
        (in_file("name: [\n"), "not valid YAML"),
        (in_file("clientAddress: nowhere\n"), "clientAddress"),
        (flag("config", "/nowhere/node.yaml"), "/nowhere/node.yaml"),
        (flag("sync-interval", "1"), "sync-interval"),
        (flag("max-key-bytes", "0"), "maxKeyBytes"),
        (flag("log-level", "shout=="), "logLevel"),
        (flag("surprise", "1"), "--surprise"),
    ] {
        let output = command().args(&arguments).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
        assert!(message.contains(named), "{named:?} is not in {message:?}");
    }
}

/// A file in a mounted `ConfigMap` changes by being replaced as a whole.
fn exchange(path: &std::path::Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

#[tokio::test]
async fn voters_are_read_again_from_a_changed_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("node.yaml");
    exchange(&file, "voters: 3\nmaxMemory: 1Gi\nserveAlone: true\njoinTimeout: 100ms\n");
    let node = Node::new("n0").with("config", file.to_str().unwrap()).without("max-memory").started().await;
    let majority = async || {
        let level = Some(kvasir_proto::v1::ack::Asked::Level(kvasir_proto::v1::AckLevel::Majority.into()));
        let timeout = Some(Duration::from_millis(50).try_into().unwrap());
        let request = kvasir_proto::v1::PutRequest {
            key: "k".to_owned(),
            ack: Some(kvasir_proto::v1::Ack { asked: level, timeout }),
            ..kvasir_proto::v1::PutRequest::default()
        };
        let acked = node.kv().0.put(request).await.unwrap().into_inner().acked.unwrap();
        (acked.majority, acked.met)
    };
    let comes_to_be = async |expected| {
        eventually("the number is in force", async || {
            let found = majority().await;
            if found == expected { Ok(()) } else { Err(found) }
        })
        .await;
    };
    assert_eq!(majority().await, (2, false));
    exchange(&file, "voters: 1\n");
    comes_to_be((1, true)).await;
    exchange(&file, "voters: many\n");
    eventually("an invalid file is logged", async || {
        let log = node.log();
        if log.contains("cannot read the number of voters") { Ok(()) } else { Err(log) }
    })
    .await;
    assert_eq!(majority().await, (1, true), "what was right stays");
    // Only this setting is read again while the node runs.
    exchange(&file, "voters: 5\nmaxMemory: 1\n");
    comes_to_be((3, false)).await;
    assert_eq!(node.status().await["maxMemoryBytes"], 1 << 30);
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let node = Node::alone().await;
    for (setting, flag) in
        [("clientAddress", "client-address"), ("adminAddress", "admin-address"), ("peerAddress", "peer-address")]
    {
        let addresses = ["client-address", "peer-address", "admin-address"].map(|name| match name {
            name if name == flag => [format!("--{name}"), node.client.to_string()],
            name => [format!("--{name}"), loopback().to_string()],
        });
        let output = command().args(addresses.as_flattened()).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains(&format!("{setting}: cannot listen on {}", node.client)), "{message}");
        assert_eq!(message.matches("os error").count(), 1, "{message}");
        assert!(!message.contains('\u{1b}'), "colours are for terminals: {message:?}");
    }
}
