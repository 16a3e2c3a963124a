//! The protocol on a perfect network, and what forged datagrams can do.

use std::collections::BTreeSet;

use super::{timers::MAX_TIMERS, *};
use crate::{
    Role,
    limits::{LIST_COST, PEER_BURST, REFUTATION_BURST, RENEWAL_BURST, TOTAL_BURST},
    wire::{MAX_KNOWN, Wire},
};

/// The wall clock of all nodes, in 2026.
const WALL_MS: u64 = 1_790_000_000_000;
const SKEW: Duration = Duration::from_secs(10);

fn swim(name: &str, origin: u64, address: SocketAddr) -> Swim {
    let me = NodeId::new(name, origin, Role::Member, address, WALL_MS + origin);
    Swim::new(me, wire::envelope("test", "", wire::VERSION), Timing::LAN, SKEW, origin)
}

/// Delivers datagrams until none is left, and returns the events of the first node.
fn talk(nodes: &mut [Swim], now: Duration) -> Vec<Event> {
    exchange(nodes, now).0
}

/// Like [`talk`], with the number of datagrams.
fn exchange(nodes: &mut [Swim], now: Duration) -> (Vec<Event>, usize) {
    let (mut events, mut count) = (Vec::new(), 0);
    loop {
        let mut sent = Vec::new();
        for (at, node) in nodes.iter_mut().enumerate() {
            while let Some(output) = node.output() {
                match output {
                    Output::Send(to, datagram) => sent.push((to, datagram)),
                    Output::Event(event) if at == 0 => events.push(event),
                    Output::Event(_) | Output::Members(_) => {}
                    Output::Fault(error) => panic!("{error}"),
                }
            }
        }
        if sent.is_empty() {
            return (events, count);
        }
        count += sent.len();
        assert!(count < 100_000, "the nodes send to each other without end");
        for (to, datagram) in sent {
            if let Some(node) = nodes.iter_mut().find(|node| node.me().peer_address == to) {
                match node.datagram(now, WALL_MS, &datagram) {
                    // Nodes with the same origin refuse each other.
                    Ok(()) | Err(Refused::Origin { .. } | Refused::TooMany | Refused::Full) => {}
                    Err(refused) => panic!("{refused}"),
                }
            }
        }
    }
}

/// Lets time pass for all nodes.
fn pass(nodes: &mut [Swim], now: &mut Duration, time: Duration) -> Vec<Event> {
    let end = *now + time;
    let mut events = Vec::new();
    while *now < end {
        *now += Duration::from_millis(10);
        for node in &mut *nodes {
            node.tick(*now, WALL_MS);
        }
        events.extend(talk(nodes, *now));
    }
    events
}

/// A node that lists one process at two addresses, one of them caused by a corrupt bit.
fn with_a_process_at_two_addresses() -> ([Swim; 3], Duration) {
    let [a, b, spoilt] = [[10, 0, 0, 1], [10, 0, 0, 2], [10, 0, 0, 3]].map(|ip| SocketAddr::from((ip, 7071)));
    let mut nodes = [swim("a", 1, a), swim("b", 2, b), swim("b", 2, spoilt)];
    let mut now = Duration::ZERO;
    nodes[1].set_addresses(now, [a]);
    nodes[2].set_addresses(now, [a]);
    let events = pass(&mut nodes, &mut now, Duration::from_secs(1));
    assert!(matches!(&events[..], [Event::Joined(id)] if id.origin == 2), "{events:?}");
    assert_eq!(nodes[0].members().len(), 2);
    (nodes, now)
}

#[test]
fn event_of_the_end_waits_for_the_last_address() {
    let ([a, b, _], mut now) = with_a_process_at_two_addresses();
    let mut nodes = [a, b];
    let events = pass(&mut nodes, &mut now, Duration::from_secs(10));
    assert_eq!(events, [], "the process is still listed at its other address");
    let members = nodes[0].members();
    assert!(matches!(&members[..], [member] if member.id == *nodes[1].me()), "{members:?}");
    nodes[1].leave(now);
    let events = talk(&mut nodes, now);
    assert!(matches!(&events[..], [Event::Left(id)] if id.origin == 2), "{events:?}");
}

