//! Encryption between peers: what nodes refuse, and how keys rotate while they run. The attackers of these tests use the
//! node's own encryption code, with other keys or stolen ones.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use kvasir_node::config::{EncryptionConfig, Keyring};
use kvasir_node::encryption::datagram::Sealer;
use kvasir_node::encryption::{Keys, Ring, noise};
use kvasir_node::membership::Seal as _;
use kvasir_node::reload::Reloads;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::harness::{Node, PATIENCE, eventually, meshed, nodes};

const PREAMBLE: &[u8] = b"kvasir+\x01";

/// The text of a key file; each key is one byte, repeated.
pub(crate) fn key_file(cookie: &str, keys: &[u8]) -> String {
    let keys: Vec<_> = keys.iter().map(|key| BASE64_STANDARD.encode([*key; 32])).collect();
    format!("cookie: {cookie}\nkeys: [{}]\n", keys.join(", "))
}

/// The keys with which an attacker seals and opens.
fn keys(cookie: &str, keys: &[u8]) -> Keys {
    let ring = Keyring::parse(key_file(cookie, keys).as_bytes()).unwrap();
    Keys::start(&EncryptionConfig::Given(ring), &Reloads::default(), CancellationToken::new()).unwrap()
}

/// Key files, one for each node, replaced as Kubernetes does it: by a symlink.
pub(crate) struct Files(TempDir);

impl Files {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, node: usize) -> PathBuf {
        self.0.path().join(format!("{node}.yaml"))
    }

    pub(crate) fn put(&self, node: usize, text: &str) {
        let content = self.0.path().join(format!("{:x}", rand::random::<u64>()));
        std::fs::write(&content, text).unwrap();
        let link = self.0.path().join(format!("link-{node}"));
        std::os::unix::fs::symlink(content, &link).unwrap();
        std::fs::rename(link, self.path(node)).unwrap();
    }
}

/// Nodes that know each other's addresses, each with its own key file.
pub(crate) fn encrypted(count: usize, files: &Files, text: &str) -> Vec<Node> {
    let with_keys = |(n, node): (usize, Node)| {
        files.put(n, text);
        node.with("encryption-file", files.path(n).to_str().unwrap()).with("log-format", "json")
    };
    nodes(count).into_iter().enumerate().map(with_keys).collect()
}

async fn ready(nodes: &mut [Node]) {
    nodes.iter_mut().for_each(Node::start);
    for node in &mut *nodes {
        node.ready().await;
    }
    meshed(nodes).await;
}

async fn count(node: &Node, series: &str) -> f64 {
    let page = node.metrics().await;
    page.value(series).unwrap_or_else(|| panic!("{series} in {}", page.0))
}

fn refused(reason: &str) -> String {
    format!("kvasir_peer_refused_total{{reason=\"{reason}\"}}")
}

fn unopened(reason: &str) -> String {
    format!("kvasir_peer_datagrams_unopened_total{{reason=\"{reason}\"}}")
}

async fn rises(node: &Node, series: &str, above: f64) {
    eventually(&format!("{series} rises above {above}"), async || {
        let now = count(node, series).await;
        if now > above { Ok(()) } else { Err(now) }
    })
    .await;
}

async fn serves(node: &Node) {
    let (mut kv, key) = (node.kv(), rand::random::<u64>().to_string());
    kv.put(&key, "v").await.unwrap();
    assert_eq!(kv.get(&key).await.unwrap().as_deref(), Some("v"));
    assert!(kv.delete(&key).await.unwrap());
}

async fn replicates(from: &Node, to: &Node) {
    let key = rand::random::<u64>().to_string();
    from.kv().put(&key, "v").await.unwrap();
    eventually("a write at one node reaches the other", async || {
        to.kv().exists(&key).await.unwrap().then_some(()).ok_or("not there")
    })
    .await;
}

#[tokio::test]
async fn encryption_keeps_nodes_with_another_key_out() {
    let files = Files::new();
    let mut all = encrypted(5, &files, &key_file("demo", &[1]));
    files.put(2, &key_file("demo", &[2]));
    files.put(3, &key_file("other", &[1]));
    let mut plain = nodes(1).remove(0).with("discovery-static-hosts", all[0].peer.to_string());
    let others = all.split_off(2);
    ready_but_apart(&mut all, others, &mut plain).await;
}

