//! Snapshots, sponsors, and nodes that leave.

use crate::prelude::*;

/// The parts of an unfinished snapshot are not kept.
#[test]
fn snapshot_in_part_restores_nothing_deleted() {
    let (mut net, newcomer) = Net::with_partial_snapshot();
    assert!(net.holds(newcomer, "a") && !net.nodes[newcomer].is_ready());
    net.cut_off(newcomer);
    net.found_alone(newcomer, 3);
    assert!(net.nodes[newcomer].is_ready());
    net.put(newcomer, "own");
    net.delete(0, "a");
    net.settle(12);
    net.now_ms += REMEMBER_EVICTED_MS + REMEMBER_ENDED_MS;
    net.settle(10);
    assert_eq!(net.tombstones(0), 0);
    net.heal();
    for node in 0..3 {
        assert!(net.nodes[node].is_ready() && net.holds(node, "own") && net.holds(node, "b"), "node {node}");
        assert!(!net.holds(node, "a"), "node {node} holds the deleted key");
    }
}

/// A key that is overwritten after the scan passed it is still there.
#[test]
fn snapshot_includes_keys_overwritten_meanwhile() {
    let (mut net, newcomer) = Net::with_partial_snapshot();
    net.put(0, "a");
    net.deliver(&mut |_, _, _| true);
    assert!(net.nodes[newcomer].is_ready());
    for key in ["a", "b", "c"] {
        assert!(net.holds(newcomer, key), "{key}");
    }
}

/// The writes are in the map, although their origin is in no vector.
#[test]
fn snapshot_includes_writes_of_retired_seats() {
    let mut net = Net::new(3);
    let goes = 2;
    net.put(goes, "stays");
    net.settle(2);
    let origin = net.nodes[goes].origin();
    net.cut_off(goes);
    net.settle(6);
    net.now_ms += REMEMBER_EVICTED_MS + REMEMBER_ENDED_MS;
    net.settle(10);
    assert!(net.holds(0, "stays") && !net.nodes[0].vector().contains_key(&origin));
    let newcomer = net.start("n3", 3);
    net.link(newcomer, 0);
    net.deliver(&mut |_, _, _| true);
    assert!(net.nodes[newcomer].is_ready() && net.holds(newcomer, "stays"));
    assert!(!net.nodes[newcomer].vector().contains_key(&origin));
}

/// A newcomer knows which nodes were evicted, even if no other roster reached it.
#[test]
fn snapshot_includes_the_roster() {
    let mut net = Net::new(4);
    let evicted = 3;
    net.cut_off(evicted);
    net.settle(10);
    let newcomer = net.start("n4", 4);
    net.link(newcomer, 0);
    // The only roster that reaches it is the one in the snapshot.
    let mut no_roster = |_, to, kind: &mut Kind| to != newcomer || !matches!(kind, Kind::Roster(_));
    net.deliver(&mut no_roster);
    assert!(net.nodes[newcomer].is_ready());
    // The snapshot's vector has an entry for the evicted node, as for one that takes part.
    net.link(newcomer, evicted);
    net.deliver(&mut no_roster);
    assert!(!net.nodes[evicted].is_ready());
}

/// A newcomer that has no room for the map does not flood its peers with requests.
#[test]
fn snapshot_without_room_is_asked_for_each_second() {
    let mut net = Net::new(2);
    for key in ["a", "b", "c", "d"] {
        net.put(0, key);
    }
    net.settle(1);
    let settings = Settings { max_memory: Some(100), ..net.settings("n2", 2) };
    let newcomer = net.start_with(settings);
    net.link(newcomer, 0);
    net.link(newcomer, 1);
    let (mut asked, mut parts) = (0, 0);
    net.beats(5, &mut |_, _, kind| {
        asked += usize::from(matches!(kind, Kind::Sync(sync) if sync.want == Want::Snapshot as i32));
        parts += usize::from(matches!(kind, Kind::Delta(delta) if !delta.entries.is_empty()));
        true
    });
    assert!(!net.nodes[newcomer].is_ready() && net.nodes[newcomer].is_overfull());
    assert!((3..=6).contains(&asked) && parts <= 2 * asked, "{asked} requests, {parts} parts");
}

/// A leaving node does not sponsor a newcomer if another node can, even if it was asked before it began to leave.
#[test]
fn sponsor_that_leaves_is_the_last_choice() {
    for leaves_first in [true, false] {
        let mut net = Net::new(3);
        for key in ["a", "b", "c"] {
            net.put(0, key);
        }
        net.settle(2);
        let newcomer = net.start("n3", 3);
        if leaves_first {
            net.nodes[0].leave(net.now_ms);
        }
        net.link(newcomer, 0);
        net.deliver_first_part(newcomer, 0);
        net.link(newcomer, 1);
        net.link(newcomer, 2);
        net.deliver_between(|from, to| from != 0 && to != 0, &mut |_, _, _| true);
        if !leaves_first {
            net.nodes[0].leave(net.now_ms);
        }
        net.deliver(&mut |_, _, _| true);
        net.cut_off(0);
        net.settle(3);
        let node = &net.nodes[newcomer];
        assert_eq!((node.is_ready(), node.counters().returns), (true, 0), "leaves first: {leaves_first}");
    }
}

/// The newcomer is not taken for a stranger, and does not reset.
#[test]
fn sponsor_may_leave_before_others_meet_a_newcomer() {
    let mut net = Net::new(3);
    let (sponsor, meets) = (0, 1);
    let newcomer = net.start("n3", 3);
    net.link(newcomer, sponsor);
    net.settle(3);
    net.nodes[sponsor].leave(net.now_ms);
    net.deliver(&mut |_, _, _| true);
    net.cut_off(sponsor);
    net.link(newcomer, meets);
    net.settle(3);
    let node = &net.nodes[newcomer];
    assert_eq!((node.is_ready(), node.counters().returns), (true, 0));
}

/// The leaving node may be the only one that has those writes.
#[test]
fn leaving_node_hands_on_writes_of_one_that_left() {
    let mut net = Net::new(3);
    let (stays, last, first) = (0, 1, 2);
    net.cut(first, stays);
    net.put(first, "k");
    net.deliver(&mut |_, _, _| true);
    net.nodes[first].drain();
    assert_eq!(net.nodes[first].uncovered(), (0, 0), "all linked peers hold the write");
    net.nodes[first].leave(net.now_ms);
    net.deliver(&mut |_, _, _| true);
    net.cut_off(first);
    net.nodes[last].drain();
    assert!(net.nodes[last].uncovered() == (1, 1) && !net.holds(stays, "k"));
    net.settle(2);
    assert!(net.nodes[last].uncovered() == (0, 0) && net.holds(stays, "k"));
}
