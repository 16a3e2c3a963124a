//! Which seats a majority of the voters has not reached for `evictAfter`.

use super::changes::Change;
use super::replica::Replica;

impl Replica {
    /// Notes which seats are not linked, and evicts those that a majority of the voters has not reached for long. Each voter
    /// speaks for itself: a vote is never passed on, and ends when the link comes up.
    pub(super) fn evict_silent(&mut self, now_ms: u64) {
        let me = self.settings.origin;
        let linked: Vec<u64> = self.outbox.origins().collect();
        self.agreement.note_silence(me, &self.roster, &linked, now_ms);
        // A sidecar may know of fewer voters than there are, and leaves the decision to them.
        if !self.ready || !self.settings.voter {
            return;
        }
        let needed = if planted!("one-vote-evicts") { 1 } else { self.majority() };
        let votes = |origin| self.agreement.votes_against(origin, &self.settings.name, &self.roster, &linked);
        let silent = self.agreement.silent(self.settings.evict_after_ms, now_ms);
        let evicted: Vec<u64> = silent.filter(|&origin| votes(origin) >= needed).collect();
        for origin in evicted {
            if let Some(seat) = self.roster.get(origin).cloned() {
                self.changes.note(Change::Evicted(seat));
            }
            // A seat that was admitted and has no backlog attested everything that was collected, so it can bring only later
            // writes. Any other seat may bring older ones.
            let knew = self.was_admitted(origin) && !self.roster.get(origin).is_some_and(|seat| seat.returning);
            let agreed = match knew {
                true if planted!("deletes-kept-since-eviction") => self.clock.last(),
                false if planted!("evicted-backlog-not-awaited") => self.map.standing.collected,
                true => self.map.standing.collected,
                false => self.map.standing.forgotten,
            };
            self.roster.evict(origin, self.clock.last(), agreed);
            self.outbox.announce_roster();
        }
    }
}