#[test]
fn event_of_the_end_comes_once_and_says_left() {
    let (mut nodes, mut now) = with_a_process_at_two_addresses();
    nodes[1].leave(now);
    assert_eq!(talk(&mut nodes, now), [], "the other address is still listed");
    let [a, ..] = nodes;
    let mut nodes = [a];
    let events = pass(&mut nodes, &mut now, Duration::from_secs(10));
    assert!(matches!(&events[..], [Event::Left(id)] if id.origin == 2), "{events:?}");
    assert_eq!(nodes[0].members(), []);
}

const NOT_HERE: [u8; 4] = [10, 9, 9, 9];

fn node_at(ip: [u8; 4], origin: u64) -> NodeId {
    NodeId::new("x", origin, Role::Member, (ip, 7071).into(), WALL_MS)
}

/// A datagram that any sender can make who knows the cluster's name.
fn forge(from: &NodeId, to: &NodeId, message: Message<NodeId>, updates: &[foca::Member<NodeId>]) -> Vec<u8> {
    let message = wire::encode(&mut Wire { me: to.peer_address }, from, to, message, updates).unwrap();
    [&wire::envelope("test", "", wire::VERSION)[..], &message].concat()
}

fn three() -> ([Swim; 3], Duration) {
    let at = |last: u8| SocketAddr::from(([10, 0, 0, last], 7071));
    let mut nodes = [swim("a", 1, at(1)), swim("b", 2, at(2)), swim("c", 3, at(3))];
    let mut now = Duration::ZERO;
    nodes[1].set_addresses(now, [at(1)]);
    nodes[2].set_addresses(now, [at(1)]);
    pass(&mut nodes, &mut now, Duration::from_secs(30));
    assert!(all_listed(&nodes));
    (nodes, now)
}

fn all_listed(nodes: &[Swim]) -> bool {
    nodes.iter().all(|node| {
        let listed: BTreeSet<_> = node.members().iter().map(|it| it.id.origin).collect();
        let others = nodes.iter().map(|it| it.me().origin).filter(|origin| *origin != node.me().origin);
        listed == others.collect()
    })
}

/// About what three idle nodes send in a second.
const QUIET_SECOND: usize = 3 * 30;

/// One datagram claims that another node has `b`'s address, with various starts and generations, some of which `b` believes.
#[test]
fn forged_rival_is_outranked_at_once() {
    const YEARS: u64 = 36 * 365 * 86_400_000;
    let b = node_at([10, 0, 0, 2], 2);
    let ghosts = [
        NodeId { started_ms: WALL_MS + YEARS, ..NodeId::new("ghost", 99, Role::Member, b.peer_address, 0) },
        NodeId { started_ms: WALL_MS + 10_001, ..NodeId::new("ghost", 99, Role::Member, b.peer_address, 0) },
        NodeId { started_ms: WALL_MS + 10_000, ..NodeId::new("ghost", 99, Role::Member, b.peer_address, 0) },
        NodeId { generation: u32::MAX, ..NodeId::new("ghost", 99, Role::Member, b.peer_address, WALL_MS + 9_999) },
        NodeId { generation: 40, ..NodeId::new("ghost", 99, Role::Sidecar, b.peer_address, WALL_MS + 9_000) },
        NodeId {
            generation: u32::MAX,
            leaving: true,
            ..NodeId::new("b", 2, Role::Member, b.peer_address, WALL_MS + 2)
        },
        NodeId { leaving: true, ..NodeId::new("b", 2, Role::Member, b.peer_address, WALL_MS + 2) },
    ];
    for ghost in ghosts {
        for state in [State::Alive, State::Suspect, State::Down] {
            let (mut nodes, mut now) = three();
            let update = foca::Member::new(ghost.clone(), foca::Incarnation::MAX, state);
            let forged = forge(&node_at(NOT_HERE, 9), nodes[0].me(), Message::Gossip, &[update]);
            nodes[0].datagram(now, WALL_MS, &forged).unwrap();
            let mut sent = exchange(&mut nodes, now).1;
            let events_until = now + Duration::from_secs(10);
            while now < events_until {
                now += Duration::from_millis(10);
                for node in &mut nodes {
                    node.tick(now, WALL_MS);
                }
                sent += exchange(&mut nodes, now).1;
            }
            assert!(sent < 10 * QUIET_SECOND + 100, "{ghost:?}, {state:?}: {sent} datagrams");
            assert!(all_listed(&nodes), "{ghost:?}, {state:?}: {:?}", nodes[0].members());
            assert!(nodes[1].me().started_ms <= WALL_MS + 10_001, "{ghost:?}, {state:?}");
        }
    }
}

