//! The identity of a node. An address belongs to one node at a time: of two nodes that claim it, the later one wins.

use std::{cmp::Reverse, net::SocketAddr};

use serde::{Deserialize, Serialize};

/// The longest node name: a DNS label, as a pod's name in a `StatefulSet` is.
pub const MAX_NAME_BYTES: usize = 63;
/// The longest version string of a node.
pub const MAX_VERSION_BYTES: usize = 32;

/// From this generation on the rank no longer grows by doubling.
const MAX_DOUBLINGS: u32 = 40;

/// A node's part in its cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// One of the cluster's own nodes.
    #[default]
    Member,
    /// A full replica in the pod of an application.
    Sidecar,
}

impl Role {
    /// The name that settings, logs and status use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Sidecar => "sidecar",
        }
    }
}

/// The identity of one process of a node. A restart makes another identity.
///
/// Identities are equal if origin, address, generation and `leaving` are; the other fields follow from these.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeId {
    /// The name, unique in the cluster; at most [`MAX_NAME_BYTES`].
    pub name: String,
    /// The origin of the process's writes: a random number, never 0.
    #[serde(with = "postcard::fixint::le")]
    pub origin: u64,
    /// The node's part in its cluster.
    pub role: Role,
    /// Where peers reach the node, by TCP and by UDP.
    pub peer_address: SocketAddr,
    /// When the process started, in milliseconds since 1970.
    pub started_ms: u64,
    /// The version of the program; at most [`MAX_VERSION_BYTES`].
    pub version: String,
    /// How often the process was declared dead and took a new identity.
    pub generation: u32,
    /// Whether the node has left. It is part of the identity, so that every node that hears of this one's end knows that
    /// it left and did not fail.
    pub leaving: bool,
}

impl NodeId {
    /// The identity of a process that starts now, with this program's version.
    pub fn new(name: &str, origin: u64, role: Role, peer_address: SocketAddr, started_ms: u64) -> Self {
        Self {
            name: name.to_owned(),
            origin,
            role,
            peer_address,
            started_ms,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: 0,
            leaving: false,
        }
    }

    /// Stands for the unknown node that listens at `address`.
    pub(crate) fn unknown_at(address: SocketAddr) -> Self {
        Self { version: String::new(), ..Self::new("", 0, Role::Member, address, 0) }
    }

    /// The order of age: the smaller is the elder.
    pub const fn seniority(&self) -> (u64, u64) {
        (self.started_ms, self.origin)
    }

    /// Decides between two nodes that claim one address: the larger rank wins.
    ///
    /// Normally that is the later start. But if the wall clock went back between two starts, the process would lose to its
    /// predecessor until that is forgotten. So each declaration of death adds to the rank, twice as much as the last one:
    /// few attempts make up for any clock.
    fn rank(&self) -> (u64, u32, bool, u64) {
        let added = (1u64 << self.generation.min(MAX_DOUBLINGS)) - 1;
        (self.started_ms.saturating_add(added), self.generation, self.leaving, self.origin)
    }

    /// This process under an identity that wins the address from `rival`; none if it has left.
    ///
    /// One step is enough for any generation of the rival. The start moves at most one millisecond past the rival's, so
    /// nodes that accepted the rival's start accept this one.
    pub(crate) fn outranking(&self, rival: &Self) -> Option<Self> {
        let mut next = foca::Identity::renew(self)?;
        let wins = |next: &Self| next.rank() > rival.rank();
        while !wins(&next) && next.generation < MAX_DOUBLINGS {
            next.generation += 1;
        }
        if !wins(&next) {
            next.generation = next.generation.max(rival.generation.saturating_add(1));
        }
        if !wins(&next) {
            next.started_ms = next.started_ms.max(rival.started_ms).saturating_add(1);
            // Any generation from here on will do, except the present one, which would make the same identity.
            next.generation = if self.generation == MAX_DOUBLINGS { MAX_DOUBLINGS + 1 } else { MAX_DOUBLINGS };
        }
        Some(next)
    }

