//! A node founds no cluster while it hears a peer that it cannot talk to: it waits, refuses writes, and reports the peer
//! and the reason.

use std::time::Duration;

use kvasir_proto::v1;
use kvasir_testing::authority::Authority;
use tonic::Code;

use crate::encryption::{Files, encrypted, key_file};
use crate::harness::{Node, eventually, loopback, meshed, nodes};
use crate::nats_server::NatsServer;
use crate::peer_port::greeting;
use crate::tls::{peer_tls, secret};

/// Longer than the join timeout of these tests; how much longer does not matter.
const LONG: Duration = Duration::from_secs(2);

/// One of three voters, which soon evict nodes that they do not reach.
fn hasty(node: Node) -> Node {
    node.with("voters", "3").with("join-timeout", "300ms")
}

/// Two of these three are ready and hold a key; the third is not started.
async fn two_of(mut three: Vec<Node>) -> (Vec<Node>, Node) {
    let third = three.pop().unwrap();
    three.iter_mut().for_each(Node::start);
    for node in &mut three {
        node.ready().await;
    }
    three[0].kv().put("k", "kept").await.unwrap();
    (three, third)
}

async fn reasons(node: &Node) -> Vec<(String, String)> {
    let status = node.status().await;
    let text = |of: &serde_json::Value| of.as_str().unwrap_or_default().to_owned();
    let unjoinable = status["unjoinable"].as_array().unwrap_or_else(|| panic!("{status}"));
    unjoinable.iter().map(|peer| (text(&peer["address"]), text(&peer["reason"]))).collect()
}

