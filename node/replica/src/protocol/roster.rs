//! Who takes part: seats, which only move forward, so that rosters merge to the same result in any order. Knows nothing of keys,
//! values and links.

use std::collections::BTreeMap;

use kvasir_proto::peer::v1::{self as wire, SeatState};
use xxhash_rust::xxh3::Xxh3;

use super::limits::MAX_SEATS;

/// At most this many ended seats are remembered, whatever they wrote: peers would refuse a longer roster.
const MOST_ENDED: usize = MAX_SEATS / 2;

/// An origin's entry in the roster. A node that resets takes a new seat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The node's name.
    pub name: String,
    /// Whether it is a member of the cluster proper, not a sidecar.
    pub voter: bool,
    /// When the seat was taken, milliseconds since 1970. If two processes of one name have no map, the earlier one has the
    /// name.
    pub started_ms: u64,
    /// The state.
    pub state: SeatState,
    /// Of a seat that is gone: the timestamp at which its end was decided. Of a seat that takes part: the timestamp at which it
    /// had reissued its backlog.
    pub since: u64,
    /// Whether it has a backlog to reissue.
    pub returning: bool,
    /// Of a member: its sponsor; 0 if it founded the epoch.
    pub sponsor: u64,
    /// Of a member: all that it writes is above this timestamp.
    pub began: u64,
    /// Of a process that was evicted, or was replaced by another of its name: all seats that take part hold its writes up to
    /// this timestamp. 0 for all others.
    pub agreed: u64,
}

impl Seat {
    /// The seat of a process that has no map yet.
    pub(super) const fn joining(name: String, voter: bool, started_ms: u64, returning: bool) -> Self {
        Self {
            name,
            voter,
            started_ms,
            state: SeatState::Joining,
            since: 0,
            returning,
            sponsor: 0,
            began: 0,
            agreed: 0,
        }
    }

    /// Whether the seat takes part: its writes are counted on, and its attestation is required.
    pub const fn is_live(&self) -> bool {
        matches!(self.state, SeatState::Joining | SeatState::Member)
    }

    /// Whether this process has the name, and not `other`, which has the same name and no map yet: this process holds the map,
    /// or it came first. A process with a backlog counts as the earlier one.
    pub(super) fn precedes(&self, origin: u64, other: &Self, other_origin: u64) -> bool {
        let seniority = |seat: &Self, origin| (!seat.returning, seat.started_ms, origin);
        match self.state {
            SeatState::Member if !planted!("name-goes-to-slower-clock") => true,
            SeatState::Member | SeatState::Joining => seniority(self, origin) < seniority(other, other_origin),
            SeatState::Evicted | SeatState::Ended => false,
        }
    }

    /// If two members have one name, the one with the larger claim keeps it. An admitted process took the name from a
    /// process that was not heard, so the last admitted one keeps it; of founders, which have never met, the first one
    /// does.
    const fn claim(&self, origin: u64) -> (bool, u64, u64) {
        let admitted = self.sponsor != 0;
        (admitted, if admitted { self.began } else { u64::MAX - self.began }, origin)
    }

    /// Ends the seat, because another process has the name. This process may run on behind a partition, and rejoin with what it
    /// writes there.
    fn replace(&mut self, now: u64, agreed: u64) {
        // At least 1, which keeps all deletes; 0 means that no writes of the seat are expected.
        match self.state {
            SeatState::Member => self.agreed = agreed.max(1),
            SeatState::Evicted if !planted!("evicted-and-replaced-not-awaited") => self.agreed = self.agreed.max(1),
            // It holds a backlog, and may have taken up its old map again.
            SeatState::Joining if self.returning && !planted!("replaced-while-rejoining-not-awaited") => {
                self.agreed = agreed.max(1);
            }
            SeatState::Evicted | SeatState::Joining | SeatState::Ended => {}
        }
        (self.state, self.since) = (SeatState::Ended, self.since.max(now));
    }

    /// Of two versions of one seat, the one with the larger age is the later.
    const fn age(&self) -> (i32, bool, u64, u64, u64) {
        (self.state as i32, !self.returning, self.started_ms, self.since, self.agreed)
    }
}

/// Seats by origin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Roster {
    seats: BTreeMap<u64, Seat>,
}

