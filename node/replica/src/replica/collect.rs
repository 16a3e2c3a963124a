//! What is agreed: who takes part, what all hold, and so what may be forgotten.
//!
//! About once a second each node vouches to each peer for what it holds of all
//! seats, under a hash of its roster. When all seats have vouched under the
//! hash that this node has itself, everything up to the least of their stamps
//! is held by all, and tombstones up to there may go, but for those that may
//! have to beat a write of a process that rejoins. A vouched-for stamp stays
//! true for ever; a seat that comes later writes above all of them, since its
//! clock was raised by the one that let it in.

use kvasir_proto::peer::v1::{Report, SeatState, Standing, Want};
use xxhash_rust::xxh3::Xxh3;

use super::link::Link;
use super::{COLLECT_STEP_MS, Change, EXPIRE_STEP, HEADROOM, Replica, Seat, founding_of};
use crate::clock::{ms_of, stamp_at};

impl Replica {
    /// How many voters are a majority.
    pub(super) fn majority(&self) -> usize {
        if planted!("minority-decides") {
            return 1;
        }
        if planted!("majority-of-linked") {
            return self.linked().filter(|&o| self.roster.get(o).is_some_and(|s| s.voter)).count() / 2 + 1;
        }
        self.voters().max(self.roster.voters()) / 2 + 1
    }

    /// How many voters the cluster is meant to have. A sidecar goes by the most
    /// that a member says: an old figure among them only makes it wait. Until one
    /// has said it, no number is enough.
    fn voters(&self) -> usize {
        if self.settings.voter {
            return self.settings.voters;
        }
        let is_voter = |origin: &u64| self.roster.get(*origin).is_some_and(|seat| seat.voter);
        let told = self.reports.iter().filter(|(origin, _)| is_voter(origin));
        told.map(|(_, report)| report.voters as usize).max().unwrap_or(if planted!("uninformed-sidecar-decides") {
            0
        } else {
            usize::MAX
        })
    }

    /// Equal on two nodes that agree on who takes part, on the founding, and on
    /// what they hold of everyone who writes no more.
    pub(super) fn roster_hash(&self) -> u64 {
        let mut hash = Xxh3::new();
        hash.update(&self.founding.0.to_le_bytes());
        hash.update(&self.founding.1.to_le_bytes());
        self.roster.hash(&mut hash);
        let writes = |origin| self.roster.get(origin).is_some_and(|s| s.state == SeatState::Member);
        for (&origin, cover) in self.vector.iter().filter(|(o, c)| !writes(**o) && c.wrote() > self.floor(**o)) {
            cover.hash(origin, &mut hash);
        }
        hash.digest()
    }

    /// Origins that write no more, of which a write above a gap is held.
    fn half_sent(&self) -> impl Iterator<Item = u64> {
        self.vector
            .iter()
            .filter(|(o, c)| c.beyond > 0 && !self.roster.is_live(**o) && !planted!("partial-writes-left"))
            .map(|(&o, _)| o)
    }

    /// Everything of all seats up to here was taken in; 0 while no majority is there.
    /// Not above this node's wall clock, if stamps are: what has an end would come to it early.
    fn stable(&self, now_ms: u64) -> u64 {
        let hindered = self.leaving || self.half_sent().next().is_some();
        if !self.ready || hindered || self.roster.voters() < self.majority() {
            return 0;
        }
        let seen = self.attesting().map(|origin| self.vector_seen(origin));
        let taken_in = if planted!("stable-by-one-origin") { seen.max() } else { seen.min() };
        let taken_in = taken_in.unwrap_or(0);
        if planted!("stable-above-wall-clock") {
            return taken_in;
        }
        taken_in.min(stamp_at(now_ms))
    }

    /// Seats that attest, or will once they have their map.
    fn attesting(&self) -> impl Iterator<Item = u64> {
        let joining = |origin| self.roster.get(origin).is_some_and(|seat| seat.state == SeatState::Joining);
        self.roster.live().filter(move |&origin| !(planted!("joining-seat-not-awaited") && joining(origin)))
    }