/// The node waits, refuses writes, and reports everywhere that it cannot join the others for this reason.
async fn waits(node: &Node, others: &[&Node], reason: &str, words: &str) {
    let addresses: Vec<_> = others.iter().map(|other| other.peer.to_string()).collect();
    eventually("it reports the peer that it cannot join, and why", async || match node.http("/readyz").await {
        Ok((503, body)) if addresses.iter().all(|at| says(&body, at, words)) => Ok(()),
        other => Err(other),
    })
    .await;
    tokio::time::sleep(LONG).await;
    let (code, body) = node.http("/readyz").await.unwrap();
    assert_eq!(code, 503, "{body}");
    assert_eq!(node.kv().put("k", "lost").await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(node.kv().get("k").await.unwrap_err().code(), Code::Unavailable);
    let shown = reasons(node).await;
    for address in &addresses {
        assert!(shown.contains(&(address.clone(), reason.to_owned())), "{address} {reason}: {shown:?}");
    }
    let counted = node.metrics().await.value(&format!("kvasir_unjoinable_peers{{reason=\"{reason}\"}}"));
    assert!(counted >= Some(others.len() as f64), "{counted:?}");
    let reported = node.cluster().status(v1::StatusRequest {}).await.unwrap().into_inner().unjoinable;
    assert!(reported.iter().any(|peer| addresses.contains(&peer.address) && peer.reason == reason), "{reported:?}");
    for address in &addresses {
        let lines = node.log().lines().filter(|line| says(line, address, words)).count();
        assert_eq!(lines, 1, "once, however often it was met: {}", node.log());
    }
}

fn says(text: &str, address: &str, words: &str) -> bool {
    text.lines().any(|line| line.contains("cannot join") && line.contains(address) && line.contains(words))
}

/// They are ready, hold what they held, and report the peer that they cannot talk to.
async fn unharmed(nodes: &[Node], other: &Node, reason: &str) {
    for node in nodes {
        assert_eq!(node.http("/readyz").await.unwrap().0, 200);
        assert_eq!(node.kv().get("k").await.unwrap().as_deref(), Some("kept"));
        eventually("the others see it, too", async || {
            let shown = reasons(node).await;
            if shown.contains(&(other.peer.to_string(), reason.to_owned())) { Ok(()) } else { Err(shown) }
        })
        .await;
    }
}

/// The third node starts with the right settings and joins.
async fn joins(nodes: &[Node], third: &mut Node) {
    third.start();
    third.ready().await;
    assert_eq!(third.kv().get("k").await.unwrap().as_deref(), Some("kept"));
    for node in nodes {
        eventually("no refusal is reported", async || {
            let shown = reasons(node).await;
            if shown.is_empty() { Ok(()) } else { Err(shown) }
        })
        .await;
    }
}

#[tokio::test]
async fn founding_waits_for_peers_of_another_key() {
    let files = Files::new();
    let right = key_file("demo", &[1]);
    let three = encrypted(3, &files, &right).into_iter().map(hasty).collect();
    let (nodes, mut third) = two_of(three).await;
    let others: Vec<_> = nodes.iter().collect();
    for wrong in [key_file("demo", &[2]), key_file("other", &[1])] {
        files.put(2, &wrong);
        third.start();
        waits(&third, &others, "key", "another cookie or key").await;
        unharmed(&nodes, &third, "key").await;
        third.kill();
    }
    files.put(2, &right);
    joins(&nodes, &mut third).await;
}

#[tokio::test]
async fn founding_waits_for_peers_that_encrypt() {
    let files = Files::new();
    let mut three: Vec<_> = encrypted(3, &files, &key_file("demo", &[1])).into_iter().map(hasty).collect();
    let third = three.pop().unwrap().without("encryption-file");
    three.push(third);
    let (nodes, mut third) = two_of(three).await;
    third.start();
    waits(&third, &nodes.iter().collect::<Vec<_>>(), "encrypted", "give all nodes the same encryption settings").await;
    unharmed(&nodes, &third, "plaintext").await;
    third.kill();
    joins(&nodes, &mut third.with("encryption-file", files.path(2).to_str().unwrap())).await;
}

#[tokio::test]
async fn founding_waits_for_peers_of_another_release() {
    for variable in ["KVASIR_TEST_LINKS_VERSION", "KVASIR_TEST_DATAGRAMS_VERSION"] {
        let mut three: Vec<_> = nodes(3).into_iter().map(hasty).collect();
        let third = three.pop().unwrap().env(variable, "2");
        three.push(third);
        let (nodes, mut third) = two_of(three).await;
        third.start();
        waits(&third, &nodes.iter().collect::<Vec<_>>(), "version", "this node").await;
        unharmed(&nodes, &third, "version").await;
        third.kill();
        joins(&nodes, &mut third.env(variable, "1")).await;
    }
}

/// Members that are a majority and reach each other, but hold nothing, do not found either: the node that they cannot
/// talk to holds everything.
#[tokio::test]
async fn founding_waits_for_a_node_of_another_release() {
    let mut three: Vec<_> = nodes(3).into_iter().map(hasty).collect();
    three.iter_mut().for_each(Node::start);
    for node in &mut three {
        node.ready().await;
    }
    meshed(&three).await;
    three[0].kv().put("k", "kept").await.unwrap();
    let restarted = |mut node: Node| {
        node.kill();
        node.env("KVASIR_TEST_LINKS_VERSION", "2")
    };
    let mut newer: Vec<_> = three.drain(1..).map(restarted).collect();
    newer.iter_mut().for_each(Node::start);
    for node in &newer {
        waits(node, &[&three[0]], "version", "version 1 of the protocol, this node version 2").await;
        let linked = node.metrics().await.value("kvasir_links");
        assert_eq!(linked, Some(1.0), "they reach each other");
        unharmed(&three, node, "version").await;
    }
    // Returning to the old release keeps all data.
    for mut node in newer {
        node.kill();
        joins(&[], &mut node.env("KVASIR_TEST_LINKS_VERSION", "1")).await;
    }
}

#[tokio::test]
async fn founding_waits_where_another_cluster_answers() {
    let mut three: Vec<_> = nodes(3).into_iter().map(hasty).collect();
    let third = three.pop().unwrap().with("cluster", "other");
    three.push(third);
    let (nodes, mut third) = two_of(three).await;
    third.start();
    waits(&third, &nodes.iter().collect::<Vec<_>>(), "cluster", "another cluster").await;
    unharmed(&nodes, &third, "cluster").await;
    // A node of another cluster that only dials this address delays no founding.
    let mut alone = Node::new("alone");
    let caller = Node::new("caller").with("cluster", "third").with("discovery-static-hosts", alone.peer.to_string());
    alone.start();
    alone.ready().await;
    let mut caller = hasty(caller);
    caller.start();
    eventually("it is called", async || {
        let page = alone.metrics().await;
        page.value("kvasir_peer_datagrams_refused_total").filter(|refused| *refused > 0.0).ok_or(page.0)
    })
    .await;
    assert!(reasons(&alone).await.is_empty());
    third.kill();
    joins(&nodes, &mut third.with("cluster", "test")).await;
}

#[tokio::test]
async fn founding_waits_for_peers_of_another_authority() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let files = |ca: &Authority| secret(&ca.pem, &ca.issue("kvasir-peer", &["kvasir-peer"], 2098));
    let (right, wrong) = (files(&ours), files(&theirs));
    let mut three: Vec<_> = nodes(3).into_iter().map(hasty).map(|node| peer_tls(node, &right)).collect();
    let third = peer_tls(three.pop().unwrap(), &wrong);
    three.push(third);
    let (nodes, mut third) = two_of(three).await;
    third.start();
    waits(&third, &nodes.iter().collect::<Vec<_>>(), "certificate", "TLS with the peer failed").await;
    unharmed(&nodes, &third, "certificate").await;
    third.kill();
    joins(&nodes, &mut peer_tls(third, &right)).await;
}

