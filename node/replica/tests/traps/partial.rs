//! Partial writes: above a gap, of an origin that is gone.

use crate::prelude::*;

/// Two nodes hold different writes of a node that died; each gets the other's before any node attests.
#[test]
fn partial_writes_are_exchanged_before_adoption() {
    let mut net = Net::new(4);
    let dies = 3;
    // Each of two nodes gets another write of the dying node, after one that no node got.
    for (key, gets) in [("x", None), ("a", Some(0)), ("b", Some(1))] {
        net.put(dies, key);
        net.deliver(&mut |from, to, _| from == dies && Some(to) == gets);
    }
    net.cut_off(dies);
    assert!(net.holds(0, "a") && !net.holds(0, "b") && !net.holds(1, "a") && net.holds(1, "b"));
    let successor = net.start("n3", 4);
    for node in 0..3 {
        net.link(node, successor);
    }
    // Repair must not be needed: only digests that lead to a Sync get through.
    let mut hashes = [0; 5];
    net.beats(20, &mut |from, to, kind| {
        let Kind::Digest(digest) = kind else { return true };
        hashes[from] = digest.seen_hash;
        hashes[to] != digest.seen_hash
    });
    for node in [0, 1, 2, successor] {
        assert!(net.holds(node, "a") && net.holds(node, "b"), "node {node}");
        assert!(net.nodes[node].counters().divergences == 0);
    }
}

/// The delete of an adopted write is kept while an evicted node may rejoin with that write.
#[test]
fn partial_write_deleted_is_not_brought_back() {
    let mut net = Net::new(5);
    let (dies, rejoins) = (4, 3);
    net.partial_write(dies);
    net.cut_off(dies);
    net.cut_off(rejoins);
    assert!((0..dies).all(|node| net.holds(node, "k") && !net.holds(node, "lost")));
    net.settle(10);
    assert!(net.nodes[0].counters().adoptions > 0);
    net.delete(0, "k");
    net.settle(10);
    assert_eq!(net.tombstones(0), 1);
    net.link(0, rejoins);
    net.end_seat(rejoins, 0);
    assert_eq!(net.nodes[rejoins].brought(), 1);
    net.link(0, rejoins);
    net.heal();
    for node in 0..dies {
        assert!(net.nodes[node].is_ready() && net.nodes[node].brought() == 0);
        assert!(!net.holds(node, "k"), "node {node} holds the deleted key");
    }
}

/// A node rejoins with what lies in the gap, and reissues it: then it covers the adopted write, and so must all.
#[test]
fn partial_write_is_covered_by_all_after_a_rejoin() {
    for is_busy in [false, true] {
        let mut net = Net::new(5);
        let (dies, rejoins) = (4, 3);
        let mut session = Session::default();
        // The first write reaches only one node, the second reaches all and is the last.
        net.put(dies, "a");
        net.deliver(&mut |from, to, _| from != dies || to == rejoins);
        session.saw(net.put(dies, "b"));
        for to in 0..dies {
            net.step(dies, to, &mut |_, _, _| true);
        }
        net.cut_off(dies);
        net.cut_off(rejoins);
        assert!((0..rejoins).all(|node| net.holds(node, "b") && !net.holds(node, "a")));
        net.settle(10);
        assert!(net.nodes[0].counters().adoptions > 0);
        // It will not rejoin: another process has its name.
        net.start("n4", 5);
        net.nodes.swap_remove(dies);
        (0..rejoins).for_each(|node| net.link(node, dies));
        net.settle(10);
        net.link(0, rejoins);
        net.end_seat(rejoins, 0);
        for other in [0, 1, 2, dies] {
            net.link(rejoins, other);
        }
        // No node hears what it covers until it has reissued its backlog.
        net.beats(10, &mut |from, _, kind| {
            if let Kind::Delta(delta) = kind
                && from == rejoins
            {
                delta.seen.clear();
            }
            true
        });
        for at in 0..5 {
            assert!(net.nodes[at].is_ready() && net.nodes[at].brought() == 0 && net.holds(at, "a"));
            assert_eq!(session.coverage(&net.nodes[at]) == Coverage::Covered, at == rejoins);
        }
        // With `is_busy`, there is always a write under way.
        for _ in 0..10 {
            if is_busy {
                net.put(rejoins, "c");
            }
            net.beats(1, &mut |from, _, kind| {
                from != rejoins || !matches!(kind, Kind::Push(push) if !push.entries.is_empty())
            });
        }
        for (at, node) in net.nodes.iter().enumerate() {
            assert_eq!(session.coverage(node), Coverage::Covered, "node {at} holds all that came before the write");
        }
    }
}
