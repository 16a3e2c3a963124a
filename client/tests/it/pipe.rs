//! Pipes.

use futures::future::join_all;
use kvasir_client::{Ack, AckLevel, Client, Error, PIPE_IN_FLIGHT, Pipe, PutOptions, RetryPolicy};
use kvasir_testing::node::{Node, Served};
use kvasir_testing::service::Service;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tonic::Code;

async fn pair() -> (Served, Pipe) {
    let served = Node::new("a").serve();
    let client = Client::connect(served.address.to_string()).await.unwrap();
    (served, client.pipe())
}

async fn put(pipe: &Pipe, key: String) -> Result<(), Error> {
    pipe.put(key, "v", PutOptions::default()).await.map(|_| ())
}

#[tokio::test]
async fn pipe_answers_each_call_in_any_order() {
    let (node, pipe) = pair().await;
    // The slow calls are sent first and answered last.
    let puts = (0..1000).map(|n| {
        let key = if n % 10 == 0 { format!("slow/{n}") } else { format!("k/{n}") };
        let pipe = &pipe;
        async move {
            pipe.put(&key, n.to_string(), PutOptions::with_ttl(Duration::from_secs(10 * 60))).await.unwrap();
            let found = pipe.get(&key).await.unwrap().unwrap();
            assert_eq!(&found.value[..], n.to_string().as_bytes());
            assert!(found.ttl.unwrap() > Duration::from_secs(5 * 60));
        }
    });
    join_all(puts).await;
    let levers = &node.node.levers;
    assert_eq!(levers.pipes.load(Ordering::SeqCst), 1);
    let most = levers.most_in_progress.load(Ordering::SeqCst);
    assert!(most > 1 && most <= PIPE_IN_FLIGHT as u64, "{most} were in progress");

    assert_eq!(pipe.get("none").await.unwrap(), None);
    assert!(pipe.exists("k/1").await.unwrap() && !pipe.exists("none").await.unwrap());
    assert!(pipe.touch("k/1", None).await.unwrap() && !pipe.touch("none", None).await.unwrap());
    assert_eq!(pipe.get("k/1").await.unwrap().unwrap().ttl, None);
    assert!(pipe.delete("k/1").await.unwrap() && !pipe.delete("k/1").await.unwrap());
}

#[tokio::test]
async fn calls_in_flight_at_a_killed_node_are_tried_again() {
    let a = Node::new("a").serve();
    let b = Node::replica_of("b", &a.node).serve();
    let service = Service::before(a.address).await;
    let patience = Duration::from_secs(2 * 60);
    let client = Client::builder(service.address.to_string())
        .request_timeout(patience)
        .retry(RetryPolicy { budget: patience, ..RetryPolicy::default() })
        .connect();
    let pipe = client.await.unwrap().pipe();
    put(&pipe, "before".to_owned()).await.unwrap();
    a.node.levers.silent.store(true, Ordering::SeqCst);
    let calls: Vec<_> = (0..50)
        .map(|n| {
            let pipe = pipe.clone();
            tokio::spawn(async move { put(&pipe, format!("k{n}")).await })
        })
        .collect();
    while a.node.calls() < 51 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    service.point_to(b.address);
    let killed = Instant::now();
    a.kill().await;
    for call in join_all(calls).await {
        call.unwrap().unwrap();
    }
    assert!(killed.elapsed() < patience, "waited for the request timeout: {:?}", killed.elapsed());
    assert_eq!((b.node.calls(), b.node.levers.pipes.load(Ordering::SeqCst)), (50, 1));
}

#[tokio::test]
async fn pipe_leaves_a_draining_node_once() {
    let a = Node::new("a").serve();
    let b = Node::replica_of("b", &a.node).serve();
    let service = Service::before(a.address).await;
    let pipe = Client::connect(service.address.to_string()).await.unwrap().pipe();
    put(&pipe, "before".to_owned()).await.unwrap();
    let before = service.connections();
    a.node.levers.draining.store(true, Ordering::SeqCst);
    service.point_to(b.address);
    for result in join_all((0..50).map(|n| put(&pipe, format!("k{n}")))).await {
        result.unwrap();
    }
    assert_eq!(service.connections() - before, 1);
    assert_eq!(b.node.levers.pipes.load(Ordering::SeqCst), 1);
    assert!(pipe.get("before").await.unwrap().is_some());
}

