//! What a client may ask for beyond reading and writing one key.

use std::time::Duration;

use futures::StreamExt as _;
use kvasir_proto::v1::{self, ack::Asked, pipe_request::Operation, pipe_response::Result as Answer};
use tonic::Code;

use crate::harness::{Node, cluster, eventually};

fn ack(asked: Asked, timeout: Duration) -> v1::Ack {
    v1::Ack { asked: Some(asked), timeout: Some(timeout.try_into().unwrap()) }
}

fn put(key: &str, value: &str) -> v1::PutRequest {
    v1::PutRequest { key: key.to_owned(), value: value.to_owned().into(), ..v1::PutRequest::default() }
}

/// The longest `ack` timeout that a node accepts, for acknowledgements that must arrive.
const LONG: Duration = Duration::from_mins(1);
/// For what cannot happen.
const SHORT: Duration = Duration::from_millis(300);

/// How often in a row the machine may stall between an answer and the deadline after it.
const MAY_BE_LATE: usize = 10;

/// Whether the client's own deadline ended the call.
pub(crate) fn is_late(status: &tonic::Status) -> bool {
    matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled)
}

#[tokio::test]
async fn a_put_waits_for_its_ack_and_reports_it() {
    let mut nodes = cluster(3).await;
    let mut kv = nodes[0].kv().0;
    for asked in [Asked::Count(2), Asked::Level(v1::AckLevel::Majority.into()), Asked::Level(v1::AckLevel::All.into())]
    {
        let request = v1::PutRequest { ack: Some(ack(asked, LONG)), ..put("k", "v") };
        let acked = kv.put(request).await.unwrap().into_inner().acked.unwrap();
        assert!(acked.met, "{asked:?}: {acked:?}");
        if asked == Asked::Count(2) {
            // A put without `ack` does not wait.
            for node in &nodes {
                assert_eq!(node.kv().get("k").await.unwrap().as_deref(), Some("v"));
            }
        }
    }
    nodes[2].freeze();
    // How long the other node takes depends on the machine.
    let mut timeouts = [1, 4, 16, 64].map(|times| SHORT * times).into_iter();
    let acked = loop {
        let timeout = timeouts.next().expect("the running node acknowledges in time");
        let request = v1::PutRequest { ack: Some(ack(Asked::Count(2), timeout)), ..put("k", "w") };
        let acked = kv.put(request).await.unwrap().into_inner().acked.unwrap();
        assert!(!acked.met && acked.voters == 2, "{acked:?}");
        if acked.peers > 0 {
            break acked;
        }
    };
    assert_eq!(acked.peers, 1, "{acked:?}");
    assert_eq!(nodes[1].kv().get("k").await.unwrap().as_deref(), Some("w"), "the write stays");
    // The node answers before the deadline of the call, unless the machine stalls at that moment.
    let mut late = 0;
    let answer = loop {
        kv.put(put("k", "w")).await.unwrap();
        let mut request = tonic::Request::new(v1::DeleteRequest {
            key: "k".to_owned(),
            ack: Some(v1::Ack { asked: Some(Asked::Count(2)), timeout: None }),
            ..v1::DeleteRequest::default()
        });
        request.set_timeout(Duration::from_secs(1));
        match kv.delete(request).await {
            Ok(answer) => break answer.into_inner(),
            Err(status) => assert!(is_late(&status), "{status}"),
        }
        late += 1;
        assert!(late < MAY_BE_LATE, "no answer ever comes before the deadline");
    };
    assert_eq!((answer.existed, answer.acked.unwrap().met), (true, false));
    nodes[2].resume();
    eventually("the frozen node received it", async || {
        if nodes[2].kv().exists("k").await.unwrap() { Err("not yet") } else { Ok(()) }
    })
    .await;
}

