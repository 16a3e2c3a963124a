//! Syncs and deltas.

use crate::prelude::*;

/// A write below the GC watermark is not taken, even if its origin is in no vector any more.
#[test]
fn delta_of_a_retired_origin_restores_nothing() {
    let mut net = Net::new(2);
    net.put(0, "k");
    net.settle(2);
    let dot = net.delete(0, "k");
    net.settle(10);
    assert!(net.nodes[0].collected() > dot.hlc);
    let mut answers = 0;
    net.beats(3, &mut |from, _, kind| {
        match kind {
            Kind::Digest(digest) if from == 1 => digest.seen_hash ^= 1,
            // As sent by a node that has not retired the origin yet.
            Kind::Delta(delta) if from == 1 => {
                answers += 1;
                let (key, value) = (Bytes::from_static(b"k"), Bytes::from_static(b"v"));
                delta.entries = vec![Entry { key, value, hlc: dot.hlc - 1, origin: 77, ..Entry::default() }];
            }
            _ => {}
        }
        true
    });
    assert!(answers > 0 && !net.holds(0, "k") && !net.nodes[0].vector().contains_key(&77));
}

/// A peer's claim about a write that this node never made has no effect.
#[test]
fn delta_cannot_claim_the_receivers_writes() {
    let mut net = Net::new(2);
    let own = net.nodes[0].origin();
    net.cut(0, 1);
    net.put(1, "k");
    net.link(0, 1);
    let mut claims = 0;
    net.beats(4, &mut |from, _, kind| {
        if let Kind::Delta(delta) = kind
            && from == 1
            && delta.last
        {
            claims += 1;
            delta.seen.push(Seen { origin: own, beyond: stamp_at(START_MS + 60_000), ..Seen::default() });
        }
        true
    });
    assert!(claims > 0 && net.holds(0, "k"));
    assert_eq!(net.nodes[0].vector()[&own].beyond, 0);
}

/// Tombstones that the evicted node lacks may have been dropped while the delta was sent, and so be missing in it.
#[test]
fn delta_to_a_node_evicted_meanwhile_claims_nothing() {
    let mut net = Net::new_that_keeps(0, 5);
    let (deletes, answers, asks) = (0, 1, 4);
    for key in ["a", "b", "c", "z"] {
        net.put(deletes, key);
    }
    net.settle(2);
    let dot = net.delete(deletes, "z");
    net.beats(3, &mut |_, to, _| to != asks);
    // It reaches only one node, whose delta has several parts. The other three evict it meanwhile.
    net.cut_off(asks);
    net.link(answers, asks);
    net.deliver_first_part(asks, answers);
    for _ in 0..15 {
        net.now_ms += BEAT_MS;
        for node in (0..5).filter(|&node| node != asks) {
            net.nodes[node].tick(ALONE, net.now_ms);
        }
        net.deliver_between(|from, to| from != asks && to != asks, &mut |_, _, _| true);
    }
    assert_eq!(net.tombstones(answers), 0, "it collects with half of the delta sent");
    assert!(net.holds(asks, "z"));
    // The roster that lists the eviction is lost.
    net.deliver_between(|from, _| from == answers, &mut |_, to, kind| to != asks || !matches!(kind, Kind::Roster(_)));
    assert_eq!(net.nodes[asks].coverage(dot, net.nodes[asks].founding()), Coverage::Behind);
    assert!(net.holds(asks, "z"));
    net.heal();
    for node in 0..5 {
        assert!(net.nodes[node].is_ready() && !net.holds(node, "z"), "node {node} holds the deleted key");
    }
}

/// A write that is made while a delta is sent does not wait for the end of the delta.
#[test]
fn delta_does_not_delay_a_write() {
    let mut net = Net::new(3);
    let keys: Vec<&str> = "a b c d e f g h i j k l m n o p q r s t".split(' ').collect();
    let (leaves, answers, asks) = (0, 1, 2);
    net.cut_off(asks);
    for key in &keys {
        net.put(leaves, key);
    }
    net.deliver(&mut |_, _, _| true);
    net.nodes[leaves].leave(net.now_ms);
    net.deliver(&mut |_, _, _| true);
    net.cut_off(leaves);
    net.link(asks, answers);
    net.deliver_first_part(asks, answers);
    net.put(answers, "x");
    for _ in 0..4 {
        net.step(answers, asks, &mut |_, _, _| true);
    }
    assert!(net.holds(asks, "x") && !net.holds(asks, "t"));
    net.settle(1);
    assert!(net.holds(asks, "t"));
}

/// A Sync that stays without an answer is sent again.
#[test]
fn delta_that_is_lost_is_asked_for_again() {
    let mut net = Net::new(2);
    net.put(0, "k");
    // The pushes are lost, and so is the delta that is asked for when the gap is seen.
    let mut lost = 0;
    net.beats(3, &mut |from, _, kind| {
        let loses = match kind {
            Kind::Push(push) => !push.entries.is_empty(),
            Kind::Delta(_) => from == 0,
            _ => false,
        };
        lost += usize::from(loses);
        !loses
    });
    assert!(lost > 1 && !net.holds(1, "k"));
    net.settle(5);
    assert!(net.holds(1, "k"));
}
