//! Who is in the cluster, by SWIM over UDP: nodes probe each other, gossip
//! what they learn, and declare dead who doesn't answer in time. Knows nothing
//! of keys and values.
//!
//! The protocol is a state machine, [`swim`], in a crate of its own, so that
//! the server and the simulators drive the same code, and nothing in it can
//! come to know of sockets, threads or a clock.

mod identity;
mod limits;
pub mod swim;
mod timing;
pub mod wire;

#[cfg(test)]
mod simulation;

pub use identity::{MAX_NAME_BYTES, MAX_VERSION_BYTES, NodeId, Role};
pub use swim::Event;
pub use timing::Timing;
pub use wire::{MAX_DATAGRAM, Refused};

/// Whether a member answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberState {
    /// As far as anyone can tell.
    Alive,
    /// It did not answer a probe, and is given time to say that it lives.
    Suspect,
}

impl MemberState {
    /// The name that logs and status use.
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
    /// Who it is.
    pub id: NodeId,
    /// Whether it answers.
    pub state: MemberState,
}

/// The leader among `me` and `others`: the eldest with role member. Every node
/// comes to the same answer once all list the same members.
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
    fn the_eldest_member_leads_whoever_asks() {
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
