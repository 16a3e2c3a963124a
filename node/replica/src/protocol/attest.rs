//! Stability reports: the timestamp up to which a node covers all writes of all seats that take part.
//!
//! About once a second each node attests this to each peer, under a hash of its roster. When all seats have attested under the
//! hash that this node has itself, everything up to the smallest of their timestamps is causally stable. An attestation stays
//! true: a seat that comes later writes above every attested timestamp, because its sponsor raised its clock.

use kvasir_proto::peer::v1::{Report, SeatState};
use xxhash_rust::xxh3::Xxh3;

use super::link::Link;
use super::replica::Replica;
use crate::clock::stamp_at;

impl Replica {
    /// How many voters are a majority.
    pub(super) fn majority(&self) -> usize {
        if planted!("minority-decides") {
            return 1;
        }
        if planted!("majority-of-linked") {
            return self.outbox.origins().filter(|&o| self.roster.get(o).is_some_and(|s| s.voter)).count() / 2 + 1;
        }
        self.voters().max(self.roster.voters()) / 2 + 1
    }

    /// How many voters the cluster is meant to have. A sidecar takes the largest number that members report: an old report only
    /// makes it wait. Before the first report no number is enough.
    pub(super) fn voters(&self) -> usize {
        if self.settings.voter {
            return self.settings.voters;
        }
        let is_voter = |origin: &u64| self.roster.get(*origin).is_some_and(|seat| seat.voter);
        let reports = self.agreement.reports.iter().filter(|(origin, _)| is_voter(origin));
        reports.map(|(_, report)| report.voters as usize).max().unwrap_or(if planted!("uninformed-sidecar-decides") {
            0
        } else {
            usize::MAX
        })
    }

    /// Equal on two nodes that agree on the epoch, on the state of each seat, and on what they took in from all origins that
    /// no longer write.
    pub(super) fn roster_hash(&self) -> u64 {
        let mut hash = Xxh3::new();
        hash.update(&self.map.standing.epoch.0.to_le_bytes());
        hash.update(&self.map.standing.epoch.1.to_le_bytes());
        self.roster.hash(&mut hash);
        let writes = |origin| self.roster.get(origin).is_some_and(|s| s.state == SeatState::Member);
        for (&origin, cover) in
            self.map.vector.iter().filter(|(o, c)| !writes(**o) && c.wrote() > self.map.floor(&self.roster, **o))
        {
            cover.hash(origin, &mut hash);
        }
        hash.digest()
    }

    /// What this node can attest: the timestamp up to which it covers all seats that take part; 0 without a majority. It is
    /// never above the wall clock: if timestamps are ahead of the clock, values with a TTL would end early.
    pub(super) fn stable(&self, now_ms: u64) -> u64 {
        let blocked = self.leaving || self.map.partial(&self.roster).next().is_some();
        if !self.ready || blocked || self.roster.voters() < self.majority() {
            return 0;
        }
        let seen = self.attesting().map(|origin| self.map.seen(origin));
        let taken_in = if planted!("stable-by-one-origin") { seen.max() } else { seen.min() };
        let taken_in = taken_in.unwrap_or(0);
        if planted!("stable-above-wall-clock") {
            return taken_in;
        }
        taken_in.min(stamp_at(now_ms))
    }

    /// Seats that attest, or will once they have their map.
    pub(super) fn attesting(&self) -> impl Iterator<Item = u64> {
        let joining = |origin| self.roster.get(origin).is_some_and(|seat| seat.state == SeatState::Joining);
        self.roster.live().filter(move |&origin| !(planted!("joining-seat-not-awaited") && joining(origin)))
    }

    /// Whether all members attest under this node's own roster hash, see [`Self::roster_hash`].
    pub(super) fn is_agreed(&self) -> bool {
        let hash = self.roster_hash();
        let me = self.settings.origin;
        self.ready
            && self.roster.voters() >= self.majority()
            && self
                .roster
                .members()
                .filter(|&o| o != me)
                .all(|o| self.agreement.reports.get(&o).is_some_and(|r| r.roster_hash == hash))
    }

    pub(super) fn cut_report(&mut self, link: &mut Link, now_ms: u64) -> Report {
        let stable = self.stable(now_ms);
        self.map.standing.promised |= stable > 0;
        self.map.standing.attested = self.map.standing.attested.max(stable);
        let silent =
            if self.ready { self.agreement.silent(self.settings.evict_after_ms, now_ms).collect() } else { Vec::new() };
        let voters = if self.settings.voter { self.settings.voters as u32 } else { 0 };
        let namesake = self.name_for(link);
        link.sent_namesake = namesake.is_some();
        let (roster_hash, standing) = (self.roster_hash(), Some(self.map.standing.to_wire()));
        Report { roster_hash, stable, standing, silent, voters, namesake }
    }
}
