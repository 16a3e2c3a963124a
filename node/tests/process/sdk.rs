//! The client library against real nodes: single calls, batches, listings and codecs.

use futures::StreamExt as _;
use futures::TryStreamExt as _;
use kvasir_client::{Ack, AckLevel, Bytes, Client, Codec, Entry, Error, ListOptions, PutOptions};
use kvasir_proto::v1;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::harness::{Node, cluster};

pub(crate) async fn client(node: &Node) -> Client {
    Client::connect(node.client.to_string()).await.unwrap()
}

#[tokio::test]
async fn an_ack_that_fails_names_the_write() {
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
async fn batches_exceed_a_call_s_limit_and_keep_their_type() {
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

#[tokio::test]
async fn a_batch_that_others_do_not_hold_is_an_error() {
    let mut nodes = cluster(2).await;
    let a = client(&nodes[0]).await;
    let entries = || (0..3).map(|n| (format!("k{n}"), "v"));
    a.batch_put(entries(), PutOptions::with_ack(AckLevel::Majority)).await.unwrap();
    assert_eq!(a.batch_delete_with(["k0"], AckLevel::All).await.unwrap(), [true]);
    nodes[1].freeze();
    let ack = Ack { level: AckLevel::Count(1), timeout: Some(Duration::from_millis(200)) };
    let puts = a.batch_put(entries(), PutOptions::with_ack(ack)).await;
    assert!(matches!(puts, Err(Error::NotHeld { peers: 0, .. })), "{puts:?}");
    let deletes = a.batch_delete_with(["k1"], ack).await;
    assert!(matches!(deletes, Err(Error::NotHeld { peers: 0, .. })), "{deletes:?}");
    assert!(a.exists("k0").await.unwrap() && !a.exists("k1").await.unwrap(), "both stay");
}

/// A codec of the application's own.
struct BigEndian;

impl Codec<u32> for BigEndian {
    type Error = std::array::TryFromSliceError;

    fn encode(&self, value: &u32) -> Result<Bytes, Self::Error> {
        Ok(Bytes::copy_from_slice(&value.to_be_bytes()))
    }

    fn decode(&self, bytes: Bytes) -> Result<u32, Self::Error> {
        Ok(u32::from_be_bytes(bytes[..].try_into()?))
    }
}

#[tokio::test]
async fn typed_values_are_read_at_another_node() {
    let nodes = cluster(2).await;
    let (a, b) = (client(&nodes[0]).await, client(&nodes[1]).await);
    // Not `All`: a node that has just joined may not be counted yet.
    let held = || PutOptions::with_ack(AckLevel::Count(1));
    a.put_with(&BigEndian, "number", &0x0102_0304, held()).await.unwrap();
    assert_eq!(b.get_with(&BigEndian, "number").await.unwrap(), Some(0x0102_0304));
    assert_eq!(&b.get("number").await.unwrap().unwrap().value[..], [1, 2, 3, 4]);
    assert_eq!(b.get_with(&BigEndian, "none").await.unwrap(), None);
    a.put("number", "12345", held()).await.unwrap();
    assert!(matches!(b.get_with(&BigEndian, "number").await, Err(Error::Codec { key, .. }) if key == "number"));

    a.put_string("text", "grüß", held()).await.unwrap();
    a.put("text/raw", vec![0xff], held()).await.unwrap();
    a.put_json("json", &BTreeMap::from([("a".to_owned(), 1)]), held()).await.unwrap();
    let message = v1::GetRequest { key: "k".to_owned(), session: None };
    a.put_proto("proto", &message, held()).await.unwrap();
    assert_eq!(b.get_string("text").await.unwrap().as_deref(), Some("grüß"));
    assert!(matches!(b.get_string("text/raw").await, Err(Error::Codec { .. })));
    assert_eq!(b.get_json::<BTreeMap<String, i32>>("json").await.unwrap().unwrap()["a"], 1);
    assert_eq!(b.get_proto::<v1::GetRequest>("proto").await.unwrap(), Some(message));
}

pub(crate) async fn listed(entries: impl futures::Stream<Item = Result<Entry, Error>>) -> Vec<Entry> {
    entries.try_collect().await.unwrap()
}

#[tokio::test]
async fn a_listing_crosses_messages_and_pages() {
    let node = Node::alone().await;
    let a = client(&node).await;
    let keys: Vec<_> = (0..2500).map(|n| format!("l/{n:04}")).collect();
    a.batch_put(keys.iter().map(|key| (key, key.clone())), PutOptions::default()).await.unwrap();
    a.put("m", "another", PutOptions::default()).await.unwrap();
    let all = listed(a.list("l/", ListOptions::default())).await;
    assert!(
        all.iter().map(|entry| &entry.key).eq(&keys) && all.iter().all(|entry| entry.value == entry.key.as_bytes())
    );
    for limit in [1, 1000, 1001, 2500, 9999] {
        let some = listed(a.list("l/", ListOptions { limit: Some(limit), keys_only: true })).await;
        assert_eq!(some.len() as u64, limit.min(2500));
        assert!(some.iter().all(|entry| entry.value.is_empty()));
    }
    // A client that reads a few entries and drops the stream.
    let few = a.list("l/", ListOptions::default()).take(3);
    assert_eq!(listed(few).await.len(), 3);
}
