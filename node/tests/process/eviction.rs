//! A node that a majority evicts and that rejoins; and what is lost for good when it does not.

use std::collections::BTreeMap;
use std::time::Duration;

use kvasir_proto::v1;
use tonic::Code;

use crate::api::is_late;
use crate::harness::{Node, PATIENCE, eventually, meshed, nodes};

/// Three nodes that evict a silent one soon, but not because the machine stalls for a moment.
async fn impatient() -> Vec<Node> {
    let with = |node: Node| node.with("voters", "3").with("evict-after", "4s");
    let mut nodes: Vec<_> = nodes(3).into_iter().map(with).collect();
    nodes.iter_mut().for_each(Node::start);
    for node in &mut nodes {
        node.ready().await;
    }
    meshed(&nodes).await;
    nodes
}

/// Waits until a node has no link: no other node receives what it accepts from then on.
async fn unlinked(node: &Node) {
    eventually("the links of silent peers are closed", async || {
        let page = node.metrics().await;
        page.value("kvasir_links").filter(|links| *links == 0.0).ok_or(page.0)
    })
    .await;
}

async fn all_hold(nodes: &[Node], expected: &[(&str, &str)]) {
    let expected: BTreeMap<_, _> = expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    for node in nodes {
        eventually(&format!("{} holds the map", node.name), async || match node.kv().all().await {
            Ok(held) if held == expected => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }
}

fn put(key: &str, value: &str) -> v1::PutRequest {
    v1::PutRequest { key: key.to_owned(), value: value.to_owned().into(), ..v1::PutRequest::default() }
}

#[tokio::test]
async fn an_evicted_node_rejoins_and_reissues_its_backlog() {
    let mut nodes = impatient().await;
    let all = v1::Ack { asked: Some(v1::ack::Asked::Level(v1::AckLevel::All.into())), timeout: None };
    for key in ["stays", "goes", "touched"] {
        nodes[0].kv().0.put(v1::PutRequest { ack: Some(all), ..put(key, "v") }).await.unwrap();
    }
    let mut events = nodes[0].cluster().events(v1::EventsRequest {}).await.unwrap().into_inner();
    let mut watching = nodes[2].kv().0.watch(v1::WatchRequest::default()).await.unwrap().into_inner();
    assert!(watching.message().await.unwrap().unwrap().live);
    let before = nodes[2].status().await["origin"].clone();

    // The last node writes while it is cut off, and is frozen before the others resume.
    nodes[0].freeze();
    nodes[1].freeze();
    unlinked(&nodes[2]).await;
    nodes[2].kv().put("alone", "v").await.unwrap();
    nodes[2].kv().put("touched", "again").await.unwrap();
    nodes[2].freeze();
    nodes[0].resume();
    nodes[1].resume();
    let evicted = tokio::time::timeout(PATIENCE, async {
        loop {
            let event = events.message().await.unwrap().unwrap();
            if event.kind() == v1::ClusterEventKind::Evicted {
                return event;
            }
        }
    });
    let evicted = evicted.await.expect("the majority does not evict it");
    assert_eq!((evicted.name.as_str(), evicted.role()), ("n2", v1::Role::Member));
    assert_eq!(serde_json::Value::from(evicted.origin), before);
    for node in &nodes[..2] {
        eventually("each counts it", async || {
            let page = node.metrics().await;
            page.value("kvasir_membership_events_total{event=\"evicted\"}").filter(|count| *count > 0.0).ok_or(page.0)
        })
        .await;
        assert_eq!(node.status().await["seats"]["evicted"], 1);
    }
    for key in ["goes", "touched"] {
        assert!(nodes[0].kv().delete(key).await.unwrap());
    }
    // A session token names only writes that some seat may lack. Once the token is shorter, all seats hold the deletes
    // too.
    let request = v1::PutRequest { session: Some(bytes::Bytes::new()), ..put("meanwhile", "v") };
    let token = nodes[0].kv().0.put(request).await.unwrap().into_inner().session;
    eventually("the remaining nodes hold everything", async || {
        let request = v1::GetRequest { key: "meanwhile".to_owned(), session: Some(token.clone()) };
        let shorter = nodes[0].kv().0.get(request).await.unwrap().into_inner().session;
        if shorter.len() < token.len() { Ok(()) } else { Err(shorter.len()) }
    })
    .await;

    nodes[2].resume();
    eventually("it rejoined", async || {
        let status = nodes[2].status().await;
        if status["returns"] == 1 && status["phase"] == "ready" { Ok(()) } else { Err(status) }
    })
    .await;
    assert_ne!(nodes[2].status().await["origin"], before);
    // The backlog is there. The deleted keys are not there, although the evicted node had written one of them before.
    let expected = [("alone", "v"), ("meanwhile", "v"), ("stays", "v")];
    all_hold(&nodes, &expected).await;
    meshed(&nodes).await;
    let page = nodes[2].metrics().await;
    assert_eq!(page.value("kvasir_returns_total"), Some(1.0));
    assert_eq!(page.value("kvasir_entries_reissued_total"), Some(1.0), "{}", page.0);

    watch_lost_its_place(&nodes[2], watching, &expected.map(|(key, _)| key)).await;
}

/// A watch that began before the reset ends with the reason, and another one lists the map.
async fn watch_lost_its_place(node: &Node, mut watching: tonic::Streaming<v1::WatchResponse>, expected: &[&str]) {
    let lost = loop {
        let message = watching.message().await.unwrap().expect("a reason comes before the end");
        if message.lost() != v1::WatchLost::No {
            break message.lost();
        }
    };
    assert_eq!(lost, v1::WatchLost::Reset);
    assert!(watching.message().await.unwrap().is_none());
    let again = v1::WatchRequest { content_first: true, ..v1::WatchRequest::default() };
    let mut watching = node.kv().0.watch(again).await.unwrap().into_inner();
    let content = watching.message().await.unwrap().unwrap();
    assert!(content.live);
    let keys: Vec<_> = content.events.iter().map(|event| event.key.as_str()).collect();
    assert_eq!(keys, expected);
}

#[tokio::test]
async fn a_session_learns_that_a_write_it_saw_is_lost() {
    let mut nodes = impatient().await;
    nodes[1].freeze();
    nodes[2].freeze();
    unlinked(&nodes[0]).await;
    let request = v1::PutRequest { session: Some(bytes::Bytes::new()), ..put("only-here", "v") };
    let token = nodes[0].kv().0.put(request).await.unwrap().into_inner().session;
    nodes[0].kill();
    nodes[1].resume();
    nodes[2].resume();
    // A successor does not wait for the process that died.
    nodes[0].start();
    nodes[0].ready().await;
    for node in &nodes {
        let lost = eventually("the write is reported lost", async || {
            let mut request =
                tonic::Request::new(v1::GetRequest { key: "only-here".to_owned(), session: Some(token.clone()) });
            request.set_timeout(Duration::from_secs(1));
            match node.kv().0.get(request).await {
                Err(status) if status.code() == Code::DataLoss => Ok(status),
                // Until all agree that the write is lost, the call waits and says so.
                Err(status) if status.code() == Code::Unavailable || is_late(&status) => Err(status.to_string()),
                other => panic!("{other:?}"),
            }
        })
        .await;
        assert!(lost.message().starts_with("session: a write that it saw was lost"), "{lost}");
        let request = v1::GetRequest { key: "only-here".to_owned(), session: Some(bytes::Bytes::new()) };
        assert!(node.kv().0.get(request).await.unwrap().into_inner().missing, "a new session goes on");
    }
}
