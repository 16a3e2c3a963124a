//! Datagrams that no node of the cluster sent, and nodes of another cluster with the same name.

use std::net::SocketAddr;
use std::time::Duration;

use kvasir_node::config::{Role, SwimConfig};
use kvasir_node::membership::swim::{Output, Swim};
use kvasir_node::membership::{NodeId, wire};
use tokio::net::UdpSocket;

use crate::harness::{Node, cluster, eventually};

/// 36 years in milliseconds: no renewal of a node's identity can outbid such a start time.
const FAR_MS: u64 = 36 * 365 * 86_400_000;

/// The datagram by which a node with this address and start announces itself to `to`.
fn announcement(name: &str, address: SocketAddr, started_ms: u64, to: SocketAddr) -> Vec<u8> {
    let id = NodeId::new(name, 99, Role::Member, address, started_ms);
    let mut forger = Swim::new(id, wire::envelope("test", "", wire::VERSION), SwimConfig::LAN, Duration::MAX, 1);
    forger.set_addresses(Duration::ZERO, [to]);
    forger.tick(Duration::ZERO, started_ms);
    let Some(Output::Send(_, datagram)) = forger.output() else { panic!("it announces itself") };
    datagram
}

async fn metric(node: &Node, name: &str) -> f64 {
    let page = node.metrics().await;
    page.value(name).unwrap_or_else(|| panic!("no {name} in {}", page.0))
}

async fn sent(nodes: &[Node]) -> f64 {
    let mut sent = 0.0;
    for node in nodes {
        sent += metric(node, "kvasir_membership_datagrams_total{direction=\"out\"}").await;
    }
    sent
}

/// Two forged datagrams claim that the third node has another address. The first is refused for its start time; the
/// node outbids the second.
#[tokio::test]
async fn forged_rival_changes_nothing_for_long() {
    /// Reads the counters, at least 20 ms after the previous read.
    const LOOKS: u32 = 50;
    /// Many more datagrams than three nodes send between two reads, even on a busy machine; a storm sends ten times as
    /// many.
    const EACH: f64 = 100.0;
    let nodes = cluster(3).await;
    let origin = nodes[2].status().await["origin"].clone();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    for (to, started_ms) in [(0, now + FAR_MS), (1, now + 5_000)] {
        let forged = announcement("ghost", nodes[2].peer, started_ms, nodes[to].peer);
        socket.send_to(&forged, nodes[to].peer).await.unwrap();
    }
    let refused = "kvasir_membership_refused_total{reason=\"clock\"}";
    eventually("the start in the far future is refused", async || match metric(&nodes[0], refused).await {
        count if count >= 1.0 => Ok(()),
        count => Err(count),
    })
    .await;
    let said = nodes[0].log();
    assert!(said.contains("`ghost`") && said.contains("(maxClockSkew)"), "{said}");
    let before = sent(&nodes).await;
    for _ in 0..LOOKS {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let _ = nodes[0].metrics().await;
    }
    let more = sent(&nodes).await - before;
    assert!(more < f64::from(LOOKS) * EACH, "{more} datagrams");
    eventually("all list each other", async || {
        for node in &nodes {
            let status = node.status().await;
            let mut names: Vec<_> = status["peers"].as_array().unwrap().iter().map(|p| p["name"].clone()).collect();
            names.push(status["name"].clone());
            names.sort_by_key(ToString::to_string);
            if names != ["n0", "n1", "n2"] {
                return Err(format!("{} lists {names:?}", node.name));
            }
        }
        Ok(())
    })
    .await;
    assert_eq!(nodes[2].status().await["origin"], origin, "the same process");
    let renewed = metric(&nodes[2], "kvasir_membership_events_total{event=\"renewed\"}").await;
    assert!(renewed <= 4.0, "{renewed} new identities for one forged datagram");
}

async fn keys(node: &Node) -> u64 {
    node.status().await["keys"].as_u64().unwrap()
}

async fn stale(node: &Node) {
    eventually("it is said to be what remains", async || match node.http("/readyz").await.unwrap() {
        (503, why) if why.contains("another cluster of the name `test`") => Ok(()),
        other => Err(other),
    })
    .await;
    let status = node.status().await;
    assert_eq!(status["stale"], true, "{status}");
    eventually("the log says so", async || {
        let log = node.log();
        if log.contains("clusterUid is") { Ok(()) } else { Err(log) }
    })
    .await;
    assert!((metric(node, "kvasir_stale").await - 1.0).abs() < f64::EPSILON);
    assert!(metric(node, "kvasir_membership_refused_total{reason=\"cluster_uid\"}").await >= 1.0);
}

/// A cluster is deleted and created again under the same name, while a sidecar of the first one keeps running.
#[tokio::test]
async fn cluster_made_again_stays_empty() {
    let mut first = Node::new("m").with("cluster-uid", "u-1").started().await;
    let address = first.peer.to_string();
    let sidecar = |name, uid: &str| {
        Node::new(name).with("role", "sidecar").with("cluster-uid", uid).with("discovery-static-hosts", address.clone())
    };
    let mut old = sidecar("old", "u-1").started().await;
    first.kv().put("k", "of the first").await.unwrap();
    eventually("the sidecar holds it", async || match keys(&old).await {
        1 => Ok(()),
        other => Err(other),
    })
    .await;
    assert_eq!(
        (old.status().await["clusterUid"].as_str(), old.status().await["stale"].as_bool()),
        (Some("u-1"), Some(false))
    );
    first.kill();

    let second = first.with("cluster-uid", "u-2").started().await;
    stale(&old).await;
    assert_eq!(old.kv().get("k").await.unwrap().as_deref(), Some("of the first"), "it serves what it has");
    assert_eq!(keys(&second).await, 0);
    assert_eq!(second.status().await["peers"], serde_json::json!([]));
    assert!(second.log().contains("clusterUid is"), "{}", second.log());
    assert_eq!(second.http("/readyz").await.unwrap().0, 200, "the new cluster is not disturbed");

    // Created again, the sidecar belongs to the new cluster.
    old.kill();
    let new = old.with("cluster-uid", "u-2").started().await;
    second.kv().put("k", "of the second").await.unwrap();
    eventually("the new sidecar holds it", async || match new.kv().get("k").await {
        Ok(Some(value)) if value == "of the second" => Ok(()),
        other => Err(other),
    })
    .await;

    // A node without a UID is refused like one with another UID.
    let mut without = Node::new("without").with("role", "sidecar").with("discovery-static-hosts", address.clone());
    without.start();
    eventually("it starts", async || without.http("/livez").await).await;
    stale(&without).await;
    assert_eq!(second.status().await["peers"].as_array().unwrap().len(), 1);
}
