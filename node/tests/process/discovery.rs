//! Discovery between processes: for each provider a cluster that forms, loses a node and gains one; groups that formed
//! apart and merge.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use kvasir_proto::v1;

use crate::dns_server::{DnsServer, Zone};
use crate::harness::{Node, eventually, loopback, meshed, nodes};
use crate::nats_server::NatsServer;

/// Three of the four nodes form a cluster; one of them dies; the fourth joins. `known` receives the nodes that are
/// running.
async fn joins_loses_one_and_gains_one(provider: &str, mut four: Vec<Node>, known: impl Fn(&[&Node])) {
    let mut fourth = four.pop().unwrap();
    let mut nodes = four;
    known(&nodes.iter().collect::<Vec<_>>());
    nodes.iter_mut().for_each(Node::start);
    for node in &mut nodes {
        node.ready().await;
    }
    meshed(&nodes).await;
    nodes[0].kv().put("k", "before").await.unwrap();
    for node in &nodes {
        found(node, provider, &nodes).await;
        holds(node, "before").await;
    }

    let mut lost = nodes.remove(0);
    lost.kill();
    meshed(&nodes).await;
    nodes[0].kv().put("k", "after").await.unwrap();

    nodes.push({
        known(&nodes.iter().chain([&fourth]).collect::<Vec<_>>());
        fourth.start();
        fourth.ready().await;
        fourth
    });
    meshed(&nodes).await;
    for node in &nodes {
        found(node, provider, &nodes).await;
        holds(node, "after").await;
    }
}

async fn holds(node: &Node, value: &str) {
    eventually("the key is there", async || match node.kv().get("k").await {
        Ok(Some(held)) if held == value => Ok(()),
        other => Err(other),
    })
    .await;
}

