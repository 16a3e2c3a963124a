//! Datagrams of the membership protocol: sent by another node, intact or corrupt, or arbitrary bytes.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use kvasir_node::config::{Role, SwimConfig};
use kvasir_node::membership::swim::{Output, Swim};
use kvasir_node::membership::{Event, MAX_DATAGRAM, NodeId, Refused, wire};

use crate::input::Input;

const CLUSTER: &str = "default/demo";
/// The prefix of a message, which admits only nodes of this cluster.
const ENVELOPE: usize = 13;
/// The wall clock of both nodes, later than any start time that is not forged.
const WALL_MS: u64 = 1_000_000;
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(10);

struct Node {
    swim: Swim,
    /// The members according to the events join, leave and fail. By origin: events contain no addresses, and corrupt
    /// datagrams can make one process appear at several.
    members: BTreeSet<u64>,
    sent: Vec<(SocketAddr, Vec<u8>)>,
}

impl Node {
    fn new(at: u8) -> Self {
        let id = NodeId::new(&format!("n{at}"), u64::from(at), Role::Member, address(at), 1000 + u64::from(at));
        let swim =
            Swim::new(id, wire::envelope(CLUSTER, "", wire::VERSION), SwimConfig::LAN, MAX_CLOCK_SKEW, u64::from(at));
        Self { swim, members: BTreeSet::new(), sent: Vec::new() }
    }

    /// Takes the results of a step, and checks them.
    fn settle(&mut self) {
        self.sent.clear();
        let mut published = None;
        while let Some(output) = self.swim.output() {
            match output {
                Output::Send(to, datagram) => {
                    assert!(datagram.len() <= MAX_DATAGRAM, "a datagram of {} bytes", datagram.len());
                    self.sent.push((to, datagram));
                }
                Output::Event(Event::Joined(id)) => assert!(self.members.insert(id.origin), "{id:?} came twice"),
                Output::Event(Event::Left(id) | Event::Failed(id)) => {
                    assert!(self.members.remove(&id.origin), "{id:?} is gone, and never came");
                }
                Output::Event(Event::Renewed(id)) => assert_eq!(id.origin, self.swim.me().origin),
                Output::Members(members) => published = Some(members),
                Output::Fault(_) => {}
            }
        }
        let members = self.swim.members();
        // Of several events in one step, the last one counts.
        assert!(published.is_none_or(|published| *published == members), "not what was published: {members:?}");
        assert!(members.iter().all(|member| member.id.peer_address != self.swim.me().peer_address), "{members:?}");
        assert!(members.iter().all(|member| !member.id.leaving), "{members:?}");
        assert!(members.is_sorted_by_key(|member| member.id.seniority()));
        let listed: BTreeSet<_> = members.iter().map(|member| member.id.origin).collect();
        assert_eq!(self.members, listed, "members by events, and by the list: {members:?}");
    }
}

fn address(at: u8) -> SocketAddr {
    ([10, 0, 0, at], 7071).into()
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut nodes = [Node::new(1), Node::new(2)];
    let mut now = Duration::ZERO;
    // The last datagrams of the two nodes to each other.
    let mut said: Vec<Vec<u8>> = Vec::new();
    // Whether either node has received a datagram that no node sent.
    let mut deceived = false;
    for (at, node) in nodes.iter_mut().enumerate() {
        node.swim.set_addresses(now, [address(2 - u8::try_from(at).expect("0 or 1"))]);
    }
    while !input.is_empty() {
        let at = input.below(2);
        match input.below(8) {
            0 | 1 => {
                now += Duration::from_millis(u64::from(input.byte()) * 4);
                nodes[at].swim.tick(now, WALL_MS);
            }
            2 | 3 => {
                if !said.is_empty() {
                    let datagram = said.swap_remove(input.below(said.len()));
                    // A node accepts everything that a node of its release sends; a late or duplicate datagram is
                    // useless at worst.
                    match nodes[at].swim.datagram(now, WALL_MS, &datagram) {
                        // The rate limit may drop the datagram.
                        Ok(()) | Err(Refused::Impostor | Refused::TooMany) => {}
                        // The node may have had to outbid the latest start time that is believed, or one with its own
                        // origin. A node that lists a forged node may ask that node to probe another; here each node
                        // receives datagrams for other addresses, so it may be asked to probe itself.
                        Err(
                            Refused::Ahead { .. }
                            | Refused::Origin { .. }
                            | Refused::Malformed(foca::Error::IndirectForOurselves),
                        ) if deceived => {}
                        Err(refused) => panic!("a node does not understand another node: {refused}"),
                    }
                }
            }
            4 => {
                let Some(mut datagram) = said.last().cloned() else { continue };
                for _ in 0..input.below(4) {
                    let at = (usize::from(input.byte()) << 3 | input.below(8)) % datagram.len();
                    datagram[at] ^= input.byte();
                }
                datagram.extend_from_slice(input.bytes(0));
                deceived = true;
                let _ = nodes[at].swim.datagram(now, WALL_MS, &datagram);
            }
            5 => {
                let envelope = said.last().map_or(vec![0; ENVELOPE], |datagram| datagram[..ENVELOPE].to_vec());
                deceived = true;
                let _ = nodes[at].swim.datagram(now, WALL_MS, &[&envelope[..], input.chunk()].concat());
            }
            6 => match input.below(8) {
                0 => nodes[at].swim.leave(now),
                1 => nodes[at].swim.farewell(now),
                2 => drop(nodes[at].swim.reset(now, input.number().max(1), u64::from(input.byte()) << 10)),
                _ => nodes[at].swim.set_addresses(now, [address(input.byte()), address(1), address(2)]),
            },
            _ => {
                deceived = true;
                let _ = nodes[at].swim.datagram(now, WALL_MS, input.chunk());
            }
        }
        nodes[at].settle();
        said.extend(nodes[at].sent.drain(..).map(|(_, datagram)| datagram));
        let many = said.len().saturating_sub(16);
        said.drain(..many);
    }
    for node in &mut nodes {
        // Whatever arrived, the node keeps working, and its events add up.
        node.swim.tick(now + Duration::from_mins(1), WALL_MS);
        node.settle();
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    // Two nodes that meet, in steps of (node, kind, ...).
    let meet: Vec<u8> = (0..40).flat_map(|_| [0, 0, 20, 1, 2, 0, 0, 2, 0, 1, 0, 20, 0, 2, 0]).collect();
    let spoilt = [&meet[..], &[0, 4, 2, 3, 1, 5, 9, 2, 7, 1, 4, 1, 2, 6, 3]].concat();
    let leaving = [&meet[..], &[0, 6, 0, 1, 2, 0, 1, 2, 1, 1, 6, 2, 0, 0, 0, 0, 0, 0, 0, 9, 9]].concat();
    // A flipped bit in the sender's port: the second node lists one process at two addresses, until it considers both
    // dead.
    let at_two = [&meet[..meet.len() - 1], &[1, 4, 1, 3, 7, 1]].concat();
    let twice = [&at_two[..], &[1, 0, 50].repeat(40)].concat();
    // The second node asks that process, at the wrong address, to probe the right one; the first node receives that.
    let itself = [&at_two[..], &[1, 0, 10, 0, 2, 255].repeat(20)].concat();
    vec![meet, spoilt, leaving, twice, itself]
}
