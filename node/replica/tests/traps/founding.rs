//! When voters found a map.

use crate::prelude::*;

/// `linked` new nodes, all linked to each other. Returns whether the first one founds after `after_ms` with this view.
fn founds(linked: usize, voters: usize, after_ms: u64, view: View) -> bool {
    let mut net = Net::empty();
    for at in 0..linked {
        let settings = Settings { join_timeout_ms: 10_000, ..net.settings(&format!("n{at}"), voters) };
        net.start_with(settings);
    }
    net.link_all();
    net.deliver(&mut |_, _, _| true);
    net.nodes[0].tick(view, net.now_ms + after_ms);
    net.nodes[0].is_ready()
}

const SOON_MS: u64 = 100;
const LATE_MS: u64 = 10_000;

/// Voters wait for every address that discovery names, until `joinTimeout` is over.
#[test]
fn founding_waits_for_all_named_addresses() {
    for (linked, voters) in [(1, 0), (1, 1), (2, 0), (2, 3), (3, 3)] {
        assert!(founds(linked, voters, SOON_MS, View::ALONE), "{linked} of {voters}");
        assert!(!founds(linked, voters, SOON_MS, View { unlinked: 1, ..View::ALONE }), "{linked} of {voters}");
        assert!(!founds(linked, voters, SOON_MS, View { answered: false, ..View::ALONE }), "{linked} of {voters}");
    }
}

/// A minority does not found, neither at once nor after `joinTimeout`.
#[test]
fn founding_takes_a_majority_of_the_voters() {
    for (linked, voters, does) in
        [(1, 3, false), (2, 3, true), (1, 2, false), (2, 4, false), (3, 4, true), (2, 5, false)]
    {
        for after_ms in [SOON_MS, LATE_MS] {
            assert_eq!(founds(linked, voters, after_ms, View::ALONE), does, "{linked} of {voters}");
        }
    }
}

/// A machine that is gone for good must not keep the others from starting.
#[test]
fn founding_does_not_need_a_silent_minority() {
    let silent = |unlinked| View { unlinked, ..View::ALONE };
    for (linked, voters, unlinked, does) in [
        (2, 3, 1, true),
        (1, 3, 2, false),
        (1, 1, 1, true),
        (2, 0, 1, true),
        (2, 0, 2, false),
        (1, 0, 1, false),
        (3, 0, 2, true),
    ] {
        let view = silent(unlinked);
        assert_eq!(founds(linked, voters, LATE_MS, view), does, "{linked} of {voters}, {unlinked} silent");
        let unanswered = View { answered: false, ..view };
        assert_eq!(founds(linked, voters, LATE_MS, unanswered), does, "{linked} of {voters}, {unlinked} silent");
    }
    let unanswered = View { answered: false, ..View::ALONE };
    assert!(!founds(1, 0, LATE_MS, unanswered), "nothing is known yet");
    assert!(!founds(3, 3, LATE_MS, View::UNKNOWN), "nothing is known any more");
}

/// Voters do not found while they hear of a peer that they cannot talk to: it may hold the cluster's map.
#[test]
fn founding_waits_for_a_peer_of_another_key() {
    let refused = View { refused: 1, unlinked: 1, ..View::ALONE };
    for (linked, voters) in [(1, 0), (2, 0), (1, 1), (2, 3), (3, 3)] {
        assert!(!founds(linked, voters, LATE_MS, refused), "{linked} of {voters}");
    }
    // At an address that nothing names, it counts only where the number of voters is not known.
    let unnamed = View { strangers: 1, ..View::ALONE };
    assert!(!founds(1, 0, SOON_MS, unnamed) && !founds(2, 0, LATE_MS, unnamed));
    assert!(founds(2, 3, SOON_MS, unnamed) && founds(1, 1, SOON_MS, unnamed) && !founds(1, 3, LATE_MS, unnamed));
}

/// Voters are counted by name.
#[test]
fn founding_counts_a_restarted_voter_once() {
    let mut net = Net::empty();
    for name in ["n0", "n1", "n1"] {
        let settings = Settings { join_timeout_ms: 10_000, ..net.settings(name, 5) };
        net.start_with(settings);
    }
    // The former process is gone, but the link to it is still up.
    net.link(0, 1);
    net.deliver(&mut |_, _, _| true);
    net.link(0, 2);
    net.deliver_between(|from, to| from != 1 && to != 1, &mut |_, _, _| true);
    assert_eq!(net.nodes[0].linked().count(), 2);
    net.nodes[0].tick(ALONE, net.now_ms + LATE_MS);
    assert!(!net.nodes[0].is_ready(), "two of five");
    assert_eq!(net.nodes[0].founders(), Some((2, 5)));
}

/// With `serveAlone` a node founds after `joinTimeout`, whatever it has heard of.
#[test]
fn founding_alone_with_serve_alone() {
    let mut net = Net::empty();
    let settings = Settings { serve_alone: true, join_timeout_ms: LATE_MS, ..net.settings("n0", 3) };
    net.start_with(settings);
    net.nodes[0].tick(View::UNKNOWN, net.now_ms + LATE_MS - 1);
    assert!(!net.nodes[0].is_ready());
    net.nodes[0].tick(View { refused: 2, ..View::UNKNOWN }, net.now_ms + LATE_MS);
    assert!(net.nodes[0].is_ready());
    assert_eq!(net.nodes[0].founders(), None);
}