#[tokio::test]
async fn a_session_reads_its_own_writes_on_any_node() {
    let nodes = cluster(3).await;
    let mut token = bytes::Bytes::new();
    for round in 0..60 {
        let (writer, reader) = (&nodes[round % 3], &nodes[(round + 1) % 3]);
        let value = round.to_string();
        let request = v1::PutRequest { session: Some(token), ..put("k", &value) };
        token = writer.kv().0.put(request).await.unwrap().into_inner().session;
        let request = v1::GetRequest { key: "k".to_owned(), session: Some(token) };
        let got = reader.kv().0.get(request).await.unwrap().into_inner();
        assert_eq!(String::from_utf8(got.value.to_vec()).unwrap(), value, "round {round}");
        let request = v1::DeleteRequest { key: "k".to_owned(), session: Some(got.session), ..Default::default() };
        let gone = reader.kv().0.delete(request).await.unwrap().into_inner();
        assert!(gone.existed, "round {round}");
        let request = v1::GetRequest { key: "k".to_owned(), session: Some(gone.session) };
        let got = writer.kv().0.get(request).await.unwrap().into_inner();
        assert!(got.missing, "round {round}");
        token = got.session;
        assert!(!token.is_empty() && token.len() < 200, "{} bytes", token.len());
    }
    let mixed_up = v1::GetRequest { key: "k".to_owned(), session: Some(vec![1; 40].into()) };
    let refused = nodes[0].kv().0.get(mixed_up).await.unwrap_err();
    assert!(refused.code() == Code::InvalidArgument && refused.message().starts_with("session: "), "{refused}");
}

#[tokio::test]
async fn a_node_that_cannot_catch_up_says_so_in_time() {
    let mut nodes = cluster(2).await;
    let session = Some(bytes::Bytes::new());
    nodes[1].freeze();
    let token = nodes[0].kv().0.put(v1::PutRequest { session, ..put("k", "v") }).await.unwrap().into_inner().session;
    nodes[0].kill();
    nodes[1].resume();
    for _ in 0..MAY_BE_LATE {
        let session = Some(token.clone());
        let mut request = tonic::Request::new(v1::GetRequest { key: "k".to_owned(), session });
        request.set_timeout(Duration::from_secs(1));
        // A write in flight when its node died may have arrived.
        match nodes[1].kv().0.get(request).await {
            Ok(answer) => return assert_eq!(&answer.into_inner().value[..], b"v"),
            Err(status) if is_late(&status) => {}
            Err(status) => {
                assert!(matches!(status.code(), Code::Unavailable | Code::DataLoss), "{status}");
                return assert!(status.message().starts_with("session: "), "{status}");
            }
        }
    }
    panic!("no answer ever comes before the deadline");
}

#[tokio::test]
async fn a_watch_shows_peers_writes_and_ends_on_drain() {
    let mut nodes = cluster(2).await;
    nodes[0].kv().put("w/0", "old").await.unwrap();
    eventually("it is there", async || nodes[1].kv().get("w/0").await.unwrap().ok_or("not yet")).await;
    let request = v1::WatchRequest { prefix: "w/".to_owned(), content_first: true, keys_only: false };
    let mut stream = nodes[1].kv().0.watch(request).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    assert_eq!((first.events.len(), first.live, first.events[0].key.as_str()), (1, true, "w/0"));
    let mut kv = nodes[0].kv();
    kv.put("other", "v").await.unwrap();
    kv.put("w/1", "v").await.unwrap();
    kv.delete("w/0").await.unwrap();
    let mut next = async |count| {
        let mut seen = Vec::new();
        while seen.len() < count {
            for event in stream.message().await.unwrap().unwrap().events {
                seen.push((event.kind(), event.key));
            }
        }
        seen
    };
    let expected = [(v1::WatchKind::Put, "w/1"), (v1::WatchKind::Delete, "w/0")];
    assert_eq!(next(2).await, expected.map(|(kind, key)| (kind, key.to_owned())));
    // Long enough to be listed before it expires.
    kv.put_for("w/2", "v", Some(Duration::from_secs(5))).await.unwrap();
    let expected = [(v1::WatchKind::Put, "w/2"), (v1::WatchKind::Expire, "w/2")];
    assert_eq!(next(2).await, expected.map(|(kind, key)| (kind, key.to_owned())));
    nodes[1].terminate();
    let last = stream.message().await.unwrap().unwrap();
    assert_eq!(last.lost(), v1::WatchLost::Draining);
    assert!(stream.message().await.unwrap().is_none());
    assert!(nodes[1].ended().await.success());
}

