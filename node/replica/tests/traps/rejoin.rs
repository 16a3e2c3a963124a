//! Nodes that reset, rejoin, and reissue their backlog.

use crate::prelude::*;

/// The backlog waits until the members agree on what they took in from the old seat.
#[test]
fn rejoin_waits_for_the_members_to_agree() {
    let mut net = Net::new(3);
    let (knows, other, rejoins) = (0, 1, 2);
    net.cut(knows, other);
    net.cut(other, rejoins);
    net.put(rejoins, "k");
    net.deliver(&mut |_, _, _| true);
    net.cut(knows, rejoins);
    assert!(net.holds(knows, "k"));
    net.delete(knows, "k");
    // It rejoins at the node that has seen neither the write nor the delete.
    net.link(other, rejoins);
    net.end_seat(rejoins, other);
    net.link(other, rejoins);
    net.settle(4);
    assert!(net.nodes[rejoins].is_ready() && net.nodes[rejoins].brought() == 1);
    net.link_all();
    net.settle(10);
    for node in 0..3 {
        assert!(!net.holds(node, "k"), "node {node} holds the deleted key");
    }
    assert_eq!(net.nodes[rejoins].brought(), 0);
}

/// Two nodes rejoin, one with a write and one with its delete, in either order.
#[test]
fn rejoin_of_a_write_and_its_delete_deletes() {
    for (writes, deletes) in [(3, 4), (4, 3)] {
        let mut net = Net::new(5);
        for gone in [writes, deletes] {
            net.cut_off(gone);
        }
        net.link(writes, deletes);
        net.put(writes, "k");
        net.deliver(&mut |_, _, _| true);
        net.cut(writes, deletes);
        net.delete(deletes, "k");
        net.settle(12);
        // The others have evicted both.
        for rejoins in [writes, deletes] {
            net.link(0, rejoins);
            net.end_seat(rejoins, 0);
        }
        assert!(net.nodes[writes].brought() == 1 && net.nodes[deletes].brought() == 1);
        net.heal();
        for node in 0..5 {
            assert!(net.nodes[node].is_ready() && net.nodes[node].brought() == 0);
            assert!(!net.holds(node, "k"), "node {node} holds the key that {deletes} had deleted");
        }
    }
}

/// Two nodes rejoin in either order, one with a write and one with a delete. Neither had seen the other's.
#[test]
fn rejoin_reissues_only_the_later_write() {
    for (writes, deletes) in [(3, 4), (4, 3)] {
        for delete_is_later in [true, false] {
            let mut net = Net::new(5);
            net.put(0, "k");
            net.settle(2);
            net.cut_off(writes);
            net.cut_off(deletes);
            for deleting in [!delete_is_later, delete_is_later] {
                net.settle(1);
                if deleting {
                    net.delete(deletes, "k")
                } else {
                    net.put(writes, "k")
                };
            }
            net.settle(12);
            for rejoins in [writes, deletes] {
                net.link(0, rejoins);
                net.end_seat(rejoins, 0);
            }
            net.heal();
            for node in 0..5 {
                assert!(net.nodes[node].is_ready() && net.nodes[node].brought() == 0);
                assert_eq!(net.holds(node, "k"), !delete_is_later, "node {node}");
            }
        }
    }
}

