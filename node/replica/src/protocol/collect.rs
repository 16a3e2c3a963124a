//! Forgets tombstones that all nodes hold, except those that may have to beat a write of a node that rejoins; and seats
//! from which no more writes can come.

use kvasir_proto::peer::v1::SeatState;

use super::limits::{COLLECT_STEP_MS, EXPIRE_STEP, HEADROOM};
use super::replica::Replica;
use super::roster::Seat;
use crate::clock::{ms_of, stamp_at};

impl Replica {
    /// Raises the stability watermark to what all seats attested under this node's roster, then drops tombstones and retires
    /// seats.
    pub(super) fn collect(&mut self, now_ms: u64) {
        if !self.ready {
            return;
        }
        let me = self.settings.origin;
        let own = self.stable(now_ms);
        let hash = self.roster_hash();
        let attested = |origin: u64| match self.agreement.reports.get(&origin) {
            Some(report) if report.roster_hash == hash || planted!("attested-under-other-roster") => report.stable,
            _ => 0,
        };
        let stable = self.attesting().filter(|&o| o != me).map(attested);
        let all = if planted!("one-attestation-suffices") { stable.max() } else { stable.min() };
        let all = all.unwrap_or(own).min(own);
        let step = stamp_at(COLLECT_STEP_MS);
        self.map.standing.collected = self.map.standing.collected.max(all - all % step);
        // A node that needs no attestation but its own collects without a report, which would otherwise set this.
        self.map.standing.promised |= self.map.standing.collected > 0 && !planted!("lone-node-promised-nothing");
        self.forget();
        self.retire();
    }

    /// Drops the tombstones that all nodes hold, except those that may have to beat a write of a node that rejoins.
    fn forget(&mut self) {
        let kept = if planted!("deletes-not-kept-for-evicted") { u64::MAX } else { self.keeps_above() };
        self.map.standing.forgotten = self.map.standing.forgotten.max(self.map.standing.collected.min(kept));
        if self.has_too_many_tombstones()
            && !planted!("kept-deletes-without-limit")
            && let Some(oldest) = self.map.store.oldest_tombstone()
        {
            // Every node that receives the raised watermark drops tombstones up to it too, and a node that rejoins cannot
            // reissue writes up to it.
            let step = stamp_at(COLLECT_STEP_MS);
            self.map.standing.forgotten = self
                .map
                .standing
                .forgotten
                .max(self.map.standing.collected.min((oldest - oldest % step).saturating_add(step)));
        }
        self.drop_forgotten();
    }

    /// Tombstones above this timestamp are kept, because a node may rejoin with an older write that no member has.
    fn keeps_above(&self) -> u64 {
        // A process that was replaced under its name has usually ended, but it may also run on behind a partition.
        let (at, kept) = (ms_of(self.map.standing.collected), self.settings.bounds.remember_ended_ms);
        let may_return = |(_, seat): &(u64, &Seat)| match seat.state {
            SeatState::Evicted => true,
            SeatState::Ended => {
                seat.agreed > 0 && ms_of(seat.since) + kept > at && !planted!("deletes-not-kept-for-replaced")
            }
            SeatState::Joining | SeatState::Member => false,
        };
        let agreed = self.roster.iter().filter(may_return).map(|(_, seat)| seat.agreed);
        // Nodes that have a backlog to reissue, or do not know yet that they must reset.
        let rejoins = |(origin, seat): (u64, &Seat)| {
            let reissues = seat.is_live() && seat.returning && !planted!("reissue-not-awaited");
            let stranger = seat.state == SeatState::Member && !self.was_admitted(origin);
            reissues || stranger && !planted!("stranger-not-awaited")
        };
        // A voter that is missing, or was met just now, may have founded a map of its own.
        let present =
            if planted!("new-voter-not-missing") { self.roster.voters() } else { self.roster.member_voters() };
        let missing = present < self.voters() && !planted!("missing-voter-ignored");
        let now = (missing || self.roster.iter().any(rejoins)).then_some(self.map.standing.forgotten);
        agreed.chain(now).min().unwrap_or(u64::MAX)
    }

