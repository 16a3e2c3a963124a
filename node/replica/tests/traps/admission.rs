//! Strangers, and maps of other epochs: which of two nodes resets.

use crate::prelude::*;

/// An evicted node that does not know of its eviction sponsors a newcomer, which may sponsor another one.
#[test]
fn stranger_resets_and_keeps_its_writes() {
    for generations in [1, 2] {
        let mut net = Net::new(4);
        let mut newcomer = 3;
        net.cut_off(newcomer);
        net.settle(10);
        for name in &["n4", "n5"][..generations] {
            newcomer = net.join_through(newcomer, name, 4);
        }
        let dot = net.put(newcomer, "k");
        // It lacks nothing that was collected, and wrote above all of that, so its map does not show that it is a
        // stranger.
        let collected = net.nodes[0].collected();
        assert!(collected > 0 && collected < dot.hlc);
        let mut acks = 0;
        net.link(newcomer, 0);
        net.deliver(&mut |from, to, kind| {
            acks += usize::from((from, to) == (0, newcomer) && matches!(kind, Kind::Ack(_)));
            true
        });
        assert_eq!((acks, net.nodes[newcomer].is_ready()), (0, false), "after {generations}");
        net.heal();
        for (at, node) in net.nodes.iter().enumerate() {
            assert!(node.is_ready() && net.holds(at, "k"), "node {at} lacks the write, after {generations}");
        }
    }
}

/// A refused node keeps its own stability watermark, because the watermark of the others does not cover its writes.
#[test]
fn stranger_does_not_adopt_the_watermark() {
    let mut net = Net::new(4);
    let sponsor = 3;
    net.cut_off(sponsor);
    let newcomer = net.join_through(sponsor, "n4", 4);
    let dot = net.put(newcomer, "k");
    net.settle(12);
    // It hears everything from the others but the deltas that refuse it.
    for node in 0..3 {
        net.link(newcomer, node);
    }
    net.beats(10, &mut |_, to, kind| to != newcomer || !matches!(kind, Kind::Delta(_)));
    assert!(net.nodes[newcomer].is_ready() && net.nodes[0].collected() > dot.hlc);
    for _ in 0..4 {
        net.settle(8);
        net.link_all();
    }
    for node in 0..5 {
        assert!(net.holds(node, "k"), "node {node} lacks the write");
    }
}

/// A node that is away until its seat is retired must reset: deletes may have been collected meanwhile.
#[test]
fn retired_seat_resets() {
    let mut net = Net::new(4);
    // Its sponsor is there all the time.
    let late = net.start("n4", 4);
    net.link_all();
    net.settle(3);
    net.put(late, "k");
    net.settle(2);
    net.cut_off(late);
    net.delete(0, "k");
    net.settle(10);
    // Until every node has retired its seat.
    net.now_ms += REMEMBER_EVICTED_MS + REMEMBER_ENDED_MS;
    net.settle(10);
    assert!((0..4).all(|node| net.nodes[node].seats().all(|(origin, _)| origin != net.nodes[late].origin())));
    assert!(net.nodes[late].is_ready() && net.holds(late, "k"));
    net.link(late, 0);
    net.deliver(&mut |_, _, _| true);
    assert!(!net.nodes[late].is_ready());
    net.heal();
    for node in 0..5 {
        assert!(net.nodes[node].is_ready() && !net.holds(node, "k"), "node {node} holds the deleted key");
    }
}

/// Neither map is lost when two epochs meet.
#[test]
fn founders_apart_merge_their_maps() {
    let mut net = Net::empty();
    for (name, key) in [("n0", "a"), ("n1", "b")] {
        let node = net.start(name, 0);
        net.nodes[node].tick(ALONE, net.now_ms);
        net.put(node, key);
    }
    for _ in 0..10 {
        net.now_ms += BEAT_MS;
        net.nodes.iter_mut().for_each(|node| node.tick(ALONE, net.now_ms));
    }
    // Each node is a majority of the voters that it knows.
    assert!(net.nodes.iter().all(|node| node.collected() > 0));
    for _ in 0..4 {
        if net.links.is_empty() {
            net.link(0, 1);
        }
        net.settle(5);
    }
    for node in 0..2 {
        assert!(net.holds(node, "a") && net.holds(node, "b"), "node {node}");
    }
}

/// If two nodes are strangers to each other, the node that attested more keeps its map.
#[test]
fn strangers_to_each_other_reset_one() {
    let mut net = Net::new(5);
    let (sponsor, dies) = (3, 4);
    for node in 0..3 {
        net.cut(node, sponsor);
        net.cut(node, dies);
    }
    net.settle(10);
    // One node is replaced on the smaller side, and all three on the larger side.
    net.cut_off(dies);
    let late = net.join_through(sponsor, "n4", 5);
    let mut members = vec![0, 1, 2];
    for name in ["n0", "n1", "n2"] {
        let new = net.start(name, 5);
        net.cut_off(members.remove(0));
        for &member in &members {
            net.link(new, member);
        }
        net.settle(3);
        members.push(new);
    }
    // Each was let in by a node that the other knows to be gone.
    let member = members[2];
    net.link(late, member);
    let (voter, state, since_hlc) = (true, SeatState::Ended.into(), 1);
    let ended =
        (1..=3).map(|origin| Seat { origin, name: origin.to_string(), voter, state, since_hlc, ..Seat::default() });
    net.give_roster(member, late, ended.collect());
    net.deliver(&mut |_, _, _| true);
    assert_eq!([member, late].map(|node| net.nodes[node].is_ready()), [true, false]);
}
