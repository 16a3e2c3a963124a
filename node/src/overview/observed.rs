//! The other nodes as seen from here: which were found, and which of them have a link.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::discovery::View;
use crate::membership::MemberInfo;
use crate::refusals::{Refusals, Unjoinable};

/// The other nodes, as a node that may found a cluster must know them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Whether every discovery provider has answered at least once.
    pub answered: bool,
    /// Addresses of other nodes without a link.
    pub unreached: BTreeSet<SocketAddr>,
    /// Peers that cannot be talked to.
    pub unjoinable: Unjoinable,
}

impl Observed {
    /// An address that discovery found, or that members announced, counts as unreached until the member that listens
    /// there is linked: until then the node behind it is unknown.
    pub(super) fn new(
        me: SocketAddr,
        members: &[MemberInfo],
        discovery: &View,
        refusals: &Refusals,
        linked: &[u64],
    ) -> Self {
        let own = refusals.own();
        let is_other = |address: &&SocketAddr| **address != me && !own.contains(address);
        let announced = members.iter().map(|member| &member.id.peer_address);
        let named: BTreeSet<_> = discovery.addresses.keys().chain(announced).filter(is_other).copied().collect();
        let is_linked = |member: &&MemberInfo| linked.contains(&member.id.origin);
        let reached: BTreeSet<_> = members.iter().filter(is_linked).map(|member| member.id.peer_address).collect();
        // Only the IP address of a peer that dialled is known.
        let is_named = |at: &SocketAddr| match at.port() {
            0 => named.iter().any(|named| named.ip() == at.ip()),
            _ => named.contains(at),
        };
        Self {
            answered: discovery.answered(),
            unjoinable: refusals.unjoinable(is_named, |address| reached.contains(address)),
            unreached: named.difference(&reached).copied().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Role;
    use crate::discovery::ProviderStatus;
    use crate::membership::{MemberState, NodeId};
    use crate::refusals::{Reason, Refusal};

    fn at(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    fn member(origin: u64, port: u16) -> MemberInfo {
        MemberInfo { id: NodeId::new("n", origin, Role::Member, at(port), 1), state: MemberState::Alive }
    }

    fn found(ports: &[u16], answered: bool) -> View {
        let provider = ProviderStatus { provider: "static", answered, ..ProviderStatus::default() };
        View { addresses: ports.iter().map(|p| (at(*p), "static")).collect(), providers: vec![provider] }
    }

    /// What the node at port 1 observes if discovery finds the ports 1 to 3.
    fn observed(members: &[MemberInfo], linked: &[u64], refusals: &Refusals) -> Observed {
        Observed::new(at(1), members, &found(&[1, 2, 3], true), refusals, linked)
    }

    #[test]
    fn observed_address_is_unreached_until_linked() {
        let refusals = Refusals::default();
        let unreached = |members: &[MemberInfo], linked: &[u64]| observed(members, linked, &refusals).unreached.len();
        assert_eq!(unreached(&[], &[]), 2, "the node's own address does not count");
        assert_eq!(unreached(&[member(2, 2)], &[]), 2);
        assert_eq!(unreached(&[member(2, 2)], &[2]), 1);
        assert_eq!(unreached(&[member(2, 2), member(3, 3)], &[2, 3]), 0);
        assert_eq!(unreached(&[member(2, 2), member(3, 3), member(4, 4)], &[2, 3]), 1, "members announced port 4");
        refusals.is_own(at(3));
        assert_eq!(unreached(&[], &[]), 1, "port 3 is another address of the node itself");
    }

    #[test]
    fn observed_answered_needs_every_provider() {
        let answered = |view: &View| Observed::new(at(1), &[], view, &Refusals::default(), &[]).answered;
        assert!(answered(&found(&[], true)) && !answered(&found(&[], false)));
        assert!(answered(&View::default()), "without discovery the node is alone by choice");
    }

    #[test]
    fn observed_refusals_are_named_or_strangers() {
        let refusals = Refusals::default();
        for port in [2, 4, 5] {
            refusals.note(at(port), None, Reason::Key, "k");
        }
        refusals.note(at(6), None, Reason::Cluster, "c");
        refusals.note_caller(at(0).ip(), Some("n"), Reason::Clock, "c");
        let ports = |refusals: Vec<Refusal>| refusals.iter().map(|r| r.address.port()).collect::<Vec<_>>();
        let Unjoinable { named, strangers } = observed(&[member(4, 4)], &[], &refusals).unjoinable;
        assert_eq!((ports(named), ports(strangers)), (vec![0, 2, 4], vec![5]));
        // A linked peer can be talked to.
        let Unjoinable { named, .. } = observed(&[member(4, 4)], &[4], &refusals).unjoinable;
        assert_eq!(ports(named), [0, 2]);
    }
}