async fn ready_but_apart(all: &mut [Node], mut others: Vec<Node>, plain: &mut Node) {
    // The last node has the right key and joins.
    let mut friend = others.pop().unwrap();
    friend.start();
    all.iter_mut().for_each(Node::start);
    for node in &mut *all {
        node.ready().await;
    }
    friend.ready().await;
    others.iter_mut().for_each(Node::start);
    plain.start();
    replicates(&all[0], &all[1]).await;
    replicates(&friend, &all[0]).await;
    for reason in ["key", "plaintext"] {
        rises(&all[0], &unopened(reason), 0.0).await;
    }
    for stranger in &others {
        rises(stranger, &unopened("key"), 0.0).await;
        assert_eq!(stranger.http("/readyz").await.unwrap().0, 503);
        assert_eq!(stranger.status().await["peers"].as_array().unwrap().len(), 0, "{}", stranger.log());
        assert!(stranger.log().contains("its sender has another cookie or key"), "{}", stranger.log());
    }
    assert_eq!(plain.status().await["peers"].as_array().unwrap().len(), 0);
    assert_eq!(plain.http("/readyz").await.unwrap().0, 503);
    // Both log why. The encrypted node does not answer datagrams of strangers, but sends its own to the plain node.
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&Sealer::new(keys("demo", &[1]), Duration::ZERO).seal(b"hello"), plain.peer).await.unwrap();
    eventually("the plain node logs why", async || {
        let log = plain.log();
        if log.contains("the datagram is encrypted, but this node uses no encryption") { Ok(()) } else { Err(log) }
    })
    .await;
    assert!(all[0].log().contains("the datagram is not encrypted, but this node uses encryption"), "{}", all[0].log());

    let (one, two) = (all[0].status().await, all[1].status().await);
    assert_eq!(one["encryption"], two["encryption"], "keys have one name everywhere");
    assert_eq!(one["encryption"]["primary"].as_str().map(str::len), Some(8), "{one}");
    assert_eq!(plain.status().await["encryption"], serde_json::Value::Null);
    assert_eq!(one["peers"].as_array().unwrap().len(), 2, "{one}");
    serves(&all[0]).await;
}

/// A connection on which both sides have sent the preamble for encryption.
async fn greeted(node: &Node) -> TcpStream {
    let mut stream = TcpStream::connect(node.peer).await.unwrap();
    stream.write_all(PREAMBLE).await.unwrap();
    let mut theirs = [0; PREAMBLE.len()];
    stream.read_exact(&mut theirs).await.unwrap();
    assert_eq!(theirs, PREAMBLE);
    stream
}

async fn closed(stream: &mut TcpStream) {
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the connection is not closed");
}

#[tokio::test]
async fn encryption_refuses_and_counts_bad_connections() {
    let files = Files::new();
    let mut all = encrypted(2, &files, &key_file("demo", &[1]));
    ready(&mut all).await;
    let node = &all[0];
    let stolen = keys("demo", &[1]).now();

    // Keys and cookies of another cluster.
    for stranger in [keys("demo", &[2]), keys("other", &[1])] {
        let before = count(node, &refused("key")).await;
        let mut stream = greeted(node).await;
        assert!(noise::initiate(&mut stream, &stranger.now()).await.is_err());
        rises(node, &refused("key"), before).await;
    }
    // A node that does not encrypt learns that this node does, before the connection closes.
    let before = count(node, &refused("plaintext")).await;
    let mut stream = TcpStream::connect(node.peer).await.unwrap();
    stream.write_all(b"kvasir/\x01").await.unwrap();
    let mut theirs = [0; PREAMBLE.len()];
    stream.read_exact(&mut theirs).await.unwrap();
    assert_eq!(theirs, PREAMBLE);
    closed(&mut stream).await;
    rises(node, &refused("plaintext"), before).await;

    // A replayed handshake is answered, but the attacker cannot continue it.
    let recorded = {
        let (near, mut far) = tokio::io::duplex(1024);
        let mut message = vec![0; 48];
        tokio::select! {
            _ = noise::initiate(near, &stolen) => panic!("the handshake ended without an answer"),
            read = far.read_exact(&mut message) => read.map(|_| message).unwrap(),
        }
    };
    for _ in 0..2 {
        let before = count(node, &refused("forged")).await;
        let mut stream = greeted(node).await;
        stream.write_all(&recorded).await.unwrap();
        stream.write_all(&[&[0, 50][..], &[7; 50]].concat()).await.unwrap();
        closed(&mut stream).await;
        rises(node, &refused("forged"), before).await;
    }

    bad_frames_are_refused(node, &stolen).await;

    // Connections that stop in the middle of the handshake lock no peer out.
    let mut silent = Vec::new();
    for _ in 0..100 {
        let mut stream = greeted_if_open(node).await;
        let _ = stream.write_all(&recorded[..20]).await;
        silent.push(stream);
    }
    serves(node).await;
    for mut stream in silent {
        closed(&mut stream).await;
    }
    replicates(&all[1], node).await;
    replicates(node, &all[1]).await;
    assert!(!node.log().contains("panicked"), "{}", node.log());
}

