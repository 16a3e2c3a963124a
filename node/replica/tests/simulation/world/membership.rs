//! The production membership between the simulated nodes, on the same network as the messages.
//!
//! Links follow from its list of members, by the rules of the node's transport: the process with the smaller origin dials;
//! the other one does so when no link came up for a while. A link stays when its peer is no longer listed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kvasir_membership::swim::{Output, Swim};
use kvasir_membership::{Event, MemberInfo, NodeId, Refused, Role, Timing, leader, wire};
use rand::RngExt as _;

use super::network::pair;
use super::{MAX_CLOCK_SKEW_MS, STEP_MS, World};
use crate::prelude::*;

/// A process waits this long for a process with a smaller origin to dial.
const PATIENCE_MS: u64 = 3_000;
/// How often a node compares the addresses that discovery found with its links.
const LOOK_MS: u64 = 50;
/// How long after the first goodbye each further one is sent.
const FAREWELLS_MS: [u64; 2] = [30, 60];
/// Once the network has healed, all nodes list each other within this time.
const MEET_MS: u64 = 10_000;

/// A node's part in the membership.
pub struct Member {
    swim: Swim,
    /// The last list of the others.
    members: Arc<Vec<MemberInfo>>,
    /// The live processes, according to its events.
    present: BTreeSet<u64>,
    dials: BTreeMap<u64, Dial>,
    view: View,
    next_look_ms: u64,
}

/// The attempts to link a listed process.
#[derive(Default)]
struct Dial {
    /// When a link to the process was last up, or the process was first listed.
    since_ms: u64,
    /// The connection that was made for it, perhaps with another process at its address.
    connection: Option<u64>,
}

fn address(place: usize) -> SocketAddr {
    ([10, 0, 0, place as u8], 7071).into()
}

fn place(address: SocketAddr) -> usize {
    let SocketAddr::V4(address) = address else { unreachable!("only places have addresses") };
    usize::from(address.ip().octets()[3])
}

