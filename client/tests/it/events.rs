//! What happens to the nodes, and batches that others shall hold.

use crate::world::{Node, Service};
use futures::StreamExt as _;
use kvasir_client::{AckLevel, Client, ClusterEvent, Error, PutOptions, RetryPolicy};
use kvasir_proto::v1::ClusterEventKind as Kind;
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

#[tokio::test]
async fn events_begin_anew_when_they_were_lost_or_their_node_was() {
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
    assert_eq!(service.connections(), 1, "the node was good, and was left");
    service.point_to(b.address);
    a.node.levers.hang_up();
    assert_eq!(name(events.next().await), "restarted");
    assert_eq!(name(events.next().await), "joined b");
}

#[tokio::test]
async fn events_end_with_an_error_when_no_node_has_them() {
    let a = Node::new("a").serve();
    a.node.levers.older.store(true, Ordering::SeqCst);
    let client = Client::builder(a.address.to_string()).retry(RetryPolicy::none()).connect().await.unwrap();
    let mut events = client.events();
    assert!(matches!(events.next().await, Some(Err(Error::Node { .. }))));
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn a_batch_that_others_do_not_hold_is_an_error() {
    let a = Node::new("a").serve();
    let client = Client::connect(a.address.to_string()).await.unwrap();
    let entries = || (0..3).map(|n| (format!("k{n}"), "v"));
    let puts = client.batch_put(entries(), PutOptions::with_ack(AckLevel::Majority)).await;
    assert!(matches!(puts, Err(Error::NotHeld { .. })), "{puts:?}");
    let keys = || ["k0", "k1", "none"];
    let deletes = client.batch_delete_with(keys(), AckLevel::Count(1)).await;
    assert!(matches!(deletes, Err(Error::NotHeld { .. })), "{deletes:?}");
    // Nothing is deleted any more: nobody has to hold it.
    assert_eq!(client.batch_delete_with(keys(), AckLevel::Count(1)).await.unwrap(), [false; 3]);
}
