//! What others may know of a replica.

use kvasir_proto::peer::v1::Stranger;

use super::life::Bag;
use super::link::Link;
use super::{Counters, Cover, Coverage, Holders, PeerId, Replica, Seat, Vector};
use crate::clock::{Dot, ms_of};
use crate::store::Store;

impl Replica {
    /// Whether it holds what a ready peer held when it joined, or was first.
    pub const fn is_ready(&self) -> bool {
        self.ready
    }

    /// The map.
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// What was taken in of each origin.
    pub const fn vector(&self) -> &Vector {
        &self.vector
    }

    /// Who takes part, by origin.
    pub fn seats(&self) -> impl Iterator<Item = (u64, &Seat)> {
        self.roster.iter()
    }

    /// All that take part hold every write up to this stamp.
    pub const fn collected(&self) -> u64 {
        self.collected
    }

    /// Tombstones up to this stamp are dropped; not above [`Self::collected`].
    pub const fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// The founding that the map goes back to: a stamp, and who founded.
    pub const fn founding(&self) -> (u64, u64) {
        self.founding
    }

    /// This node as its peers are to know it.
    pub fn id(&self) -> PeerId {
        PeerId {
            origin: self.settings.origin,
            name: self.settings.name.clone(),
            voter: self.settings.voter,
            started_ms: self.settings.started_ms,
            returning: !self.bags.is_empty(),
        }
    }

    /// The origin of this node's writes. Another one once the node has begun
    /// anew: all its links are gone then.
    pub const fn origin(&self) -> u64 {
        self.settings.origin
    }

    /// Whether a peer's write found no room lately.
    pub const fn is_overfull(&self) -> bool {
        self.full_since_ms.is_some()
    }

    /// Origins of the processes that are linked.
    pub fn linked(&self) -> impl Iterator<Item = u64> {
        self.links.values().map(|l| l.origin)
    }

    /// How many voters the cluster is meant to have, from now on.
    pub fn set_voters(&mut self, voters: usize) {
        self.settings.voters = voters;
    }

    /// What no linked peer, or not every one, said it holds, `(none, not all)`:
    /// own writes that are still in the log, and what is yet to be issued again,
    /// each; and of those who left or cannot be heard, who may have told this
    /// node alone, one for each of them.
    pub fn uncovered(&self) -> (usize, usize) {
        let any = self.links.values().map(|l| l.acked).max().unwrap_or(0);
        let all = self.links.values().map(|l| l.acked).min().unwrap_or(0);
        let lacked = || self.links.values().map(|l| self.unshared(l));
        let (by_all, by_any) = match (lacked().min(), lacked().max()) {
            (Some(min), Some(max)) if !planted!("drain-hands-over-own-only") => (min, max),
            _ => (0, 0),
        };
        let brought = self.brought();
        (self.log.above(any).count() + brought + by_all, self.log.above(all).count() + brought + by_any)
    }

    /// Of how many that are not linked something is held here that the peer has not said it holds.
    pub(super) fn unshared(&self, link: &Link) -> usize {
        let lacked = |origin: &u64, cover: &Cover| {
            // Of whom it remembers nothing, it has forgotten all.
            let forgotten = Cover { seen: link.their_collected, ..Cover::default() };
            let theirs = link.theirs.get(origin).copied().unwrap_or(forgotten);
            let held = theirs.seen.max(theirs.last);
            cover.wrote() > self.floor(*origin)
                && (held < cover.last || held.max(theirs.beyond) < cover.beyond)
                && *origin != self.settings.origin
                && !self.is_linked(*origin)
        };
        self.vector.iter().filter(|(origin, cover)| lacked(origin, cover)).count()
    }

    pub(super) fn is_linked(&self, origin: u64) -> bool {
        self.linked().any(|linked| linked == origin)
    }

    /// Keys of own writes that are still in the log and that no linked peer said
    /// it holds, oldest write first; then of those that are yet to be reissued.
    pub fn uncovered_keys(&self) -> impl Iterator<Item = &[u8]> {
        let any = self.links.values().map(|l| l.acked).max().unwrap_or(0);
        self.log.above(any).map(|entry| &entry.key[..]).chain(self.bags.iter().flat_map(Bag::keys))
    }

    /// Keys of writes that came too late to be reissued, at most [`LATE_KEYS`](super::LATE_KEYS) since the start.
    pub fn late_keys(&self) -> impl Iterator<Item = &[u8]> {
        self.late_keys.iter().map(|key| &key[..])
    }

    /// Why this node last began anew.
    pub const fn ended_because(&self) -> Stranger {
        self.ended_because
    }

    /// Records of ended seats of this node that are yet to be issued again, or
    /// found to be known.
    pub fn brought(&self) -> usize {
        self.bags.iter().map(Bag::len).sum()
    }