/// Deletes are kept for an evicted node, whether they were made before or after its eviction.
#[test]
fn rejoin_restores_nothing_deleted_later() {
    let mut net = Net::new(3);
    let away = 2;
    for key in ["before", "after", "rewritten"] {
        net.put(0, key);
    }
    net.settle(2);
    net.cut_off(away);
    net.put(away, "before");
    net.settle(1);
    // One delete while the node is a member, one once it is evicted, and one that is older than the write.
    net.delete(0, "before");
    net.settle(8);
    assert!(net.nodes[0].seats().any(|(_, seat)| seat.state == SeatState::Evicted));
    net.put(away, "after");
    net.delete(0, "rewritten");
    net.settle(1);
    let last = net.delete(1, "after");
    net.put(away, "rewritten");
    net.settle(12);
    assert!(net.nodes[0].collected() > last.hlc && net.tombstones(0) == 3, "all that take part hold the deletes");
    // A newcomer holds them as well, and may become the sponsor.
    let newcomer = net.start("n3", 3);
    net.link(newcomer, 0);
    net.settle(4);
    assert_eq!(net.tombstones(newcomer), 3);
    net.heal();
    for node in 0..4 {
        assert!(net.nodes[node].is_ready() && net.nodes[node].brought() == 0);
        assert!(!net.holds(node, "before") && !net.holds(node, "after") && net.holds(node, "rewritten"), "node {node}");
    }
    assert_eq!((net.nodes[away].counters().reissued, net.nodes[away].counters().too_late), (1, 0));
    net.settle(12);
    assert!((0..4).all(|node| net.tombstones(node) == 0), "deletes are dropped once they are not needed");
}

/// When more deletes than the limit were made, what the evicted node wrote before them is dropped and counted.
#[test]
fn rejoin_is_too_late_after_too_many_deletes() {
    let mut net = Net::new_that_keeps(2, 3);
    let away = 2;
    net.put(0, "k");
    net.settle(2);
    net.cut_off(away);
    net.put(away, "k");
    net.put(away, "alone");
    net.settle(8);
    net.delete(0, "k");
    net.settle(12);
    assert_eq!(net.tombstones(0), 1, "two may be kept");
    for key in ["a", "b", "c"] {
        net.put(0, key);
        net.delete(0, key);
        net.settle(8);
    }
    assert_eq!(net.tombstones(0), 2);
    net.put(away, "recent");
    net.heal();
    for node in 0..3 {
        assert!(net.nodes[node].is_ready() && net.nodes[node].brought() == 0);
        assert!(!net.holds(node, "k") && !net.holds(node, "alone") && net.holds(node, "recent"), "node {node}");
    }
    let counters = net.nodes[away].counters();
    assert_eq!((counters.reissued, counters.too_late), (1, 2), "what is not reissued is counted");
}

/// The rejoining node has its map from a member that had not heard of another member's delete.
#[test]
fn rejoin_waits_for_what_members_wrote_before() {
    let mut net = Net::new(5);
    let (away, deletes) = (4, 1);
    net.put(0, "k");
    net.settle(2);
    net.cut_off(away);
    net.put(away, "k");
    net.settle(12);
    net.delete(deletes, "k");
    net.link(0, away);
    net.end_seat(away, 0);
    (0..away).for_each(|node| net.link(away, node));
    let mut hide = |from, _, kind: &mut Kind| from != deletes || !matches!(kind, Kind::Push(_) | Kind::Delta(_));
    net.beats(10, &mut hide);
    assert!(net.nodes[away].is_ready() && net.nodes[away].brought() == 1);
    net.settle(10);
    assert_eq!((net.nodes[away].brought(), net.nodes[away].counters().reissued), (0, 0));
    assert!((0..5).all(|node| !net.holds(node, "k")));
}

/// Deletes are kept while a voter is missing: it may come with a map of another epoch.
#[test]
fn rejoin_of_a_founder_restores_nothing_deleted() {
    let mut net = Net::empty();
    for name in ["n0", "n1"] {
        net.start(name, 3);
    }
    net.link_all();
    net.settle(8);
    let alone = net.start("n2", 3);
    net.found_alone(alone, 3);
    assert!(net.nodes[alone].is_ready());
    net.put(alone, "k");
    net.put(alone, "own");
    net.settle(1);
    net.put(0, "k");
    net.settle(1);
    let dot = net.delete(0, "k");
    net.settle(12);
    assert!(net.nodes[0].collected() > dot.hlc);
    net.heal();
    for node in 0..3 {
        assert!(net.nodes[node].is_ready() && net.nodes[node].brought() == 0);
        assert!(!net.holds(node, "k") && net.holds(node, "own"), "node {node}");
    }
    assert_eq!(net.nodes[alone].counters().returns, 1);
    net.settle(12);
    assert!((0..3).all(|node| net.tombstones(node) == 0));
}

