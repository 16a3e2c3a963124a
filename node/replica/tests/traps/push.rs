//! Pushes, and links that replace each other.

use std::collections::VecDeque;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::prelude::*;

/// A write reaches the other of two new nodes at once, in whatever order their first messages are sent and received.
#[test]
fn push_after_a_start_needs_no_heartbeat() {
    for seed in 0..1_000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut net = Net::empty();
        for name in ["n0", "n1"] {
            net.start(name, 2);
        }
        net.link(0, 1);
        // The messages on their way to each of the two nodes, in order.
        let mut ways = [VecDeque::new(), VecDeque::new()];
        let send = |net: &mut Net, ways: &mut [VecDeque<Message>; 2], from: usize| {
            let message = net.nodes[from].poll_send(net.links[&(from, 1 - from)], net.now_ms);
            let sent = message.is_some();
            ways[1 - from].extend(message);
            sent
        };
        let take = |net: &mut Net, ways: &mut [VecDeque<Message>; 2], to: usize| {
            let Some(message) = ways[to].pop_front() else { return false };
            net.give(1 - to, to, message);
            true
        };
        while !net.nodes.iter().all(Replica::is_ready) {
            assert!(net.now_ms < START_MS + 60_000, "seed {seed}: the nodes never become ready");
            let at = rng.random_range(0..2);
            match rng.random_range(0..8) {
                0 => {
                    net.now_ms += rng.random_range(0..10);
                    net.nodes[at].tick(ALONE, net.now_ms);
                }
                1..=4 => _ = send(&mut net, &mut ways, at),
                _ => _ = take(&mut net, &mut ways, at),
            }
        }
        let dot = net.put(0, "k");
        // No time passes.
        while (0..2).fold(false, |any, at| send(&mut net, &mut ways, at) | take(&mut net, &mut ways, at) | any) {}
        assert!(net.holds(1, "k"), "seed {seed}");
        let holders = net.nodes[0].holders(dot.hlc);
        assert_eq!((holders.peers, holders.lacking), (1, 0), "seed {seed}");
    }
}

/// A clock that was once far ahead raised the timestamps of all nodes: no node is refused for that.
#[test]
fn push_of_timestamps_ahead_is_accepted() {
    let mut net = Net::new(2);
    net.put(0, "k");
    net.settle(1);
    net.nodes[0].tick(ALONE, net.now_ms + 3_600_000);
    // A newcomer's timestamps are not raised yet.
    let newcomer = net.start("n2", 2);
    net.link(newcomer, 0);
    for node in 0..3 {
        net.settle(1);
        net.put(node, ["a", "b", "c"][node]);
    }
    net.settle(2);
    // Writes are relayed as well.
    net.settle(3);
    let end_ms = Some(net.now_ms + 60_000);
    net.nodes[0].put("ends".into(), "v".into(), end_ms, net.now_ms).unwrap();
    net.settle(5);
    let all = ["k", "a", "b", "c", "ends"];
    for node in 0..3 {
        assert_eq!(all.map(|key| net.holds(node, key)), [true; 5], "{node}");
    }
}

/// A message of a replaced link, which may still be in a buffer of the receiver, has no effect.
#[test]
fn link_drops_messages_of_an_older_link() {
    let mut net = Net::new(2);
    net.put(0, "k");
    let mut left = None;
    net.step(0, 1, &mut |_, _, kind| {
        left = Some(kind.clone());
        false
    });
    assert!(matches!(&left, Some(Kind::Push(push)) if push.entries.len() == 1));
    let old = net.links[&(1, 0)];
    net.cut(0, 1);
    net.link(0, 1);
    // The newer link is up, and has carried no write yet.
    net.deliver(&mut |from, _, kind| from == 1 || !matches!(kind, Kind::Push(_) | Kind::Delta(_)));
    net.nodes[1].receive(old, Message { kind: left }, net.now_ms).expect("the peer made no mistake");
    assert!(!net.holds(1, "k"));
    net.settle(6);
    assert!(net.holds(1, "k"));
}
