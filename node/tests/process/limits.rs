//! Clients that take more than their share: the others are always served, refusals are counted, and memory stays
//! bounded.

use std::time::{Duration, Instant};

use kvasir_proto::v1;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::harness::{Kv, Node, PATIENCE, eventually, meshed, nodes};

/// Memory that a node may gain in these tests.
const GAIN: u64 = 128 << 20;

async fn refused(node: &Node, reason: &str) -> f64 {
    let page = node.metrics().await;
    page.value(&format!("kvasir_client_refused_total{{reason=\"{reason}\"}}")).unwrap_or_else(|| panic!("{}", page.0))
}

async fn served(kv: &mut Kv) {
    kv.put("k", "v").await.unwrap();
    assert_eq!(kv.get("k").await.unwrap().as_deref(), Some("v"));
}

/// Whether the other side has closed the connection, by now or soon.
async fn closed(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut rest)).await.is_ok()
}

/// Allows this process, the client, this many connections in addition to those of other tests.
fn may_open(connections: u64) {
    let limit = getrlimit(Resource::Nofile);
    let wanted = connections + 1000;
    if limit.current.is_some_and(|current| current < wanted) {
        assert!(
            limit.maximum.is_none_or(|most| most >= wanted),
            "this test takes {wanted} descriptors: see ulimit -Hn"
        );
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    }
}

async fn connect_from(source: &str, node: &Node) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(format!("{source}:0").parse().unwrap())?;
    socket.connect(node.client).await
}

#[tokio::test]
async fn ten_thousand_connections_keep_no_client_out() {
    const MANY: usize = 10_000;
    may_open(MANY as u64);
    let mut node = Node::new("n").with("client-port-handshake-timeout", "5s").started().await;
    let mut kv = node.kv();
    served(&mut kv).await;
    let before = node.memory();
    let mut open = Vec::with_capacity(MANY);
    let (mut most, mut inside) = (before, 0.0_f64);
    for n in 0..MANY {
        open.push(connect_from("127.0.0.2", &node).await.unwrap());
        if n % 500 == 499 {
            served(&mut kv).await;
            // A client that arrives only now is served too, although the greedy one has all that an address may have.
            served(&mut node.kv()).await;
            most = most.max(node.memory());
            inside = inside.max(node.metrics().await.value("kvasir_client_connections").unwrap());
        }
    }
    // 1024 from one address, and those of the other addresses. The refusals show that the greedy address had its full
    // share.
    assert!(inside <= 1100.0, "{inside} connections were open");
    assert!(most - before < GAIN, "{} bytes for {inside} connections", most - before);
    // The connections are silent: each is refused or soon frees its place, though the client closes none.
    eventually("each is counted", async || {
        let counted = (refused(&node, "addressFull").await, refused(&node, "handshake").await);
        if counted.0 + counted.1 >= MANY as f64 { Ok(()) } else { Err(counted) }
    })
    .await;
    assert!(refused(&node, "addressFull").await > 0.0);
    eventually("their places are free", async || {
        let inside = node.metrics().await.value("kvasir_client_connections").unwrap();
        if inside <= 30.0 { Ok(()) } else { Err(inside) }
    })
    .await;
    assert!(connect_from("127.0.0.2", &node).await.is_ok());
    served(&mut kv).await;
    let gained = node.memory().saturating_sub(before);
    assert!(gained < GAIN, "{gained} bytes");
    assert!(node.runs());
}

#[tokio::test]
async fn many_addresses_share_one_connection_limit() {
    let mut node = Node::new("n")
        .with("client-port-max-connections", "300")
        .with("client-port-handshake-timeout", "5s")
        .started()
        .await;
    let mut kv = node.kv();
    served(&mut kv).await;
    let mut open = Vec::new();
    for n in 0..1000 {
        open.push(connect_from(&format!("127.0.1.{}", 1 + n % 10), &node).await.unwrap());
        if n % 100 == 0 {
            served(&mut kv).await;
        }
    }
    eventually("the excess is refused", async || {
        let counted = refused(&node, "full").await;
        if counted > 0.0 { Ok(()) } else { Err(counted) }
    })
    .await;
    let inside = node.metrics().await.value("kvasir_client_connections").unwrap();
    assert!(inside <= 300.0, "{inside}");
    served(&mut kv).await;
    eventually("each is refused or times out", async || {
        let counted = (refused(&node, "full").await, refused(&node, "handshake").await);
        if counted.0 + counted.1 >= open.len() as f64 { Ok(()) } else { Err(counted) }
    })
    .await;
    served(&mut node.kv()).await;
    assert!(node.runs());
}

