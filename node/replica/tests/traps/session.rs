//! Sessions: what is covered, and what is lost.

use crate::prelude::*;

/// A write that no other node had is lost once another process has the name of its node.
#[test]
fn session_reports_a_write_lost_with_its_node() {
    let mut net = Net::new(3);
    net.cut_off(2);
    let lost = net.put(2, "k");
    let founding = net.nodes[0].founding();
    assert_eq!(net.nodes[0].coverage(lost, founding), Coverage::Behind);
    let successor = net.start("n2", 3);
    net.link(successor, 0);
    net.link(successor, 1);
    net.settle(15);
    assert!(net.nodes[successor].is_ready());
    for node in [0, 1, successor] {
        assert_eq!(net.nodes[node].coverage(lost, founding), Coverage::Lost, "node {node}");
    }
}

/// A node that knows the origin may rejoin, and bring the write.
#[test]
fn session_waits_for_a_write_of_an_unknown_origin() {
    let mut net = Net::new(4);
    let sponsor = 3;
    net.cut_off(sponsor);
    let newcomer = net.join_through(sponsor, "n4", 4);
    let (dot, founding) = (net.put(newcomer, "k"), net.nodes[newcomer].founding());
    net.settle(12);
    // Where its sponsor was evicted, the stability watermark is above the write.
    assert!(net.nodes[0].collected() > dot.hlc);
    assert_eq!(net.nodes[0].coverage(dot, founding), Coverage::Behind);
    // A write of a seat that may have been retired since.
    let retired = Dot { hlc: founding.0, origin: 77 };
    assert_eq!(net.nodes[0].coverage(retired, founding), Coverage::Behind);
    net.now_ms += REMEMBER_ENDED_MS;
    net.settle(10);
    assert_eq!(net.nodes[0].coverage(dot, founding), Coverage::Behind);
    assert_eq!(net.nodes[0].coverage(retired, founding), Coverage::Covered);
    net.heal();
    assert!(net.holds(0, "k"));
    assert_eq!(net.nodes[0].coverage(dot, founding), Coverage::Covered);
}

/// All nodes that had heard of the writer are gone, and so is the write.
#[test]
fn session_reports_a_loss_of_an_unknown_origin() {
    let mut net = Net::new(3);
    let (knows, alone) = (2, 1);
    net.cut_off(alone);
    net.cut_off(0);
    let writer = net.join_through(knows, "n0", 3);
    net.link(writer, knows);
    let (dot, founding) = (net.put(writer, "k"), net.nodes[writer].founding());
    net.settle(1);
    assert!(net.holds(knows, "k"));
    net.cut_off(knows);
    net.cut_off(writer);
    let successors = [net.start("n0", 3), net.start("n2", 3)];
    net.link(successors[0], alone);
    net.link(successors[1], alone);
    net.link(successors[0], successors[1]);
    net.settle(15);
    for node in [alone, successors[0], successors[1]] {
        assert!(net.nodes[node].is_ready() && net.nodes[node].collected() > dot.hlc && !net.holds(node, "k"));
        assert_eq!(net.nodes[node].coverage(dot, founding), Coverage::Lost, "node {node}");
    }
}

/// Within the hour the evicted node may rejoin with the write. Then the write is lost.
#[test]
fn session_reports_a_loss_an_hour_after_eviction() {
    let mut net = Net::new(3);
    let gone = 2;
    net.cut_off(gone);
    let (dot, founding) = (net.put(gone, "k"), net.nodes[0].founding());
    net.settle(12);
    assert_eq!(net.nodes[0].coverage(dot, founding), Coverage::Behind, "the node may rejoin");
    net.now_ms += REMEMBER_EVICTED_MS;
    net.settle(10);
    for node in 0..2 {
        assert!(net.nodes[node].collected() > dot.hlc);
        assert_eq!(net.nodes[node].coverage(dot, founding), Coverage::Lost, "node {node}");
    }
}

/// An epoch that was never met, and is older than the stability watermark, will not be met.
#[test]
fn session_reports_that_its_epoch_is_gone() {
    let mut net = Net::new(2);
    net.settle(10);
    let (node, (founded, by)) = (&net.nodes[0], net.nodes[0].founding());
    let all = node.collected();
    assert!(all > 0);
    assert_eq!(node.coverage_of_all(all, (founded, by)), Coverage::Covered);
    assert_eq!(node.coverage_of_all(all, (founded - 1, by)), Coverage::Lost);
    assert_eq!(node.coverage_of_all(all + 1, (founded + 1, by)), Coverage::Behind, "that epoch may still be met");
    assert_eq!(node.coverage_of_all(all, (founded + 1, by)), Coverage::Lost);
}

/// A node that does not know of its eviction is found to be behind, even when the token no longer lists the write.
#[test]
fn session_is_behind_on_an_evicted_node() {
    let mut net = Net::new(3);
    net.cut_off(2);
    net.settle(8);
    let mut session = Session::default();
    session.saw(net.put(0, "k"));
    net.settle(8);
    session.shorten(&net.nodes[0]).unwrap();
    let lone = Session::default().encode().len();
    assert_eq!(session.encode().len(), lone, "all seats that take part hold it");
    let coverage = |net: &Net| [0, 1, 2].map(|node| session.coverage(&net.nodes[node]));
    assert!(net.nodes[2].is_ready());
    assert_eq!(coverage(&net), [Coverage::Covered, Coverage::Covered, Coverage::Behind]);
    net.heal();
    assert_eq!(coverage(&net), [Coverage::Covered; 3]);
}

/// An adopted write does not stand for the lost write before it.
#[test]
fn session_notices_the_loss_before_an_adopted_write() {
    let mut net = Net::new(3);
    net.cut(2, 0);
    net.deliver(&mut |_, _, _| true);
    let mut session = Session::default();
    // The first write is lost on its way, the second is the last that arrives: a session may have seen both.
    session.saw(net.put(2, "a"));
    net.step(2, 1, &mut |_, _, _| false);
    session.saw(net.put(2, "b"));
    net.step(2, 1, &mut |_, _, _| true);
    net.cut_off(2);
    assert!(net.holds(1, "b") && !net.holds(1, "a"));
    net.settle(12);
    for node in &net.nodes[..2] {
        assert!(node.counters().adoptions > 0 && node.store().get(b"b").is_some());
        assert_ne!(session.coverage(node), Coverage::Covered);
    }
}
