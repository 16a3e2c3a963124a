//! Each call of the SDK.

use futures::TryStreamExt as _;
use kvasir_client::{
    Ack, AckLevel, BatchGetOptions, Bytes, Client, Entry, Error, ListOptions, MemberState, Phase, PutOptions, Role,
    SkewedPeer, Text, Value, Version,
};
use kvasir_proto::v1::{self, ack::Asked};
use kvasir_testing::node::{Node, ORIGIN, Served};
use std::time::{Duration, UNIX_EPOCH};

async fn pair() -> (Served, Client) {
    let served = Node::new("demo-0").serve();
    let client = Client::connect(format!("http://{}", served.address)).await.unwrap();
    (served, client)
}

#[tokio::test]
async fn values_are_read_as_they_were_put() {
    let (_node, client) = pair().await;
    let version = client.put("k", vec![0, 255, 10], PutOptions::default()).await.unwrap();
    assert_eq!(version, Version { hlc: 1, origin: ORIGIN });
    let found = client.get("k").await.unwrap().unwrap();
    assert_eq!((&found.value[..], found.version, found.ttl), (&[0, 255, 10][..], version, None));
    assert!(client.exists("k").await.unwrap());
    assert!(client.delete("k").await.unwrap());
    assert!(!client.delete("k").await.unwrap());
    assert_eq!(client.get("k").await.unwrap(), None);
    assert!(!client.exists("k").await.unwrap());
}

#[tokio::test]
async fn ttl_is_sent_and_the_rest_returned() {
    let (_node, client) = pair().await;
    client.put("k", "v", PutOptions::with_ttl(Duration::from_millis(60_500))).await.unwrap();
    let left = client.get("k").await.unwrap().unwrap().ttl.unwrap();
    assert!(left > Duration::from_secs(50) && left <= Duration::from_millis(60_500), "{left:?}");
    client.put("k", "v", PutOptions::with_ttl(Duration::from_millis(50))).await.unwrap();
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(client.get("k").await.unwrap(), None);
}

#[tokio::test]
async fn large_values_are_put_and_read() {
    let (_node, client) = pair().await;
    for size in [1 << 20, 16 << 20] {
        client.put("large", vec![7; size], PutOptions::default()).await.unwrap();
        assert_eq!(client.get("large").await.unwrap().unwrap().value.len(), size);
    }
}

async fn list(client: &Client, prefix: &str, options: ListOptions) -> Vec<Entry> {
    client.list(prefix, options).try_collect().await.unwrap()
}

#[tokio::test]
async fn listing_crosses_pages_and_keeps_its_limit() {
    let (node, client) = pair().await;
    for i in 0..1203 {
        client.put(format!("a/{i:05}"), format!("{i}"), PutOptions::default()).await.unwrap();
    }
    client.put("b/0", "other", PutOptions::default()).await.unwrap();

    let all = list(&client, "a/", ListOptions::default()).await;
    assert_eq!(all.len(), 1203);
    assert!(all.windows(2).all(|pair| pair[0].key < pair[1].key));
    assert_eq!(&all[1202].value[..], b"1202");
    assert_eq!(list(&client, "", ListOptions::default()).await.len(), 1204);
    assert!(list(&client, "c", ListOptions::default()).await.is_empty());

    for limit in [1, 7, 999, 1000, 1001, 1203, 5000] {
        let some = list(&client, "a/", ListOptions { limit: Some(limit), keys_only: true }).await;
        assert_eq!(some.len() as u64, limit.min(1203));
        assert!(some.iter().all(|entry| entry.value.is_empty()));
    }
    let before = node.node.calls();
    assert!(list(&client, "", ListOptions { limit: Some(0), keys_only: true }).await.is_empty());
    assert_eq!(node.node.calls(), before, "a limit of 0 sends no request");
}

#[tokio::test]
async fn cluster_calls_return_every_field() {
    let (_node, client) = pair().await;
    let members = client.members().await.unwrap();
    assert_eq!(members.len(), 2);
    let (first, second) = (&members[0], &members[1]);
    assert_eq!((first.name.as_str(), first.role, first.state), ("demo-0", Role::Member, MemberState::Alive));
    assert_eq!(first.started_at, Some(UNIX_EPOCH + Duration::from_millis(1_700_000_000_005)));
    assert_eq!((first.linked, first.found_by.as_deref()), (true, Some("dns")));
    assert_eq!((second.role, second.state, second.linked), (Role::Sidecar, MemberState::Suspect, false));
    assert_eq!(second.found_by, None);

    let who = client.who_am_i().await.unwrap();
    assert_eq!((who.cluster.as_str(), who.phase, &who.member), ("apps/demo", Phase::Ready, first));
    let leader = client.leader().await.unwrap();
    assert!(leader.is_me && leader.member == *first);
    let status = client.status().await.unwrap();
    assert_eq!((status.phase, status.tombstones, status.max_memory_bytes), (Phase::Syncing, 3, None));
    assert_eq!(status.lag, Some(Duration::from_millis(12)));
    assert_eq!(status.discovery[0].error.as_deref(), Some("no such name"));
    assert_eq!((status.seats["member"], status.seats["evicted"], status.seats.len()), (2, 1, 4));
    assert_eq!((status.collected_age, status.overfull, status.returns), (Some(Duration::from_secs(7)), true, 4));
    assert_eq!(status.founded_at, Some(UNIX_EPOCH + Duration::from_millis(1_700_000_000_007)));
    let skewed = SkewedPeer { name: "demo-2".into(), reason: "its clock is 90s ahead of ours".into() };
    assert_eq!(status.skewed, [skewed]);
    let [unjoinable] = &status.unjoinable[..] else { panic!("{:?}", status.unjoinable) };
    assert_eq!((unjoinable.address.as_str(), unjoinable.name.as_ref()), ("10.0.0.7:7071", None));
    assert_eq!((unjoinable.reason.as_str(), unjoinable.why.as_str()), ("key", "it has another key"));
    assert_eq!(status.waits_for, ["does not reach 10.0.0.8:7071"]);
}