/// A peer that has the key still cannot send frames that are not authentic, too large or cut.
async fn bad_frames_are_refused(node: &Node, stolen: &Ring) {
    let random: Vec<u8> = [&[0xff, 0xff][..], &rand::random::<[u8; 1024]>().repeat(64)].concat();
    for (what, bytes) in [("random", &random[..]), ("empty", &[0, 0]), ("shorter than a tag", &[0, 2, 1, 2])] {
        let before = count(node, &refused("forged")).await;
        let mut stream = greeted(node).await;
        noise::initiate(&mut stream, stolen).await.unwrap();
        let _ = stream.write_all(bytes).await;
        closed(&mut stream).await;
        rises(node, &refused("forged"), before).await;
        assert!(!node.log().contains("panicked"), "{what}");
    }
    // The node's own message, sent back to it.
    let before = count(node, &refused("forged")).await;
    let mut stream = greeted(node).await;
    noise::initiate(&mut stream, stolen).await.unwrap();
    let mut own = vec![0; 2];
    stream.read_exact(&mut own).await.unwrap();
    own.resize(2 + usize::from(u16::from_be_bytes([own[0], own[1]])), 0);
    stream.read_exact(&mut own[2..]).await.unwrap();
    stream.write_all(&own).await.unwrap();
    closed(&mut stream).await;
    rises(node, &refused("forged"), before).await;
    // A frame that is too large, and half a frame.
    let before = count(node, &refused("oversized")).await;
    let mut stream = noise::initiate(greeted(node).await, stolen).await.unwrap();
    stream.write_all(&[0xff; 4]).await.unwrap();
    stream.flush().await.unwrap();
    rises(node, &refused("oversized"), before).await;
    let before = count(node, &refused("handshake")).await;
    let mut stream = greeted(node).await;
    noise::initiate(&mut stream, stolen).await.unwrap();
    stream.write_all(&[0, 200, 1, 2, 3]).await.unwrap();
    stream.shutdown().await.unwrap();
    rises(node, &refused("handshake"), before).await;
}

/// During other handshakes the node may delay its preamble.
async fn greeted_if_open(node: &Node) -> TcpStream {
    let mut stream = TcpStream::connect(node.peer).await.unwrap();
    stream.write_all(PREAMBLE).await.unwrap();
    stream
}

#[tokio::test]
async fn encryption_refuses_foreign_datagrams_by_reason() {
    let files = Files::new();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut all = encrypted(2, &files, &key_file("demo", &[1]));
    // The node takes this socket for a peer and probes it.
    let hosts = format!("{},{}", all[1].peer, socket.local_addr().unwrap());
    let first = all.remove(0).with("discovery-static-hosts", hosts);
    all.insert(0, first);
    ready(&mut all).await;
    let node = &all[0];
    let send = async |datagram: &[u8], reason: &str| {
        let before = count(node, &unopened(reason)).await;
        // The system may drop a datagram.
        eventually(&format!("{reason} is counted"), async || {
            socket.send_to(datagram, node.peer).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            let now = count(node, &unopened(reason)).await;
            if now > before { Ok(()) } else { Err(now) }
        })
        .await;
        serves(node).await;
    };
    let sealed = |cookie: &str, key: u8| Sealer::new(keys(cookie, &[key]), Duration::ZERO).seal(b"nonsense");
    let good = sealed("demo", 1);
    send(&sealed("demo", 2), "key").await;
    send(&sealed("other", 1), "key").await;
    send(&good[..good.len() - 1], "key").await;
    send(&good[..30], "length").await;
    send(&[&good[..], &[0; 1200]].concat(), "length").await;
    send(&[&good[..5], &rand::random::<[u8; 200]>()].concat(), "key").await;
    send(&rand::random::<[u8; 64]>(), "garbage").await;
    send(b"KVSW\x01 in the clear", "plaintext").await;
    send(b"KVSX\x09 of tomorrow", "version").await;
    // The datagram opens, but its content is invalid; then a replay.
    send(&good, "replayed").await;
    let mut own = [0; 2048];
    let (length, _) = timeout(PATIENCE, socket.recv_from(&mut own)).await.unwrap().unwrap();
    send(&own[..length], "reflected").await;

    replicates(&all[1], node).await;
    let status = node.status().await;
    assert_eq!(status["peers"][0]["state"], "alive", "{status}");
    let log = node.log();
    assert_eq!(log.matches("datagrams are replayed").count(), 1, "each kind is logged once");
    assert!(!log.contains("panicked"), "{log}");
}