    fn has_too_many_tombstones(&self) -> bool {
        let room = self.settings.max_memory.map_or(u64::MAX, |limit| limit / HEADROOM);
        self.map.store.tombstones() > self.settings.bounds.kept_deletes || self.map.store.buried() > room
    }

    pub(super) fn drop_forgotten(&mut self) {
        let upto = if planted!("tombstones-dropped-at-once") { self.clock.last() } else { self.map.standing.forgotten };
        if !self.map.store.is_collected(upto) {
            // Watchers are notified of values that end by this timestamp before the values are dropped.
            if planted!("collected-without-expired-event") {
                self.map.store.expire(ms_of(self.map.standing.forgotten), EXPIRE_STEP, |_, _| ());
            }
            self.map.expire(ms_of(self.map.standing.forgotten), &mut self.changes);
            self.map.store.collect(upto, EXPIRE_STEP);
        }
    }

    /// Retires seats from which no more writes can come.
    fn retire(&mut self) {
        let (at, kept) = (ms_of(self.map.standing.collected), self.settings.bounds.remember_evicted_ms);
        let late: Vec<u64> = self
            .roster
            .iter()
            .filter(|(_, s)| s.state == SeatState::Evicted && ms_of(s.since) + kept <= at)
            .map(|(o, _)| o)
            .collect();
        for origin in late {
            let evicted = self.roster.get(origin).map_or(0, |s| s.since);
            // All nodes compute the same end, whenever each of them does it.
            let kept = if planted!("retired-with-its-hour") { 0 } else { stamp_at(kept) };
            self.roster.end(origin, SeatState::Ended, evicted.saturating_add(kept));
        }
        let gone: Vec<u64> = self
            .roster
            .iter()
            // Not this node's own seat, which ends when the node leaves.
            .filter(|(o, s)| *o != self.settings.origin && s.state == SeatState::Ended && self.may_retire(*o, s.since))
            .map(|(o, _)| o)
            .collect();
        for origin in gone {
            self.roster.remove(origin);
        }
        let (vector, collected) = (&self.map.vector, self.map.standing.collected);
        // A seat is needed until all nodes agree on what they hold of its writes, and rejoined nodes have reissued their
        // backlogs.
        let issued = !self.roster.awaits_reissue();
        let me = self.settings.origin;
        let lacked = |origin: u64, ended: u64| {
            origin == me
                || !planted!("seat-retired-too-early")
                    && (!issued
                        || ended > collected
                        || vector.get(&origin).is_some_and(|cover| cover.wrote() > collected))
        };
        for origin in self.roster.bound(self.settings.bounds.ended_seats, lacked) {
            // If its process is still running, it must not count as admitted.
            self.map.vector.remove(&origin);
        }
        if !self.roster.awaits_return() || planted!("seat-retired-at-once") {
            let (roster, collected) = (&self.roster, self.map.standing.collected);
            self.map.vector.retain(|&o, c| roster.get(o).is_some() || c.seen.max(c.wrote()) > collected);
        }
        let roster = &self.roster;
        self.agreement.reports.retain(|&o, _| roster.is_live(o));
    }

    /// Whether a peer reports a seat that was rightly retired here.
    pub(super) fn is_retired(&self, origin: u64, seat: &Seat) -> bool {
        self.roster.get(origin).is_none() && seat.state == SeatState::Ended && self.may_retire(origin, seat.since)
    }

    /// Whether an ended seat need not be remembered any longer.
    fn may_retire(&self, origin: u64, ended: u64) -> bool {
        let kept = ms_of(ended) + self.settings.bounds.remember_ended_ms;
        let cover = self.map.vector.get(&origin).copied().unwrap_or_default();
        let at_once = planted!("seat-retired-at-once");
        (!self.roster.awaits_return() || at_once)
            && cover.seen <= self.map.standing.collected
            && cover.wrote() <= self.map.standing.collected
            && (kept <= ms_of(self.map.standing.collected) || at_once)
    }
}
