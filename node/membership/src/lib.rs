//! Which nodes of a Kvasir cluster are alive, by SWIM, as a state machine without sockets, threads or a clock.
//!
//! # SWIM
//!
//! In [SWIM](https://www.cs.cornell.edu/projects/Quicksilver/public_pdfs/SWIM.pdf) each node probes one other node per
//! period. If the probe is not answered, it asks a few members to probe for it. A member that answers none of them becomes a
//! *suspect*: this is gossiped, and the suspect may refute it by a message with a higher *incarnation*. A suspect that
//! does not is declared dead. The load of a node does not grow with the cluster, and a lost datagram kills no member.
//!
//! [foca](https://docs.rs/foca) implements this protocol, without I/O. This crate adds what a cluster in production needs:
//!
//! - [`NodeId`]: identities with a generation, so that a restart replaces its predecessor at once, and a node that was
//!   declared dead by mistake is back under a new generation at once;
//! - [`wire`]: a compact format, and an envelope that keeps other clusters and other versions out;
//! - limits on what a datagram can cause. UDP senders can be forged, so a node remembers at most [`wire::MAX_KNOWN`] nodes,
//!   answers at a bounded rate, and defends its own address against a forged owner;
//! - a check of clocks: a node whose start is too far in the future is refused;
//! - [`Swim::set_addresses`]: announcements to addresses from discovery, for as long as no member has them, so that
//!   partitions heal;
//! - [`Event`]: each process joins once, and leaves or fails once;
//! - [`Swim::leave`]: a farewell to all members at once.
//!
//! # Driving it
//!
//! The caller owns the socket and the clock. It passes in datagrams and the time, sends what comes out, and calls
//! [`Swim::tick`] by [`Swim::deadline`]:
//!
//! ```
//! use std::time::Duration;
//!
//! use kvasir_membership::{NodeId, Output, Role, Swim, Timing, wire};
//!
//! let wall_ms = 1_790_000_000_000; // milliseconds since 1970, from the wall clock
//! let node = |name: &str, origin: u64, port: u16| {
//!     let me = NodeId::new(name, origin, Role::Member, ([127, 0, 0, 1], port).into(), wall_ms);
//!     let envelope = wire::envelope("my-cluster", "", wire::VERSION);
//!     Swim::new(me, envelope, Timing::LAN, Duration::from_secs(10), origin)
//! };
//! let mut nodes = [node("a", 1, 7071), node("b", 2, 7072)];
//! nodes[1].set_addresses(Duration::ZERO, [nodes[0].me().peer_address]); // from discovery
//!
//! let mut now = Duration::ZERO;
//! while nodes.iter().any(|node| node.members().is_empty()) {
//!     now = now.max(nodes[0].deadline().min(nodes[1].deadline()));
//!     for from in 0..nodes.len() {
//!         nodes[from].tick(now, wall_ms);
//!         while let Some(output) = nodes[from].output() {
//!             match output {
//!                 Output::Send(to, datagram) => {
//!                     let to = nodes.iter_mut().find(|node| node.me().peer_address == to).unwrap();
//!                     to.datagram(now, wall_ms, &datagram)?;
//!                 }
//!                 Output::Event(event) => println!("{event:?}"),
//!                 Output::Members(members) => println!("{} others", members.len()),
//!                 Output::Fault(error) => panic!("{error}"),
//!             }
//!         }
//!     }
//! }
//! # Ok::<(), kvasir_membership::Refused>(())
//! ```
//!
//! `node/src/membership` of kvasir-node drives it with a UDP socket, `tests/simulation.rs` with thousands of simulated hours.
//! The crate knows nothing of keys and values.

mod identity;
mod limits;
pub mod swim;
mod timing;
pub mod wire;

pub use self::{
    identity::{MAX_NAME_BYTES, MAX_VERSION_BYTES, NodeId, Role},
    swim::{Event, Output, Swim},
    timing::Timing,
    wire::{MAX_DATAGRAM, Refused},
};

/// Whether a member answers probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberState {
    /// It answers, as far as this node knows.
    Alive,
    /// It did not answer, and has some time to refute the suspicion.
    Suspect,
}

impl MemberState {
    /// The name in logs and status.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
        }
    }
}

/// Another node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberInfo {
    /// The node's identity.
    pub id: NodeId,
    /// Whether the node answers probes.
    pub state: MemberState,
}

/// The leader among `me` and `others`: the eldest node with role member. All nodes that list the same members find the same
/// leader.
pub fn leader<'a>(me: &'a NodeId, others: &'a [MemberInfo]) -> Option<&'a NodeId> {
    others
        .iter()
        .map(|member| &member.id)
        .chain([me])
        .filter(|id| id.role == Role::Member)
        .min_by_key(|id| id.seniority())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leader_is_the_eldest_member_for_every_node() {
        let id = |name: &str, role, started_ms, origin| {
            NodeId::new(name, origin, role, ([127, 0, 0, 1], 1).into(), started_ms)
        };
        let (a, b) = (id("a", Role::Member, 5, 9), id("b", Role::Member, 5, 3));
        let sidecar = id("s", Role::Sidecar, 1, 1);
        let other = |id: &NodeId| MemberInfo { id: id.clone(), state: MemberState::Suspect };
        assert_eq!(leader(&a, &[other(&b), other(&sidecar)]), Some(&b));
        assert_eq!(leader(&b, &[other(&a)]), Some(&b));
        assert_eq!(leader(&sidecar, &[other(&a), other(&b)]), Some(&b));
        assert_eq!(leader(&sidecar, &[]), None, "a sidecar never leads");
    }
}
