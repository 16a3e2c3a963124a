//! What a node holds: the store, the version vector that says how complete it is, and what is agreed about it. Knows
//! nothing of links, and has no clock.

use bytes::Bytes;
use kvasir_proto::peer::v1 as wire;
use xxhash_rust::xxh3::Xxh3;

use super::changes::{Change, Changes};
use super::limits::EXPIRE_STEP;
use super::roster::{Roster, Seat};
use super::vector::Vector;
use crate::clock::Dot;
use crate::store::{Record, Store};

/// The map of one epoch as one node holds it.
///
/// Invariant: for each write that the vector's `seen` covers, the store holds that write or one that beats it, or the key's
/// record was a tombstone at or below [`Standing::forgotten`].
#[derive(Debug, Default)]
pub(super) struct Map {
    pub(super) store: Store,
    pub(super) vector: Vector,
    pub(super) standing: Standing,
}

/// Where a map comes from, and what is agreed about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// The epoch: when it was founded, and by which process. Zero: there is no map yet.
    pub(super) epoch: (u64, u64),
    /// Whether a majority of the voters was ever part of the epoch.
    pub(super) promised: bool,
    /// The stability watermark: all seats that take part hold every write up to this timestamp. A write that arrives
    /// later with a timestamp up to it was already taken in.
    pub(super) collected: u64,
    /// The GC watermark, not above `collected`: tombstones up to this timestamp may be dropped. For a write above it, the
    /// node can tell whether it has taken in a later write of the key.
    pub(super) forgotten: u64,
    /// The largest timestamp that this node, or the sponsor of its map, attested: the node covers everything up to it.
    pub(super) attested: u64,
}

impl Standing {
    pub(super) const fn to_wire(self) -> wire::Standing {
        let Self { epoch: (founded_hlc, founded_by), promised, collected, forgotten, attested: vouched } = self;
        wire::Standing { founded_hlc, founded_by, promised, collected, forgotten, vouched }
    }

    pub(super) fn from_wire(standing: &wire::Standing) -> Self {
        let wire::Standing { promised, collected, forgotten, vouched, .. } = *standing;
        Self { epoch: epoch_of(standing), promised, collected, forgotten: forgotten.min(collected), attested: vouched }
    }
}

pub(super) const fn epoch_of(standing: &wire::Standing) -> (u64, u64) {
    (standing.founded_hlc, standing.founded_by)
}

impl Map {
    /// Drops the content. What is agreed about the map stays.
    pub(super) fn clear(&mut self) {
        (self.store, self.vector) = (Store::default(), Vector::new());
    }

    /// Takes a write if it beats what is there. Returns whether it did.
    pub(super) fn merge(&mut self, key: Bytes, record: Record, changes: &mut Changes) -> bool {
        if !changes.are_watched() {
            return self.store.merge(key, record);
        }
        let change = Change::Wrote(key.clone(), record.clone());
        let took = self.store.merge(key, record);
        if took {
            changes.note(change);
        }
        took
    }

    /// Frees values that have ended.
    pub(super) fn expire(&mut self, now_ms: u64, changes: &mut Changes) {
        self.store.expire(now_ms, EXPIRE_STEP, |key, record| {
            if changes.are_watched() {
                changes.note(Change::Expired(key.clone(), record.dot));
            }
        });
    }

    /// The timestamp up to which all writes of an origin were taken in, according to the vector.
    pub(super) fn seen(&self, origin: u64) -> u64 {
        self.vector.get(&origin).map_or(0, |c| c.seen)
    }

    /// The timestamp up to which all writes of an origin were taken in: at least the stability watermark, also for an unknown
    /// origin.
    pub(super) fn covered(&self, origin: u64) -> u64 {
        if planted!("stable-not-covered") {
            return self.seen(origin);
        }
        self.seen(origin).max(self.standing.collected)
    }

    /// The timestamp up to which a peer need not be asked about an origin: the stability watermark, up to which all nodes have
    /// taken in everything. It is 0 for a seat that is gone, because a node may rejoin with writes of that seat that were not
    /// taken in.
    pub(super) fn floor(&self, roster: &Roster, origin: u64) -> u64 {
        if roster.get(origin).is_none_or(Seat::is_live) { self.standing.collected } else { 0 }
    }