    pub(super) fn cut_report(&mut self, link: &mut Link, now_ms: u64) -> Report {
        let stable = self.stable(now_ms);
        self.promised |= stable > 0;
        self.vouched = self.vouched.max(stable);
        let silent = if self.ready { self.silent(now_ms).collect() } else { Vec::new() };
        let voters = if self.settings.voter { self.settings.voters as u32 } else { 0 };
        let namesake = self.name_for(link);
        link.told_namesake = namesake.is_some();
        let (roster_hash, standing) = (self.roster_hash(), Some(self.standing()));
        Report { roster_hash, stable, standing, silent, voters, namesake }
    }

    pub(super) fn take_report(&mut self, link: &mut Link, report: Report, now_ms: u64) {
        let standing: Standing = report.standing.unwrap_or_default();
        // Only who is ready goes back to a founding.
        link.peer_ready = founding_of(&standing) != (0, 0);
        self.take_name(link, report.namesake, now_ms);
        let same_founding = self.ready && founding_of(&standing) == self.founding;
        if report.roster_hash != self.roster_hash() {
            link.roster_due = true;
        }
        if self.ready && !same_founding && link.peer_ready {
            link.ask(Want::Missing);
        }
        if same_founding && link.compatible && self.roster.is_live(link.origin) {
            self.promised |= standing.promised;
            // Whoever dropped them had everybody's word, this node's included: what
            // it vouched for once stays true, even if it would not vouch now.
            let vouched = if planted!("attestation-taken-back") { 0 } else { self.vouched };
            let mut held = self.stable(now_ms).max(vouched);
            if planted!("agreed-without-this-node") {
                held = u64::MAX;
            }
            self.collected = self.collected.max(standing.collected.min(held));
            if !planted!("peers-watermark-ignored") {
                self.forgotten = self.forgotten.max(standing.forgotten.min(self.collected));
            }
            self.reports.insert(link.origin, report);
        }
    }

    /// Whether all members vouch under this node's own roster: they agree on
    /// who takes part, and on what was taken in of everyone who does not write.
    pub(super) fn is_agreed(&self) -> bool {
        let hash = self.roster_hash();
        let me = self.settings.origin;
        self.ready
            && self.roster.voters() >= self.majority()
            && self
                .roster
                .members()
                .filter(|&o| o != me)
                .all(|o| self.reports.get(&o).is_some_and(|r| r.roster_hash == hash))
    }

    pub(super) fn collect(&mut self, now_ms: u64) {
        if !self.ready {
            return;
        }
        let me = self.settings.origin;
        let own = self.stable(now_ms);
        let hash = self.roster_hash();
        let vouched = |origin: u64| match self.reports.get(&origin) {
            Some(report) if report.roster_hash == hash || planted!("attested-under-other-roster") => report.stable,
            _ => 0,
        };
        let words = self.attesting().filter(|&o| o != me).map(vouched);
        let all = if planted!("one-attestation-suffices") { words.max() } else { words.min() };
        let all = all.unwrap_or(own).min(own);
        let step = stamp_at(COLLECT_STEP_MS);
        self.collected = self.collected.max(all - all % step);
        // One that needs nobody's word may have forgotten something without having told anybody.
        self.promised |= self.collected > 0 && !planted!("lone-node-promised-nothing");
        self.forget();
        self.retire();
    }

    /// Drops the tombstones that all hold, but for those that may have to beat a write of a process that rejoins.
    fn forget(&mut self) {
        let kept = if planted!("deletes-not-kept-for-evicted") { u64::MAX } else { self.keeps_above() };
        self.forgotten = self.forgotten.max(self.collected.min(kept));
        if self.has_too_many_tombstones()
            && !planted!("kept-deletes-without-limit")
            && let Some(oldest) = self.store.oldest_tombstone()
        {
            // Whoever hears of the raised stamp drops as much, and a process that rejoins loses what it wrote up to there.
            let step = stamp_at(COLLECT_STEP_MS);
            self.forgotten = self.forgotten.max(self.collected.min((oldest - oldest % step).saturating_add(step)));
        }
        self.drop_forgotten();
    }

