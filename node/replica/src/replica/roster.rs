//! Who is a member: seats that only ever move forward, so that rosters merge
//! in any order to the same. Knows nothing of keys, values and links.

use std::collections::BTreeMap;

use kvasir_proto::peer::v1::{self as wire, SeatState};
use xxhash_rust::xxh3::Xxh3;

/// At most this many ended seats are remembered, beside those of which not everything is held by all yet; the longest
/// ended go first.
pub const MAX_ENDED: usize = 1024;
/// No more seats than this are taken from a peer: a roster is a few dozen.
pub const MAX_SEATS: usize = 4096;
/// No more ended seats than this are remembered, whatever they wrote: peers would take the roster no more.
const MOST_ENDED: usize = MAX_SEATS / 2;

/// One process of the cluster; one that begins anew takes a new seat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The node's name.
    pub name: String,
    /// Whether it is a member of the cluster proper, not a sidecar.
    pub voter: bool,
    /// When it was taken. Of two processes of one name that have no map yet, the earlier has it; milliseconds since 1970.
    pub started_ms: u64,
    /// Where it is in its life.
    pub state: SeatState,
    /// When its end was decided, a stamp; of a seat that takes part, when it had
    /// issued again all that it brought.
    pub since: u64,
    /// Whether it brings writes of an ended seat that it has yet to issue again.
    pub returning: bool,
    /// Of a member: the process that gave it its map; 0: none, it founded the cluster.
    pub sponsor: u64,
    /// Of a member: all that it writes is above this stamp.
    pub began: u64,
    /// Of a process that was evicted, or that another replaced under its name: what it wrote up to this stamp is held by
    /// all that take part. 0 of others.
    pub agreed: u64,
}

impl Seat {
    /// Of one that has no map yet.
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

    /// Takes part: its writes are counted on, and its word is waited for.
    pub const fn is_live(&self) -> bool {
        matches!(self.state, SeatState::Joining | SeatState::Member)
    }

    /// Whether, of two processes of one name of which the other has no map yet, this one has the
    /// name: it holds the map, or it came first. One that brings writes was there before.
    pub(super) fn precedes(&self, origin: u64, other: &Self, other_origin: u64) -> bool {
        let seniority = |seat: &Self, origin| (!seat.returning, seat.started_ms, origin);
        match self.state {
            SeatState::Member if !planted!("name-goes-to-slower-clock") => true,
            SeatState::Member | SeatState::Joining => seniority(self, origin) < seniority(other, other_origin),
            SeatState::Evicted | SeatState::Ended => false,
        }
    }

    /// Which of two that hold the map under one name stands: the larger. Whoever was let in took the
    /// name from a process that was not heard, so the last such one stands; of founders, who have never
    /// met, the first.
    const fn claim(&self, origin: u64) -> (bool, u64, u64) {
        let let_in = self.sponsor != 0;
        (let_in, if let_in { self.began } else { u64::MAX - self.began }, origin)
    }

    /// Another process has the name. This one may run on behind a partition, and return with what it writes there.
    fn replace(&mut self, now: u64, agreed: u64) {
        // At least 1, which keeps all deletes: 0 is for seats of which nothing is waited for.
        match self.state {
            SeatState::Member => self.agreed = agreed.max(1),
            SeatState::Evicted if !planted!("evicted-and-replaced-not-awaited") => self.agreed = self.agreed.max(1),
            SeatState::Evicted | SeatState::Joining | SeatState::Ended => {}
        }
        (self.state, self.since) = (SeatState::Ended, self.since.max(now));
    }

    /// What decides which of two accounts of one seat is the later.
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

    /// Origins that hold what the cluster holds.
    pub(super) fn members(&self) -> impl Iterator<Item = u64> {
        self.iter().filter(|(_, seat)| seat.state == SeatState::Member).map(|(origin, _)| origin)
    }

    /// Whether the seat has a life that is not over.
    pub(super) fn is_live(&self, origin: u64) -> bool {
        self.get(origin).is_some_and(Seat::is_live)
    }

    /// Whether an evicted process may still come back with writes of its own,
    /// or has come back and not issued them yet.
    pub(super) fn awaits_return(&self) -> bool {
        self.seats.values().any(|seat| seat.state == SeatState::Evicted) || self.is_returned_to()
    }

    /// Whether a process has come back with writes of an ended seat and not issued them yet.
    pub(super) fn is_returned_to(&self) -> bool {
        self.seats.values().any(|seat| seat.is_live() && seat.returning)
    }

    /// Takes an account of a seat. Returns whether it told something new.
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

    /// Of the members that have one name, one stands; the others end, as do those of the name that were evicted. Returns
    /// whether any did. Left alone are seats that have no map yet, see `name`, and members that are `strangers`: they may
    /// hold another map. All that take part hold what those that end wrote up to `agreed`.
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
            // Nothing of it is waited for any more.
            (seat.state, seat.since, seat.agreed) = (state, now, 0);
        }
    }

    /// Another process has the name. What this one wrote up to `agreed` all that take part hold.
    pub(super) fn replace(&mut self, origin: u64, now: u64, agreed: u64) {
        if let Some(seat) = self.seats.get_mut(&origin).filter(|seat| seat.state != SeatState::Ended) {
            seat.replace(now, agreed);
        }
    }

    /// A majority has evicted the process. What it wrote up to `agreed` all that take part hold.
    pub(super) fn evict(&mut self, origin: u64, now: u64, agreed: u64) {
        if let Some(seat) = self.seats.get_mut(&origin).filter(|seat| seat.is_live()) {
            (seat.state, seat.since, seat.agreed) = (SeatState::Evicted, now, agreed);
        }
    }

    /// A joining seat holds what the cluster holds, and it was the sponsor that let it in.
    pub(super) fn admit(&mut self, origin: u64, sponsor: u64, began: u64) -> bool {
        let seat = self.seats.get_mut(&origin).filter(|s| s.state == SeatState::Joining);
        seat.map(|seat| (seat.state, seat.sponsor, seat.began) = (SeatState::Member, sponsor, began)).is_some()
    }

    /// Everything was issued again that the process had brought along.
    pub(super) fn returned(&mut self, origin: u64, now: u64) {
        if let Some(seat) = self.seats.get_mut(&origin).filter(|s| s.returning) {
            (seat.returning, seat.since) = (false, now);
        }
    }

    pub(super) fn remove(&mut self, origin: u64) {
        self.seats.remove(&origin);
    }

    /// Drops the longest ended, of those that need not be kept (by origin and when they ended), when there are more than
    /// `limit`. Returns their origins.
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

    /// Distinct names of voters that hold what the cluster holds.
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

/// A seat as a peer tells of it; `None` for one that no node makes.
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

    /// What an evicted process brings may be older than a delete, also if its name was taken before it returned.
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
}
