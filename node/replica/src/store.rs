//! The map of one replica: key → the write that won it, in key order, with an
//! expiry index, memory accounting and a fingerprint. Knows nothing of peers
//! and has no clock: callers bring `now_ms`.

mod key;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::Bytes;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use self::key::{Key, Sought};
use crate::clock::{Dot, ms_of, stamp_at};

/// What a key and its record take in the map, bytes.
const SLOT: u64 = slot(size_of::<Bytes>() + size_of::<Record>());
/// What a key takes in one of the indexes, bytes.
const INDEX_SLOT: u64 = slot(size_of::<(u64, Bytes)>());

/// What an allocation of `len` bytes takes: 8, or up to 64 a multiple of 16, and above that one of four sizes to each doubling.
/// This is exact for mimalloc, which the node uses, and close for other allocators.
const fn allocated(len: u64) -> u64 {
    match len {
        0..=8 => 8,
        9..=64 => len.next_multiple_of(16),
        _ => len.next_multiple_of(1 << ((len - 1).ilog2() - 2)),
    }
}

/// What an element of `size` bytes takes in a B-tree of the standard library. A tree node has 11 places and 16 bytes more; an
/// inner node, one for about seven leaves, also has 12 pointers. 6.9 places are taken if keys come in order, and 8.5 if they
/// come in random order. This counts 7.45, a little less than the mean of both, because a process takes some more memory.
const fn slot(size: usize) -> u64 {
    let leaf = 11 * size as u64 + 16;
    (allocated(leaf) + allocated(leaf + 12 * 8) / 7) * 100 / 745
}

/// What a [`Bytes`] of `len` bytes takes in addition to its own place: the bytes, and three words that count its owners. An
/// empty one takes nothing.
const fn owned(len: usize) -> u64 {
    if len == 0 { 0 } else { allocated(len as u64) + allocated(3 * 8) }
}

/// What a write left under its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The write.
    pub dot: Dot,
    /// The value; `None` for a tombstone: a delete, or a value that has ended and whose memory was freed.
    pub value: Option<Bytes>,
    /// When the value ends, milliseconds since 1970.
    pub expires_ms: Option<u64>,
    /// The original dot, if the write was reissued.
    pub first: Option<Box<Dot>>,
}

impl Record {
    /// The value, if it has not ended at `now_ms`.
    pub fn live(&self, now_ms: u64) -> Option<&Bytes> {
        match self.expires_ms {
            Some(end) if end <= now_ms => None,
            _ => self.value.as_ref(),
        }
    }
}

/// The number of buckets, each with a fingerprint of its own, so that two maps that differ need not be exchanged whole.
pub const BUCKETS: usize = 1024;

/// A last-writer-wins map.
#[derive(Debug)]
pub struct Store {
    map: BTreeMap<Key, Record>,
    /// Values with a TTL, by their end.
    expiry: BTreeSet<(u64, Bytes)>,
    /// Tombstones, by the timestamp at which they became one, see [`dead_since`].
    dead: BTreeSet<(u64, Bytes)>,
    with_value: u64,
    memory: u64,
    /// The part of `memory` that tombstones take.
    buried: u64,
    fingerprint: u128,
    buckets: Box<[u128; BUCKETS]>,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            map: BTreeMap::new(),
            expiry: BTreeSet::new(),
            dead: BTreeSet::new(),
            with_value: 0,
            memory: 0,
            buried: 0,
            fingerprint: 0,
            buckets: Box::new([0; BUCKETS]),
        }
    }
}

/// The timestamp at which a record becomes a tombstone: that of the delete, or of the value's end. The same on every node.
fn dead_since(record: &Record) -> u64 {
    record.expires_ms.map_or(record.dot.hlc, |end| record.dot.hlc.max(stamp_at(end.min(ms_of(u64::MAX)))))
}

/// Whether the held write beats another write of its key, or equals it.
fn stands(held: Dot, dot: Dot) -> bool {
    if planted!("last-arrival-wins") {
        return held == dot;
    }
    if planted!("tie-goes-to-first-arrival") {
        return held.hlc >= dot.hlc;
    }
    held >= dot
}

impl Store {
    /// The record of a key, tombstones included.
    pub fn get(&self, key: &[u8]) -> Option<&Record> {
        self.map.get(&key as &dyn Sought)
    }