async fn names(node: &Node) -> Vec<String> {
    let status = node.status().await;
    let names = status["encryption"]["keys"].as_array().unwrap_or_else(|| panic!("{status}"));
    names.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

async fn all_have(nodes: &[Node], wanted: &[String]) {
    for node in nodes {
        eventually(&format!("{} has the keys {wanted:?}", node.name), async || {
            let now = names(node).await;
            if now == wanted { Ok(()) } else { Err(now) }
        })
        .await;
    }
}

/// No write fails and no member is lost while keys are rotated.
#[tokio::test]
async fn encryption_keys_rotate_under_load() {
    let files = Files::new();
    // A machine that stalls for seconds must not look like a lost member.
    let patient = |node: Node| node.with("swim-suspicion", "20s");
    let mut all: Vec<_> = encrypted(3, &files, &key_file("demo", &[1])).into_iter().map(patient).collect();
    ready(&mut all).await;
    let old = names(&all[0]).await.remove(0);
    let new = keys("demo", &[2]).now().primary().id.to_string();

    let stop = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = all
        .iter()
        .map(|node| {
            let (mut kv, name, stop, written) = (node.kv(), node.name.clone(), stop.clone(), written.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let n = written.fetch_add(1, Ordering::Relaxed);
                    kv.put(&format!("{name}/{n}"), "v").await.map_err(|status| format!("{name} {n}: {status}"))?;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                Ok::<_, String>(())
            })
        })
        .collect();

    // Add the new key everywhere, make it primary node by node, then remove the old one.
    for (step, wanted) in [([1, 2].as_slice(), vec![&old, &new]), (&[2, 1], vec![&new, &old]), (&[2], vec![&new])] {
        let wanted: Vec<_> = wanted.into_iter().cloned().collect();
        for n in 0..all.len() {
            files.put(n, &key_file("demo", step));
            if step == [2, 1] {
                all_have(&all[n..=n], &wanted).await;
            }
        }
        all_have(&all, &wanted).await;
        for (node, (place, key)) in all.iter().flat_map(|node| (1..).zip(&wanted).map(move |of| (node, of))) {
            let shown = count(node, &format!("kvasir_encryption_key{{key=\"{key}\"}}")).await;
            assert!((shown - f64::from(place)).abs() < 0.5, "{key} is in place {shown} of {}", node.name);
        }
        replicates(&all[0], &all[2]).await;
    }
    // Longer than a link with the old key may last.
    tokio::time::sleep(kvasir_node::transport::RETIRE_AFTER + Duration::from_secs(1)).await;
    meshed(&all).await;
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap().expect("a write failed");
    }
    let written = written.load(Ordering::Relaxed);
    for node in &all {
        // Checks that no datagram was refused. A busy machine may have declared a node dead, which is no error here.
        for reason in ["key", "forged"] {
            let refusals = count(node, &unopened("key")).await + count(node, &refused(reason)).await;
            assert!(refusals < 1.0, "{}", node.log());
        }
        let log = node.log();
        assert!(log.contains(&format!("\"key\":\"{new}\"")), "links have the new key: {log}");
        assert!(!log.contains("no link with another key has replaced it"), "{log}");
        eventually(&format!("{} has all that was written", node.name), async || {
            let keys = count(node, "kvasir_keys").await;
            if keys >= written as f64 { Ok(()) } else { Err((keys, written)) }
        })
        .await;
    }
}

/// A key file that cannot be read changes nothing.
#[tokio::test]
async fn encryption_closes_links_of_a_removed_key() {
    let files = Files::new();
    let mut all = encrypted(2, &files, &key_file("demo", &[1]));
    ready(&mut all).await;
    files.put(0, "cookie: hush\n");
    eventually("the bad file is logged", async || {
        let status = all[0].status().await;
        let error = status["reloads"]["encryption"]["error"].as_str().unwrap_or_default().to_owned();
        if error.contains("must be YAML") { Ok(()) } else { Err(status) }
    })
    .await;
    assert!(count(&all[0], "kvasir_reload_failing{what=\"encryption\"}").await > 0.0);
    assert!(!all[0].log().contains("hush"), "{}", all[0].log());
    replicates(&all[1], &all[0]).await;
    // Without the step in between, the other node is cut off for as long as it has only the old key.
    files.put(0, &key_file("demo", &[2]));
    eventually("the link with the old key is closed", async || {
        let log = all[0].log();
        if log.contains("its key was removed") { Ok(()) } else { Err(log) }
    })
    .await;
    files.put(1, &key_file("demo", &[2]));
    meshed(&all).await;
    replicates(&all[1], &all[0]).await;
}

/// The node says what is wrong with its key files, and exits.
#[tokio::test]
async fn encryption_without_keys_does_not_start() {
    let files = Files::new();
    for (text, why) in [(None, "cannot read"), (Some("keys: [hush]"), "must be YAML")] {
        let mut node = Node::new("n").with("encryption-file", files.path(0).to_str().unwrap());
        if let Some(text) = text {
            files.put(0, text);
        }
        node.start();
        assert_eq!(node.ended().await.code(), Some(1));
        let log = node.log();
        assert!(log.contains("encryption: ") && log.contains(why) && !log.contains("hush"), "{log}");
    }
}
