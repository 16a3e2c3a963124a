//! Two processes with one name.

use crate::prelude::*;

/// The refusal is final after `TWIN_BEATS` heartbeats in which both processes were heard.
#[test]
fn name_of_a_live_process_is_refused() {
    let mut net = Net::new(3);
    let twin = net.start("n1", 3);
    net.link_all();
    net.settle(TWIN_BEATS as usize - 1);
    assert_eq!(
        (net.nodes[twin].is_ready(), net.nodes[twin].refused()),
        (false, None),
        "the other process may have just died"
    );
    net.settle(2);
    let holder = net.nodes[twin].refused().expect("both processes live");
    assert_eq!(holder.origin, net.nodes[1].origin());
    assert!(!net.nodes[twin].is_ready() && net.nodes[twin].is_dismissed());
    assert!(net.is_undisturbed(1));
    assert!((0..3).all(|node| net.nodes[node].counters().twins == 1), "each node that hears both counts this once");
}

/// The second process is refused even if it claims to have started long before the first.
#[test]
fn name_is_refused_whatever_the_clock_says() {
    let mut net = Net::new(3);
    let settings = Settings { started_ms: START_MS - 1_000_000, ..net.settings("n1", 3) };
    let twin = net.start_with(settings);
    net.link_all();
    net.settle(TWIN_BEATS as usize + 1);
    assert!(net.nodes[twin].is_dismissed() && net.is_undisturbed(1));
}

/// The second process reaches only a peer of the holder.
#[test]
fn name_is_refused_without_a_link_to_its_holder() {
    let mut net = Net::new(3);
    let twin = net.start("n1", 3);
    net.link(twin, 0);
    net.settle(TWIN_BEATS as usize + 1);
    assert!(net.nodes[twin].is_dismissed() && net.is_undisturbed(1));
}

/// One peer that hears the holder is enough.
#[test]
fn name_heard_by_one_is_not_given_by_another() {
    let mut net = Net::new(3);
    net.cut(0, 1);
    let twin = net.start("n1", 3);
    // Node 0 does not hear the holder, node 2 does.
    net.link(twin, 0);
    net.link(twin, 2);
    net.settle(TWIN_BEATS as usize + 1);
    assert!(net.nodes[twin].is_dismissed() && net.is_undisturbed(1));
}

/// The links of a killed process are closed, so its successor need not wait.
#[test]
fn name_of_a_process_without_links_is_taken_at_once() {
    let mut net = Net::new(3);
    net.put(0, "k");
    net.settle(1);
    net.cut_off(1);
    let successor = net.start_successor();
    net.settle(1);
    assert!(net.nodes[successor].serves() && net.holds(successor, "k"));
    let gone = net.nodes[1].origin();
    assert!(net.nodes[0].seats().any(|(seat, it)| seat == gone && it.state == SeatState::Ended));
}

/// A machine that loses power closes no links: the successor waits for `HEARD_BEATS` heartbeats.
#[test]
fn name_of_a_silent_process_is_taken_after_beats() {
    let mut net = Net::new(3);
    let successor = net.start_successor();
    let silence = &mut |from, to, _: &mut Kind| from != 1 && to != 1;
    net.beats(HEARD_BEATS as usize - 1, silence);
    assert!(!net.nodes[successor].is_ready());
    net.beats(2, silence);
    assert!(net.nodes[successor].serves());
}

/// If two processes have no map yet, the process that started earlier gets the name.
#[test]
fn name_of_two_newcomers_goes_to_the_earlier() {
    let mut net = Net::empty();
    for name in ["n0", "n1"] {
        net.start(name, 2);
    }
    net.now_ms += 1;
    let twin = net.start("n0", 2);
    net.link_all();
    net.settle(TWIN_BEATS as usize + 2);
    assert!(net.nodes[twin].is_dismissed());
    assert!(net.is_undisturbed(0) && net.is_undisturbed(1));
}

/// A replaced process hands over what the others lack before it exits.
#[test]
fn name_lost_while_cut_off_loses_no_write() {
    let (mut net, successor) = Net::with_replaced_node();
    net.put(1, "cut off");
    net.heal();
    assert!(net.is_undisturbed(successor));
    assert!(net.nodes[1].is_dismissed() && !net.nodes[1].serves());
    assert!(net.holds(0, "cut off") && net.holds(2, "cut off") && net.holds(successor, "cut off"));
    net.nodes[1].drain();
    net.settle(2);
    assert_eq!(net.nodes[1].uncovered(), (0, 0), "it may exit");
    let votes = net.nodes[0].seats().filter(|(_, seat)| seat.is_live() && seat.voter).count();
    assert_eq!(votes, 3, "a process that hands over does not vote");
}

/// Its writes are dropped and counted once no node can tell which of them were deleted.
#[test]
fn name_lost_long_ago_restores_nothing() {
    let (mut net, _) = Net::with_replaced_node();
    // The node that wrote `old` leaves, `old` is deleted, and seat and tombstone are collected.
    let now_ms = net.now_ms;
    net.nodes[2].leave(now_ms);
    net.deliver(&mut |_, _, _| true);
    net.cut_off(2);
    let third = net.start("n2", 3);
    net.link(third, 0);
    net.link(third, 3);
    net.settle(3);
    net.delete(0, "old");
    net.settle((REMEMBER_ENDED_MS / BEAT_MS) as usize + 30);
    assert_eq!(net.tombstones(0), 0);
    for _ in 0..4 {
        for other in [0, 3, third] {
            net.link_to(1, other..other + 1);
        }
        net.settle(6);
    }
    assert!(net.nodes[1].is_dismissed());
    assert!(!net.holds(0, "old") && !net.holds(1, "old"));
    assert_eq!(net.nodes[1].counters().too_late, 1);
}