#[tokio::test]
async fn a_node_takes_the_descriptors_that_it_may_have() {
    let mut node = Node::new("n").ulimit("-S -n 256").started().await;
    let (soft, hard) = node.open_files();
    assert!(soft == hard && hard > 256, "{soft} of {hard}");
}

#[tokio::test]
async fn few_descriptors_are_not_all_given_to_clients() {
    let mut nodes: Vec<_> = nodes(2).into_iter().map(|node| node.ulimit("-n 200")).collect();
    nodes.iter_mut().for_each(Node::start);
    for node in &mut nodes {
        node.ready().await;
    }
    meshed(&nodes).await;
    let log = nodes[0].log();
    assert!(log.contains("too low for 4096 connections of clients and 1024 of peers"), "{log}");
    let mut kv = nodes[0].kv();
    served(&mut kv).await;
    let mut open = Vec::new();
    for n in 0..1000 {
        open.push(connect_from(&format!("127.0.1.{}", 1 + n % 10), &nodes[0]).await.unwrap());
    }
    eventually("the excess is refused", async || {
        let counted = refused(&nodes[0], "full").await + refused(&nodes[0], "addressFull").await;
        if counted >= 900.0 { Ok(()) } else { Err(counted) }
    })
    .await;
    // Probes, peers and earlier clients are served while the port is full.
    let inside = nodes[0].metrics().await.value("kvasir_client_connections").unwrap();
    assert!((70.0..=80.0).contains(&inside), "{inside} connections are open");
    served(&mut kv).await;
    nodes[1].kv().put("there", "v").await.unwrap();
    eventually("the peers replicate", async || kv.exists("there").await.unwrap().then_some(()).ok_or("not there"))
        .await;
    let log = nodes[0].log();
    assert!(!log.contains("could not accept"), "{log}");
}

#[tokio::test]
async fn one_address_has_its_part_and_no_more() {
    let node = Node::new("n").with("client-port-max-connections-per-address", "5").started().await;
    let mut kv = node.kv();
    served(&mut kv).await;
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(TcpStream::connect(node.client).await.unwrap());
    }
    let mut sixth = TcpStream::connect(node.client).await.unwrap();
    assert!(closed(&mut sixth).await);
    assert!(refused(&node, "addressFull").await >= 1.0);
    // From another address there is room for a whole call.
    let mut other = connect_from("127.0.0.2", &node).await.unwrap();
    other.write_all(PREFACE).await.unwrap();
    let mut settings = [0; 9];
    timeout(PATIENCE, other.read_exact(&mut settings)).await.unwrap().unwrap();
    assert_eq!(settings[3], 4, "the node's SETTINGS");
    served(&mut kv).await;
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[tokio::test]
async fn headers_without_an_end_end_the_connection() {
    let mut node = Node::alone().await;
    let mut kv = node.kv();
    served(&mut kv).await;
    let before = node.memory();
    // A header with an uncompressed name and value, repeated.
    let field = [&[0x00, 4][..], b"aaaa", &[100], &[b'v'; 100]].concat();
    let began = Instant::now();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(node.client).await.unwrap();
        stream.write_all(PREFACE).await.unwrap();
        stream.write_all(&frame(1, 0, 1, &field)).await.unwrap();
        let mut sent = 0_usize;
        // CONTINUATION frames, never with the flag that marks the last.
        while stream.write_all(&frame(9, 0, 1, &field.repeat(100))).await.is_ok() {
            sent += 1;
            assert!(sent < 100_000, "the node reads on and on");
        }
        served(&mut kv).await;
    }
    let gained = node.memory().saturating_sub(before);
    assert!(gained < GAIN, "{gained} bytes after {:?}", began.elapsed());
    assert!(node.runs());
}

