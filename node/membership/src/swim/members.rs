//! The members as last reported to the caller.

use std::{collections::BTreeMap, net::SocketAddr};

use foca::State;

use super::{events::Event, protocol::Protocol};
use crate::{MemberInfo, MemberState, NodeId};

/// The other members by address.
#[derive(Default)]
pub(super) struct Members(BTreeMap<SocketAddr, MemberInfo>);

impl Members {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn is_at(&self, address: SocketAddr) -> bool {
        self.0.contains_key(&address)
    }

    /// Eldest first.
    pub(super) fn by_seniority(&self) -> Vec<MemberInfo> {
        let mut members: Vec<_> = self.0.values().cloned().collect();
        members.sort_by_key(|member| member.id.seniority());
        members
    }

    /// Follows foca's list. Returns the events of the difference, or none if there is no difference.
    pub(super) fn update(&mut self, foca: &Protocol) -> Option<Vec<Event>> {
        let present = || foca.iter_members().filter(|member| !member.id().leaving);
        let is_known = |member: &foca::Member<NodeId>| {
            let known = self.0.get(&member.id().peer_address);
            known.is_some_and(|known| known.id == *member.id() && known.state == state(member))
        };
        if present().count() == self.0.len() && present().all(is_known) {
            return None;
        }
        let now = present().map(|member| (member.id().peer_address, info(member))).collect();
        let before = std::mem::replace(&mut self.0, now);
        // Listeners tell processes apart by origin, not by address. A process that is listed at two addresses (one of
        // them from a corrupt or forged datagram) joins with the first and is gone when neither is left.
        let (before, now) = (by_origin(&before), by_origin(&self.0));
        let left = |origin| foca.iter_membership_state().any(|it| it.id().leaving && it.id().origin == origin);
        let gone = before.iter().filter(|(origin, _)| !now.contains_key(origin)).map(|(origin, id)| {
            let id = (*id).clone();
            if left(*origin) { Event::Left(id) } else { Event::Failed(id) }
        });
        let joined = now.iter().filter(|(origin, _)| !before.contains_key(origin));
        Some(gone.chain(joined.map(|(_, id)| Event::Joined((*id).clone()))).collect())
    }

    /// Suspects whose name a later process has taken, at whatever address: they are dead, and waiting for the end of the
    /// suspicion is useless. (A member that answers stays: then two nodes were given one name.)
    pub(super) fn replaced(&self) -> Vec<NodeId> {
        let suspects = self.0.values().filter(|member| member.state == MemberState::Suspect);
        let is_replaced =
            |old: &&MemberInfo| self.0.values().any(|new| new.state == MemberState::Alive && new.id.succeeds(&old.id));
        suspects.filter(is_replaced).map(|member| member.id.clone()).collect()
    }
}

fn by_origin(members: &BTreeMap<SocketAddr, MemberInfo>) -> BTreeMap<u64, &NodeId> {
    members.values().map(|member| (member.id.origin, &member.id)).collect()
}

fn info(member: &foca::Member<NodeId>) -> MemberInfo {
    MemberInfo { id: member.id().clone(), state: state(member) }
}

fn state(member: &foca::Member<NodeId>) -> MemberState {
    match member.state() {
        State::Alive => MemberState::Alive,
        State::Suspect | State::Down => MemberState::Suspect,
    }
}