impl Roster {
    pub(super) fn get(&self, origin: u64) -> Option<&Seat> {
        self.seats.get(&origin)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Seat)> {
        self.seats.iter().map(|(&origin, seat)| (origin, seat))
    }

    /// Origins that take part.
    pub(super) fn live(&self) -> impl Iterator<Item = u64> {
        self.iter().filter(|(_, seat)| seat.is_live()).map(|(origin, _)| origin)
    }

    /// Origins of members.
    pub(super) fn members(&self) -> impl Iterator<Item = u64> {
        self.iter().filter(|(_, seat)| seat.state == SeatState::Member).map(|(origin, _)| origin)
    }

    /// Whether the seat takes part.
    pub(super) fn is_live(&self, origin: u64) -> bool {
        self.get(origin).is_some_and(Seat::is_live)
    }

    /// Whether an evicted node may still rejoin, or a rejoined node has a backlog to reissue.
    pub(super) fn awaits_return(&self) -> bool {
        self.seats.values().any(|seat| seat.state == SeatState::Evicted) || self.awaits_reissue()
    }

    /// Whether a rejoined node has a backlog to reissue.
    pub(super) fn awaits_reissue(&self) -> bool {
        self.seats.values().any(|seat| seat.is_live() && seat.returning)
    }

    /// Takes a version of a seat if it is later than what is known. Returns whether it is.
    pub(super) fn take(&mut self, origin: u64, seat: Seat) -> bool {
        match self.seats.get_mut(&origin) {
            Some(held) if held.age() >= seat.age() => false,
            Some(held) => {
                *held = seat;
                true
            }
            None => {
                self.seats.insert(origin, seat);
                true
            }
        }
    }

    /// If several members have one name, one of them keeps it; the others end, as do evicted seats of the name. Returns whether
    /// any seat ended. Seats without a map do not end here (see `namesake`), nor do `strangers`, which may hold another map.
    /// All seats that take part hold what the ended seats wrote up to `agreed`.
    pub(super) fn settle_names(&mut self, strangers: &[u64], now: u64, agreed: u64) -> bool {
        let mut standing: BTreeMap<String, (bool, u64, u64)> = BTreeMap::new();
        for origin in self.members().filter(|origin| !strangers.contains(origin)) {
            let seat = &self.seats[&origin];
            let best = standing.entry(seat.name.clone()).or_default();
            *best = seat.claim(origin).max(*best);
        }
        let mut ended = false;
        for (&origin, seat) in &mut self.seats {
            let Some(best) = standing.get(&seat.name) else { continue };
            let ends = match seat.state {
                SeatState::Member => *best != seat.claim(origin) && !strangers.contains(&origin),
                SeatState::Evicted => true,
                SeatState::Joining | SeatState::Ended => false,
            };
            if ends {
                seat.replace(now, agreed);
                ended = true;
            }
        }
        ended
    }

    pub(super) fn end(&mut self, origin: u64, state: SeatState, now: u64) {
        if let Some(seat) = self.seats.get_mut(&origin)
            && (seat.state as i32) < (state as i32)
        {
            // No more writes of the seat are expected.
            (seat.state, seat.since, seat.agreed) = (state, now, 0);
        }
    }

    /// Ends a seat, because another process has the name. All seats that take part hold what this one wrote up to `agreed`.
    pub(super) fn replace(&mut self, origin: u64, now: u64, agreed: u64) {
        if let Some(seat) = self.seats.get_mut(&origin).filter(|seat| seat.state != SeatState::Ended) {
            seat.replace(now, agreed);
        }
    }

    /// Marks a seat as evicted by a majority. All seats that take part hold what it wrote up to `agreed`.
    pub(super) fn evict(&mut self, origin: u64, now: u64, agreed: u64) {
        if let Some(seat) = self.seats.get_mut(&origin).filter(|seat| seat.is_live()) {
            (seat.state, seat.since, seat.agreed) = (SeatState::Evicted, now, agreed);
        }
    }

    /// Makes a joining seat a member, with a snapshot of the sponsor.
    pub(super) fn admit(&mut self, origin: u64, sponsor: u64, began: u64) -> bool {
        let seat = self.seats.get_mut(&origin).filter(|s| s.state == SeatState::Joining);
        seat.map(|seat| (seat.state, seat.sponsor, seat.began) = (SeatState::Member, sponsor, began)).is_some()
    }

