//! The client library against real nodes: pipes, watches and events, which continue when their node stops.

use futures::StreamExt as _;
use futures::future::try_join_all;
use kvasir_client::{
    Ack, AckLevel, Client, ClusterEvent, Error, Event, ListOptions, PutOptions, RetryPolicy, WatchOptions,
};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Node, PATIENCE, cluster, eventually};
use crate::sdk::{client, listed};

/// An address that leads to one node and later to another, like a Service's.
struct Service {
    address: SocketAddr,
    node: Arc<Mutex<SocketAddr>>,
}

impl Service {
    async fn before(node: &Node) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let node = Arc::new(Mutex::new(node.client));
        let to = node.clone();
        tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let to = *to.lock().unwrap();
                tokio::spawn(async move {
                    if let Ok(mut node) = TcpStream::connect(to).await {
                        // Either side may close at any time: that is what the tests are about.
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut node).await;
                    }
                });
            }
        });
        Self { address, node }
    }

    fn point_to(&self, node: &Node) {
        *self.node.lock().unwrap() = node.client;
    }

    /// A client that retries for as long as a test may take.
    async fn client(&self) -> Client {
        let patient = RetryPolicy { budget: PATIENCE, ..RetryPolicy::default() };
        Client::builder(self.address.to_string()).retry(patient).connect().await.unwrap()
    }
}

// ---- pipes