    /// Takes a write if it beats what is there. Returns whether it did.
    ///
    /// Key and value must own their memory: a slice of a frame would keep the
    /// whole frame alive.
    pub fn merge(&mut self, mut key: Bytes, record: Record) -> bool {
        // `Bytes` allocates the count of its owners with the first clone: do it now, so that no read and no scan takes memory
        // later.
        drop(record.value.clone());
        let (dot, cost, end, dead) = (record.dot, cost(&key, &record), record.expires_ms, dead_since(&record));
        let has_value = record.value.is_some();
        match self.map.entry(Key(key.clone())) {
            Entry::Occupied(held) if stands(held.get().dot, dot) => return false,
            Entry::Occupied(mut held) => {
                // The indexes share the map's copy of the key, and keep no second one alive.
                key.clone_from(&held.key().0);
                let old = held.insert(record);
                self.forget(&key, &old);
            }
            Entry::Vacant(place) => drop(place.insert(record)),
        }
        self.add(&key, dot, u128::wrapping_add);
        self.memory += cost;
        if has_value {
            self.with_value += 1;
            if let Some(end) = end {
                self.expiry.insert((end, key));
            }
        } else {
            self.buried += cost;
            self.dead.insert((dead, key));
        }
        true
    }

    fn add(&mut self, key: &[u8], dot: Dot, how: fn(u128, u128) -> u128) {
        let summand = summand(key, dot);
        self.fingerprint = how(self.fingerprint, summand);
        let bucket = &mut self.buckets[bucket_of(key)];
        *bucket = how(*bucket, summand);
    }

    /// Takes a record's share out of the sums and the indexes.
    fn forget(&mut self, key: &Bytes, old: &Record) {
        self.add(key, old.dot, u128::wrapping_sub);
        self.memory -= cost(key, old);
        if old.value.is_some() {
            self.with_value -= 1;
            if let Some(end) = old.expires_ms {
                self.expiry.remove(&(end, key.clone()));
            }
        } else {
            self.buried -= cost(key, old);
            self.dead.remove(&(dead_since(old), key.clone()));
        }
    }

    /// Frees the values that have ended, at most `limit` of them, and hands each key to `ended`. A tombstone with the dot of
    /// the write is left.
    ///
    /// Reads do not depend on this: they compare the time themselves.
    pub fn expire(&mut self, now_ms: u64, limit: usize, mut ended: impl FnMut(&Bytes, &Record)) {
        for _ in 0..limit {
            if self.expiry.first().is_none_or(|(end, _)| *end > now_ms) {
                return;
            }
            let Some((_, key)) = self.expiry.pop_first() else { return };
            if let Some(record) = self.map.get_mut(&key.as_ref() as &dyn Sought) {
                // The key moves from one index to the other.
                self.memory -= record.value.take().map_or(0, |v| owned(v.len()));
                self.with_value -= 1;
                self.buried += cost(&key, record);
                ended(&key, record);
                let lost = planted!("expiry-without-tombstone").then(|| key.clone());
                self.dead.insert((dead_since(record), key));
                if let Some(lost) = lost {
                    self.remove(&lost);
                }
            }
        }
    }

    /// Drops the tombstones up to the timestamp `upto`, at most `limit` of them. Returns whether none of them is left: only
    /// then is the fingerprint determined by `upto` and the writes that were taken in.
    ///
    /// The caller knows that every member holds each of them, and has [expired](Self::expire) values that end by `upto`,
    /// whatever the wall clock says: values that have not been expired are not dropped.
    pub fn collect(&mut self, upto: u64, limit: usize) -> bool {
        for _ in 0..limit {
            let Some((_, key)) = self.dead.first().filter(|(since, _)| *since <= upto).cloned() else { break };
            if let Some(old) = self.map.remove(&key.as_ref() as &dyn Sought) {
                self.forget(&key, &old);
            }
        }
        self.is_collected(upto)
    }

    /// The timestamp at which the oldest tombstone became one.
    pub fn oldest_tombstone(&self) -> Option<u64> {
        self.dead.first().map(|(since, _)| *since)
    }

    /// Whether nothing is left that [`Self::collect`] would drop.
    pub fn is_collected(&self, upto: u64) -> bool {
        self.dead.first().is_none_or(|(since, _)| *since > upto)
            && self.expiry.first().is_none_or(|(end, _)| *end > ms_of(upto))
    }

    /// The value that ends first, for eviction.
    pub fn first_to_end(&self) -> Option<&Bytes> {
        self.expiry.first().map(|(_, key)| key)
    }

