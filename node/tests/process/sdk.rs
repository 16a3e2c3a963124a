//! The client library against real nodes.

use futures::StreamExt as _;
use kvasir_client::{Ack, AckLevel, Client, Error, Event, PutOptions, RetryPolicy, WatchOptions};
use kvasir_proto::v1;
use std::time::Duration;

use crate::harness::{Node, cluster};

async fn client(node: &Node) -> Client {
    Client::connect(node.client.to_string()).await.unwrap()
}

#[tokio::test]
async fn a_put_that_others_do_not_hold_is_an_error_that_names_the_write() {
    let mut nodes = cluster(2).await;
    let a = client(&nodes[0]).await;
    a.put("k", "v", PutOptions::with_ack(AckLevel::All)).await.unwrap();
    assert!(a.delete_with("k", AckLevel::Majority).await.unwrap());
    nodes[1].freeze();
    let ack = Ack { level: AckLevel::Count(1), timeout: Some(Duration::from_millis(200)) };
    match a.put("k", "w", PutOptions::with_ack(ack)).await {
        Err(Error::NotHeld { version, peers: 0, voters: 1, .. }) => {
            assert_eq!(a.get("k").await.unwrap().unwrap().version, version, "it stays");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_session_goes_from_node_to_node_by_its_token() {
    let nodes = cluster(2).await;
    let (a, b) = (client(&nodes[0]).await, client(&nodes[1]).await);
    let mut session = a.session();
    for round in 0..50 {
        session.put("k", round.to_string(), PutOptions::default()).await.unwrap();
        let mut there = b.resume(session.token());
        assert_eq!(&there.get("k").await.unwrap().unwrap().value[..], round.to_string().as_bytes());
        assert!(there.touch("k", None).await.unwrap() && there.delete("k").await.unwrap());
        session = a.resume(there.token());
        assert!(!session.exists("k").await.unwrap());
        assert_eq!(session.get("k").await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_watch_begins_again_when_its_node_comes_back() {
    let mut node = Node::alone().await;
    let patient = RetryPolicy { budget: Duration::from_secs(30), ..RetryPolicy::default() };
    let a = Client::builder(node.client.to_string()).retry(patient).connect().await.unwrap();
    let mut events = a.watch("w/", WatchOptions::default());
    assert_eq!(events.next().await.unwrap().unwrap(), Event::Live);
    a.put("w/1", "v", PutOptions::default()).await.unwrap();
    let Event::Put { key, value } = events.next().await.unwrap().unwrap() else { panic!("no put") };
    assert_eq!((key.as_str(), &value.value[..]), ("w/1", &b"v"[..]));
    node.kill();
    let node = node.started().await;
    assert_eq!(events.next().await.unwrap().unwrap(), Event::Restarted);
    assert_eq!(events.next().await.unwrap().unwrap(), Event::Live);
    node.kv().put("w/2", "v").await.unwrap();
    assert!(matches!(events.next().await.unwrap().unwrap(), Event::Put { key, .. } if key == "w/2"));
}

#[tokio::test]
async fn batches_cross_the_limit_of_a_call_and_codecs_come_back() {
    let node = Node::alone().await;
    let a = client(&node).await;
    let keys: Vec<_> = (0..2500).map(|n| format!("k{n:04}")).collect();
    let versions = a.batch_put(keys.iter().map(|key| (key, "v")), PutOptions::default()).await.unwrap();
    assert_eq!(versions.len(), 2500);
    assert!(versions.windows(2).all(|pair| pair[0] < pair[1]));
    assert!(a.batch_get(&keys).await.unwrap().iter().all(Option::is_some));
    assert_eq!(a.batch_delete(["k0000", "none"]).await.unwrap(), [true, false]);
    assert!(a.batch_get(["k0000"]).await.unwrap()[0].is_none());

    a.put_string("text", "grüß", PutOptions::default()).await.unwrap();
    assert_eq!(a.get_string("text").await.unwrap().as_deref(), Some("grüß"));
    a.put_json("json", &vec![1, 2, 3], PutOptions::default()).await.unwrap();
    assert_eq!(a.get_json::<Vec<i32>>("json").await.unwrap(), Some(vec![1, 2, 3]));
    let message = v1::Version { hlc: 1, origin: 2 };
    a.put_proto("proto", &message, PutOptions::default()).await.unwrap();
    assert_eq!(a.get_proto::<v1::Version>("proto").await.unwrap(), Some(message));
    assert!(matches!(a.get_json::<Vec<i32>>("text").await, Err(Error::Codec { key, .. }) if key == "text"));
    assert_eq!(a.get_string("none").await.unwrap(), None);
}
