//! Two processes with one name: which of them continues, and what the other reports.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::{Node, eventually, holds_all, meshed};

/// Two nodes, and a process with the name of the second node, which is not started. A busy machine must not make a node
/// look dead.
async fn two_and_a_twin() -> (Vec<Node>, Node) {
    let mut nodes = vec![Node::new("n0"), Node::new("n1")];
    let hosts = nodes.iter().map(|node| node.peer.to_string()).collect::<Vec<_>>().join(",");
    let with = |node: Node| node.with("discovery-static-hosts", hosts.clone()).with("sync-interval", "1s");
    nodes = nodes.into_iter().map(with).collect();
    nodes.iter_mut().for_each(Node::start);
    for node in &mut nodes {
        node.ready().await;
    }
    meshed(&nodes).await;
    (nodes, with(Node::new("n1")))
}

async fn figure(node: &Node, series: &str) -> f64 {
    let page = node.metrics().await;
    page.value(series).unwrap_or_else(|| panic!("{series} is not in {}", page.0))
}

#[tokio::test]
async fn name_of_a_running_node_is_refused() {
    let (nodes, mut twin) = two_and_a_twin().await;
    let before = nodes[1].status().await["origin"].clone();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (stop, mut kv) = (stop.clone(), nodes[1].kv());
        async move {
            let mut acknowledged = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let key = format!("k{}", acknowledged.len());
                kv.put(&key, "v").await.unwrap_or_else(|error| panic!("{key}: {error}"));
                acknowledged.push(key);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            acknowledged
        }
    });
    // Kubernetes and systemd would restart it.
    for _ in 0..2 {
        twin.start();
        eventually("it says what it waits for", async || match twin.http("/readyz").await {
            Ok((503, why)) if why.contains("another process has this node's name") => Ok(()),
            other => Err(other),
        })
        .await;
        let status = twin.ended().await;
        let log = twin.log();
        assert_eq!(status.code(), Some(1), "{log}");
        let said = log.lines().find(|line| line.contains("ERROR")).unwrap_or_else(|| panic!("no error in {log}"));
        let holder = nodes[1].peer.to_string();
        for words in ["the name `n1` in the cluster `test`", holder.as_str(), "--name", "KVASIR_NAME", "KVASIR_CLUSTER"]
        {
            assert!(said.contains(words), "{words:?} is not in {said}");
        }
        assert!(!log.contains("to=\"ready\""), "{log}");
    }
    stop.store(true, Ordering::Relaxed);
    let acknowledged = writer.await.expect("no call failed");
    let mut refused = 0.0;
    for node in &nodes {
        holds_all(node, &acknowledged).await;
        assert!((figure(node, "kvasir_returns_total").await - 0.0).abs() < 0.5);
        refused += figure(node, "kvasir_twins_refused_total").await;
    }
    // The process is refused by the other node, by the holder itself, or by both; the first final refusal ends it.
    assert!((2.0..=4.0).contains(&refused), "{refused} refusals of two processes");
    assert_eq!(nodes[1].status().await["origin"], before);
    let log = nodes[1].log();
    let warned = log.lines().filter(|line| line.contains("another process has this node's name")).count();
    assert_eq!(warned, 2, "once for each start: {log}");
    assert!(log.contains(&twin.peer.to_string()), "{log}");
}

#[tokio::test]
async fn name_lost_while_cut_off_is_handed_over() {
    let (mut nodes, mut twin) = two_and_a_twin().await;
    // The second process accepts a write that the first does not receive, and then falls silent.
    nodes[0].freeze();
    eventually("the silent peer's link is given up", async || {
        let links = figure(&nodes[1], "kvasir_links").await;
        if links == 0.0 { Ok(()) } else { Err(links) }
    })
    .await;
    nodes[1].kv().put("alone", "v").await.unwrap();
    nodes[1].freeze();
    nodes[0].resume();
    twin.start();
    twin.ready().await;
    nodes[1].resume();
    let status = nodes[1].ended().await;
    let log = nodes[1].log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("another process took this node's name while it was cut off"), "{log}");
    assert!(log.contains(&twin.peer.to_string()), "{log}");
    for node in [&nodes[0], &twin] {
        assert_eq!(node.kv().get("alone").await.unwrap().as_deref(), Some("v"), "{} lacks it", node.name);
        assert!((figure(node, "kvasir_returns_total").await - 0.0).abs() < 0.5);
    }
}
