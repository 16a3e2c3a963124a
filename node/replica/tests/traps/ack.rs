//! Which nodes count as holders of a write.

use crate::prelude::*;

/// Holders are counted by name, not by process.
#[test]
fn ack_counts_a_restarted_node_once() {
    let mut net = Net::new(3);
    let dot = net.put(0, "k");
    net.settle(1);
    assert_eq!(net.nodes[0].holders(dot.hlc).peers, 2);
    // The new process has joined before the old link is down, and before any roster says that the old seat has ended.
    let successor = net.start("n1", 3);
    net.link(0, successor);
    net.beats(HEARD_BEATS as usize + 1, &mut |from, to, kind| {
        from != 1 && (to > 1 || !matches!(kind, Kind::Roster(_)))
    });
    assert!(net.nodes[successor].is_ready() && net.holds(successor, "k"));
    let holders = net.nodes[0].holders(dot.hlc);
    assert_eq!((holders.peers, holders.voters), (2, 3));
}

/// A seat that is gone is not counted, not even while its link is still up.
#[test]
fn ack_does_not_count_a_gone_seat() {
    let mut net = Net::new(3);
    let dot = net.put(0, "k");
    net.deliver(&mut |_, _, _| true);
    assert_eq!(net.nodes[0].holders(dot.hlc).peers, 2);
    let (gone, successor) = (1, net.start("n1", 3));
    net.link(successor, 0);
    // All that the others hear of the new process is that it joined.
    net.beats(HEARD_BEATS as usize + 1, &mut |from, to, kind| {
        let joined =
            matches!(kind, Kind::Roster(_) | Kind::Report(_)) || matches!(kind, Kind::Sync(sync) if !sync.ready);
        from != gone && to != gone && (from != successor || joined)
    });
    assert!(net.nodes[successor].is_ready());
    assert_eq!(net.nodes[0].holders(dot.hlc).peers, 1);
}