#[tokio::test]
async fn touch_that_others_lack_is_an_error() {
    let (node, client) = pair().await;
    assert!(!client.touch_with("k", None, AckLevel::All).await.unwrap(), "there is nothing to wait for");
    let version = client.put("k", "v", PutOptions::default()).await.unwrap();
    let not_held = Error::NotHeld { version, peers: 0, voters: 1, lacking: 1, majority: 2 };
    assert!(not_held.to_string().contains("0 others did, 1 did not"), "{not_held}");
    let ttl = Some(Duration::from_secs(60));
    let ack = Ack { level: AckLevel::Majority, timeout: Some(Duration::from_secs(1)) };
    assert_eq!(client.touch_with("k", ttl, ack).await, Err(not_held.clone()));
    assert_eq!(client.pipe().touch_with("k", ttl, ack).await, Err(not_held.clone()));
    let mut session = client.session();
    assert_eq!(session.touch_with("k", ttl, ack).await, Err(not_held));
    assert!(!session.token().is_empty(), "the session saw the write although other nodes lack it");
    let asked = node.node.levers.acks.lock().unwrap().clone();
    let majority = Some(Asked::Level(v1::AckLevel::Majority.into()));
    assert!(asked.len() == 3 && asked.iter().all(|ack| ack.asked == majority), "{asked:?}");
    assert!(client.get("k").await.unwrap().unwrap().ttl.is_some());
}

#[tokio::test]
async fn batch_get_omits_values_with_keys_only() {
    let (_node, client) = pair().await;
    let version = client.put("k", "v", PutOptions::default()).await.unwrap();
    let (keys, keys_only) = (["none", "k"], BatchGetOptions { keys_only: true });
    let bare = [None, Some(Value { value: Bytes::new(), version, ttl: None })];
    assert_eq!(client.batch_get_with(keys, keys_only).await.unwrap(), bare);
    assert_eq!(client.session().batch_get_with(keys, keys_only).await.unwrap(), bare);
    assert_eq!(&client.batch_get(keys).await.unwrap()[1].as_ref().unwrap().value[..], b"v");
}

#[tokio::test]
async fn typed_values_pass_client_pipe_and_session() {
    let (_node, client) = pair().await;
    let (pipe, mut session) = (client.pipe(), client.session());
    session.put_string("text", "grüß", PutOptions::default()).await.unwrap();
    assert_eq!(pipe.get_string("text").await.unwrap().as_deref(), Some("grüß"));
    pipe.put_json("json", &[1, 2], PutOptions::default()).await.unwrap();
    assert_eq!(session.get_json::<[i32; 2]>("json").await.unwrap(), Some([1, 2]));
    let message = v1::Version { hlc: 1, origin: 2 };
    session.put_proto("proto", &message, PutOptions::default()).await.unwrap();
    assert_eq!(client.get_proto::<v1::Version>("proto").await.unwrap(), Some(message));
    session.put_with(&Text, "own", &"codec".to_owned(), PutOptions::default()).await.unwrap();
    let seen = session.token();
    assert_eq!(session.get_with(&Text, "own").await.unwrap().as_deref(), Some("codec"));
    assert_ne!(session.token(), seen, "a decoded read belongs to the session too");
    assert!(matches!(session.get_json::<i32>("text").await, Err(Error::Codec { key, .. }) if key == "text"));
    assert_eq!(session.get_string("none").await.unwrap(), None);
}

#[tokio::test]
async fn client_is_shared_between_tasks() {
    let (_node, client) = pair().await;
    let tasks = (0..20).map(|i| {
        let client = client.clone();
        tokio::spawn(async move {
            client.put(format!("k{i}"), "v", PutOptions::default()).await.unwrap();
            client.get(format!("k{i}")).await.unwrap().is_some()
        })
    });
    for found in futures::future::join_all(tasks).await {
        assert!(found.unwrap());
    }
}
