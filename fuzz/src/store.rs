//! The packed store against a plain map, whatever the operations.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvasir_store::{Dot, INLINE, Store, Write};

use crate::input::Input;

const START_MS: u64 = 1_800_000_000_000;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    dot: Dot,
    value: Option<Bytes>,
    expires_ms: Option<u64>,
    first: Option<Dot>,
}

impl Record {
    const fn write(&self) -> Write<'_> {
        Write { dot: self.dot, value: self.value.as_ref(), expires_ms: self.expires_ms, first: self.first }
    }

    /// Since when it is a tombstone, if it is one.
    fn dead_since(&self) -> Option<u64> {
        let end = self.expires_ms.map_or(0, |end| end.min(u64::MAX >> 16) << 16);
        self.value.is_none().then_some(self.dot.hlc.max(end))
    }
}

#[derive(Default)]
struct World {
    store: Store,
    model: BTreeMap<Vec<u8>, Record>,
    now_ms: u64,
    step: u64,
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut world = World { now_ms: START_MS, ..World::default() };
    while !input.is_empty() {
        world.step(&mut input);
        world.step += 1;
    }
    world.check();
}

fn key(input: &mut Input<'_>) -> Vec<u8> {
    match input.below(5) {
        0 => vec![input.byte(); input.below(40)],
        1 => [&b"shared/beginning/"[..], &[input.byte(), input.byte()]].concat(),
        2 => [vec![b'x'; input.below(4) * 3000], vec![input.byte()]].concat(),
        _ => format!("k{}", input.byte()).into_bytes(),
    }
}

fn stamp(input: &mut Input<'_>, near: u64) -> u64 {
    match input.below(8) {
        0 => input.number().max(1),
        1 => u64::MAX,
        _ => near + u64::from(input.byte()),
    }
}

impl World {
    fn record(&self, input: &mut Input<'_>) -> Record {
        let hlc = stamp(input, (self.now_ms << 16) + self.step);
        let len = [0, 8, 64, 200, INLINE, INLINE + 1, 3000][input.below(7)];
        Record {
            dot: Dot { hlc, origin: input.below(4) as u64 },
            value: (input.below(4) > 0).then(|| Bytes::from(vec![input.byte(); len])),
            expires_ms: (input.below(3) == 0).then(|| stamp(input, self.now_ms)),
            first: (input.byte() == 1).then(|| Dot { hlc: input.number(), origin: 1 }),
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        self.now_ms += u64::from(input.byte() % 4);
        match input.below(8) {
            0..4 => {
                let (first, record) = (key(input), self.record(input));
                // Many at a time, so that short inputs lead to several pages.
                for copy in 0..=input.below(4) * 20 {
                    let key = if copy == 0 { first.clone() } else { [&first[..], &[copy as u8]].concat() };
                    self.merge(&key, &record);
                }
            }
            4 => {
                let key = key(input);
                self.store.remove(&key);
                self.model.remove(&key);
            }
            5 => self.expire(input.below(9) * 20),
            6 => self.collect(((self.now_ms - 1) << 16) + u64::from(input.byte()), input.below(9) * 20),
            _ => self.check(),
        }
        assert_eq!(self.store.len(), self.model.len());
    }

    fn merge(&mut self, key: &[u8], record: &Record) {
        let wins = self.model.get(key).is_none_or(|held| held.dot < record.dot);
        assert_eq!(self.store.merge(key, &record.write()), wins);
        if wins {
            self.model.insert(key.to_vec(), record.clone());
        }
    }

    fn expire(&mut self, limit: usize) {
        let due = |held: &Record| held.value.is_some() && held.expires_ms.is_some_and(|end| end <= self.now_ms);
        let many = self.model.values().filter(|held| due(held)).count();
        let mut ended = 0;
        self.store.expire(self.now_ms, limit, |key, dot| {
            let held = self.model.get_mut(&key.to_vec()).expect("it was put");
            assert!(held.dot == dot && due(held));
            held.value = None;
            ended += 1;
        });
        assert_eq!(ended, many.min(limit));
    }

    fn collect(&mut self, stamp: u64, limit: usize) {
        let goes = |held: &Record| held.dead_since().is_some_and(|since| since <= stamp);
        let (before, many) = (self.model.len(), self.model.values().filter(|held| goes(held)).count());
        self.store.collect(stamp, limit);
        self.model.retain(|key, held| !goes(held) || self.store.get(key).is_some());
        assert_eq!(before - self.model.len(), many.min(limit));
    }

    fn check(&self) {
        let mut entries = self.store.scan(None);
        let mut other = Store::default();
        for (key, record) in &self.model {
            let held = entries.next().expect("it was put");
            assert!(held.key() == key[..], "{:?} instead of {key:?}", held.key());
            let found = Record {
                dot: held.dot(),
                value: held.value().map(|value| value.to_bytes()),
                expires_ms: held.expires_ms(),
                first: held.first(),
            };
            assert_eq!(found, *record);
            assert_eq!(self.store.get(key).map(|held| held.dot()), Some(record.dot));
            other.merge(key, &record.write());
        }
        assert!(entries.next().is_none());
        let sums =
            |store: &Store| (store.keys(), store.tombstones(), store.memory(), store.buried(), store.fingerprint());
        assert_eq!(sums(&self.store), sums(&other));
        let first = |store: &Store| store.first_to_end().map(|key| key.to_vec());
        assert_eq!(first(&self.store), first(&other));
        assert_eq!(self.store.oldest_tombstone(), self.model.values().filter_map(Record::dead_since).min());
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    // (time, what, key, record, copies)
    let puts = |n: u8| [1, 0, 3, n, 2, n, 1, 2, 1, n, 1, 0, 3];
    let many: Vec<u8> = (0..40).flat_map(puts).collect();
    let ends: Vec<u8> = (0..30u8).flat_map(|n| [1, 0, 1, 7, n, 2, n, 0, 5, 1, n, 0, 2, n, 0, 3, 3, 5, 8]).collect();
    let deletes: Vec<u8> = (0..30u8).flat_map(|n| [3, 1, 3, n, 2, n, 0, 0, 0, 1, 0, 3, 3, 6, n, 8]).collect();
    vec![many.clone(), ends.clone(), [many, deletes, ends].concat()]
}
