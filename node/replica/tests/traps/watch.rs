//! What the changes of a replica report.

use crate::prelude::*;

/// A node that reset, and then finds no other node, takes its old map up again: watchers learn that the map changed.
#[test]
fn watch_reports_a_map_taken_up_again() {
    let mut net = Net::new(2);
    net.put(0, "k");
    net.settle(2);
    net.nodes[1].watch(true);
    net.end_seat(1, 0);
    net.nodes[1].take_changes();
    // The other node is gone for good.
    net.now_ms += BEAT_MS;
    net.found_alone(1, 2);
    assert!(net.nodes[1].is_ready() && net.holds(1, "k"));
    assert!(net.nodes[1].take_changes().contains(&Change::Reset));
}

/// Watchers see every value end, even if more end at once than one step of expiry takes.
#[test]
fn watch_reports_every_value_that_ends() {
    let mut net = Net::new(2);
    net.nodes[1].leave(net.now_ms);
    net.deliver(&mut |_, _, _| true);
    net.cut_off(1);
    net.nodes[0].set_voters(1);
    net.nodes[0].watch(true);
    let count = 5 * EXPIRE_STEP / 2;
    for n in 0..count {
        let end_ms = Some(net.now_ms + 1);
        net.nodes[0].put(n.to_string().into(), "v".into(), end_ms, net.now_ms).unwrap();
    }
    net.now_ms += 60 * BEAT_MS;
    net.settle(10);
    let reported = net.nodes[0].take_changes().iter().filter(|change| matches!(change, Change::Expired(..))).count();
    assert_eq!((reported, net.nodes[0].store().len()), (count, 0));
}
