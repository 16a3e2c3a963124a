//! What nodes attest, and what follows from it.

use crate::prelude::*;

/// A node that has no majority any more attests nothing new, but what it attested before stands.
#[test]
fn attestation_stands_without_a_majority() {
    let mut net = Net::new(2);
    net.put(0, "k");
    net.settle(2);
    net.delete(0, "k");
    net.beats(10, &mut |from, _, kind| from == 0 || !matches!(kind, Kind::Report(_)));
    assert_eq!((net.tombstones(0), net.tombstones(1)), (1, 0), "only the second node heard both attestations");
    // Without a majority the first node attests nothing more.
    net.nodes[0].set_voters(5);
    net.settle(3);
    assert_eq!(net.tombstones(0), 0);
}

/// A sidecar attests nothing before it has the number of voters from a voter.
#[test]
fn attestation_of_a_sidecar_needs_the_voters() {
    let mut net = Net::empty();
    // One voter of three, set to serve alone.
    let alone = Settings { serve_alone: true, join_timeout_ms: 0, ..net.settings("n0", 3) };
    let alone = net.start_with(alone);
    net.nodes[alone].tick(ALONE, net.now_ms);
    assert!(net.nodes[alone].is_ready());
    let sidecar = Settings { voter: false, ..net.settings("s", 0) };
    let sidecar = net.start_with(sidecar);
    net.link(alone, sidecar);
    let mut reports = 0;
    net.beats(4, &mut |from, _, kind| {
        let Kind::Report(report) = kind else { return true };
        if from == sidecar {
            reports += 1;
            assert!(report.stable == 0 && !report.standing.is_some_and(|s| s.promised));
        }
        from == sidecar
    });
    assert!(net.nodes[sidecar].is_ready() && reports > 2);
}