    /// Removes a record, also a tombstone, without a trace. This is not a delete.
    pub fn remove(&mut self, key: &Bytes) {
        if let Some(record) = self.map.remove(&key.as_ref() as &dyn Sought) {
            self.forget(key, &record);
        }
    }

    /// Records, tombstones included.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there is no record, not even a tombstone.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Records after `after` (from the first, with `None`), in key order.
    pub fn scan<'a>(&'a self, after: Option<&[u8]>) -> impl Iterator<Item = (&'a Bytes, &'a Record)> + use<'a> {
        let from = after.map_or(Bound::Unbounded, |k| Bound::Excluded(Key(Bytes::copy_from_slice(k))));
        self.map.range((from, Bound::Unbounded)).map(|(key, record)| (&key.0, record))
    }

    /// Records of keys at or after `first`, in key order.
    pub fn scan_from<'a>(&'a self, first: &[u8]) -> impl Iterator<Item = (&'a Bytes, &'a Record)> + use<'a> {
        self.map.range(Key(Bytes::copy_from_slice(first))..).map(|(key, record)| (&key.0, record))
    }

    /// Keys that hold a value whose memory is not freed.
    pub const fn keys(&self) -> u64 {
        self.with_value
    }

    /// Deletes and expired values still remembered.
    pub fn tombstones(&self) -> u64 {
        self.map.len() as u64 - self.with_value
    }

    /// The memory of all entries, bytes, within a tenth of what they really take.
    pub const fn memory(&self) -> u64 {
        self.memory
    }

    /// The part of [`Self::memory`] that deletes and expired values take.
    pub const fn buried(&self) -> u64 {
        self.buried
    }

    /// By how much [`Self::memory`] rises if a value without an end is put under a new key.
    pub const fn cost_of(key_len: usize, value_len: usize) -> u64 {
        SLOT + owned(key_len) + owned(value_len)
    }

    /// By how much [`Self::memory`] rises if a value without an end gets one.
    pub const COST_OF_END: u64 = INDEX_SLOT;

    /// What [`Self::memory`] counts for a key's record.
    pub fn cost_at(&self, key: &[u8]) -> u64 {
        self.get(key).map_or(0, |record| cost(key, record))
    }

    /// A commutative sum over all entries: equal on two replicas with equal maps, whatever the order of the writes.
    pub const fn fingerprint(&self) -> u128 {
        self.fingerprint
    }

    /// The fingerprint by buckets of keys, see [`bucket_of`].
    pub const fn buckets(&self) -> &[u128; BUCKETS] {
        &self.buckets
    }
}

fn cost(key: &[u8], record: &Record) -> u64 {
    let indexed = record.value.is_none() || record.expires_ms.is_some();
    Store::cost_of(key.len(), record.value.as_ref().map_or(0, Bytes::len))
        + if indexed { INDEX_SLOT } else { 0 }
        + if record.first.is_some() { allocated(size_of::<Dot>() as u64) } else { 0 }
}

/// The bucket of a key.
pub fn bucket_of(key: &[u8]) -> usize {
    xxh3_64(key) as usize % BUCKETS
}

