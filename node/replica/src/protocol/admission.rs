//! Which peers a node merges with: those of its epoch that were admitted by a seat that took part.

use kvasir_proto::peer::v1::{SeatState, Standing, Stranger, Sync};

use super::link::Link;
use super::map::epoch_of;
use super::replica::Replica;

impl Replica {
    /// Decides whether this node merges with the peer (`compatible`), and if not, whether the peer must reset first.
    pub(super) fn admit_or_refuse(&mut self, link: &mut Link, sync: &Sync) -> Stranger {
        link.compatible = false;
        if !self.ready || !sync.ready {
            return Stranger::No;
        }
        if !self.roster.is_live(link.origin) && !planted!("evicted-goes-on") {
            return Stranger::Ended;
        }
        let theirs = sync.standing.unwrap_or_default();
        let epoch = epoch_of(&theirs);
        if epoch != self.map.standing.epoch {
            if (self.map.standing.promised || theirs.promised) && !planted!("other-epoch-merged") {
                // An epoch that a majority was part of beats one without a majority; otherwise the later epoch stands.
                let stands = (self.map.standing.promised, self.map.standing.epoch) > (theirs.promised, epoch);
                return if stands { Stranger::Foreign } else { Stranger::No };
            }
            // No node has dropped tombstones yet: the maps merge as they are.
            self.map.standing.epoch = self.map.standing.epoch.max(epoch);
            self.agreement.reports.clear();
        }
        link.compatible = self.may_merge_with(link.origin) || planted!("stranger-merged");
        if link.compatible { Stranger::No } else { Stranger::Behind }
    }

    /// Whether to reset because a peer asks this node to. If this node considers that peer a stranger too, only the side that
    /// attested less resets.
    pub(super) fn resets_for(&self, peer: u64, why: Stranger, theirs: &Standing) -> bool {
        let theirs = (theirs.vouched.max(theirs.collected), peer);
        let mine = (self.map.standing.attested.max(self.map.standing.collected), self.settings.origin);
        let resets = mine < theirs || mine != theirs && planted!("both-strangers-reset");
        why != Stranger::Behind || resets || self.may_merge_with(peer)
    }

    /// Whether writes of the link's peer may be taken.
    pub(super) fn accepts(&self, link: &Link) -> bool {
        let takes_part = self.roster.is_live(link.origin) || planted!("evicted-goes-on");
        self.ready && link.compatible && takes_part
    }

    /// Whether a peer holds what the cluster holds, and takes part.
    pub(super) fn may_sponsor(&self, link: &Link) -> bool {
        link.peer_ready && self.roster.is_live(link.origin)
    }

    /// Covers each admitted member up to the timestamp at which it began to write, because it wrote nothing before. From then
    /// on this node knows that the member was admitted, even after its sponsor has left.
    pub(super) fn cover_admitted(&mut self) {
        let members = self.roster.iter().filter(|(_, seat)| seat.state == SeatState::Member);
        let began: Vec<_> = members.map(|(origin, seat)| (origin, seat.began)).collect();
        for (origin, began) in began {
            if self.map.seen(origin) < began && self.was_admitted(origin) && !planted!("admitted-unknown-until-met") {
                self.cover(origin, began, 0);
            }
        }
    }

    /// Whether a peer may be merged with: this node has neither collected nor attested anything, or the peer was admitted.
    fn may_merge_with(&self, peer: u64) -> bool {
        self.map.standing.collected.max(self.map.standing.attested) == 0 || self.was_admitted(peer)
    }

    /// Whether a member was admitted by a sponsor that took part. If so, everything that was collected since needed the
    /// member's attestation, and all of its writes are above what was collected before.
    ///
    /// If this node covers the member up to where it began to write, it or another node has already found that the
    /// member was admitted. Otherwise the sponsor must have been admitted, and so on, back to a member that this node
    /// covers so far.
    pub(super) fn was_admitted(&self, member: u64) -> bool {
        let mut next = (member, u64::MAX);
        loop {
            let (origin, before) = next;
            let Some(seat) = self.roster.get(origin).filter(|seat| seat.state == SeatState::Member) else {
                return false;
            };
            let unchecked = before < u64::MAX && planted!("only-last-sponsor-checked");
            if origin == self.settings.origin || self.map.seen(origin) >= seat.began || unchecked {
                return true;
            }
            if seat.began <= self.map.standing.collected && !planted!("admitted-by-retired-seat")
                || seat.began >= before
            {
                return false;
            }
            next = (seat.sponsor, seat.began);
        }
    }
}
