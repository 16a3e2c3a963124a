//! Whom a replica merges with: one that was let in by those who take part.

use kvasir_proto::peer::v1::{SeatState, Standing, Stranger, Sync};

use super::link::Link;
use super::{Replica, founding_of};

impl Replica {
    /// Whether the peer must begin anew before anything is taken from it; sets
    /// whether it may be merged with.
    pub(super) fn judge(&mut self, link: &mut Link, sync: &Sync) -> Stranger {
        link.compatible = false;
        if !self.ready || !sync.ready {
            return Stranger::No;
        }
        if !self.roster.is_live(link.origin) && !planted!("evicted-goes-on") {
            return Stranger::Ended;
        }
        let theirs = sync.standing.unwrap_or_default();
        let founding = founding_of(&theirs);
        if founding != self.founding {
            if (self.promised || theirs.promised) && !planted!("other-epoch-merged") {
                // The later founding stands, if a majority was part of it.
                let stands = (self.promised, self.founding) > (theirs.promised, founding);
                return if stands { Stranger::Foreign } else { Stranger::No };
            }
            // Nobody has forgotten anything yet: the maps merge as they are.
            self.founding = self.founding.max(founding);
            self.reports.clear();
        }
        link.compatible = self.is_one_of_us(link.origin) || planted!("stranger-merged");
        if link.compatible { Stranger::No } else { Stranger::Behind }
    }

    /// Whether to begin anew because a peer says so. Not because of one that is a stranger here, too, if less was
    /// agreed on where it comes from: of two that refuse each other, one stays.
    pub(super) fn heeds(&self, peer: u64, why: Stranger, theirs: &Standing) -> bool {
        let theirs = (theirs.vouched.max(theirs.collected), peer);
        let mine = (self.vouched.max(self.collected), self.settings.origin);
        let resets = mine < theirs || mine != theirs && planted!("both-strangers-reset");
        why != Stranger::Behind || resets || self.is_one_of_us(peer)
    }

    /// Notes of each member that was let in that nothing of it is missing up to where it began: it is known from
    /// then on, whoever let it in may leave.
    pub(super) fn welcome(&mut self) {
        let members = self.roster.iter().filter(|(_, seat)| seat.state == SeatState::Member);
        let began: Vec<_> = members.map(|(origin, seat)| (origin, seat.began)).collect();
        for (origin, began) in began {
            if self.vector_seen(origin) < began && self.was_let_in(origin) && !planted!("admitted-unknown-until-met") {
                self.cover(origin, began, 0);
            }
        }
    }

    /// Whether a peer may be merged with: nothing was forgotten, here or on this node's word, or it was let in.
    fn is_one_of_us(&self, peer: u64) -> bool {
        self.collected.max(self.vouched) == 0 || self.was_let_in(peer)
    }

    /// Whether a member was let in by one who took part then, so that its word was waited for ever since before
    /// anything was forgotten, and all that it wrote is above what was forgotten before.
    ///
    /// If something of it was taken in already, somebody who takes part has found so. Else who let it in must have
    /// been let in, and so on, back to one of whom something was taken in.
    pub(super) fn was_let_in(&self, member: u64) -> bool {
        let mut next = (member, u64::MAX);
        loop {
            let (origin, before) = next;
            let Some(seat) = self.roster.get(origin).filter(|seat| seat.state == SeatState::Member) else {
                return false;
            };
            let unchecked = before < u64::MAX && planted!("only-last-sponsor-checked");
            if origin == self.settings.origin || self.vector_seen(origin) >= seat.began || unchecked {
                return true;
            }
            if seat.began <= self.collected && !planted!("admitted-by-retired-seat") || seat.began >= before {
                return false;
            }
            next = (seat.sponsor, seat.began);
        }
    }
}
