//! A client whose node goes away is served by another node.

use futures::TryStreamExt as _;
use kvasir_client::{Client, Error, ListOptions, PutOptions, RetryPolicy};
use kvasir_testing::node::Node;
use kvasir_testing::service::Service;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A request timeout far above what any call takes, so that a client that waits for it is noticed.
const PATIENCE: Duration = Duration::from_secs(2 * 60);

async fn patient(service: &Service) -> Client {
    Client::builder(service.address.to_string())
        .request_timeout(PATIENCE)
        .retry(RetryPolicy { budget: PATIENCE, ..RetryPolicy::default() })
        .connect()
        .await
        .unwrap()
}

async fn put(client: &Client, key: &str) {
    client.put(key, "v", PutOptions::default()).await.unwrap();
}

#[tokio::test]
async fn draining_node_is_left_for_another() {
    let a = Node::new("a").serve();
    let b = Node::replica_of("b", &a.node).serve();
    let service = Service::before(a.address).await;
    let client = patient(&service).await;
    put(&client, "before").await;
    assert_eq!(client.who_am_i().await.unwrap().member.name, "a");

    // The node still answers, but refuses writes; the Service sends it no new connections.
    a.node.levers.draining.store(true, Ordering::SeqCst);
    service.point_to(b.address);
    let started = Instant::now();
    put(&client, "after").await;
    assert!(started.elapsed() < PATIENCE, "waited for the request timeout: {:?}", started.elapsed());
    assert_eq!(client.who_am_i().await.unwrap().member.name, "b", "later calls must stay with the ready node");
    assert!(client.get("before").await.unwrap().is_some());
}

#[tokio::test]
async fn failures_together_make_one_connection() {
    let a = Node::new("a").serve();
    let b = Node::replica_of("b", &a.node).serve();
    let service = Service::before(a.address).await;
    let client = Client::connect(service.address.to_string()).await.unwrap();
    put(&client, "k").await;
    let before = service.connections();

    a.node.levers.draining.store(true, Ordering::SeqCst);
    service.point_to(b.address);
    let calls = (0..50).map(|i| {
        let client = client.clone();
        tokio::spawn(async move { client.put(format!("k{i}"), "v", PutOptions::default()).await })
    });
    for call in futures::future::join_all(calls).await {
        call.unwrap().unwrap();
    }
    assert_eq!(service.connections() - before, 1);
}

#[tokio::test]
async fn killed_node_is_left_for_another() {
    let a = Node::new("a").serve();
    let b = Node::replica_of("b", &a.node).serve();
    let service = Service::before(a.address).await;
    let client = Client::connect(service.address.to_string()).await.unwrap();
    put(&client, "before").await;

    service.point_to(b.address);
    a.kill().await;
    put(&client, "after").await;
    assert_eq!(client.who_am_i().await.unwrap().member.name, "b");
}

#[tokio::test]
async fn call_in_flight_at_a_killed_node_is_tried_again() {
    let a = Node::new("a").serve();
    let b = Node::replica_of("b", &a.node).serve();
    let service = Service::before(a.address).await;
    let client = patient(&service).await;
    a.node.levers.silent.store(true, Ordering::SeqCst);
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.put("k", "v", PutOptions::default()).await }
    });
    while a.node.calls() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    service.point_to(b.address);
    let killed = Instant::now();
    a.kill().await;
    call.await.unwrap().unwrap();
    assert!(killed.elapsed() < PATIENCE, "waited for the request timeout: {:?}", killed.elapsed());
    assert_eq!(b.node.calls(), 1);
}

#[tokio::test]
async fn silent_node_is_left_after_the_timeout() {
    let a = Node::new("a").serve();
    let b = Node::replica_of("b", &a.node).serve();
    let service = Service::before(a.address).await;
    let client =
        Client::builder(service.address.to_string()).request_timeout(Duration::from_secs(3)).connect().await.unwrap();
    put(&client, "before").await;

    a.node.levers.silent.store(true, Ordering::SeqCst);
    service.point_to(b.address);
    let started = Instant::now();
    put(&client, "after").await;
    assert!(started.elapsed() >= Duration::from_secs(3));
    assert_eq!(b.node.calls(), 1);
}