    /// Above this stamp tombstones are kept: a process may rejoin with an older write that nobody here has seen.
    fn keeps_above(&self) -> u64 {
        // One that was replaced under its name has mostly ended. It may also run on behind a partition.
        let (at, kept) = (ms_of(self.collected), self.settings.bounds.remember_ended_ms);
        let may_return = |(_, seat): &(u64, &Seat)| match seat.state {
            SeatState::Evicted => true,
            SeatState::Ended => {
                seat.agreed > 0 && ms_of(seat.since) + kept > at && !planted!("deletes-not-kept-for-replaced")
            }
            SeatState::Joining | SeatState::Member => false,
        };
        let agreed = self.roster.iter().filter(may_return).map(|(_, seat)| seat.agreed);
        // These are about to issue what they bring, or to be told to begin anew.
        let rejoins = |(origin, seat): (u64, &Seat)| {
            let reissues = seat.is_live() && seat.returning && !planted!("reissue-not-awaited");
            let stranger = seat.state == SeatState::Member && !self.was_let_in(origin);
            reissues || stranger && !planted!("stranger-not-awaited")
        };
        // A voter that is missing, or was met just now, may have founded a map of its own.
        let present =
            if planted!("new-voter-not-missing") { self.roster.voters() } else { self.roster.member_voters() };
        let missing = present < self.voters() && !planted!("missing-voter-ignored");
        let now = (missing || self.roster.iter().any(rejoins)).then_some(self.forgotten);
        agreed.chain(now).min().unwrap_or(u64::MAX)
    }

    fn has_too_many_tombstones(&self) -> bool {
        let room = self.settings.max_memory.map_or(u64::MAX, |limit| limit / HEADROOM);
        self.store.tombstones() > self.settings.bounds.kept_deletes || self.store.buried() > room
    }

    pub(super) fn drop_forgotten(&mut self) {
        let upto = if planted!("tombstones-dropped-at-once") { self.clock.last() } else { self.forgotten };
        if !self.store.is_collected(upto) {
            // Watchers hear of what ends by the stamp before it is dropped.
            if planted!("collected-without-expired-event") {
                self.store.expire(ms_of(self.forgotten), EXPIRE_STEP, |_, _| ());
            }
            self.expire(ms_of(self.forgotten));
            self.store.collect(upto, EXPIRE_STEP);
        }
    }

    /// Forgets seats that nothing can come of any more, and what is known of
    /// their writes.
    fn retire(&mut self) {
        let (at, kept) = (ms_of(self.collected), self.settings.bounds.remember_evicted_ms);
        let late: Vec<u64> = self
            .roster
            .iter()
            .filter(|(_, s)| s.state == SeatState::Evicted && ms_of(s.since) + kept <= at)
            .map(|(o, _)| o)
            .collect();
        for origin in late {
            let evicted = self.roster.get(origin).map_or(0, |s| s.since);
            // Equal on all nodes, whenever each of them gets there.
            let kept = if planted!("retired-with-its-hour") { 0 } else { stamp_at(kept) };
            self.roster.end(origin, SeatState::Ended, evicted.saturating_add(kept));
        }
        let gone: Vec<u64> = self
            .roster
            .iter()
            // Not one's own, which has ended when the node leaves.
            .filter(|(o, s)| *o != self.settings.origin && s.state == SeatState::Ended && self.may_forget(*o, s.since))
            .map(|(o, _)| o)
            .collect();
        for origin in gone {
            self.roster.remove(origin);
        }
        let (vector, collected) = (&self.vector, self.collected);
        // Until all have agreed on what they hold of it, and those that return have issued what they brought, it is needed.
        let issued = !self.roster.is_returned_to();
        let me = self.settings.origin;
        let lacked = |origin: u64, ended: u64| {
            origin == me
                || !planted!("seat-retired-too-early")
                    && (!issued
                        || ended > collected
                        || vector.get(&origin).is_some_and(|cover| cover.wrote() > collected))
        };
        for origin in self.roster.bound(self.settings.bounds.ended_seats, lacked) {
            // Should it still be there, it must not be taken for one of us.
            self.vector.remove(&origin);
        }
        if !self.roster.awaits_return() || planted!("seat-retired-at-once") {
            let (roster, collected) = (&self.roster, self.collected);
            self.vector.retain(|&o, c| roster.get(o).is_some() || c.seen.max(c.wrote()) > collected);
        }
        let roster = &self.roster;
        self.reports.retain(|&o, _| roster.is_live(o));
    }

