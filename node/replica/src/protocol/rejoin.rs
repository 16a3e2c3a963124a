//! A node whose seat was ended by others resets: it takes a new seat, and what it held becomes a backlog. Once it has a
//! snapshot, it reissues the writes of the backlog that no member has.

use bytes::Bytes;
use kvasir_proto::peer::v1::{SeatState, Stranger};
use xxhash_rust::xxh3::xxh3_64;

use super::backlog::Backlog;
use super::changes::Change;
use super::map::Standing;
use super::replica::Replica;
use super::roster::Seat;
use super::settings::Settings;
use crate::clock::Dot;
use crate::store::Record;

impl Replica {
    /// Ends this seat, because other nodes have ended it, or hold the map of another epoch. The node takes a new seat,
    /// and its map becomes a backlog.
    pub(super) fn reset(&mut self, why: Stranger, now_ms: u64) {
        if self.leaving {
            return;
        }
        self.ended_because = why;
        self.counters.returns += 1;
        let ended = self.clock.tick(now_ms);
        // A map that was not whole yet makes no backlog.
        if self.ready && !planted!("reset-without-backlog") {
            self.backlogs.push(Backlog::new(std::mem::take(&mut self.map)));
        }
        let origin = self.settings.origin;
        let seat = self.roster.get(origin).cloned();
        self.roster.end(origin, SeatState::Ended, ended);
        // The clock never gave this timestamp before, so no origin was derived from it.
        self.settings.origin = next_origin(origin, ended);
        let started_ms = seat.map_or(now_ms, |s| now_ms.max(s.started_ms.saturating_add(1)));
        self.settings.started_ms = started_ms;
        if self.joining.refused.is_some() {
            self.settings.name = derived_name(&self.settings.name, self.settings.origin);
        }
        let Settings { origin, ref name, voter, .. } = self.settings;
        self.roster.take(origin, Seat::joining(name.clone(), voter, started_ms, !self.backlogs.is_empty()));
        self.ready = false;
        self.map.standing = Standing::default();
        self.clear();
        self.outbox.reset();
        self.agreement.reset();
        self.joining.restart(why != Stranger::Ended, now_ms);
    }

    /// Reissues the writes of this node's backlogs that no member has, once the members agree on what they hold: a write
    /// that only one of them covers may be deleted there.
    pub(super) fn reissue_backlogs(&mut self, now_ms: u64) {
        let agreed = || self.is_agreed() || planted!("reissued-before-agreement");
        let my_turn = || self.is_my_turn() || planted!("reissued-out-of-turn");
        if self.backlogs.is_empty() || !self.ready || !agreed() || !my_turn() {
            return;
        }
        let Some(mut backlog) = self.backlogs.pop() else { return };
        if !std::mem::replace(&mut backlog.announced, true)
            && !planted!("backlog-not-announced")
            && self.announce(&backlog)
        {
            self.backlogs.push(backlog);
            return;
        }
        for (key, record) in backlog.step() {
            if self.is_beaten(&key, &record) || backlog.is_known(record.dot, &self.map) {
                backlog.map.store.remove(&key);
            } else if !self.roster.is_live(record.dot.origin) {
                backlog.map.store.remove(&key);
                if backlog.is_too_late(record.dot.hlc, &self.map) {
                    // A value that has ended counts too, because it would have beaten older writes.
                    self.counters.too_late += 1;
                    backlog.late = true;
                    self.backlogs.note_late(key);
                } else {
                    self.reissue(key, &record, now_ms);
                }
            } // else the origin takes part, and sends the write itself
        }
        if backlog.map.store.is_empty() {
            if backlog.is_whole(&self.map) {
                self.join_backlog(&backlog);
            }
            if self.backlogs.is_empty() {
                self.roster.returned(self.settings.origin, self.clock.tick(now_ms));
                self.outbox.announce_roster();
            }
        } else {
            self.backlogs.push(backlog);
        }
    }

    /// Another node may rejoin with the same writes after this node has gone again, and would bring back writes that were
    /// reissued, deleted and collected meanwhile. Therefore, before the first write is reissued, all members note the
    /// writes as partial writes, so that tombstones are kept. Returns whether some of the writes were unknown.
    fn announce(&mut self, backlog: &Backlog) -> bool {
        let before = self.roster_hash();
        for (&origin, cover) in &backlog.map.vector {
            if !self.roster.is_live(origin) && !backlog.is_too_late(cover.wrote(), &self.map) {
                self.note_write(Dot { hlc: cover.wrote(), origin });
            }
        }
        before != self.roster_hash()
    }

    /// Rejoined nodes reissue their backlogs one after the other, and each first takes in what those before it wrote: their
    /// backlogs may hold writes that this node's backlog deleted. For the same reason this node first takes in what a member
    /// wrote before this node joined and its sponsor lacked.
    fn is_my_turn(&self) -> bool {
        let me = self.settings.origin;
        let began = self.roster.get(me).map_or(0, |seat| seat.began);
        let until = |seat: &Seat| match seat.state {
            SeatState::Member if !planted!("reissued-before-members-writes") => seat.since.max(began),
            _ => seat.since,
        };
        self.roster
            .iter()
            .filter(|(origin, seat)| *origin != me && seat.is_live())
            .all(|(origin, seat)| !(seat.returning && origin < me) && until(seat) <= self.map.seen(origin))
    }

    /// Whether the map holds something at least as new as a record of a backlog. A reissued write counts as only as new as its
    /// first dot.
    fn is_beaten(&self, key: &Bytes, record: &Record) -> bool {
        self.map.store.get(key).is_some_and(|held| {
            *held.first.as_deref().filter(|_| !planted!("reissued-counts-as-new")).unwrap_or(&held.dot) >= record.dot
        })
    }

    /// Covers what the backlog's map covered: all of it was reissued, or beaten. Other nodes that rejoin with the same writes
    /// learn this.
    fn join_backlog(&mut self, backlog: &Backlog) {
        for (&origin, cover) in &backlog.map.vector {
            if !self.roster.is_live(origin) {
                self.cover(origin, cover.seen, cover.last);
            }
        }
    }

    /// Writes the content of a write under a new dot.
    pub(super) fn reissue(&mut self, key: Bytes, record: &Record, now_ms: u64) {
        let value = record.live(now_ms).cloned();
        let expires_ms = record.expires_ms.filter(|_| value.is_some());
        let first = record.first.as_deref().copied().unwrap_or(record.dot);
        let dot = self.write(key, value, expires_ms, Some(first), now_ms);
        self.counters.reissued += 1;
        self.changes.note(Change::Reissued(record.dot, dot));
    }
}

/// The name under which a process that lost its own name takes the seat `origin`.
fn derived_name(name: &str, origin: u64) -> String {
    let name = name.split_once('~').map_or(name, |(name, _)| name);
    format!("{name}~{origin:016x}")
}

/// The origin of a node that resets: never used before, not 0.
fn next_origin(origin: u64, ended: u64) -> u64 {
    let mut input = [0; 16];
    input[..8].copy_from_slice(&origin.to_le_bytes());
    input[8..].copy_from_slice(&ended.to_le_bytes());
    xxh3_64(&input).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_derived_name_is_not_derived_twice() {
        let name = derived_name("n", 1);
        assert_eq!(name, "n~0000000000000001");
        assert_eq!(derived_name(&name, 0x2f), "n~000000000000002f");
    }

    #[test]
    fn each_reset_has_another_origin() {
        assert_ne!(next_origin(1, 5), next_origin(1, 6));
        assert_ne!(next_origin(1, 5), next_origin(2, 5));
    }
}