    /// Notes that all writes of an origin up to `seen` were taken in, and that `last` is the last of them.
    pub(super) fn cover(&mut self, origin: u64, seen: u64, last: u64) {
        self.vector.entry(origin).or_default().join(seen, last);
    }

    /// Notes that a write is held. All writes of a retired origin were taken in: an entry for the origin would say
    /// that something before the write may be missing.
    pub(super) fn note_write(&mut self, dot: Dot) {
        let remembered = dot.hlc > self.standing.collected
            || planted!("retired-origin-partial")
            || self.vector.contains_key(&dot.origin);
        if remembered {
            self.vector.entry(dot.origin).or_default().note(dot.hlc);
        }
    }

    /// Equal on two nodes that took in the same writes.
    pub(super) fn hash(&self, roster: &Roster) -> u64 {
        let mut hash = Xxh3::new();
        for (&origin, cover) in self.vector.iter().filter(|(o, c)| c.wrote() > self.floor(roster, **o)) {
            cover.hash(origin, &mut hash);
        }
        hash.digest()
    }

    /// Origins that are gone and have partial writes: writes that are held above a gap.
    pub(super) fn partial(&self, roster: &Roster) -> impl Iterator<Item = u64> {
        let partial = |(o, c): &(&u64, &super::vector::Cover)| {
            c.beyond > 0 && !roster.is_live(**o) && !planted!("partial-writes-left")
        };
        self.vector.iter().filter(partial).map(|(&o, _)| o)
    }
}

#[cfg(test)]
mod tests {
    use kvasir_proto::peer::v1::SeatState;

    use super::*;

    fn roster(origin: u64, state: SeatState) -> Roster {
        let mut roster = Roster::default();
        roster.take(origin, Seat { state, ..Seat::joining("n".into(), true, 1, false) });
        roster
    }

    #[test]
    fn standing_survives_the_wire() {
        let standing = Standing { epoch: (1, 2), promised: true, collected: 9, forgotten: 7, attested: 11 };
        assert_eq!(Standing::from_wire(&standing.to_wire()), standing);
        let forged = wire::Standing { forgotten: 10, ..standing.to_wire() };
        assert_eq!(Standing::from_wire(&forged).forgotten, 9, "not above the stability watermark");
    }

    /// Up to the stability watermark all writes were taken in, also of origins without an entry.
    #[test]
    fn covered_reaches_the_stability_watermark() {
        let mut map = Map { standing: Standing { collected: 5, ..Standing::default() }, ..Map::default() };
        map.cover(1, 8, 6);
        assert_eq!((map.covered(1), map.covered(2), map.seen(2)), (8, 5, 0));
    }

    /// A write that all hold makes no entry for an origin that was retired.
    #[test]
    fn note_write_ignores_retired_origins() {
        let mut map = Map { standing: Standing { collected: 5, ..Standing::default() }, ..Map::default() };
        map.note_write(Dot { hlc: 5, origin: 1 });
        assert!(map.vector.is_empty());
        map.note_write(Dot { hlc: 6, origin: 1 });
        assert_eq!(map.vector[&1].beyond, 6);
    }

    #[test]
    fn partial_writes_are_those_of_gone_origins() {
        let mut map = Map::default();
        map.note_write(Dot { hlc: 6, origin: 1 });
        assert_eq!(map.partial(&roster(1, SeatState::Member)).count(), 0);
        assert_eq!(map.partial(&roster(1, SeatState::Ended)).collect::<Vec<_>>(), [1]);
    }

    /// The hash ignores heartbeats, and what is causally stable of live origins.
    #[test]
    fn hash_leaves_out_heartbeats_and_what_is_stable() {
        let (mut a, mut b) = (Map::default(), Map::default());
        a.cover(1, 10, 4);
        b.cover(1, 90, 4);
        let live = roster(1, SeatState::Member);
        assert_eq!(a.hash(&live), b.hash(&live));
        b.vector.clear();
        assert_ne!(a.hash(&live), b.hash(&live));
        a.standing.collected = 4;
        assert_eq!(a.hash(&live), b.hash(&live));
        assert_ne!(a.hash(&roster(1, SeatState::Ended)), b.hash(&live), "a node may rejoin with more of it");
    }
}