/// A hand-written peer that sends what a node with a wrong clock sends.
#[tokio::test]
async fn founding_waits_for_a_peer_of_another_time() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let fast = loopback();
    let mut node = Node::new("n").with("discovery-static-hosts", fast.to_string()).with("join-timeout", "300ms");
    node.start();
    let call = async || {
        let mut stream = tokio::net::TcpStream::connect(node.peer).await?;
        stream.write_all(&greeting("test", "fast", 3_600_000)).await?;
        stream.read_to_end(&mut Vec::new()).await
    };
    eventually("it reports the peer that it cannot join, and why", async || {
        let _ = call().await;
        match node.http("/readyz").await {
            Ok((503, body)) if body.contains("cannot join fast (127.0.0.1): the peer's clock is 36") => Ok(()),
            other => Err(other),
        }
    })
    .await;
    assert!(reasons(&node).await.iter().any(|(_, reason)| reason == "clock"));
    assert_eq!(node.kv().put("k", "lost").await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn serve_alone_founds_despite_a_refused_peer() {
    let files = Files::new();
    let mut three: Vec<_> = encrypted(3, &files, &key_file("demo", &[1])).into_iter().map(hasty).collect();
    files.put(2, &key_file("demo", &[2]));
    // Enough time to hear of the others.
    let third = three.pop().unwrap().with("serve-alone", "true").with("join-timeout", "4s");
    three.push(third);
    let (nodes, mut third) = two_of(three).await;
    third.start();
    third.ready().await;
    assert_eq!(third.kv().get("k").await.unwrap(), None);
    let log = third.log();
    let said = log
        .lines()
        .find(|line| line.contains("this map lacks what those peers hold"))
        .unwrap_or_else(|| panic!("{log}"));
    assert!(said.contains("WARN"), "{said}");
    unharmed(&nodes, &third, "key").await;
}

/// Discovery is unavailable while all members start, and recovers after they have waited for a long time.
#[tokio::test]
async fn founding_waits_until_discovery_answers() {
    let mut server = NatsServer::new(&[]);
    let member = |n| hasty(Node::new(&format!("n{n}")).with("discovery-nats-server", server.url()));
    let mut nodes: Vec<_> = (0..3).map(member).collect();
    nodes.iter_mut().for_each(Node::start);
    for node in &nodes {
        eventually("it reports what it waits for", async || match node.http("/readyz").await {
            Ok((503, body)) if body.contains("reaches 1 of 3 voters") && body.contains("discovery nats") => Ok(()),
            other => Err(other),
        })
        .await;
    }
    tokio::time::sleep(LONG).await;
    for node in &nodes {
        assert_eq!(node.kv().put("k", node.name.as_str()).await.unwrap_err().code(), Code::Unavailable);
        let reported = node.cluster().status(v1::StatusRequest {}).await.unwrap().into_inner().waits_for;
        assert!(reported.iter().any(|line| line.contains("reaches 1 of 3 voters")), "{reported:?}");
    }
    server.start();
    for node in &mut nodes {
        node.ready().await;
    }
    meshed(&nodes).await;
    for node in &nodes {
        let founded = node.log().matches("founded one and is ready").count();
        assert!(founded <= 1, "{}", node.log());
        assert_eq!(node.status().await["waitsFor"], serde_json::json!([]));
    }
}

/// One of three machines is gone for good: the other two start without it.
#[tokio::test]
async fn founding_goes_on_without_a_silent_minority() {
    let (nodes, _) = two_of(nodes(3).into_iter().map(|node| node.with("join-timeout", "300ms")).collect()).await;
    let log = nodes.iter().map(Node::log).collect::<String>();
    assert!(log.contains("without some of the peers that it knows"), "{log}");
    // A node alone would have waited.
    let mut alone = crate::harness::nodes(2).remove(0).with("join-timeout", "300ms");
    alone.start();
    eventually("it reports what it waits for", async || match alone.http("/readyz").await {
        Ok((503, body)) if body.contains("does not reach 127.0.0.1:") => Ok(()),
        other => Err(other),
    })
    .await;
    tokio::time::sleep(LONG).await;
    assert_eq!(alone.http("/readyz").await.unwrap().0, 503);
}

/// Discovery returns another address of this node, which the node takes for a peer's address.
#[tokio::test]
async fn a_node_knows_itself_by_another_address() {
    let mut node = Node::new("n").with("advertise-address", "127.0.0.9").with("join-timeout", "1h");
    let port = node.peer.port();
    node.peer = ([0, 0, 0, 0], port).into();
    let mut node = node.with("discovery-static-hosts", format!("127.0.0.1:{port}"));
    node.start();
    node.ready().await;
}