    /// Notes that the process has reissued all of its backlog.
    pub(super) fn returned(&mut self, origin: u64, now: u64) {
        if let Some(seat) = self.seats.get_mut(&origin).filter(|s| s.returning) {
            (seat.returning, seat.since) = (false, now);
        }
    }

    pub(super) fn remove(&mut self, origin: u64) {
        self.seats.remove(&origin);
    }

    /// If there are more than `limit` seats that are gone, drops those gone longest, except those to `keep` (by origin and time
    /// of their end). Returns their origins.
    pub(super) fn bound(&mut self, limit: usize, keep: impl Fn(u64, u64) -> bool) -> Vec<u64> {
        let mut ended: Vec<_> = self.iter().filter(|(_, s)| !s.is_live()).map(|(o, s)| (s.since, o)).collect();
        ended.sort_unstable();
        let (excess, must) = (ended.len().saturating_sub(limit), ended.len().saturating_sub(MOST_ENDED));
        let mut at = 0;
        ended.retain(|(since, origin)| {
            at += 1;
            at <= must && !planted!("roster-without-limit") || !keep(*origin, *since)
        });
        ended.truncate(excess);
        let gone: Vec<u64> = ended.into_iter().map(|(_, origin)| origin).collect();
        for origin in &gone {
            self.seats.remove(origin);
        }
        gone
    }

    /// Distinct names of live voters.
    pub(super) fn voters(&self) -> usize {
        self.voters_that(Seat::is_live)
    }

    /// Distinct names of voters that are members.
    pub(super) fn member_voters(&self) -> usize {
        self.voters_that(|seat| seat.state == SeatState::Member)
    }

    fn voters_that(&self, take_part: impl Fn(&Seat) -> bool) -> usize {
        let mut names: Vec<_> =
            self.seats.values().filter(|s| s.voter && take_part(s)).map(|s| s.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names.len()
    }

    /// Equal on two nodes that list the same seats in the same states.
    pub(super) fn hash(&self, hash: &mut Xxh3) {
        for (origin, seat) in self.iter() {
            hash.update(&origin.to_le_bytes());
            hash.update(&[seat.state as u8, u8::from(seat.returning)]);
        }
    }

    pub(super) fn to_wire(&self) -> wire::Roster {
        let seats = self.iter().map(|(origin, seat)| wire::Seat {
            origin,
            name: seat.name.clone(),
            voter: seat.voter,
            started_ms: seat.started_ms,
            state: seat.state.into(),
            since_hlc: seat.since,
            returning: seat.returning,
            sponsor: seat.sponsor,
            began_hlc: seat.began,
            agreed_hlc: seat.agreed,
        });
        wire::Roster { seats: seats.collect() }
    }
}

/// A seat as a peer sent it; `None` for a seat that no node makes.
pub(super) fn from_wire(seat: wire::Seat) -> Option<(u64, Seat)> {
    let state = SeatState::try_from(seat.state).ok()?;
    (seat.origin != 0).then_some((
        seat.origin,
        Seat {
            name: seat.name,
            voter: seat.voter,
            started_ms: seat.started_ms,
            state,
            since: seat.since_hlc,
            returning: seat.returning,
            sponsor: seat.sponsor,
            began: seat.began_hlc,
            agreed: seat.agreed_hlc,
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The backlog of an evicted process may be older than a delete, also if another process took its name before it rejoined.
    #[test]
    fn replaced_after_eviction_still_keeps_deletes() {
        for (agreed, kept) in [(0, 1), (7, 7)] {
            let mut roster = Roster::default();
            roster.take(1, Seat { state: SeatState::Member, ..Seat::joining("n0".into(), true, 1, false) });
            roster.evict(1, 10, agreed);
            roster.replace(1, 20, 15);
            assert_eq!(roster.get(1).map(|seat| (seat.state, seat.agreed)), Some((SeatState::Ended, kept)));
        }
    }

    /// A process whose name was taken while it rejoined still has its backlog.
    #[test]
    fn replaced_while_rejoining_keeps_deletes() {
        for (returning, kept) in [(true, 15), (false, 0)] {
            let mut roster = Roster::default();
            roster.take(1, Seat::joining("n0".into(), true, 1, returning));
            roster.replace(1, 20, 15);
            assert_eq!(roster.get(1).map(|seat| (seat.state, seat.agreed)), Some((SeatState::Ended, kept)));
        }
    }
}