/// Waits until a node has discovered exactly these nodes, each by this provider.
async fn found(node: &Node, provider: &str, nodes: &[Node]) {
    let mut names: Vec<_> = nodes.iter().map(|node| node.name.clone()).collect();
    names.sort();
    eventually("the provider has found them all", async || {
        let status = node.cluster().status(v1::StatusRequest {}).await.unwrap().into_inner();
        let mut by = status.discovery.into_iter().find(|discovery| discovery.provider == provider).unwrap();
        by.members.sort();
        if by.members != names || !by.error.is_empty() {
            return Err(format!("{by:?}"));
        }
        let members = node.cluster().members(v1::MembersRequest {}).await.unwrap().into_inner().members;
        if members.len() != nodes.len() || members.iter().any(|member| member.found_by != provider) {
            return Err(format!("{members:?}"));
        }
        let status = node.status().await;
        let peers = status["peers"].as_array().unwrap();
        if peers.iter().all(|peer| peer["foundBy"] == provider) { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
}

#[tokio::test]
async fn static_nodes_join_lose_one_and_gain_one() {
    // One of the hosts is a name, and each node is in its own list.
    let mut four = nodes(4);
    let hosts: Vec<_> = four.iter().map(|node| node.peer.to_string()).collect();
    let hosts = hosts.join(",").replacen("127.0.0.1", "localhost", 1);
    four = four.into_iter().map(|node| node.with("discovery-static-hosts", hosts.clone())).collect();
    joins_loses_one_and_gains_one("static", four, |_| {}).await;
}

#[tokio::test]
async fn nats_nodes_join_lose_one_and_gain_one() {
    let server = NatsServer::started(&[]);
    let with = |n| Node::new(&format!("n{n}")).with("discovery-nats-server", server.url());
    joins_loses_one_and_gains_one("nats", (0..4).map(with).collect(), |_| {}).await;
}

/// Nodes with different addresses and the same port, like pods.
fn with_addresses(range: std::ops::Range<u8>) -> Vec<Node> {
    let at = |port: u16, last: u8| SocketAddr::from(([127, 0, 9, last], port));
    let free = |port: &u16| {
        range.clone().all(|last| TcpListener::bind(at(*port, last)).is_ok() && UdpSocket::bind(at(*port, last)).is_ok())
    };
    let port = std::iter::repeat_with(|| loopback().port()).take(100).find(free).expect("a port that is free on all");
    let node = |last| {
        let mut node = Node::new(&format!("n{last}"));
        node.peer = at(port, last);
        node.with("discovery-dns-port", port.to_string())
    };
    range.clone().map(node).collect()
}

#[tokio::test]
async fn dns_finds_a_node_that_moved_to_another_address() {
    let server = DnsServer::start().await;
    let with = |node: Node| {
        node.with("discovery-dns-domain-name", "peers.demo.").with("discovery-dns-server", server.address.to_string())
    };
    let four = with_addresses(11..15).into_iter().map(with).collect();
    joins_loses_one_and_gains_one("dns", four, |known| {
        let addresses = known.iter().map(|node| node.peer.ip()).collect();
        server.set(Zone { addresses: [("peers.demo.".to_owned(), addresses)].into(), ..Zone::default() });
    })
    .await;
}

#[tokio::test]
async fn srv_nodes_join_lose_one_and_gain_one() {
    let server = DnsServer::start().await;
    let with = |n| {
        Node::new(&format!("n{n}"))
            .with("discovery-dns-domain-name", "_peer._tcp.demo.")
            .with("discovery-dns-server", server.address.to_string())
    };
    joins_loses_one_and_gains_one("dns", (0..4).map(with).collect(), |known| {
        let name = |node: &Node| format!("{}.demo.", node.name);
        server.set(Zone {
            addresses: known.iter().map(|node| (name(node), vec![node.peer.ip()])).collect(),
            services: [(
                "_peer._tcp.demo.".to_owned(),
                known.iter().map(|node| (name(node), node.peer.port())).collect(),
            )]
            .into(),
        });
    })
    .await;
}

#[tokio::test]
async fn peers_that_all_changed_address_are_found_again() {
    let server = DnsServer::start().await;
    let set = |nodes: &[&Node]| {
        let addresses: Vec<IpAddr> = nodes.iter().map(|node| node.peer.ip()).collect();
        server.set(Zone { addresses: [("peers.demo.".to_owned(), addresses)].into(), ..Zone::default() });
    };
    let with = |node: Node| {
        node.with("discovery-dns-domain-name", "peers.demo.").with("discovery-dns-server", server.address.to_string())
    };
    let mut nodes: Vec<_> = with_addresses(21..26).into_iter().map(with).collect();
    let mut later = nodes.split_off(3);
    set(&nodes.iter().collect::<Vec<_>>());
    nodes.iter_mut().for_each(Node::start);
    for node in &mut nodes {
        node.ready().await;
    }
    meshed(&nodes).await;
    nodes[0].kv().put("k", "kept").await.unwrap();
    // The DNS name has no records for a while either.
    server.set(Zone::default());
    for mut gone in nodes.split_off(1) {
        gone.kill();
    }
    meshed(&nodes).await;
    later.iter_mut().for_each(Node::start);
    nodes.extend(later);
    set(&nodes.iter().collect::<Vec<_>>());
    for node in &mut nodes {
        node.ready().await;
    }
    meshed(&nodes).await;
    for node in &nodes {
        holds(node, "kept").await;
    }
}

/// Two pairs, each with its own list, and a NATS server that is not reachable yet.
#[tokio::test]
async fn two_groups_merge_once_they_reach_each_other() {
    let mut server = NatsServer::new(&[]);
    let pair = |names: [&str; 2]| {
        let pair = names.map(Node::new);
        let hosts = pair.each_ref().map(|node| node.peer.to_string()).join(",");
        pair.map(|node| {
            node.with("discovery-static-hosts", hosts.clone())
                .with("discovery-nats-server", server.url())
                .with("discovery-nats-reconnect-wait", "200ms")
                .with("join-timeout", "1s")
        })
    };
    let (mut left, mut right) = (pair(["a", "b"]), pair(["c", "d"]));
    for group in [&mut left, &mut right] {
        group.iter_mut().for_each(Node::start);
        for node in group.iter_mut() {
            node.ready().await;
        }
        meshed(group).await;
    }
    left[0].kv().put("left", "l").await.unwrap();
    right[0].kv().put("right", "r").await.unwrap();
    for node in left.iter().chain(&right) {
        eventually("NATS was tried more than once", async || {
            let failures = node.metrics().await.value("kvasir_discovery_failures_total{provider=\"nats\"}");
            if failures > Some(1.0) { Ok(()) } else { Err(failures) }
        })
        .await;
    }
    let status = left[0].status().await;
    let nats = &status["discovery"][0];
    assert_eq!((&nats["provider"], &nats["found"]), (&"nats".into(), &0.into()), "{status}");
    assert!(nats["error"].as_str().unwrap().contains("cannot connect"), "{status}");
    assert_eq!(left[0].metrics().await.value("kvasir_discovery_failing{provider=\"nats\"}"), Some(1.0));

    server.start();
    let all: Vec<_> = left.into_iter().chain(right).collect();
    meshed(&all).await;
    for node in &all {
        eventually("both groups' keys are there", async || {
            let held = node.kv().all().await.unwrap();
            if held.len() == 2 { Ok(()) } else { Err(held) }
        })
        .await;
        eventually("NATS works for every node", async || {
            match node.metrics().await.value("kvasir_discovery_failing{provider=\"nats\"}") {
                Some(0.0) => Ok(()),
                other => Err(other),
            }
        })
        .await;
        // The failure is logged once, however often the node retries.
        let log = node.log();
        let logged = log.lines().filter(|line| line.contains("discovery fails") && line.contains("nats")).count();
        assert_eq!(logged, 1, "{log}");
    }
    let status = all[0].status().await;
    let by = |name: &str| {
        let peers = status["peers"].as_array().unwrap();
        peers.iter().find(|peer| peer["name"] == name).unwrap()["foundBy"].clone()
    };
    assert_eq!((by("c"), by("d")), ("nats".into(), "nats".into()), "{status}");
}

/// Without peers a node serves after `joinTimeout` or waits forever, by `serveAlone`.
#[tokio::test]
async fn serve_alone_decides_what_a_lonely_node_does() {
    let mut pair = nodes(2);
    let mut waits = pair.pop().unwrap().with("serve-alone", "false").with("join-timeout", "100ms");
    let mut serves = pair.pop().unwrap().with("serve-alone", "true").with("join-timeout", "100ms");
    waits.start();
    eventually("it looks for peers", async || match waits.http("/readyz").await {
        Ok((503, why)) if why.contains("looking for peers") => Ok(()),
        other => Err(other),
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(waits.http("/readyz").await.unwrap().0, 503);
    // The other node finds this one, so both are ready.
    serves.start();
    serves.ready().await;
    waits.ready().await;
    waits.kill();
    let alone = Node::new("alone").with("discovery-static-hosts", loopback().to_string());
    let mut alone = alone.with("serve-alone", "true").with("join-timeout", "100ms");
    alone.start();
    alone.ready().await;
}