#[test]
fn forged_start_is_named_with_its_limit() {
    let ([mut a, b, _], now) = three();
    let late = NodeId { started_ms: WALL_MS + 10_001, ..node_at(NOT_HERE, 9) };
    let sent = forge(&late, a.me(), Message::Gossip, &[]);
    let about = Message::PingReq { target: late.clone(), probe_number: 1 };
    for datagram in [sent, forge(b.me(), a.me(), about, &[])] {
        let refused = a.datagram(now, WALL_MS, &datagram).unwrap_err().to_string();
        let said =
            "`x` at 10.9.9.9:7071 claims to have started 10001 ms in the future, at most 10000 ms (maxClockSkew)";
        assert!(refused.starts_with(said), "{refused}");
    }
    // The other updates of the message still count.
    let other = NodeId { origin: 8, ..node_at([10, 9, 9, 8], 8) };
    let updates = [foca::Member::alive(late), foca::Member::alive(other.clone())];
    a.datagram(now, WALL_MS, &forge(b.me(), a.me(), Message::Gossip, &updates)).unwrap();
    assert!(a.members().iter().any(|it| it.id == other) && a.members().len() == 3, "{:?}", a.members());
}

#[test]
fn forged_copy_of_the_own_origin_is_refused() {
    let ([mut a, b, _], now) = three();
    let copy = NodeId { origin: a.me().origin, ..node_at(NOT_HERE, 1) };
    let refused = a.datagram(now, WALL_MS, &forge(&copy, a.me(), Message::Gossip, &[]));
    assert!(matches!(refused, Err(Refused::Origin { .. })), "{refused:?}");
    a.datagram(now, WALL_MS, &forge(b.me(), a.me(), Message::Gossip, &[foca::Member::alive(copy)])).unwrap();
    assert_eq!(a.members().len(), 2);
}

/// Ten thousand datagrams at one moment, of each kind to which a node reacts by sending. The limits include what the other nodes
/// send because of that.
#[test]
fn forged_floods_cause_few_datagrams() {
    type Flood<'a> = (&'a str, usize, Box<dyn Fn(u32, &NodeId) -> Vec<u8> + 'a>);
    const FLOOD: u32 = 10_000;
    // Each renewal is sent to 3 members at once. No address is left to announce to.
    let renewals = (RENEWAL_BURST as usize) * 4;
    let suspicions = REFUTATION_BURST as usize * 3;
    let (one, all) = (PEER_BURST as usize, TOTAL_BURST as usize);
    let x = node_at(NOT_HERE, 9);
    let from = |at: u32| node_at([10, 9, (at >> 8) as u8, at as u8], u64::from(at) + 100);
    let ping = || Message::PingReq { target: node_at([10, 8, 8, 8], 7), probe_number: 1 };
    let floods: [Flood<'_>; 11] = [
        ("pings", one, Box::new(|_, a| forge(&x, a, Message::Ping(1), &[]))),
        ("pings of many", all, Box::new(|at, a| forge(&from(at), a, Message::Ping(1), &[]))),
        ("announcements", one / LIST_COST as usize, Box::new(|_, a| forge(&x, a, Message::Announce, &[]))),
        (
            "announcements of many",
            all / LIST_COST as usize,
            Box::new(|at, a| forge(&from(at), a, Message::Announce, &[])),
        ),
        ("requests", one, Box::new(|_, a| forge(&x, a, ping(), &[]))),
        ("turn undead", renewals, Box::new(|_, a| forge(&x, a, Message::TurnUndead, &[]))),
        ("deaths", renewals, Box::new(|_, a| forge(&x, a, Message::Gossip, &[foca::Member::down(a.clone())]))),
        (
            "deaths of all generations",
            renewals,
            Box::new(|at, a| {
                let me = NodeId { generation: at, ..a.clone() };
                forge(&x, &me, Message::Gossip, &[foca::Member::down(me.clone())])
            }),
        ),
        (
            "suspicions",
            suspicions,
            Box::new(|at, a| {
                let suspect = foca::Member::new(a.clone(), at as u16, State::Suspect);
                forge(&x, a, Message::Gossip, &[suspect])
            }),
        ),
        (
            "last suspicions",
            renewals,
            Box::new(|_, a| {
                let suspect = foca::Member::new(a.clone(), u16::MAX, State::Suspect);
                forge(&x, a, Message::Gossip, &[suspect])
            }),
        ),
        (
            "rivals",
            renewals,
            Box::new(|at, a| {
                let rival = NodeId {
                    started_ms: WALL_MS + u64::from(at),
                    ..NodeId::new("y", 8, Role::Member, a.peer_address, 0)
                };
                forge(&x, a, Message::Gossip, &[foca::Member::alive(rival)])
            }),
        ),
    ];
    for (what, limit, make) in floods {
        let (mut nodes, now) = three();
        for at in 0..FLOOD {
            let datagram = make(at, &nodes[0].me().clone());
            let _ = nodes[0].datagram(now, WALL_MS, &datagram);
        }
        let sent = exchange(&mut nodes, now).1;
        // Two other nodes hear of each renewal, and answer it at most once.
        assert!(sent > 0 && sent <= limit, "{what}: {sent} datagrams, at most {limit}");
    }
}