    /// By how much the process started later than `latest_ms`, if it did.
    pub(crate) const fn ahead_of(&self, latest_ms: u64) -> Option<u64> {
        match self.started_ms.checked_sub(latest_ms) {
            None | Some(0) => None,
            ahead => ahead,
        }
    }

    /// Whether this is a later process than `other` under the same name.
    pub(crate) fn succeeds(&self, other: &Self) -> bool {
        self.name == other.name && self.origin != other.origin && Reverse(self.seniority()) < Reverse(other.seniority())
    }
}

impl PartialEq for NodeId {
    fn eq(&self, other: &Self) -> bool {
        self.origin == other.origin
            && self.generation == other.generation
            && self.leaving == other.leaving
            && self.peer_address == other.peer_address
    }
}

impl Eq for NodeId {}

impl foca::Identity for NodeId {
    type Addr = SocketAddr;

    fn renew(&self) -> Option<Self> {
        if self.leaving {
            return None;
        }
        Some(match self.generation.checked_add(1) {
            Some(generation) => Self { generation, ..self.clone() },
            // Only forged identities can have driven this node to the last generation.
            None => Self { started_ms: self.started_ms.saturating_add(1), generation: MAX_DOUBLINGS, ..self.clone() },
        })
    }

    fn addr(&self) -> SocketAddr {
        self.peer_address
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.rank() > adversary.rank()
    }
}

#[cfg(test)]
mod tests {
    use foca::Identity;

    use super::*;

    fn started(ms: u64) -> NodeId {
        NodeId::new("n", ms + 1, Role::Member, ([10, 0, 0, 1], 7071).into(), ms)
    }

    #[test]
    fn identity_that_started_later_wins_the_address() {
        assert!(started(2).win_addr_conflict(&started(1)));
        assert!(!started(1).win_addr_conflict(&started(2)));
        let renewed = started(1_000).renew().unwrap();
        assert!(renewed.win_addr_conflict(&started(1_000)));
        assert!(
            started(1_002).win_addr_conflict(&renewed),
            "a restart beats its predecessor that was declared dead once"
        );
    }

    #[test]
    fn identity_after_a_clock_step_outranks_its_past() {
        let past = started(100_000_000);
        let mut now = started(100_000_000 - 86_400_000);
        let mut tries = 0;
        while !now.win_addr_conflict(&past) {
            now = now.renew().unwrap();
            tries += 1;
        }
        assert_eq!(tries, 27);
    }

    #[test]
    fn identity_outranks_any_rival_in_one_step() {
        let me = started(1_800_000_000_000);
        let address = me.peer_address;
        for (ahead_ms, generation, leaving) in [
            (0, 0, true),
            (0, u32::MAX, false),
            (10_000, 0, false),
            (10_000, 39, false),
            (10_000, 40, true),
            (10_000, u32::MAX, true),
            (-86_400_000, u32::MAX, false),
        ] {
            let start = me.started_ms.strict_add_signed(ahead_ms);
            let rival = NodeId { generation, leaving, ..NodeId::new("x", u64::MAX, Role::Sidecar, address, start) };
            let next = me.outranking(&rival).unwrap();
            assert!(next.win_addr_conflict(&rival) && next.win_addr_conflict(&me), "{rival:?}: {next:?}");
            let again = next.outranking(&NodeId { started_ms: next.started_ms, ..rival.clone() }).unwrap();
            assert!(again.win_addr_conflict(&next) && again != next, "{rival:?}: {again:?}");
            assert!(next.started_ms <= me.started_ms.max(rival.started_ms) + 1, "{rival:?}: {next:?}");
            assert_eq!((next.origin, next.leaving), (me.origin, false));
        }
        let last = NodeId { generation: u32::MAX, ..me };
        let renewed = last.renew().unwrap();
        assert!(renewed.win_addr_conflict(&last) && renewed != last, "the last generation can be renewed");
    }

    #[test]
    fn identity_that_left_is_never_renewed() {
        let leaving = NodeId { leaving: true, ..started(1) };
        assert!(leaving.win_addr_conflict(&started(1)) && !started(1).win_addr_conflict(&leaving));
        assert_eq!(leaving.renew(), None);
    }
}