#[tokio::test]
async fn endless_slow_headers_are_cut_off() {
    let node = Node::new("n")
        .with("client-port-keepalive-interval", "1s")
        .with("client-port-keepalive-timeout", "1s")
        .started()
        .await;
    let mut kv = node.kv();
    let mut stream = TcpStream::connect(node.client).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    stream.write_all(&frame(1, 0, 1, &[])).await.unwrap();
    let began = Instant::now();
    // An empty CONTINUATION each time, invisible to a limit on bytes.
    while stream.write_all(&frame(9, 0, 1, &[])).await.is_ok() {
        served(&mut kv).await;
        assert!(began.elapsed() < PATIENCE, "the connection stays open");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn streams_held_open_lock_no_client_out() {
    let mut node = Node::new("n").with("client-port-max-streams", "50").started().await;
    let mut kv = node.kv();
    served(&mut kv).await;
    let before = node.memory();
    let (greedy, mut held) = (node.channel(), Vec::new());
    for _ in 0..200 {
        let mut kv = v1::kv_client::KvClient::new(greedy.clone());
        held.push(tokio::spawn(async move {
            // A request that never ends, on a stream that is never closed.
            let requests = tokio_stream::pending::<v1::PipeRequest>();
            let mut answers = kv.pipe(requests).await?.into_inner();
            answers.message().await
        }));
    }
    for _ in 0..50 {
        served(&mut kv).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(held.iter().all(|call| !call.is_finished()), "none was answered, and none failed");
    // The node starts no more streams than the limit on that connection, at no cost to other clients.
    let mut crowded = Kv(v1::kv_client::KvClient::new(greedy));
    assert!(timeout(Duration::from_secs(1), crowded.get("k")).await.is_err(), "its own calls wait");
    served(&mut kv).await;
    let gained = node.memory().saturating_sub(before);
    assert!(gained < GAIN, "{gained} bytes");
    held.iter().for_each(tokio::task::JoinHandle::abort);
}

/// A connection with a watch stays open.
#[tokio::test]
async fn only_a_connection_without_calls_is_closed() {
    let node = Node::new("n").with("client-port-idle-timeout", "1s").started().await;
    let mut idle = TcpStream::connect(node.client).await.unwrap();
    idle.write_all(PREFACE).await.unwrap();
    let mut watching = node.kv();
    let watch = v1::WatchRequest { prefix: "w".to_owned(), ..v1::WatchRequest::default() };
    let mut events = watching.0.watch(watch).await.unwrap().into_inner();
    assert!(closed(&mut idle).await);
    eventually("it is counted", async || {
        let counted = refused(&node, "idle").await;
        if counted >= 1.0 { Ok(()) } else { Err(counted) }
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    node.kv().put("w/k", "v").await.unwrap();
    let notified = async {
        loop {
            let message = events.message().await.unwrap().expect("the watch goes on");
            if message.events.iter().any(|event| event.key == "w/k") {
                return;
            }
        }
    };
    timeout(PATIENCE, notified).await.unwrap();
}

#[tokio::test]
async fn the_peer_port_has_limits_of_its_own() {
    let mut all: Vec<_> = nodes(2)
        .into_iter()
        .map(|node| node.with("peer-port-max-connections", "20").with("peer-port-handshake-timeout", "1s"))
        .collect();
    all.iter_mut().for_each(Node::start);
    for node in &mut all {
        node.ready().await;
    }
    meshed(&all).await;
    let mut open = Vec::new();
    for _ in 0..500 {
        if let Ok(stream) = TcpStream::connect(all[0].peer).await {
            open.push(stream);
        }
    }
    eventually("too many are refused", async || {
        let page = all[0].metrics().await;
        page.value("kvasir_peer_refused_total{reason=\"crowded\"}").filter(|n| *n > 0.0).ok_or(page.0)
    })
    .await;
    all[1].kv().put("k", "v").await.unwrap();
    eventually("the peers replicate", async || all[0].kv().exists("k").await.unwrap().then_some(()).ok_or("not there"))
        .await;
    // No client is locked out for good: places become free as silent connections time out.
    eventually("the silent connections time out", async || {
        let page = all[0].metrics().await;
        page.value("kvasir_peer_refused_total{reason=\"handshake\"}").filter(|n| *n >= 10.0).ok_or(page.0)
    })
    .await;
}
