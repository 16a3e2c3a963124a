//! The list of all seats.

use crate::prelude::*;

/// Nothing becomes stable while a node is unreachable and not yet evicted, even if many seats are gone.
#[test]
fn roster_stays_small_enough_for_peers() {
    let mut net = Net::new(3);
    net.cut_off(2);
    net.settle(1);
    let later = net.nodes[0].collected() + (60_000 << 16);
    let ended = |at: u64| Seat {
        origin: 1_000 + at,
        name: format!("ended{at}"),
        state: SeatState::Ended.into(),
        since_hlc: later + at,
        ..Seat::default()
    };
    for from in (0..5_000).step_by(500) {
        let seats: Vec<_> = (from..from + 500).map(ended).collect();
        net.give_roster(1, 0, seats);
        net.settle(3);
        for node in 0..2 {
            assert!(net.nodes[node].seats().count() <= MAX_SEATS / 2 + 3, "node {node}");
        }
    }
    net.put(0, "k");
    net.settle(1);
    assert!(net.holds(1, "k"));
}