/// A dot identifies one write, so key and dot stand for the value, too.
fn summand(key: &[u8], dot: Dot) -> u128 {
    let mut short = [0; 16 + 112];
    let mut long = Vec::new();
    let input = if let Some(input) = short.get_mut(..16 + key.len()) {
        input
    } else {
        long.resize(16 + key.len(), 0);
        &mut long
    };
    input[..8].copy_from_slice(&dot.hlc.to_le_bytes());
    input[8..16].copy_from_slice(&dot.origin.to_le_bytes());
    input[16..].copy_from_slice(key);
    xxh3_128(input)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn put(hlc: u64, value: &'static str, expires_ms: Option<u64>) -> Record {
        Record {
            dot: Dot { hlc, origin: 1 },
            value: Some(Bytes::from_static(value.as_bytes())),
            expires_ms,
            first: None,
        }
    }

    fn delete(hlc: u64) -> Record {
        Record { dot: Dot { hlc, origin: 1 }, value: None, expires_ms: None, first: None }
    }

    #[test]
    fn the_larger_dot_wins_in_any_order() {
        let mut store = Store::default();
        assert!(store.merge("k".into(), put(2, "new", None)));
        assert!(!store.merge("k".into(), put(1, "old", None)));
        assert!(!store.merge("k".into(), put(2, "again", None)));
        assert_eq!(store.get(b"k").and_then(|r| r.live(0)).map(AsRef::as_ref), Some(&b"new"[..]));
    }

    #[test]
    fn a_value_ends_at_its_time_to_the_millisecond() {
        let mut store = Store::default();
        store.merge("k".into(), put(1, "v", Some(100)));
        let live = |store: &Store, now| store.get(b"k").is_some_and(|r| r.live(now).is_some());
        assert!(live(&store, 99) && !live(&store, 100));
        let ended = |store: &mut Store, now| {
            let mut keys = Vec::new();
            store.expire(now, 10, |key, record| keys.push((key.clone(), record.dot.hlc)));
            keys
        };
        assert_eq!(ended(&mut store, 99), []);
        let before = store.fingerprint();
        assert_eq!(ended(&mut store, 100), [("k".into(), 1)]);
        assert_eq!((store.keys(), store.tombstones(), store.fingerprint()), (0, 1, before));
        assert!(!live(&store, 0), "what was freed does not come back with the clock");
    }

    #[test]
    fn an_overwritten_ttl_does_not_end_the_new_value() {
        let mut store = Store::default();
        store.merge("k".into(), put(1, "v", Some(100)));
        store.merge("k".into(), put(2, "w", None));
        store.expire(1000, 10, |key, _| panic!("{key:?} ended"));
        assert!(store.get(b"k").is_some_and(|r| r.live(1000).is_some()));
    }

    #[test]
    fn tombstones_are_collected_whatever_the_clock_says() {
        let mut store = Store::default();
        store.merge("deleted".into(), delete(stamp_at(5)));
        store.merge("later".into(), delete(stamp_at(9)));
        store.merge("ended".into(), put(stamp_at(3), "v", Some(6)));
        store.merge("ends".into(), put(stamp_at(3), "v", Some(9)));
        assert!(!store.collect(stamp_at(7), 9), "what has ended is still there");
        store.expire(7, 9, |key, _| assert_eq!(key, "ended"));
        assert!(!store.collect(stamp_at(7), 0), "no step does nothing");
        assert!(store.collect(stamp_at(7), 1));
        let left: Vec<_> = store.scan(None).map(|(key, _)| key.clone()).collect();
        assert_eq!(left, ["ends", "later"]);
        let mut other = Store::default();
        other.merge("later".into(), delete(stamp_at(9)));
        other.merge("ends".into(), put(stamp_at(3), "v", Some(9)));
        assert_eq!((store.fingerprint(), store.memory()), (other.fingerprint(), other.memory()));
        assert_eq!(store.buckets(), other.buckets());
    }

    fn records() -> impl Strategy<Value = Vec<(u8, Record)>> {
        let record = (1u64..50, 0u64..3, prop::option::of(any::<u8>()), prop::option::of(1u64..100)).prop_map(
            |(hlc, origin, value, expires_ms)| Record {
                dot: Dot { hlc, origin },
                value: value.map(|v| Bytes::from(vec![v; usize::from(v)])),
                expires_ms,
                first: None,
            },
        );
        // A dot identifies one write: a second write that was drawn for it is dropped.
        prop::collection::vec((0u8..8, record), 0..60).prop_map(|mut all| {
            let mut dots = BTreeSet::new();
            all.retain(|(_, r)| dots.insert(r.dot));
            all
        })
    }

    proptest! {
        #[test]
        fn order_does_not_matter_and_the_sums_hold(records in records(), now in 0u64..120) {
            let fill = |order: &mut dyn Iterator<Item = &(u8, Record)>| {
                let mut store = Store::default();
                for (key, record) in order {
                    store.merge(vec![*key].into(), record.clone());
                }
                store
            };
            let forward = fill(&mut records.iter());
            let mut backward = fill(&mut records.iter().rev());
            prop_assert_eq!(&forward.map, &backward.map);
            prop_assert_eq!(forward.fingerprint(), backward.fingerprint());

            backward.expire(now, 1000, |_, _| ());
            let memory: u64 = backward.map.iter().map(|(k, r)| cost(&k.0, r)).sum();
            let keys = backward.map.values().filter(|r| r.value.is_some()).count() as u64;
            prop_assert_eq!((backward.memory(), backward.keys()), (memory, keys));
            let buried: u64 =
                backward.map.iter().filter(|(_, r)| r.value.is_none()).map(|(k, r)| cost(&k.0, r)).sum();
            prop_assert_eq!(backward.buried(), buried);
            prop_assert_eq!(keys, backward.map.values().filter(|r| r.live(now).is_some()).count() as u64);
        }
    }
}