impl World<'_> {
    /// Makes the node at a place a member that knows only addresses: discovery finds all places, occupied or not.
    pub(super) fn join(&mut self, at: usize) {
        let seed = self.rng.random();
        let found: Vec<_> = self.found().collect();
        let Some(node) = &mut self.nodes[at] else { return };
        let role = if at < self.plan.voters { Role::Member } else { Role::Sidecar };
        let id = NodeId::new(&node.name, node.origin, role, address(at), node.replica.id().started_ms);
        let envelope = wire::envelope("simulation", "", wire::VERSION);
        let mut swim = Swim::new(id, envelope, Timing::LAN, Duration::from_millis(MAX_CLOCK_SKEW_MS), seed);
        swim.set_addresses(Duration::from_millis(self.now_ms), found.iter().map(|&place| address(place)));
        node.member = Some(Member {
            swim,
            members: Arc::default(),
            present: BTreeSet::new(),
            dials: BTreeMap::new(),
            view: View { unlinked: found.len() - 1, ..View::ALONE },
            next_look_ms: self.now_ms,
        });
        self.changed_ms = self.now_ms;
    }

    /// The wall clock of the node at a place.
    fn wall_ms(&self, at: usize, now: Duration) -> Option<u64> {
        let skew_ms = self.nodes[at].as_ref()?.skew_ms;
        Some((now.as_millis() as u64).saturating_add_signed(skew_ms))
    }

    /// The places that discovery finds: all of them, but a twin's only while it runs.
    fn found(&self) -> impl Iterator<Item = usize> {
        (0..self.nodes.len()).filter(|place| !self.is_twin(*place) || self.nodes[*place].is_some())
    }

    fn member(&mut self, at: usize) -> Option<&mut Member> {
        self.nodes[at].as_mut()?.member.as_mut()
    }

    /// Delivers datagrams and fires timers up to now, each at its own moment.
    pub(super) fn run_membership(&mut self) {
        let end = Duration::from_millis(self.now_ms);
        let mut now = Duration::from_millis(self.now_ms - STEP_MS);
        loop {
            let members = self.nodes.iter().enumerate().filter_map(|(at, n)| Some((at, n.as_ref()?.member.as_ref()?)));
            let timer = members.map(|(at, member)| (member.swim.deadline(), at)).min();
            let datagram = self.datagrams.peek().map(|packet| Duration::from_millis(packet.due_ms));
            // Datagrams come first: a process that answered in time must not be suspected.
            let at = if let Some(due) = datagram.filter(|due| *due <= timer.map_or(end, |(at, _)| at.min(end))) {
                now = now.max(due);
                let Some(packet) = self.datagrams.pop() else { return };
                let Some(wall_ms) = self.wall_ms(packet.to, now) else { continue };
                // The place may be empty, or have another process than the datagram was meant for.
                let Some(member) = self.member(packet.to) else { continue };
                match member.swim.datagram(now, wall_ms, &packet.content) {
                    // A burst beyond the limit is as good as lost.
                    Ok(()) | Err(Refused::TooMany) => {}
                    // A start time is only as accurate as the clock.
                    Err(Refused::Ahead { .. }) if self.plan.skew_ms.unsigned_abs() > MAX_CLOCK_SKEW_MS / 2 => {}
                    Err(refused) => panic!("all are of one cluster, and no two have one address: {refused}"),
                }
                packet.to
            } else if let Some((due, at)) = timer.filter(|(due, _)| *due <= end) {
                now = now.max(due);
                let Some(wall_ms) = self.wall_ms(at, now) else { return };
                let Some(member) = self.member(at) else { return };
                member.swim.tick(now, wall_ms);
                at
            } else {
                return;
            };
            self.handle_outputs(at, now);
        }
    }

    /// Does what a node's membership asks for.
    fn handle_outputs(&mut self, at: usize, now: Duration) {
        while let Some(output) = self.member(at).and_then(|member| member.swim.output()) {
            match output {
                Output::Send(to, datagram) => {
                    self.send_datagram(at, place(to), now.as_millis() as u64, &datagram);
                }
                Output::Event(event) => self.handle_event(at, &event),
                Output::Members(members) => {
                    let Some(member) = self.member(at) else { return };
                    let listed: BTreeSet<_> = members.iter().map(|it| it.id.origin).collect();
                    assert_eq!(member.present, listed, "node {at}: its events contradict its list");
                    member.members = members;
                }
                Output::Fault(error) => panic!("the membership of node {at} has a fault: {error}"),
            }
        }
    }

    fn handle_event(&mut self, at: usize, event: &Event) {
        self.trace(|| {
            let (Event::Joined(id) | Event::Left(id) | Event::Failed(id) | Event::Renewed(id)) = event;
            let what = match event {
                Event::Joined(_) => "joined",
                Event::Left(_) => "left",
                Event::Failed(_) => "is dead",
                Event::Renewed(_) => "was declared dead and lives",
            };
            format!("to node {at}, {} ({}) {what}", id.name, id.origin)
        });
        let lives = |id: &NodeId| self.live().any(|node| node.origin == id.origin);
        let false_death = matches!(event, Event::Failed(id) if lives(id)) || matches!(event, Event::Renewed(_));
        let quiet = self.healed && self.now_ms > self.changed_ms + MEET_MS;
        assert!(!(false_death && quiet), "node {at}: {event:?} of a process that lives and can be reached");
        if let Event::Left(id) = event {
            assert!(self.said_goodbye.contains(&id.origin), "node {at}: {event:?}, but it never said goodbye");
        }
        let Some(member) = self.member(at) else { return };
        let expected = match event {
            Event::Joined(id) => member.present.insert(id.origin),
            Event::Left(id) | Event::Failed(id) => member.present.remove(&id.origin),
            Event::Renewed(_) => true,
        };
        assert!(expected, "node {at}: {event:?} for the second time");
    }

    /// The replica has reset: its part in the membership gets the new origin.
    pub(super) fn rejoin(&mut self, at: usize) {
        let now = Duration::from_millis(self.now_ms);
        let Some(node) = &mut self.nodes[at] else { return };
        let Some(member) = &mut node.member else { return };
        let id = node.replica.id();
        assert!(member.swim.reset(now, id.origin, id.started_ms), "{} had that origin before", node.name);
        self.changed_ms = self.now_ms;
        self.handle_outputs(at, now);
    }

    /// Says goodbye as often as production does. The node is gone at once; the repetitions are sent when they would be.
    pub(super) fn say_goodbye(&mut self, at: usize) {
        let now = self.now_ms;
        let Some(member) = self.member(at) else { return };
        member.swim.leave(Duration::from_millis(now));
        let origin = member.swim.me().origin;
        self.said_goodbye.insert(origin);
        self.handle_outputs(at, Duration::from_millis(now));
        for after in FAREWELLS_MS {
            let then = Duration::from_millis(now + after);
            if let Some(member) = self.member(at) {
                member.swim.farewell(then);
            }
            self.handle_outputs(at, then);
        }
    }

    /// Each node dials the listed peers that it should. It dials an address: it links to any process there, and replaces
    /// an older link to the same process.
    pub(super) fn dial(&mut self) {
        for a in 0..self.nodes.len() {
            let Some(member) = self.member(a) else { continue };
            let members = Arc::clone(&member.members);
            member.dials.retain(|origin, _| members.iter().any(|it| it.id.origin == *origin));
            for peer in members.iter() {
                let (b, now_ms) = (place(peer.id.peer_address), self.now_ms);
                let current = self.connections.get(&pair(a, b)).copied();
                let Some(node) = &mut self.nodes[a] else { continue };
                let Some(member) = &mut node.member else { continue };
                let dial = member.dials.entry(peer.id.origin).or_insert(Dial { since_ms: now_ms, connection: None });
                // A node does not dial again while the connection of its last dial is up.
                if current.is_some() && dial.connection == current {
                    continue;
                }
                if node.replica.linked().any(|origin| origin == peer.id.origin) {
                    dial.since_ms = now_ms;
                    continue;
                }
                let mine_to_dial = node.replica.origin() < peer.id.origin;
                if (mine_to_dial || now_ms - dial.since_ms >= PATIENCE_MS) && self.can_talk(a, b) {
                    self.disconnect(a, b);
                    let connection = self.connect(a, b);
                    if let Some(dial) = self.member(a).and_then(|member| member.dials.get_mut(&peer.id.origin)) {
                        dial.connection = connection;
                    }
                }
            }
        }
    }

    /// What a node knows of the others. An address counts as unlinked until a process that is listed there is linked.
    pub(super) fn view(&mut self, at: usize) -> View {
        let (found, now_ms): (Vec<_>, _) = (self.found().collect(), self.now_ms);
        let refused = self.apart_from(at).count();
        let Some(node) = &mut self.nodes[at] else { return View::UNKNOWN };
        let Some(member) = &mut node.member else {
            return View { unlinked: usize::from(node.links.is_empty()), refused, ..View::ALONE };
        };
        if now_ms >= member.next_look_ms {
            member.next_look_ms = now_ms + LOOK_MS;
            let linked: BTreeSet<_> = node.replica.linked().collect();
            let reached = member.members.iter().filter(|it| linked.contains(&it.id.origin));
            let reached: BTreeSet<_> = reached.map(|it| it.id.peer_address).collect();
            member.view.unlinked = found.iter().filter(|p| **p != at && !reached.contains(&address(**p))).count();
        }
        View { refused, ..member.view }
    }

    /// Whether all nodes list all others, and name one leader. Always so without membership.
    pub fn met(&self) -> Result<(), String> {
        let mut leaders = BTreeSet::new();
        for (at, node) in self.nodes.iter().enumerate() {
            let Some((node, member)) = node.as_ref().and_then(|node| Some((node, node.member.as_ref()?))) else {
                continue;
            };
            let me = member.swim.me();
            assert_eq!(
                me.origin,
                node.replica.origin(),
                "the membership of {} has another origin than its replica",
                node.name
            );
            let others = self.nodes.iter().enumerate().filter(|(other, _)| *other != at);
            let others = others.filter_map(|(other, node)| Some((address(other), node.as_ref()?.origin)));
            let listed = member.swim.members().into_iter();
            let listed: BTreeMap<_, _> = listed.map(|it| (it.id.peer_address, it.id.origin)).collect();
            if listed != others.collect() {
                return Err(format!("{} lists {:?}", node.name, member.members));
            }
            leaders.insert(leader(me, &member.members).map(|id| id.origin));
        }
        if leaders.len() > 1 { Err(format!("the nodes name {leaders:?} as leaders")) } else { Ok(()) }
    }

    /// Holds once the network has healed: membership does not wait for the replicas.
    pub(super) fn expect_met(&self) {
        if self.now_ms > self.changed_ms + MEET_MS
            && let Err(why) = self.met()
        {
            panic!("{MEET_MS} ms after all could reach each other, {why}");
        }
    }
}