#[tokio::test]
async fn a_slow_watcher_is_notified_and_can_restart() {
    let node = Node::alone().await;
    let request = v1::WatchRequest { content_first: true, ..v1::WatchRequest::default() };
    let mut stream = node.kv().0.watch(request.clone()).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().unwrap().live);
    // Far more than the connection and the node buffer for a client that does not read.
    let (mut kv, value) = (node.kv(), "v".repeat(512 << 10));
    for n in 0..100 {
        kv.put(&format!("k{n:02}"), &value).await.unwrap();
    }
    let (mut received, mut lost) = (0, v1::WatchLost::No);
    while let Some(message) = stream.message().await.unwrap() {
        assert_eq!(lost, v1::WatchLost::No, "nothing follows");
        received += message.events.len();
        lost = message.lost();
    }
    assert_eq!(lost, v1::WatchLost::Slow);
    assert!(received < 100, "everything was buffered for a watcher that does not read");
    let mut stream = node.kv().0.watch(request).await.unwrap().into_inner();
    let mut keys = Vec::new();
    loop {
        let message = stream.message().await.unwrap().unwrap();
        keys.extend(message.events.into_iter().map(|event| event.key));
        if message.live {
            break;
        }
    }
    assert!(keys.into_iter().eq((0..100).map(|n| format!("k{n:02}"))));
}

#[tokio::test]
async fn batches_answer_in_order_and_name_what_is_wrong() {
    let node = Node::alone().await;
    let mut kv = node.kv().0;
    let puts = (0..1000).map(|n| put(&format!("k{n:04}"), &"x".repeat(1000))).collect();
    let answer = kv.batch_put(v1::BatchPutRequest { puts, ..Default::default() }).await.unwrap().into_inner();
    assert_eq!((answer.versions.len(), answer.failure), (1000, None));
    let keys: Vec<_> = (0..1000).rev().map(|n| format!("k{:04}", n * 2)).collect();
    let request = v1::BatchGetRequest { keys: keys.clone(), ..Default::default() };
    let messages: Vec<_> = kv.batch_get(request).await.unwrap().into_inner().map(Result::unwrap).collect().await;
    assert!(messages.len() > 1, "in messages of bounded size");
    let answers: Vec<_> = messages.into_iter().flat_map(|m| m.answers).collect();
    let missing: Vec<_> = answers.iter().map(|a| a.missing).collect();
    assert_eq!(missing, [vec![true; 500], vec![false; 500]].concat());
    let request = v1::BatchDeleteRequest { keys: keys[498..502].to_vec(), ..Default::default() };
    let answer = kv.batch_delete(request).await.unwrap().into_inner();
    assert_eq!(answer.existed, [false, false, true, true]);

    let refused = kv.batch_get(v1::BatchGetRequest::default()).await.unwrap_err();
    assert_eq!(refused.message(), "keys: empty, must be 1 to 1000");
    let puts = vec![put("good", "v"), put("", "v")];
    let refused = kv.batch_put(v1::BatchPutRequest { puts, ..Default::default() }).await.unwrap_err();
    assert_eq!(refused.message(), "puts[1]: key: empty, must be 1 to 1024 bytes (maxKeyBytes)");
    assert_eq!(node.kv().get("good").await.unwrap(), None, "the refused batch wrote no key");
}

