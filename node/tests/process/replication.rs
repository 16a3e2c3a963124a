//! All nodes hold what one node accepts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future::join_all;

use crate::harness::{Node, PATIENCE, cluster, eventually, meshed, nodes};

/// Time between the first and the last node that expires a key.
const TTL_SPREAD: Duration = Duration::from_millis(250);

/// Waits until all nodes hold exactly these entries.
async fn all_hold(nodes: &[Node], expected: &BTreeMap<String, String>) {
    for node in nodes {
        eventually(&format!("{} holds what was written", node.name), async || {
            let held = node.kv().all().await.map_err(|status| status.to_string())?;
            if held == *expected { Ok(()) } else { Err(format!("{} keys, not {}", held.len(), expected.len())) }
        })
        .await;
    }
}

#[tokio::test]
async fn puts_and_deletes_reach_every_node() {
    let nodes = cluster(3).await;
    let mut expected = BTreeMap::new();
    for (n, node) in nodes.iter().enumerate() {
        let mut kv = node.kv();
        for key in 0..20 {
            let (key, value) = (format!("{n}/{key}"), format!("of {}", node.name));
            kv.put(&key, &value).await.unwrap();
            expected.insert(key, value);
        }
    }
    all_hold(&nodes, &expected).await;

    // A node may overwrite and delete what another node wrote.
    nodes[2].kv().put("0/0", "again").await.unwrap();
    expected.insert("0/0".to_owned(), "again".to_owned());
    for key in ["0/1", "1/1", "2/1"] {
        assert!(nodes[1].kv().delete(key).await.unwrap());
        expected.remove(key);
    }
    assert!(!nodes[1].kv().delete("2/1").await.unwrap(), "it was deleted before");
    all_hold(&nodes, &expected).await;

    eventually("the fingerprints are equal", async || {
        let mut seen = Vec::new();
        for node in &nodes {
            let status = node.status().await;
            seen.push((status["fingerprint"].clone(), status["keys"].clone(), status["tombstones"].clone()));
        }
        if seen.iter().all(|s| *s == seen[0]) { Ok(()) } else { Err(seen) }
    })
    .await;
}

#[tokio::test]
async fn the_client_library_works_against_real_nodes() {
    let nodes = cluster(2).await;
    let [a, b] = [0, 1].map(|n| kvasir_client::Client::connect(nodes[n].client.to_string()));
    let (a, b) = (a.await.unwrap(), b.await.unwrap());
    a.put("k", "v", kvasir_client::PutOptions::default()).await.unwrap();
    let found = eventually("the other node has the key", async || b.get("k").await.unwrap().ok_or("not there")).await;
    assert_eq!(&found.value[..], b"v");
    assert!(b.delete("k").await.unwrap());
    eventually("the delete came", async || if a.exists("k").await.unwrap() { Err("still there") } else { Ok(()) })
        .await;
    assert_eq!(a.members().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_ttl_ends_on_all_nodes_at_the_same_moment() {
    let nodes = cluster(3).await;
    // Long enough to reach all nodes before it expires.
    let ttl = Duration::from_secs(8);
    let before = Instant::now();
    nodes[0].kv().put_for("k", "v", Some(ttl)).await.unwrap();
    let acknowledged = Instant::now();
    let ends = join_all(nodes.iter().map(async |node| {
        let mut kv = node.kv();
        let mut there = Instant::now();
        while !kv.exists("k").await.unwrap() {
            assert!(before.elapsed() < ttl, "it came late or never to {}", node.name);
            there = Instant::now();
        }
        // It expired between the last read that found it and the first that did not; how long that is depends on the
        // machine.
        loop {
            let asked = Instant::now();
            if !kv.exists("k").await.unwrap() {
                return (there, Instant::now());
            }
            there = asked;
            assert!(before.elapsed() < PATIENCE, "it does not end at {}", node.name);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }))
    .await;
    let latest = ends.iter().map(|(there, _)| *there).max().unwrap();
    let earliest = ends.iter().map(|(_, gone)| *gone).min().unwrap();
    assert!(latest < earliest + TTL_SPREAD, "{:?} between the first and the last", latest - earliest);
    let whole = Duration::from_millis(1); // the resolution of the clock for TTLs
    assert!(earliest + whole >= before + ttl, "{:?} too early", before + ttl - earliest);
    assert!(latest < acknowledged + ttl + TTL_SPREAD, "{:?} late", latest - (acknowledged + ttl));
    assert_eq!(nodes[1].kv().get("k").await.unwrap(), None);
}

#[tokio::test]
async fn a_restarted_node_is_ready_with_every_key() {
    let mut nodes = cluster(3).await;
    let mut expected = BTreeMap::new();
    let mut kv = nodes[2].kv();
    for key in 0..2_000 {
        let (key, value) = (format!("key/{key:04}"), "x".repeat(200));
        kv.put(&key, &value).await.unwrap();
        expected.insert(key, value);
    }
    all_hold(&nodes, &expected).await;
    nodes[2].kill();
    let mut kv = nodes[0].kv();
    for key in 0..500 {
        let key = format!("key/{key:04}");
        if key.ends_with('0') {
            assert!(kv.delete(&key).await.unwrap());
            expected.remove(&key);
        } else {
            kv.put(&key, "newer").await.unwrap();
            expected.insert(key, "newer".to_owned());
        }
    }
    nodes[2].start();
    nodes[2].ready().await;
    // At once, without waiting: that is what ready means.
    assert_eq!(nodes[2].kv().all().await.unwrap(), expected);
    meshed(&nodes).await;
    nodes[2].kv().put("key/back", "v").await.unwrap();
    expected.insert("key/back".to_owned(), "v".to_owned());
    all_hold(&nodes, &expected).await;
}

#[tokio::test]
async fn the_first_node_finds_peers_that_start_later() {
    let nodes = nodes(3).into_iter().map(|node| node.with("join-timeout", "300ms").with("serve-alone", "true"));
    let mut nodes: Vec<_> = nodes.collect();
    nodes[0].start();
    nodes[0].ready().await;
    nodes[0].kv().put("early", "v").await.unwrap();
    for n in [1, 2] {
        nodes[n].start();
        nodes[n].ready().await;
    }
    meshed(&nodes).await;
    all_hold(&nodes, &BTreeMap::from([("early".to_owned(), "v".to_owned())])).await;
}

#[tokio::test]
async fn nodes_of_another_cluster_stay_apart() {
    // Each node finds only the other, which is no peer: it founds because `serveAlone` is set.
    let nodes = nodes(2).into_iter().map(|node| node.with("join-timeout", "500ms").with("serve-alone", "true"));
    let mut nodes: Vec<_> = nodes.collect();
    let last = nodes.pop().unwrap();
    nodes.push(last.with("cluster", "other"));
    for node in &mut nodes {
        node.start();
        node.ready().await;
    }
    nodes[0].kv().put("k", "v").await.unwrap();
    eventually("the stranger was refused", async || {
        let page = nodes[0].metrics().await;
        page.value("kvasir_peer_datagrams_refused_total").filter(|count| *count > 0.0).ok_or(page.0)
    })
    .await;
    assert_eq!(nodes[0].status().await["peers"], serde_json::json!([]));
    assert!(!nodes[1].kv().exists("k").await.unwrap());
}
