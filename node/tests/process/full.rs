//! A cluster in which one node has no room, as in `docs/replication.md`: that node refuses puts, lacks peers' writes and
//! says so; the others keep working; and it catches up once there is room.

use std::collections::BTreeMap;
use std::time::Duration;

use kvasir_proto::v1;
use tonic::Code;

use crate::harness::{Node, eventually, meshed, nodes};

const ROOM: &str = "64Ki";
/// The test writes more than [`ROOM`] and an eighth.
const ENTRIES: usize = 150;
/// How many entries are deleted: the remaining ones fit even while the tombstones are not collected yet.
const DELETED: usize = 130;

fn key(n: usize) -> String {
    format!("k{n:03}")
}

fn value() -> String {
    "v".repeat(1 << 10)
}

async fn start(nodes: &mut [Node]) {
    for node in &mut *nodes {
        node.start();
    }
    for node in &mut *nodes {
        node.ready().await;
    }
    meshed(nodes).await;
}

async fn equal(nodes: &[Node]) -> BTreeMap<String, String> {
    eventually("the nodes are equal", async || {
        let (one, other) = (nodes[0].kv().all().await.unwrap(), nodes[1].kv().all().await.unwrap());
        if one == other { Ok(one) } else { Err((one.len(), other.len())) }
    })
    .await
}

#[tokio::test]
async fn a_node_without_room_says_so_and_the_others_go_on() {
    let mut nodes = nodes(2);
    let last = nodes.pop().unwrap();
    nodes.push(last.with("max-memory", ROOM));
    start(&mut nodes).await;
    let (mut roomy, mut full) = (nodes[0].kv(), nodes[1].kv());
    for n in 0..ENTRIES {
        roomy.put(&key(n), &value()).await.unwrap();
    }
    let status = eventually("the other has no room", async || {
        let status = nodes[1].status().await;
        if status["overfull"] == true { Ok(status) } else { Err(status) }
    })
    .await;
    let bytes = status["memoryBytes"].as_u64().unwrap();
    assert!(bytes <= (64 << 10) * 9 / 8, "an eighth more than its limit is its end: {status}");
    let page = nodes[1].metrics().await;
    assert_eq!(page.value("kvasir_overfull"), Some(1.0), "{}", page.0);
    assert!(page.value("kvasir_entries_without_room_total") > Some(0.0), "{}", page.0);

    // The full node refuses clients' puts, does not claim what it lacks, and serves everything else.
    let refused = full.put("more", "v").await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert_eq!(nodes[1].http("/readyz").await.unwrap().0, 200);
    assert_eq!(full.get(&key(0)).await.unwrap(), Some(value()));
    let ack = v1::Ack {
        asked: Some(v1::ack::Asked::Count(1)),
        timeout: Some(Duration::from_millis(300).try_into().unwrap()),
    };
    let request = v1::PutRequest {
        key: "lacking".to_owned(),
        value: value().into(),
        ack: Some(ack),
        ..v1::PutRequest::default()
    };
    let acked = roomy.0.put(request).await.unwrap().into_inner().acked.unwrap();
    assert_eq!((acked.met, acked.peers), (false, 0), "a node claims a write that it has no room for");
    assert_eq!(roomy.all().await.unwrap().len(), ENTRIES + 1, "the other takes writes");

    // Deletes always fit and make room: the node catches up.
    for n in 0..DELETED {
        assert!(roomy.delete(&key(n)).await.unwrap());
    }
    let held = equal(&nodes).await;
    assert_eq!(held.len(), ENTRIES + 1 - DELETED);
    eventually("it has room again", async || {
        let status = nodes[1].status().await;
        if status["overfull"] == false { Ok(()) } else { Err(status) }
    })
    .await;
    assert!(full.delete("lacking").await.unwrap());
    assert!(!equal(&nodes).await.contains_key("lacking"));
}

/// Small entries, far more than fit; a quarter of them fits.
const KEYS: usize = 400;

#[tokio::test]
async fn a_full_node_catches_up_despite_kept_deletes() {
    let mut nodes = nodes(2);
    let last = nodes.pop().unwrap();
    nodes.push(last.with("max-memory", ROOM));
    start(&mut nodes).await;
    let mut roomy = nodes[0].kv();
    for n in 0..KEYS {
        roomy.put(&key(n), "v").await.unwrap();
    }
    eventually("the other has no room", async || {
        let status = nodes[1].status().await;
        if status["overfull"] == true { Ok(()) } else { Err(status) }
    })
    .await;
    for n in 0..KEYS * 3 / 4 {
        assert!(roomy.delete(&key(n)).await.unwrap());
    }
    assert_eq!(equal(&nodes).await.len(), KEYS / 4);
    for node in &nodes {
        eventually("all deletes are collected", async || {
            let status = node.status().await;
            if status["tombstones"] == 0 && status["overfull"] == false { Ok(()) } else { Err(status) }
        })
        .await;
    }
}

#[tokio::test]
async fn what_ends_first_makes_room_on_all_nodes() {
    let with = |node: Node| node.with("max-memory", ROOM).with("max-memory-policy", "ttl-first");
    let mut nodes: Vec<_> = nodes(2).into_iter().map(with).collect();
    start(&mut nodes).await;
    let mut kv = nodes[0].kv();
    for n in 0..40 {
        // Later keys live longer.
        kv.put_for(&key(n), &value(), Some(Duration::from_secs(3600 + n as u64))).await.unwrap();
    }
    for n in 0..30 {
        kv.put(&format!("lasts{n}"), &value()).await.unwrap();
    }
    let held = equal(&nodes).await;
    assert!((0..30).all(|n| held.contains_key(&format!("lasts{n}"))), "{:?}", held.keys());
    let left: Vec<_> = (0..40).filter(|n| held.contains_key(&key(*n))).collect();
    assert!(!left.is_empty() && left.len() < 40, "{left:?}");
    assert_eq!(left, (40 - left.len()..40).collect::<Vec<_>>(), "the values that end earliest are deleted first");
    let page = nodes[0].metrics().await;
    assert!(page.value("kvasir_keys_evicted_total") > Some(0.0), "{}", page.0);
    // When no value with a TTL is left, the node refuses like any other.
    let refused = loop {
        if let Err(refused) = kv.put(&format!("more{}", rand::random::<u32>()), &value()).await {
            break refused;
        }
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(equal(&nodes).await.keys().all(|key| !key.starts_with('k')));
}
