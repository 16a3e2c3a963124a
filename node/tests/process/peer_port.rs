//! The peer port is open to the network: nothing that arrives there may harm the node. These tests know only how a
//! connection begins.

use std::time::Duration;

use kvasir_proto::peer::v1::Hello;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::harness::{Node, PATIENCE, cluster, eventually};

const PREAMBLE: &[u8] = b"kvasir/\x01";

fn frame(body: &[u8]) -> Vec<u8> {
    [&u32::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
}

fn hello(cluster: &str, ahead: Duration) -> Vec<u8> {
    greeting(cluster, "intruder", i64::try_from(ahead.as_millis()).unwrap())
}

/// The Hello of a node with this name whose clock is this many milliseconds ahead.
pub(crate) fn greeting(cluster: &str, name: &str, ahead_ms: i64) -> Vec<u8> {
    greeting_of(cluster, "", name, ahead_ms)
}

fn greeting_of(cluster: &str, cluster_uid: &str, name: &str, ahead_ms: i64) -> Vec<u8> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let (cluster, name) = (cluster.to_owned(), name.to_owned());
    let hello = Hello {
        cluster,
        name,
        origin: rand::random(),
        sidecar: false,
        now_ms: (now.as_millis() as u64).saturating_add_signed(ahead_ms),
        started_ms: 1,
        returning: false,
        cluster_uid: cluster_uid.to_owned(),
    };
    [PREAMBLE, &frame(&hello.encode_to_vec())].concat()
}

async fn refused(node: &Node, reason: &str) -> f64 {
    let page = node.metrics().await;
    page.value(&format!("kvasir_peer_refused_total{{reason=\"{reason}\"}}")).unwrap_or_else(|| panic!("{}", page.0))
}

/// Sends this on a new connection, and waits for the node to close it.
async fn send_and_be_closed(node: &Node, bytes: &[u8]) {
    let mut stream = TcpStream::connect(node.peer).await.unwrap();
    // The node may close before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the connection is not closed");
}

async fn serves(node: &Node) {
    let (mut kv, key) = (node.kv(), rand::random::<u64>().to_string());
    kv.put(&key, "v").await.unwrap();
    assert_eq!(kv.get(&key).await.unwrap().as_deref(), Some("v"));
    assert!(kv.delete(&key).await.unwrap());
}

#[tokio::test]
async fn connections_that_are_no_peers_close_and_count() {
    let nodes = cluster(2).await;
    let node = &nodes[0];
    let good = hello("test", Duration::ZERO);
    let huge = [&good[..], &[0xff, 0xff, 0xff, 0xff]].concat();
    let huge_hello = [PREAMBLE, &[0x00, 0x10, 0x00, 0x00]].concat();
    let no_message = [&good[..], &frame(&[])].concat();
    let nonsense = [&good[..], &frame(&[0xff; 100])].concat();
    let cases: [(&str, Vec<u8>); 10] = [
        ("garbage", b"GET / HTTP/1.1\r\nhost: here\r\n\r\n".to_vec()),
        ("garbage", vec![0; 100_000]),
        ("version", b"kvasir/\x02 and more".to_vec()),
        ("oversized", huge_hello),
        ("oversized", huge),
        ("malformed", [PREAMBLE, &frame(&[0xff; 40])].concat()),
        ("malformed", no_message),
        ("malformed", nonsense),
        ("stranger", hello("other", Duration::ZERO)),
        ("clock", hello("test", Duration::from_hours(1))),
    ];
    for (reason, bytes) in cases {
        let before = refused(node, reason).await;
        send_and_be_closed(node, &bytes).await;
        eventually(&format!("{reason} is counted"), async || {
            let now = refused(node, reason).await;
            if now > before { Ok(()) } else { Err(now) }
        })
        .await;
        serves(node).await;
    }
    // The other node's writes still arrive.
    nodes[1].kv().put("k", "v").await.unwrap();
    eventually("it still replicates", async || node.kv().exists("k").await.unwrap().then_some(()).ok_or("not there"))
        .await;
    let log = node.log();
    assert!(log.contains("refused a peer's connection") && !log.contains("panicked"), "{log}");
}

