//! Repair of maps that differ although their vectors are equal.

use crate::prelude::*;

/// A key that was corrupted in memory shows only in the fingerprints of the maps.
#[test]
fn repair_makes_equal_vectors_mean_equal_maps() {
    let mut net = Net::new(2);
    net.put(0, "k");
    net.deliver(&mut |_, _, kind| {
        if let Kind::Push(push) = kind {
            push.entries.iter_mut().for_each(|entry| entry.key = Bytes::from_static(b"spoilt"));
        }
        true
    });
    assert!(!net.holds(1, "k") && net.holds(1, "spoilt"));
    net.settle(10);
    for node in 0..2 {
        assert!(net.holds(node, "k") && net.holds(node, "spoilt"), "node {node}");
        assert!(net.nodes[node].counters().divergences > 0);
    }
}

/// A tombstone that the peer sent before dropping it is not taken in again.
#[test]
fn repair_restores_nothing_collected() {
    let mut net = Net::new(2);
    net.put(0, "k");
    net.settle(2);
    let dot = net.delete(0, "k");
    net.settle(10);
    assert_eq!((net.tombstones(0), net.tombstones(1)), (0, 0));
    net.nodes[0].watch(true);
    let mut answers = 0;
    net.beats(10, &mut |from, _, kind| {
        match kind {
            Kind::Digest(digest) if from == 1 => digest.fingerprint_lo ^= 1,
            Kind::Delta(delta) if from == 1 => {
                answers += 1;
                let key = Bytes::from_static(b"k");
                delta.entries =
                    vec![Entry { key, hlc: dot.hlc, origin: dot.origin, deleted: true, ..Entry::default() }];
            }
            _ => {}
        }
        true
    });
    assert!(answers > 0 && net.nodes[0].counters().divergences > 0);
    let wrote = |change: &Change| matches!(change, Change::Wrote(..));
    assert!(!net.nodes[0].take_changes().iter().any(wrote));
}
