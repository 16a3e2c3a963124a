//! A plain map with the behaviour of the store.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::record::{Entry, dead_since, ms_of};
use crate::{BUCKETS, Dot, Store, Write, bucket_of};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) dot: Dot,
    pub(super) value: Option<Bytes>,
    pub(super) expires_ms: Option<u64>,
    pub(super) first: Option<Dot>,
}

impl Record {
    pub(super) fn of(held: &Entry<'_>) -> Self {
        let value = held.value().map(|value| value.to_bytes());
        Self { dot: held.dot(), value, expires_ms: held.expires_ms(), first: held.first() }
    }

    fn ends(&self) -> Option<u64> {
        self.expires_ms.filter(|_| self.value.is_some())
    }

    fn dead_since(&self) -> Option<u64> {
        self.value.is_none().then(|| dead_since(self.dot.hlc, self.expires_ms))
    }

    fn cost(&self, key: &[u8]) -> u64 {
        let [end, first] = [self.expires_ms.is_some(), self.first.is_some()].map(u64::from);
        let value = self.value.as_ref().map_or(0, Bytes::len);
        Store::cost_of(key.len(), value) + end * Store::COST_OF_END + first * crate::cost::FIRST
    }

    fn write(&self) -> Write<'_> {
        Write { dot: self.dot, value: self.value.as_ref(), expires_ms: self.expires_ms, first: self.first }
    }
}

/// The store, and the map that it must be like.
#[derive(Debug, Default)]
pub(super) struct Both {
    pub(super) store: Store,
    pub(super) map: BTreeMap<Vec<u8>, Record>,
}

impl Both {
    pub(super) fn merge(&mut self, key: &[u8], record: &Record) -> bool {
        let took = self.store.merge(key, &record.write());
        assert_eq!(took, self.map.get(key).is_none_or(|held| held.dot < record.dot));
        if took {
            self.map.insert(key.to_vec(), record.clone());
        }
        self.check_sums();
        took
    }

    pub(super) fn remove(&mut self, key: &[u8]) {
        self.store.remove(key);
        self.map.remove(key);
        self.check_sums();
    }

    pub(super) fn get(&self, key: &[u8]) {
        assert_eq!(self.store.get(key).map(|held| Record::of(&held)), self.map.get(key).cloned(), "{key:?}");
    }

    pub(super) fn expire(&mut self, now_ms: u64, limit: usize) {
        let due = self.map.values().filter(|record| record.ends().is_some_and(|end| end <= now_ms)).count();
        let first = self.store.first_to_end().map(|key| key.to_vec());
        let mut ended = Vec::new();
        self.store.expire(now_ms, limit, |key, dot| ended.push((key.to_vec(), dot)));
        assert_eq!(ended.len(), due.min(limit));
        for (key, dot) in &ended {
            let record = self.map.get_mut(key).expect("it was there");
            assert!(record.dot == *dot && record.ends().is_some_and(|end| end <= now_ms));
            record.value = None;
        }
        // The one that ended first is in the page that comes first.
        assert!(limit < due || due == 0 || ended.iter().any(|(key, _)| Some(key) == first.as_ref()));
        self.check_sums();
    }

    pub(super) fn collect(&mut self, stamp: u64, limit: usize) {
        let goes = |record: &Record| record.dead_since().is_some_and(|since| since <= stamp);
        let due = self.map.values().filter(|record| goes(record)).count();
        let done = self.store.collect(stamp, limit);
        let before = self.map.len();
        if limit >= due {
            self.map.retain(|_, record| !goes(record));
        } else {
            self.map.retain(|key, record| !goes(record) || self.store.get(key).is_some());
        }
        assert_eq!(before - self.map.len(), due.min(limit));
        let ends = self.map.values().any(|record| record.ends().is_some_and(|end| end <= ms_of(stamp)));
        assert_eq!(done, limit >= due && !ends);
        self.check_sums();
    }

    /// What costs little to compare.
    fn check_sums(&self) {
        assert_eq!(self.store.len(), self.map.len());
        assert_eq!(self.store.is_empty(), self.map.is_empty());
        if self.map.is_empty() {
            assert_eq!((self.store.memory(), self.store.buried(), self.store.fingerprint()), (0, 0, 0));
        }
    }

    pub(super) fn scan(&self, from: &[u8], after: bool, many: usize) {
        let found = if after { self.store.scan(Some(from)) } else { self.store.scan_from(from) };
        let mut found = found.map(|held| (held.key().to_vec(), Record::of(&held)));
        let mut there = self.map.range(from.to_vec()..).filter(|(key, _)| !after || **key != *from);
        for _ in 0..many {
            let (found, there) = (found.next(), there.next().map(|(key, record)| (key.clone(), record.clone())));
            assert_eq!(found, there);
            if there.is_none() {
                break;
            }
        }
    }

    /// Everything.
    pub(super) fn check(&self) {
        self.store.check();
        let (store, map) = (&self.store, &self.map);
        assert!(store.scan(None).map(|held| (held.key().to_vec(), Record::of(&held))).eq(map.clone()));
        let values = || map.iter().filter(|(_, record)| record.value.is_some());
        let tombstones = || map.iter().filter(|(_, record)| record.value.is_none());
        assert_eq!((store.keys(), store.tombstones()), (values().count() as u64, tombstones().count() as u64));
        let first = values().filter_map(|(key, record)| Some((record.ends()?, key))).min();
        assert_eq!(store.first_to_end().map(|key| key.to_vec()), first.map(|(_, key)| key.clone()));
        assert_eq!(store.oldest_tombstone(), tombstones().filter_map(|(_, record)| record.dead_since()).min());
        // A store that holds nothing else.
        let mut fresh = Store::default();
        let (mut buried, mut buckets) = (0, [0_u128; BUCKETS]);
        for (key, record) in map.iter().rev() {
            let before = fresh.fingerprint();
            assert!(fresh.merge(key, &record.write()));
            let bucket = &mut buckets[bucket_of(key)];
            *bucket = bucket.wrapping_add(fresh.fingerprint().wrapping_sub(before));
            assert_eq!(store.cost_at(key), record.cost(key));
            buried += if record.value.is_none() { record.cost(key) } else { 0 };
        }
        assert_eq!((store.memory(), store.fingerprint()), (fresh.memory(), fresh.fingerprint()));
        assert_eq!((store.buried(), store.buckets()), (buried, &buckets));
    }
}
