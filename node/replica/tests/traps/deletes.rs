//! Tombstones: how long they are kept, and that deletes are final.

use crate::prelude::*;

/// Only the deleting node had seen the write that it deleted.
#[test]
fn delete_is_final_though_its_node_is_gone() {
    let mut net = Net::new(5);
    let (deletes, rejoins) = (0, 4);
    for node in 1..4 {
        net.cut(rejoins, node);
    }
    net.put(rejoins, "k");
    net.deliver(&mut |_, _, _| true);
    net.cut_off(rejoins);
    // Only the delete reaches the others, and nothing else that its node holds.
    net.delete(deletes, "k");
    net.deliver(&mut |from, _, kind| from != deletes || matches!(kind, Kind::Push(_)));
    net.cut_off(deletes);
    net.nodes[1].watch(true);
    net.settle(15);
    let evicted = net.nodes[1].take_changes().into_iter().filter(|change| matches!(change, Change::Evicted(_)));
    assert_eq!(evicted.count(), 2);
    net.rejoin(rejoins, 1..4);
    for node in 1..5 {
        assert!(net.nodes[node].is_ready() && !net.holds(node, "k"), "node {node} holds the deleted key");
    }
}

/// Neither of two sidecars rejoins, and one of them left a partial write.
#[test]
fn deletes_are_dropped_an_hour_after_eviction() {
    let mut net = Net::new(3);
    for name in ["s3", "s4"] {
        let sidecar = Settings { voter: false, ..net.settings(name, 0) };
        net.start_with(sidecar);
    }
    net.link_all();
    net.settle(8);
    let (dies, evicted) = (3, 4);
    net.partial_write(dies);
    net.cut_off(dies);
    net.cut_off(evicted);
    net.settle(12);
    assert!(net.nodes[0].counters().adoptions > 0);
    net.delete(0, "k");
    net.settle(12);
    assert_eq!(net.tombstones(0), 1);
    net.now_ms += REMEMBER_EVICTED_MS;
    net.settle(12);
    assert!((0..3).all(|node| net.tombstones(node) == 0));
}