#[tokio::test]
async fn a_touch_changes_the_end_and_spreads() {
    let nodes = cluster(2).await;
    nodes[0].kv().put_for("k", "v", Some(Duration::from_hours(1))).await.unwrap();
    let request =
        v1::TouchRequest { key: "k".to_owned(), ack: Some(ack(Asked::Count(1), LONG)), ..v1::TouchRequest::default() };
    let touched = nodes[0].kv().0.touch(request).await.unwrap().into_inner();
    assert!(touched.existed && touched.acked.unwrap().met);
    for node in &nodes {
        let request = v1::GetRequest { key: "k".to_owned(), session: None };
        let got = node.kv().0.get(request).await.unwrap().into_inner();
        assert_eq!((&got.value[..], got.ttl), (&b"v"[..], None));
    }
    let request = v1::TouchRequest { key: "none".to_owned(), ..v1::TouchRequest::default() };
    assert!(!nodes[0].kv().0.touch(request).await.unwrap().into_inner().existed);
}

#[tokio::test]
async fn a_pipe_answers_every_operation_whatever_waits() {
    let mut nodes = cluster(2).await;
    nodes[1].freeze();
    // The first call waits for a frozen node until all others are answered.
    let waits = v1::PutRequest { ack: Some(ack(Asked::Count(1), LONG)), ..put("waits", "v") };
    let operations = [Operation::Put(waits)]
        .into_iter()
        .chain((0..999).map(|n| Operation::Put(put(&format!("k{n}"), "v"))))
        .chain([
            Operation::Get(v1::GetRequest { key: "none".to_owned(), session: None }),
            Operation::Delete(v1::DeleteRequest { key: "waits".to_owned(), ..Default::default() }),
            Operation::Put(put("", "v")),
        ]);
    let requests: Vec<_> = operations.zip(0..).map(|(op, id)| v1::PipeRequest { id, operation: Some(op) }).collect();
    let count = requests.len();
    let mut stream = nodes[0].kv().0.pipe(tokio_stream::iter(requests)).await.unwrap().into_inner();
    let mut answers: Vec<_> = stream.by_ref().take(count - 1).map(Result::unwrap).collect().await;
    assert!(answers.iter().all(|answer| answer.id != 0), "it was overtaken");
    nodes[1].resume();
    answers.extend(stream.map(Result::unwrap).collect::<Vec<_>>().await);
    assert_eq!(answers.len(), count);
    let mut ids: Vec<_> = answers.iter().map(|a| a.id).collect();
    ids.sort_unstable();
    assert!(ids.iter().copied().eq(0..count as u64));
    let answer = |id: u64| answers.iter().find(|a| a.id == id).unwrap().result.clone().unwrap();
    assert!(matches!(answer(0), Answer::Put(put) if put.acked.unwrap().met));
    assert!(matches!(answer(1000), Answer::Get(get) if get.missing));
    assert!(matches!(answer(1001), Answer::Delete(gone) if gone.existed));
    assert!(matches!(answer(1002), Answer::Failure(failure) if failure.code == Code::InvalidArgument as i32));
}

#[tokio::test]
async fn member_events_name_joins_and_leaves() {
    let mut nodes = cluster(3).await;
    let mut events = nodes[0].cluster().events(v1::EventsRequest {}).await.unwrap().into_inner();
    let mut next = async || {
        let event = events.message().await.unwrap().unwrap();
        (event.kind(), event.name)
    };
    let mut there = [next().await, next().await];
    there.sort_by(|a, b| a.1.cmp(&b.1));
    assert_eq!(there, ["n1", "n2"].map(|name| (v1::ClusterEventKind::Joined, name.to_owned())));
    nodes[1].terminate();
    assert_eq!(next().await, (v1::ClusterEventKind::Left, "n1".to_owned()));
    assert!(nodes[1].ended().await.success());
    nodes[2].kill();
    assert_eq!(next().await, (v1::ClusterEventKind::Failed, "n2".to_owned()));
}