#[tokio::test]
async fn a_pipe_continues_at_another_node_after_a_kill() {
    let mut nodes = cluster(2).await;
    let service = Service::before(&nodes[0]).await;
    let pipe = service.client().await.pipe();
    let put = |key: String, options| {
        let pipe = &pipe;
        async move { pipe.put(key.clone(), key, options).await }
    };
    let held = (0..500).map(|n| put(format!("held/{n}"), PutOptions::with_ack(AckLevel::All)));
    try_join_all(held).await.unwrap();
    assert!(pipe.touch("held/0", Some(Duration::from_secs(90))).await.unwrap());
    assert!(pipe.delete_with("held/1", AckLevel::All).await.unwrap() && !pipe.delete("held/1").await.unwrap());
    assert!(!pipe.exists("held/1").await.unwrap() && !pipe.touch("held/1", None).await.unwrap());

    // Calls are in flight all the time; each is answered in the end.
    let answered = Arc::new(AtomicUsize::new(0));
    let calls: Vec<_> = (0..20)
        .map(|task| {
            let (pipe, answered) = (pipe.clone(), answered.clone());
            tokio::spawn(async move {
                for n in 0..100 {
                    pipe.put(format!("later/{task}/{n}"), "v", PutOptions::default()).await?;
                    answered.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Ok::<_, Error>(())
            })
        })
        .collect();
    // Some of the calls; the rest takes longer, as each task pauses.
    while answered.load(Ordering::Relaxed) < 200 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    service.point_to(&nodes[1]);
    nodes[0].kill();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    let found = try_join_all((0..500).map(|n| pipe.get(format!("held/{n}")))).await.unwrap();
    for (n, found) in found.into_iter().enumerate() {
        let value = found.map(|found| found.value);
        assert_eq!(
            value,
            (n != 1).then(|| format!("held/{n}").into()),
            "`held/1` was deleted, all other keys are there"
        );
    }
    assert!(pipe.get("held/0").await.unwrap().unwrap().ttl.is_some());
    // The last put was answered by the node that is alive.
    assert!(client(&nodes[1]).await.exists("later/0/99").await.unwrap());
}

#[tokio::test]
async fn a_piped_call_that_waits_delays_no_other() {
    let mut nodes = cluster(2).await;
    let patient = Client::builder(nodes[0].client.to_string()).request_timeout(PATIENCE);
    let pipe = patient.connect().await.unwrap().pipe();
    pipe.put("k", "v", PutOptions::default()).await.unwrap();
    nodes[1].freeze();
    let ack = |timeout| Ack { level: AckLevel::Count(1), timeout: Some(timeout) };
    let long = ack(Duration::from_mins(1));
    let waits = {
        let pipe = pipe.clone();
        tokio::spawn(async move { pipe.put("waits", "v", PutOptions::with_ack(long)).await })
    };
    for n in 0..200 {
        pipe.put("k", n.to_string(), PutOptions::default()).await.unwrap();
    }
    assert!(!waits.is_finished(), "the others overtook it");
    let short = PutOptions::with_ack(ack(Duration::from_millis(200)));
    assert!(matches!(pipe.put("k", "v", short).await, Err(Error::NotHeld { peers: 0, voters: 1, .. })));
    nodes[1].resume();
    waits.await.unwrap().unwrap();
    assert!(matches!(pipe.put("", "v", PutOptions::default()).await, Err(Error::Refused(_))));
    assert!(pipe.exists("waits").await.unwrap(), "it stays");
}

#[tokio::test]
async fn a_session_spans_pipes_batches_and_listings() {
    let nodes = cluster(2).await;
    let (a, b) = (client(&nodes[0]).await, client(&nodes[1]).await);
    let mut session = a.pipe().session();
    for round in 0..10 {
        let keys: Vec<_> = (0..1200).map(|n| format!("s/{n:04}")).collect();
        let value = round.to_string();
        session.batch_put(keys.iter().map(|key| (key, value.clone())), PutOptions::default()).await.unwrap();
        session.put("s/one", value.clone(), PutOptions::default()).await.unwrap();
        let mut there = b.pipe().resume(session.token());
        assert_eq!(there.get("s/one").await.unwrap().unwrap().value, value.as_bytes());
        let entries = listed(there.list("s/", ListOptions::default())).await;
        assert_eq!(entries.len(), 1201);
        assert!(entries.iter().all(|entry| entry.value == value.as_bytes()), "the writes of this round");
        assert!(there.batch_get(&keys).await.unwrap().iter().all(Option::is_some));
        assert_eq!(there.batch_delete(&keys).await.unwrap(), vec![true; 1200]);
        assert!(there.delete_with("s/one", AckLevel::All).await.unwrap());
        session = a.pipe().resume(there.token());
        assert_eq!(listed(session.list("s/", ListOptions::default())).await, []);
        assert_eq!(session.batch_delete_with(["s/0000"], AckLevel::All).await.unwrap(), [false]);
    }
}

// ---- watches and events

#[tokio::test]
async fn a_watch_begins_again_when_its_node_comes_back() {
    let mut node = Node::alone().await;
    let patient = RetryPolicy { budget: PATIENCE, ..RetryPolicy::default() };
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

/// The next event of a watch, abbreviated.
fn shown(event: Option<Result<Event, Error>>) -> String {
    match event.expect("a watch does not end").unwrap() {
        Event::Put { key, value } => format!("{key}={}", String::from_utf8_lossy(&value.value)),
        Event::Deleted { key, .. } => format!("{key} deleted"),
        Event::Expired { key, .. } => format!("{key} expired"),
        Event::Restarted => "restarted".to_owned(),
        Event::Live => "live".to_owned(),
    }
}

#[tokio::test]
async fn a_watch_that_lost_its_place_lists_again() {
    let node = Node::alone().await;
    let service = Service::before(&node).await;
    let a = client(&node).await;
    let mut events = service.client().await.watch("w/", WatchOptions::default());
    assert_eq!(shown(events.next().await), "live");
    // Far more than connections and the node buffer for a client that does not read.
    let value = "v".repeat(512 << 10);
    for n in 0..100 {
        a.put(format!("w/{n:02}"), value.clone(), PutOptions::default()).await.unwrap();
    }
    assert!(a.delete("w/00").await.unwrap());
    let mut before = 0;
    while shown(events.next().await) != "restarted" {
        before += 1;
    }
    assert!(before < 100, "nothing was lost");
    for n in 1..100 {
        assert!(shown(events.next().await).starts_with(&format!("w/{n:02}=")), "the content, in order");
    }
    assert_eq!(shown(events.next().await), "live");
    assert!(a.delete("w/01").await.unwrap());
    a.put("w/ends", "v", PutOptions::with_ttl(Duration::from_millis(300))).await.unwrap();
    for expected in ["w/01 deleted", "w/ends=v", "w/ends expired"] {
        assert_eq!(shown(events.next().await), expected);
    }
}

#[tokio::test]
async fn a_watch_goes_to_another_node_when_its_own_drains() {
    let mut nodes = cluster(2).await;
    let service = Service::before(&nodes[0]).await;
    let a = service.client().await;
    a.put("w/1", "v", PutOptions::with_ack(AckLevel::All)).await.unwrap();
    let mut events = a.watch("w/", WatchOptions { content_first: true, keys_only: true });
    for expected in ["restarted", "w/1=", "live"] {
        assert_eq!(shown(events.next().await), expected);
    }
    service.point_to(&nodes[1]);
    nodes[0].terminate();
    for expected in ["restarted", "w/1=", "live"] {
        assert_eq!(shown(events.next().await), expected);
    }
    a.put("w/2", "v", PutOptions::default()).await.unwrap();
    assert_eq!(shown(events.next().await), "w/2=");
    assert!(nodes[0].ended().await.success());
}

fn happened(event: Option<Result<ClusterEvent, Error>>) -> (&'static str, String) {
    match event.expect("events do not end").unwrap() {
        ClusterEvent::Restarted => ("restarted", String::new()),
        ClusterEvent::Joined(node) => ("joined", node.name),
        ClusterEvent::Left(node) => ("left", node.name),
        ClusterEvent::Failed(node) => ("failed", node.name),
        ClusterEvent::Evicted(node) => ("evicted", node.name),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn member_events_continue_at_another_node() {
    let mut nodes = cluster(3).await;
    let service = Service::before(&nodes[0]).await;
    let a = service.client().await;
    let mut events = a.events();
    let is = |what, name: &str| (what, name.to_owned());
    assert_eq!(happened(events.next().await), is("restarted", ""));
    let mut there = [happened(events.next().await), happened(events.next().await)];
    there.sort();
    assert_eq!(there, [is("joined", "n1"), is("joined", "n2")]);
    nodes[2].terminate();
    assert_eq!(happened(events.next().await), is("left", "n2"));
    assert!(nodes[2].ended().await.success());
    service.point_to(&nodes[1]);
    nodes[0].kill();
    assert_eq!(happened(events.next().await), is("restarted", ""));
    nodes[2].start();
    // Whether the other node reports the killed one as left or failed by now does not matter here.
    eventually("the restarted node is reported", async || {
        let event = happened(events.next().await);
        assert!(event == is("joined", "n2") || event.1 == "n0", "{event:?}");
        if event == is("joined", "n2") { Ok(()) } else { Err(event) }
    })
    .await;
}
