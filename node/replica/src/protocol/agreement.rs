//! What the other seats last attested, and which of them are silent.

use std::collections::{BTreeMap, BTreeSet};

use kvasir_proto::peer::v1::{Report, SeatState};

use super::roster::Roster;

/// What is needed to agree with the other seats.
#[derive(Debug)]
pub(super) struct Agreement {
    /// What each seat last attested.
    pub(super) reports: BTreeMap<u64, Report>,
    /// While this node asks for partial writes: the members that have not answered.
    pub(super) adopting: Option<BTreeSet<u64>>,
    /// Whether a message came in or a beat has passed since the last tick.
    pub(super) heard: bool,
    /// The seats without a link, each with the time since which it has none.
    silent_since: BTreeMap<u64, u64>,
}

impl Agreement {
    pub(super) const fn new() -> Self {
        Self { reports: BTreeMap::new(), adopting: None, heard: true, silent_since: BTreeMap::new() }
    }

    /// Forgets what was agreed on: the node takes another seat.
    pub(super) fn reset(&mut self) {
        self.reports.clear();
        self.adopting = None;
    }

    /// Notes that there is a link to the seat.
    pub(super) fn is_linked(&mut self, origin: u64) {
        self.silent_since.remove(&origin);
    }

    /// Notes the time since which each other seat that takes part has no link.
    pub(super) fn note_silence(&mut self, me: u64, roster: &Roster, linked: &[u64], now_ms: u64) {
        self.silent_since.retain(|o, _| roster.is_live(*o) && !linked.contains(o));
        for origin in roster.live().filter(|o| *o != me && !linked.contains(o)) {
            self.silent_since.entry(origin).or_insert(now_ms);
        }
    }

    /// Seats that have had no link for `limit_ms`.
    pub(super) fn silent(&self, limit_ms: u64, now_ms: u64) -> impl Iterator<Item = u64> {
        self.silent_since
            .iter()
            .filter(move |(_, since)| now_ms.saturating_sub(**since) >= limit_ms)
            .map(|(&origin, _)| origin)
    }

    /// How many voters have had no link to the seat for long: this node, called `name`, and the linked members that report so.
    /// They are counted by name, so a node that restarted counts once.
    pub(super) fn votes_against(&self, origin: u64, name: &str, roster: &Roster, linked: &[u64]) -> usize {
        let mut names: Vec<&str> = linked
            .iter()
            .filter(|&&o| self.reports.get(&o).is_some_and(|r| r.silent.contains(&origin)))
            .filter_map(|&o| roster.get(o).filter(|s| s.voter && s.state == SeatState::Member))
            .map(|s| s.name.as_str())
            .chain([name])
            .collect();
        names.sort_unstable();
        names.dedup();
        names.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::roster::Seat;
    use super::*;

    fn roster() -> Roster {
        let mut roster = Roster::default();
        for (origin, name, voter) in [(1, "a", true), (2, "b", true), (3, "c", true), (4, "side", false)] {
            let joining = Seat::joining(name.into(), voter, origin, false);
            roster.take(origin, Seat { state: SeatState::Member, ..joining });
        }
        roster
    }

    #[test]
    fn a_seat_is_silent_after_the_limit() {
        let (mut agreement, roster) = (Agreement::new(), roster());
        agreement.note_silence(1, &roster, &[3, 4], 100);
        agreement.note_silence(1, &roster, &[3, 4], 150);
        assert_eq!(agreement.silent(50, 149).count(), 0);
        assert_eq!(agreement.silent(50, 150).collect::<Vec<_>>(), [2], "never this node");
        agreement.is_linked(2);
        assert_eq!(agreement.silent(50, 150).count(), 0);
    }

    /// Only members that vote count, only while they are linked, and each name once.
    #[test]
    fn votes_are_those_of_linked_voters_by_name() {
        let (mut agreement, mut roster) = (Agreement::new(), roster());
        for origin in [3, 4, 5] {
            agreement.reports.insert(origin, Report { silent: vec![2], ..Report::default() });
        }
        assert_eq!(agreement.votes_against(2, "a", &roster, &[3, 4]), 2);
        assert_eq!(agreement.votes_against(2, "a", &roster, &[4]), 1);
        roster.take(5, Seat { state: SeatState::Member, ..Seat::joining("c".into(), true, 9, false) });
        assert_eq!(agreement.votes_against(2, "a", &roster, &[3, 4, 5]), 2);
    }
}
