//! Membership on real sockets.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::config::{Role, SwimConfig};
use crate::discovery::View;

struct Node {
    membership: Membership,
    address: SocketAddr,
    stop: CancellationToken,
}

fn view(seeds: &[SocketAddr]) -> watch::Receiver<Arc<View>> {
    let addresses: BTreeMap<_, _> = seeds.iter().map(|seed| (*seed, "static")).collect();
    watch::channel(Arc::new(View { addresses, providers: Vec::new() })).1
}

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

async fn node(name: &str, seeds: &[SocketAddr]) -> Node {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    node_at(name, socket, seeds, SwimConfig::LAN)
}

fn node_at(name: &str, socket: UdpSocket, seeds: &[SocketAddr], swim: SwimConfig) -> Node {
    let address = socket.local_addr().unwrap();
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let me = NodeId::new(name, rand::random(), Role::Member, address, since_1970.as_millis() as u64);
    let stop = CancellationToken::new();
    let options = MembershipOptions {
        cluster: "test",
        cluster_uid: "",
        timing: swim,
        max_clock_skew: Duration::from_secs(10),
        seal: None,
        version: wire::VERSION,
        refusals: Arc::default(),
    };
    let membership = Membership::start(me, socket, view(seeds), options, stop.clone());
    Node { membership, address, stop }
}

/// Waits until the node lists these members. Time limits are tested by the simulation, whose clock does not depend on the
/// machine.
async fn sees(node: &Node, names: &[&str]) {
    let mut members = node.membership.members();
    let all = |members: &Arc<Vec<MemberInfo>>| members.iter().map(|it| it.id.name.as_str()).eq(names.iter().copied());
    timeout(PATIENCE, members.wait_for(all))
        .await
        .unwrap_or_else(|_| panic!("{:?} is not {names:?}", node.membership.members().borrow()))
        .unwrap();
}

#[tokio::test]
async fn membership_reports_joins_leaves_and_failures() {
    let a = node("a", &[]).await;
    tokio::time::sleep(Duration::from_millis(2)).await;
    let b = node("b", &[a.address]).await;
    tokio::time::sleep(Duration::from_millis(2)).await;
    let c = node("c", &[a.address]).await;
    for (node, others) in [(&a, ["b", "c"]), (&b, ["a", "c"]), (&c, ["a", "b"])] {
        sees(node, &others).await;
    }

    b.membership.leave().await;
    // The node left and was not declared dead.
    sees(&a, &["c"]).await;
    sees(&c, &["a"]).await;
    assert_eq!(a.membership.counters().left.load(Relaxed), 1);
    assert_eq!(a.membership.counters().failed.load(Relaxed), 0);

    c.stop.cancel();
    sees(&a, &[]).await;
    assert_eq!(a.membership.counters().failed.load(Relaxed), 1);
    assert_eq!(a.membership.counters().left.load(Relaxed), 1);
    assert_eq!(a.membership.counters().faults.load(Relaxed), 0);
}

#[tokio::test]
async fn membership_replaces_a_restarted_process_at_once() {
    // No node is declared dead within this test, so only a replacement ends the former process.
    let swim = SwimConfig { suspicion: 10 * PATIENCE, ..SwimConfig::LAN };
    let bind = async || UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let a = node_at("a", bind().await, &[], swim);
    tokio::time::sleep(Duration::from_millis(2)).await;
    let b = node_at("b", bind().await, &[a.address], swim);
    sees(&a, &["b"]).await;
    let old = b.membership.me().borrow().origin;
    b.stop.cancel();
    b.membership.task.await.unwrap();
    let socket = UdpSocket::bind(b.address).await.unwrap();
    let b = node_at("b", socket, &[a.address], swim);
    let mut members = a.membership.members();
    let replaced = members.wait_for(|members| members.len() == 1 && members[0].id.origin != old);
    timeout(PATIENCE, replaced).await.unwrap().unwrap();
    assert_eq!(a.membership.counters().failed.load(Relaxed), 1);
    sees(&b, &["a"]).await;
}

#[tokio::test]
async fn membership_counts_garbage_and_survives_it() {
    let a = node("a", &[]).await;
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mine = wire::envelope("test", "", wire::VERSION);
    let mut other_version = mine.to_vec();
    other_version[4] = 9;
    let garbage: [Vec<u8>; 7] = [
        Vec::new(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0; 1400],
        wire::envelope("other", "", wire::VERSION).to_vec(),
        mine.to_vec(),
        [&mine[..], &[0xff; 200]].concat(),
        other_version,
    ];
    for datagram in &garbage {
        stranger.send_to(datagram, a.address).await.unwrap();
    }
    let b = node("b", &[a.address]).await;
    sees(&a, &["b"]).await;
    sees(&b, &["a"]).await;
    assert_eq!(a.membership.counters().refused.load(Relaxed), garbage.len() as u64);
}