#[tokio::test]
async fn late_node_is_waited_for() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let service = Service::before(free).await; // accepts, then closes: it has no backend
    let client = Client::builder(service.address.to_string()).build().unwrap();
    let call = tokio::spawn(async move { client.put("k", "v", PutOptions::default()).await });
    tokio::time::sleep(Duration::from_millis(400)).await;
    let node = Node::new("late").serve();
    service.point_to(node.address);
    call.await.unwrap().unwrap();
    assert_eq!(node.node.calls(), 1);
}

#[tokio::test]
async fn spent_budget_is_an_error_with_the_reason() {
    let a = Node::new("a").serve();
    a.node.levers.draining.store(true, Ordering::SeqCst);
    let budget = Duration::from_secs(2);
    let client = Client::builder(a.address.to_string())
        .retry(RetryPolicy { budget, max_backoff: Duration::from_millis(50), ..RetryPolicy::default() })
        .connect()
        .await
        .unwrap();
    // The unit tests of the policy, which have a paused clock, check the budget to the millisecond.
    let error = client.put("k", "v", PutOptions::default()).await.unwrap_err();
    match error {
        Error::Unavailable { reason, attempts, address, .. } => {
            assert_eq!(reason, "draining");
            // The budget may have cut the last attempt short before the node saw it.
            let (attempts, calls) = (u64::from(attempts), a.node.calls());
            assert!(attempts == calls || attempts == calls + 1, "{attempts} attempts, {calls} calls");
            assert!(attempts > 1);
            assert_eq!(address, a.address.to_string());
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn refusal_is_not_tried_again() {
    let a = Node::new("a").serve();
    let client = Client::connect(a.address.to_string()).await.unwrap();
    let refused = client.put("", "v", PutOptions::default()).await.unwrap_err();
    assert_eq!(refused, Error::Refused("key: must be 1 to 1024 bytes".into()));
    a.node.levers.full.store(true, Ordering::SeqCst);
    assert!(matches!(client.put("k", "v", PutOptions::default()).await, Err(Error::Full(_))));
    assert_eq!(a.node.calls(), 2);
}

#[tokio::test]
async fn connect_fails_if_nothing_listens() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = Client::builder(free.to_string()).retry(RetryPolicy::none()).connect().await.unwrap_err();
    match error {
        Error::Unavailable { reason, attempts: 1, .. } => assert!(reason.contains("refused"), "{reason}"),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn listing_continues_at_another_node() {
    let a = Node::new("a").serve();
    let b = Node::replica_of("b", &a.node).serve();
    let service = Service::before(a.address).await;
    let client = Client::connect(service.address.to_string()).await.unwrap();
    let keys: Vec<_> = (0..2500).map(|i| format!("k{i:05}")).collect();
    for key in &keys {
        put(&client, key).await;
    }
    // Breaks off in the second message of the first page, after seven entries.
    a.node.levers.break_lists_after.store(1, Ordering::SeqCst);
    service.point_to(b.address);
    let entries: Vec<_> = client.list("k", ListOptions::default()).try_collect().await.unwrap();
    let listed: Vec<_> = entries.into_iter().map(|entry| entry.key).collect();
    assert!(listed == keys, "every key once and in order: {} of {}", listed.len(), keys.len());
    assert!(b.node.calls() >= 3, "pages of b: {}", b.node.calls());
}

#[tokio::test]
async fn listing_without_progress_ends_with_an_error() {
    let a = Node::new("a").serve();
    let client = Client::builder(a.address.to_string())
        .retry(RetryPolicy { budget: Duration::from_millis(300), ..RetryPolicy::default() })
        .connect()
        .await
        .unwrap();
    for i in 0..20 {
        put(&client, &format!("k{i:02}")).await;
    }
    a.node.levers.break_lists_after.store(1, Ordering::SeqCst);
    let listing = client.list("", ListOptions::default()).try_collect::<Vec<_>>();
    let outcome = tokio::time::timeout(Duration::from_secs(30), listing).await.expect("ends");
    match outcome {
        Err(Error::Unavailable { reason, .. }) => assert_eq!(reason, "going away"),
        other => panic!("{other:?}"),
    }
}