    /// Seats that were not linked for `evictAfter`.
    fn silent(&self, now_ms: u64) -> impl Iterator<Item = u64> {
        let limit = self.settings.evict_after_ms;
        self.silent_since
            .iter()
            .filter(move |(_, since)| now_ms.saturating_sub(**since) >= limit)
            .map(|(&origin, _)| origin)
    }

    /// Notes who is not linked, and gives up on those whom a majority of the
    /// voters has not heard of for long. Each says so itself: a vote is never
    /// passed on, and ends when the link comes up.
    pub(super) fn judge_silence(&mut self, now_ms: u64) {
        let me = self.settings.origin;
        let linked: Vec<u64> = self.linked().collect();
        let (roster, since) = (&self.roster, &mut self.silent_since);
        since.retain(|o, _| roster.is_live(*o) && !linked.contains(o));
        for origin in roster.live().filter(|o| *o != me && !linked.contains(o)) {
            since.entry(origin).or_insert(now_ms);
        }
        // A sidecar may know of fewer voters than there are: it leaves it to them.
        if !self.ready || !self.settings.voter {
            return;
        }
        let needed = if planted!("one-vote-evicts") { 1 } else { self.majority() };
        let given_up: Vec<u64> = self.silent(now_ms).filter(|&o| self.votes_against(o, &linked) >= needed).collect();
        for origin in given_up {
            if let Some(seat) = self.roster.get(origin).cloned() {
                self.tell(Change::Evicted(seat));
            }
            // Its word was waited for, if it takes part by this node's roster. What it brings otherwise may be older.
            let knew = self.was_let_in(origin) && !self.roster.get(origin).is_some_and(|seat| seat.returning);
            let agreed = match knew {
                true if planted!("deletes-kept-since-eviction") => self.clock.last(),
                false if planted!("evicted-backlog-not-awaited") => self.collected,
                true => self.collected,
                false => self.forgotten,
            };
            self.roster.evict(origin, self.clock.last(), agreed);
            self.roster_changed();
        }
    }

    fn votes_against(&self, origin: u64, linked: &[u64]) -> usize {
        let mut names: Vec<&str> = linked
            .iter()
            .filter(|&&o| self.reports.get(&o).is_some_and(|r| r.silent.contains(&origin)))
            .filter_map(|&o| self.roster.get(o).filter(|s| s.voter && s.state == SeatState::Member))
            .map(|s| s.name.as_str())
            .chain([self.settings.name.as_str()])
            .collect();
        names.sort_unstable();
        names.dedup();
        names.len()
    }

    /// A write of an ended seat that some hold and none can cover, since what
    /// came before it is lost, is taken as it is, under its own dot: a new one
    /// would beat a delete that had seen it. First every member is asked for
    /// all that it holds of the seat, so that all come to hold the same.
    pub(super) fn adopt_orphans(&mut self) {
        if !self.ready || self.half_sent().next().is_none() || !self.is_agreed() {
            self.adopting = None;
            return;
        }
        let (me, roster) = (self.settings.origin, &self.roster);
        let pending = self.adopting.get_or_insert_with(|| {
            roster.members().filter(|&o| o != me && !planted!("adopted-without-asking")).collect()
        });
        // Who has left meanwhile will not answer.
        pending.retain(|&o| roster.is_live(o) || planted!("departed-node-asked"));
        if pending.is_empty() {
            for origin in self.half_sent().collect::<Vec<_>>() {
                self.vector.entry(origin).or_default().adopt();
            }
            self.adopting = None;
            self.counters.adoptions += 1;
        }
    }
}