#[tokio::test]
async fn silent_node_is_an_error_within_the_budget() {
    let node = Node::new("a").serve();
    let client = Client::builder(node.address.to_string())
        .request_timeout(Duration::from_secs(2))
        .retry(RetryPolicy::none())
        .connect()
        .await
        .unwrap();
    node.node.levers.silent.store(true, Ordering::SeqCst);
    match put(&client.pipe(), "k".to_owned()).await {
        Err(Error::Unavailable { reason, attempts: 1, .. }) => assert_eq!(reason, "no answer within 2000 ms"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn refusal_does_not_disturb_other_calls() {
    let (node, pipe) = pair().await;
    let slow = put(&pipe, "slow".to_owned());
    let refused = put(&pipe, String::new());
    let (slow, refused) = futures::join!(slow, refused);
    slow.unwrap();
    assert_eq!(refused, Err(Error::Refused("key: must be 1 to 1024 bytes".into())));
    node.node.levers.full.store(true, Ordering::SeqCst);
    assert!(matches!(put(&pipe, "k".to_owned()).await, Err(Error::Full(_))));
    assert_eq!((node.node.calls(), node.node.levers.pipes.load(Ordering::SeqCst)), (3, 1));
}

#[tokio::test]
async fn node_without_pipes_is_an_error() {
    let (node, pipe) = pair().await;
    node.node.levers.older.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        match put(&pipe, "k".to_owned()).await {
            Err(Error::Node { code: Code::Unimplemented, message }) => assert!(message.contains("older"), "{message}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn abandoned_calls_free_their_places() {
    let (node, pipe) = pair().await;
    node.node.levers.silent.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        let calls = join_all((0..PIPE_IN_FLIGHT).map(|n| put(&pipe, format!("k{n}"))));
        assert!(tokio::time::timeout(Duration::from_millis(50), calls).await.is_err());
    }
    node.node.levers.silent.store(false, Ordering::SeqCst);
    put(&pipe, "k".to_owned()).await.unwrap();
}

#[tokio::test]
async fn unmet_ack_is_an_error_within_the_timeout() {
    let (node, pipe) = pair().await;
    let asked = || Duration::try_from(node.node.levers.acks.lock().unwrap().pop().unwrap().timeout.unwrap()).unwrap();
    match pipe.put("k", "v", PutOptions::with_ack(AckLevel::All)).await {
        Err(Error::NotHeld { peers: 0, voters: 1, majority: 2, .. }) => {}
        other => panic!("{other:?}"),
    }
    // The stream has no deadline: without a timeout in the ack the node would wait for longer than the client.
    assert_eq!(asked(), Duration::from_millis(4900));
    let ack = Ack { level: AckLevel::Majority, timeout: Some(Duration::from_secs(1)) };
    assert!(matches!(pipe.delete_with("k", ack).await, Err(Error::NotHeld { .. })));
    assert_eq!(asked(), Duration::from_secs(1));
}

#[tokio::test]
async fn session_carries_its_token_through_a_pipe() {
    let (_node, pipe) = pair().await;
    let mut session = pipe.session();
    let mut last = session.token();
    assert!(last.is_empty());
    let mut grew = |session: &kvasir_client::Session| {
        let token = session.token();
        assert!(token != last, "the token is still {last:?}");
        last = token;
    };
    session.put("k", "v", PutOptions::default()).await.unwrap();
    grew(&session);
    assert!(session.get("k").await.unwrap().is_some());
    grew(&session);
    assert!(session.get("none").await.unwrap().is_none());
    grew(&session);
    assert!(session.delete("k").await.unwrap());
    grew(&session);
    session.batch_put([("a", "1"), ("b", "2")], PutOptions::default()).await.unwrap();
    grew(&session);
    assert!(session.batch_get(["a", "b"]).await.unwrap().iter().all(Option::is_some));
    grew(&session);
    assert_eq!(listed(&mut session).await, ["a", "b"]);
    grew(&session);
    assert_eq!(session.batch_delete(["a", "none"]).await.unwrap(), [true, false]);
    grew(&session);
    let mut other = pipe.resume(session.token());
    assert_eq!(other.batch_get(["b"]).await.unwrap().len(), 1);
    grew(&other);
}

async fn listed(session: &mut kvasir_client::Session) -> Vec<String> {
    use futures::TryStreamExt as _;
    let entries: Vec<_> = session.list("", kvasir_client::ListOptions::default()).try_collect().await.unwrap();
    entries.into_iter().map(|entry| entry.key).collect()
}