#[test]
fn forged_members_are_bounded() {
    let (mut nodes, now) = three();
    let ghosts =
        (0..3000_u32).map(|at| foca::Member::alive(node_at([11, 0, (at >> 8) as u8, at as u8], 100 + u64::from(at))));
    let (ghosts, b) = (ghosts.collect::<Vec<_>>(), nodes[1].me().clone());
    for some in ghosts.chunks(20) {
        nodes[0].datagram(now, WALL_MS, &forge(&b, &nodes[0].me().clone(), Message::Gossip, some)).unwrap();
    }
    // All nodes that one message names are accepted together.
    let known = nodes[0].members().len();
    assert!((MAX_KNOWN..MAX_KNOWN + 20).contains(&known), "{known}");
    let id = node_at(NOT_HERE, 9);
    let refused = nodes[0].datagram(now, WALL_MS, &forge(&id, &nodes[0].me().clone(), Message::Gossip, &[]));
    assert!(matches!(refused, Err(Refused::Full)), "{refused:?}");
    let known = nodes[1].me().clone();
    nodes[0].datagram(now, WALL_MS, &forge(&known, &nodes[0].me().clone(), Message::Ping(1), &[])).unwrap();
    // Dead nodes make room.
    let dead: Vec<_> = ghosts[..20].iter().map(|it| foca::Member::down(it.id().clone())).collect();
    nodes[0].datagram(now, WALL_MS, &forge(&known, &nodes[0].me().clone(), Message::Gossip, &dead)).unwrap();
    nodes[0].datagram(now, WALL_MS, &forge(&id, &nodes[0].me().clone(), Message::Gossip, &[])).unwrap();
}

#[test]
fn forged_deaths_are_bounded() {
    let (mut nodes, now) = three();
    let b = nodes[1].me().clone();
    let dead = (0..MAX_TIMERS as u32 + 100).map(|at| {
        foca::Member::down(NodeId {
            started_ms: WALL_MS - 100_000 + u64::from(at),
            ..node_at(NOT_HERE, 9 + u64::from(at))
        })
    });
    for some in dead.collect::<Vec<_>>().chunks(20) {
        nodes[0].datagram(now, WALL_MS, &forge(&b, &nodes[0].me().clone(), Message::Gossip, some)).unwrap();
    }
    assert_eq!(nodes[0].core.timers.len(), MAX_TIMERS);
    assert!(all_listed(&nodes));
}

#[test]
fn announce_of_another_cluster_uid_is_answered_once() {
    let ([mut a, ..], now) = three();
    let other = NodeId::new("s", 77, Role::Sidecar, (NOT_HERE, 7071).into(), WALL_MS);
    let mut old = Swim::new(other, wire::envelope("test", "earlier", wire::VERSION), Timing::LAN, SKEW, 1);
    old.set_addresses(now, [a.me().peer_address]);
    old.tick(now, WALL_MS);
    let Some(Output::Send(_, asked)) = old.output() else { panic!("it announces itself") };
    assert!(matches!(a.datagram(now, WALL_MS, &asked), Err(Refused::OtherUid)));
    let Some(Output::Send(to, answer)) = a.output() else { panic!("the announcement is answered") };
    assert_eq!(to, old.me().peer_address);
    assert!(matches!(old.datagram(now, WALL_MS, &answer), Err(Refused::OtherUid)));
    assert!(old.output().is_none() && a.output().is_none(), "the answer is not answered");
    assert_eq!((a.members().len(), old.members().len()), (2, 0));
}