/// A write is reissued by one node and deleted; then another node rejoins with the same write.
#[test]
fn rejoin_restores_no_deleted_reissue() {
    let mut net = Net::new(5);
    let (first, second) = (4, 3);
    for gone in [first, second] {
        net.cut_off(gone);
    }
    net.link(first, second);
    let dot = net.put(first, "k");
    net.deliver(&mut |_, _, _| true);
    net.cut(first, second);
    net.settle(12);
    // The others have evicted both.
    net.link(0, first);
    net.end_seat(first, 0);
    (0..3).for_each(|node| net.link(first, node));
    net.beats(6, &mut |from, _, kind| {
        if let Kind::Delta(delta) = kind
            && from == first
        {
            delta.seen.retain(|seen| seen.origin != dot.origin);
        }
        true
    });
    let rejoined = &net.nodes[first];
    assert!(rejoined.is_ready() && rejoined.brought() == 1);
    assert_eq!(rejoined.counters().reissued, 0, "the others do not know of the write yet");
    // They learn that the write exists, but not that its reissue covers it.
    let mut hide = |from: usize, _: usize, kind: &mut Kind| {
        if let Kind::Delta(delta) = kind
            && from == first
        {
            delta.seen.iter_mut().filter(|it| it.origin == dot.origin && it.hlc >= dot.hlc).for_each(|seen| {
                (seen.hlc, seen.last) = (0, 0);
            });
        }
        true
    };
    for _ in 0..10 {
        if net.nodes[first].counters().reissued == 0 {
            net.beats(1, &mut hide);
        }
    }
    assert!((0..3).all(|node| net.holds(node, "k")));
    net.delete(first, "k");
    net.deliver(&mut hide);
    net.cut_off(first);
    net.settle(12);
    assert!((0..3).all(|node| !net.holds(node, "k") && net.tombstones(node) == 1));
    net.link(0, second);
    net.end_seat(second, 0);
    assert_eq!(net.nodes[second].brought(), 1);
    net.rejoin(second, 0..3);
    assert!(net.nodes[second].is_ready() && net.nodes[second].brought() == 0);
    for node in 0..4 {
        assert!(!net.holds(node, "k"), "node {node} holds the deleted key");
    }
}

/// A seat was retired early because the roster was full: what its node rejoins with is dropped and counted.
#[test]
fn rejoin_of_a_retired_seat_restores_nothing() {
    let mut net = Net::new(3);
    let late = 2;
    net.put(late, "stays");
    net.put(late, "k");
    net.deliver(&mut |_, _, _| true);
    net.cut_off(late);
    // No node can tell whether this key was deleted meanwhile: the write is dropped and counted as well.
    net.put(late, "alone");
    let origin = net.nodes[late].origin();
    net.delete(0, "k");
    net.settle(10);
    assert!(!net.holds(0, "k") && net.tombstones(0) == 1 && net.nodes[0].vector().contains_key(&origin));
    // So many seats have ended since that the roster has no place for it.
    let ended = |at: u64| Seat {
        origin: 1_000 + at,
        name: format!("ended{at}"),
        state: SeatState::Ended.into(),
        since_hlc: net.nodes[0].collected(),
        ..Seat::default()
    };
    let seats: Vec<_> = (0..MAX_ENDED as u64).map(ended).collect();
    net.give_roster(1, 0, seats);
    // With three voters configured, deletes would be kept, because one voter is missing.
    net.nodes[..2].iter_mut().for_each(|node| node.set_voters(2));
    net.settle(3);
    for node in &net.nodes[..2] {
        assert!(node.seats().all(|(it, _)| it != origin) && !node.vector().contains_key(&origin));
        assert_eq!(node.store().tombstones(), 0);
    }
    net.heal();
    for node in 0..3 {
        assert!(net.nodes[node].is_ready() && net.nodes[node].brought() == 0);
        assert!(!net.holds(node, "k"), "node {node} holds the deleted key");
    }
    assert_eq!((net.nodes[late].counters().reissued, net.nodes[late].counters().too_late), (0, 2));
}