    /// What [`Self::brought`] takes, bytes as they are accounted, beside what
    /// [`Store::memory`] says.
    pub fn brought_memory(&self) -> u64 {
        self.bags.iter().map(Bag::memory).sum()
    }

    /// Who holds this node's own write with the stamp `hlc`. Counted by name:
    /// a node that restarted is not two.
    pub fn holders(&self, hlc: u64) -> Holders {
        let mut names: Vec<(&str, bool)> = self
            .links
            .values()
            .filter(|l| l.acked >= hlc || l.cursor >= Some(hlc) && planted!("sent-counts-as-held"))
            .filter(|l| l.compatible && (self.roster.is_live(l.origin) || planted!("gone-peer-holds")))
            .filter_map(|l| self.roster.get(l.origin).map(|seat| (seat.name.as_str(), seat.voter)))
            .filter(|(name, _)| *name != self.settings.name)
            .collect();
        names.sort_unstable();
        if !planted!("restart-holds-twice") {
            names.dedup_by_key(|(name, _)| *name);
        }
        let voters = names.iter().filter(|(_, voter)| *voter).count() + usize::from(self.settings.voter);
        let others = self.roster.members().filter(|&o| o != self.settings.origin).count();
        Holders { peers: names.len(), voters, lacking: others.saturating_sub(names.len()), majority: self.majority() }
    }

    /// Whether everything up to the stamp `collected`, which was held by all that
    /// took part where a node's map goes back to `founding`, is held here. One
    /// that was given up on meanwhile has not vouched for that much.
    pub fn coverage_of_all(&self, collected: u64, founding: (u64, u64)) -> Coverage {
        if collected == 0 {
            Coverage::Covered
        } else if founding != self.founding {
            // Where something was forgotten the later founding stands. But a majority here has come that far without
            // having met the other's: a session need not wait for those who may never come.
            let reached = collected <= self.collected && !planted!("lost-epoch-awaited");
            if self.founding > founding || reached { Coverage::Lost } else { Coverage::Behind }
        } else if collected <= self.collected.max(self.vouched) {
            Coverage::Covered
        } else {
            Coverage::Behind
        }
    }

    /// Whether the write `dot`, which was seen on a node whose map goes back to
    /// `founding`, is held here.
    pub fn coverage(&self, dot: Dot, founding: (u64, u64)) -> Coverage {
        if dot.hlc <= self.vector_seen(dot.origin) {
            Coverage::Covered
        } else if dot.hlc <= self.collected {
            // Taken in by all, if it was of this founding. (What an evicted node
            // knew alone is neither covered nor lost until it has come back.)
            match self.roster.get(dot.origin) {
                Some(seat) if seat.is_live() => Coverage::Behind,
                None if founding != self.founding => Coverage::Lost,
                None if self.may_be_forgotten(dot)
                    && (dot.hlc <= self.known_of_all() || planted!("unheard-writer-covered")) =>
                {
                    Coverage::Covered
                }
                Some(_) | None if self.roster.awaits_return() => Coverage::Behind,
                Some(_) | None if planted!("lost-write-covered") => Coverage::Covered,
                Some(_) | None if planted!("lost-write-awaited") => Coverage::Behind,
                // Who wrote it is gone, or no one that is left has ever heard of it.
                Some(_) | None => Coverage::Lost,
            }
        } else if self.roster.get(dot.origin).is_some_and(|seat| !seat.is_live())
            && !self.roster.awaits_return()
            && self.is_agreed()
        {
            Coverage::Lost
        } else if planted!("session-never-behind") {
            Coverage::Covered
        } else {
            Coverage::Behind
        }
    }

    /// Whether a seat that wrote this may have been forgotten since.
    fn may_be_forgotten(&self, dot: Dot) -> bool {
        planted!("unheard-writer-counts-as-retired")
            || ms_of(dot.hlc) + self.settings.bounds.remember_ended_ms <= ms_of(self.collected)
    }

    /// A seat that this node has not heard of wrote nothing up to here: who let it in was still there then.
    fn known_of_all(&self) -> u64 {
        let ended = self.roster.iter().filter(|(_, seat)| !seat.is_live()).map(|(origin, _)| self.vector_seen(origin));
        if self.roster.awaits_return() { ended.filter(|&seen| seen > 0).min().unwrap_or(u64::MAX) } else { u64::MAX }
    }

    /// The age of the oldest moment that some linked peer has not yet vouched
    /// for, milliseconds; `None` with no link.
    pub fn lag_ms(&self, now_ms: u64) -> Option<u64> {
        self.links.values().map(|l| now_ms.saturating_sub(ms_of(self.vector_seen(l.origin)))).max()
    }

    /// Figures since the start.
    pub const fn counters(&self) -> Counters {
        self.counters
    }
}