/// Each of two nodes whose clocks differ is tested: the node that refuses a clock ahead of its own, and the node whose
/// own clock is ahead.
#[tokio::test]
async fn a_peer_with_a_wrong_clock_is_refused_and_shown() {
    let mut node = Node::new("alone").with("max-clock-skew", "5s").started().await;
    send_and_be_closed(&node, &greeting("test", "fast", 60_000)).await;
    send_and_be_closed(&node, &greeting("test", "slow", -60_000)).await;
    eventually("both are counted", async || {
        let counted = refused(&node, "clock").await;
        if counted >= 2.0 { Ok(()) } else { Err(counted) }
    })
    .await;
    let status = node.status().await;
    let shown: Vec<_> = status["skewed"].as_array().unwrap().iter().collect();
    assert_eq!(shown.len(), 2, "{status}");
    for (peer, name, words) in [(shown[0], "fast", "ahead"), (shown[1], "slow", "behind")] {
        let reason = peer["reason"].as_str().unwrap();
        assert!(peer["name"] == name && reason.contains(words) && reason.contains("maxClockSkew"), "{status}");
        assert!(node.log().contains(words), "{}", node.log());
    }
    let of_api = node.cluster().status(kvasir_proto::v1::StatusRequest {}).await.unwrap().into_inner().skewed;
    assert_eq!(of_api.iter().map(|peer| peer.name.as_str()).collect::<Vec<_>>(), ["fast", "slow"]);
    assert_eq!(node.metrics().await.value("kvasir_skewed_peers"), Some(2.0));
    serves(&node).await;

    // Once its clock is right, the peer may link and is no longer reported.
    let mut stream = TcpStream::connect(node.peer).await.unwrap();
    stream.write_all(&greeting("test", "fast", 3_000)).await.unwrap();
    eventually("it is linked", async || {
        let status = node.status().await;
        let names: Vec<_> = status["skewed"].as_array().unwrap().iter().map(|peer| peer["name"].clone()).collect();
        if names == ["slow"] { Ok(()) } else { Err(status) }
    })
    .await;
    assert!(node.runs());
}

#[tokio::test]
async fn silent_connections_close_and_keep_no_peer_out() {
    let nodes = cluster(2).await;
    let mut silent = Vec::new();
    for n in 0..150_u32 {
        let mut stream = TcpStream::connect(nodes[0].peer).await.unwrap();
        // Some stop in the middle of a frame.
        let _ = stream.write_all(&PREAMBLE[..n as usize % PREAMBLE.len()]).await;
        silent.push(stream);
    }
    serves(&nodes[0]).await;
    nodes[1].kv().put("k", "v").await.unwrap();
    eventually("the peers replicate", async || {
        nodes[0].kv().exists("k").await.unwrap().then_some(()).ok_or("not there")
    })
    .await;
    for mut stream in silent {
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("a silent connection stays open");
    }
    eventually("they are counted, each a moment after it was closed", async || {
        let counted = refused(&nodes[0], "handshake").await;
        if counted >= 150.0 { Ok(()) } else { Err(counted) }
    })
    .await;
    // A peer that restarts gets its link.
    serves(&nodes[0]).await;
}

#[tokio::test]
async fn a_frame_that_never_ends_times_out() {
    let node = Node::alone().await;
    let begun = [&hello("test", Duration::ZERO)[..], &[0x00, 0x04, 0x00, 0x00], &[0; 1000]].concat();
    send_and_be_closed(&node, &begun).await;
    serves(&node).await;
}

#[tokio::test]
async fn garbage_datagrams_are_counted_and_do_no_harm() {
    let nodes = cluster(2).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let before = nodes[0].metrics().await.value("kvasir_peer_datagrams_refused_total").unwrap();
    for n in 0..200_usize {
        let garbage: Vec<u8> = (0..n * 7).map(|_| rand::random()).collect();
        socket.send_to(&garbage, nodes[0].peer).await.unwrap();
        tokio::task::yield_now().await;
    }
    eventually("they are counted", async || {
        let page = nodes[0].metrics().await;
        // The system may drop some datagrams.
        page.value("kvasir_peer_datagrams_refused_total").filter(|now| *now > before + 50.0).ok_or(page.0)
    })
    .await;
    serves(&nodes[0]).await;
    eventually("the peer is alive", async || {
        let status = nodes[0].status().await;
        assert_eq!(status["phase"], "ready", "{status}");
        if status["peers"][0]["state"] == "alive" { Ok(()) } else { Err(status) }
    })
    .await;
}

#[tokio::test]
async fn peer_of_a_namesake_is_refused_by_its_uid() {
    let node = Node::new("n").with("cluster-uid", "u-2").started().await;
    for (name, uid) in [("earlier", "u-1"), ("older", "")] {
        let before = refused(&node, "stranger").await;
        send_and_be_closed(&node, &greeting_of("test", uid, name, 0)).await;
        eventually("it is counted", async || {
            let now = refused(&node, "stranger").await;
            if now > before { Ok(()) } else { Err(now) }
        })
        .await;
        let said = format!("of the name `test`: its clusterUid is `{uid}`, this node's `u-2`");
        assert!(node.log().contains(&said), "{}", node.log());
    }
    serves(&node).await;
}
