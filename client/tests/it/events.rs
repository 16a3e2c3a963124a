//! Cluster events, and batches with an ack.

use futures::StreamExt as _;
use kvasir_client::{AckLevel, Client, ClusterEvent, Error, PutOptions, RetryPolicy};
use kvasir_proto::v1::ClusterEventKind as Kind;
use kvasir_testing::node::Node;
use kvasir_testing::service::Service;
use std::sync::atomic::Ordering;

fn name(event: Option<Result<ClusterEvent, Error>>) -> String {
    match event.unwrap().unwrap() {
        ClusterEvent::Restarted => "restarted".to_owned(),
        ClusterEvent::Joined(node) => format!("joined {}", node.name),
        ClusterEvent::Left(node) => format!("left {}", node.name),
        ClusterEvent::Failed(node) => format!("failed {}", node.name),
        ClusterEvent::Evicted(node) => format!("evicted {}", node.name),
        other => panic!("{other:?}"),
    }
}

/// The stream starts over when events or the node were lost.
#[tokio::test]
async fn events_start_over() {
    let a = Node::new("a").serve();
    let b = Node::replica_of("b", &a.node).serve();
    let service = Service::before(a.address).await;
    let client = Client::connect(service.address.to_string()).await.unwrap();
    let mut events = client.events();
    assert_eq!(name(events.next().await), "restarted");
    assert_eq!(name(events.next().await), "joined a");
    for kind in [Kind::Failed, Kind::Evicted, Kind::Unspecified, Kind::Left] {
        a.node.levers.happen(kind, "c");
    }
    for expected in ["failed c", "evicted c", "left c"] {
        assert_eq!(name(events.next().await), expected);
    }
    a.node.levers.happen(Kind::Lagged, "");
    assert_eq!(name(events.next().await), "restarted");
    assert_eq!(name(events.next().await), "joined a");
    assert_eq!(service.connections(), 1, "the node was good, but the client left it");
    service.point_to(b.address);
    a.node.levers.hang_up();
    assert_eq!(name(events.next().await), "restarted");
    assert_eq!(name(events.next().await), "joined b");
}

#[tokio::test]
async fn events_end_with_an_error_without_a_node() {
    let a = Node::new("a").serve();
    a.node.levers.older.store(true, Ordering::SeqCst);
    let client = Client::builder(a.address.to_string()).retry(RetryPolicy::none()).connect().await.unwrap();
    let mut events = client.events();
    assert!(matches!(events.next().await, Some(Err(Error::Node { .. }))));
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn batch_that_others_lack_is_an_error() {
    let a = Node::new("a").serve();
    let client = Client::connect(a.address.to_string()).await.unwrap();
    let entries = || (0..3).map(|n| (format!("k{n}"), "v"));
    let puts = client.batch_put(entries(), PutOptions::with_ack(AckLevel::Majority)).await;
    assert!(matches!(puts, Err(Error::NotHeld { .. })), "{puts:?}");
    let keys = || ["k0", "k1", "none"];
    let deletes = client.batch_delete_with(keys(), AckLevel::Count(1)).await;
    assert!(matches!(deletes, Err(Error::NotHeld { .. })), "{deletes:?}");
    // There is nothing left to delete, so no node has to hold a delete.
    assert_eq!(client.batch_delete_with(keys(), AckLevel::Count(1)).await.unwrap(), [false; 3]);
}
