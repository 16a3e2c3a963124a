//! Properties for any input: clock and store against plain models, and which clocks and timestamps are refused.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kvasir_proto::peer::v1::{Entry, Message, Push, message::Kind};
use kvasir_replica::clock::{Clock, Dot, ms_of, stamp_at};
use kvasir_replica::protocol::{Bounds, LinkId, PeerId, Replica, STAMP_END, Settings, View, Violation};
use kvasir_replica::store::{Record, Store};
use proptest::prelude::*;

// ---- clock

const NOW_MS: u64 = 1_700_000_000_000;

/// A ready replica with a link to another one.
fn linked(max_clock_skew_ms: u64) -> (Replica, LinkId) {
    let settings = Settings {
        origin: 1,
        name: "a".into(),
        voter: true,
        started_ms: 1,
        voters: 0,
        evict_after_ms: 60_000,
        sync_interval_ms: 1_000,
        max_clock_skew_ms,
        max_memory: None,
        evict_ending: false,
        may_found: true,
        serve_alone: true,
        join_timeout_ms: 0,
        bounds: Bounds::default(),
    };
    let mut replica = Replica::new(settings, NOW_MS);
    replica.tick(View::ALONE, NOW_MS);
    let peer = PeerId { origin: 2, name: "b".into(), voter: true, started_ms: 1, returning: false };
    let link = replica.link_up(peer);
    (replica, link)
}

/// Whatever timestamp a peer sends, there is a larger one for the next write.
#[test]
fn clock_refuses_impossible_timestamps() {
    let (mut replica, link) = linked(10_000);
    let entries = vec![Entry { key: "k".into(), hlc: u64::MAX, origin: 3, ..Entry::default() }];
    let push = Push { prev: 0, last: stamp_at(NOW_MS), entries, now_ms: NOW_MS };
    let result = replica.receive(link, Message { kind: Some(Kind::Push(push)) }, NOW_MS);
    assert_eq!(result, Err(Violation::Malformed));
    let dot = replica.put("k".into(), "v".into(), None, NOW_MS).expect("there is no limit on memory");
    assert!(dot.hlc < STAMP_END);
}

proptest! {
    /// A new timestamp is larger than all that the clock gave or saw: by 1, or up to the wall clock if that is later.
    #[test]
    fn clock_rises_above_all_and_no_further(
        steps in prop::collection::vec((any::<bool>(), 0u64..1 << 40, 0u64..1 << 16), 1..200),
    ) {
        let mut clock = Clock::default();
        let (mut all, mut given) = (BTreeSet::from([0]), BTreeSet::new());
        for (observes, ms, counter) in steps {
            if observes {
                clock.observe(stamp_at(ms) | counter);
                all.insert(stamp_at(ms) | counter);
            } else {
                let largest = *all.last().expect("0 is there");
                let stamp = clock.tick(ms);
                prop_assert_eq!(stamp, (largest + 1).max(stamp_at(ms)));
                prop_assert!(given.insert(stamp), "{} was used twice", stamp);
                all.insert(stamp);
            }
            prop_assert_eq!(Some(&clock.last()), all.last());
        }
    }

    /// A peer whose clock is too far ahead is refused, and does not change this node's clock. A peer whose timestamps are
    /// ahead of its clock is not refused.
    #[test]
    fn clock_of_a_peer_too_far_ahead_is_refused(ahead_ms in 0u64..40_000, more_ms in 0u64..4_000_000, limit_ms in 1u64..20_000) {
        let (mut replica, link) = linked(limit_ms);
        let last = stamp_at(NOW_MS + ahead_ms + more_ms);
        let push = Push { prev: 0, last, entries: Vec::new(), now_ms: NOW_MS + ahead_ms };
        let result = replica.receive(link, Message { kind: Some(Kind::Push(push)) }, NOW_MS);
        let dot = replica.put("k".into(), "v".into(), None, NOW_MS).expect("there is no limit on memory");
        if ahead_ms > limit_ms {
            prop_assert_eq!(result, Err(Violation::ClockAhead { ahead_ms, limit_ms }));
            prop_assert_eq!(ms_of(dot.hlc), NOW_MS);
        } else {
            prop_assert_eq!(result, Ok(()));
            prop_assert!(dot.hlc > last, "the clock did not take in the peer's");
        }
    }
}

// ---- store

/// A store without indexes and sums.
#[derive(Default)]
struct Model(BTreeMap<Bytes, Record>);

impl Model {
    fn merge(&mut self, key: Bytes, record: Record) -> bool {
        let takes = self.0.get(&key).is_none_or(|old| old.dot < record.dot);
        if takes {
            self.0.insert(key, record);
        }
        takes
    }

    fn in_order<T: Ord>(&self, of: impl Fn(&Record) -> Option<T>) -> Vec<Bytes> {
        let mut some: Vec<_> = self.0.iter().filter_map(|(key, record)| Some((of(record)?, key.clone()))).collect();
        some.sort_unstable();
        some.into_iter().map(|(_, key)| key).collect()
    }

    /// The keys of values with an end, in the order of their ends.
    fn ending(&self) -> Vec<Bytes> {
        self.in_order(|record| record.expires_ms.filter(|_| record.value.is_some()))
    }

    fn expire(&mut self, now_ms: u64, limit: usize) -> Vec<Bytes> {
        let over = |key: &Bytes| self.0[key].expires_ms.is_some_and(|end| end <= now_ms);
        let ended: Vec<_> = self.ending().into_iter().filter(over).take(limit).collect();
        for key in &ended {
            self.0.get_mut(key).expect("it was listed").value = None;
        }
        ended
    }

    fn collect(&mut self, stamp: u64, limit: usize) -> bool {
        let since = |record: &Record| record.expires_ms.map_or(0, stamp_at).max(record.dot.hlc);
        let dead = |model: &Self| {
            model.in_order(|record| Some(since(record)).filter(|it| record.value.is_none() && *it <= stamp))
        };
        for key in dead(self).into_iter().take(limit) {
            self.0.remove(&key);
        }
        dead(self).is_empty() && !self.ending().iter().any(|key| self.0[key].expires_ms <= Some(ms_of(stamp)))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Merge(u8, Record),
    Expire(u64, usize),
    Collect(u64, usize),
    Remove(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Few milliseconds, counters and origins, so that equal ones occur.
    let stamp = || (1u64..40, 0u64..2).prop_map(|(ms, counter)| stamp_at(ms) | counter);
    let value =
        prop::option::weighted(0.7, (any::<u8>(), 0usize..40).prop_map(|(byte, len)| Bytes::from(vec![byte; len])));
    let record = (stamp(), 0u64..2, value, prop::option::of(1u64..60)).prop_map(|(hlc, origin, value, expires_ms)| {
        Record { dot: Dot { hlc, origin }, value, expires_ms, first: None }
    });
    let step = prop_oneof![
        6 => (0u8..6, record).prop_map(|(key, record)| Step::Merge(key, record)),
        2 => (0u64..60, 0usize..4).prop_map(|(now_ms, limit)| Step::Expire(now_ms, limit)),
        2 => (stamp(), 0usize..4).prop_map(|(stamp, limit)| Step::Collect(stamp, limit)),
        1 => (0u8..6).prop_map(Step::Remove),
    ];
    prop::collection::vec(step, 0..80)
}

proptest! {
    /// A store behaves as a plain map does.
    #[test]
    fn store_is_a_plain_map(steps in steps()) {
        let (mut store, mut model) = (Store::default(), Model::default());
        for step in steps {
            match step.clone() {
                Step::Merge(key, record) => {
                    let key = Bytes::from(vec![key]);
                    prop_assert_eq!(store.merge(key.clone(), record.clone()), model.merge(key, record));
                }
                Step::Expire(now_ms, limit) => {
                    let mut ended = Vec::new();
                    store.expire(now_ms, limit, |key, record| {
                        assert!(record.value.is_none());
                        ended.push(key.clone());
                    });
                    prop_assert_eq!(ended, model.expire(now_ms, limit));
                }
                Step::Collect(stamp, limit) => {
                    let none_left = model.collect(stamp, limit);
                    prop_assert_eq!(store.collect(stamp, limit), none_left);
                    prop_assert_eq!(store.is_collected(stamp), none_left);
                }
                Step::Remove(key) => {
                    store.remove(&Bytes::from(vec![key]));
                    model.0.remove(&[key][..]);
                }
            }
            let all: Vec<_> = store.scan(None).map(|(key, record)| (key.clone(), record.clone())).collect();
            prop_assert_eq!(all, model.0.clone().into_iter().collect::<Vec<_>>(), "after {:?}", step);
            prop_assert_eq!(store.first_to_end().cloned(), model.ending().into_iter().next());
            // The sums depend on the content alone, not on how it came about.
            let mut fresh = Store::default();
            model.0.iter().for_each(|(key, record)| assert!(fresh.merge(key.clone(), record.clone())));
            let sums = |store: &Store| (store.len(), store.keys(), store.tombstones(), store.memory(), store.fingerprint());
            prop_assert_eq!(sums(&store), sums(&fresh), "after {:?}", step);
            prop_assert!(store.buckets() == fresh.buckets(), "after {:?}", step);
        }
        for at in 0..6u8 {
            prop_assert_eq!(store.get(&[at]), model.0.get(&[at][..]));
            let after: Vec<_> = store.scan(Some(&[at])).map(|(key, _)| key.clone()).collect();
            prop_assert_eq!(after, model.0.keys().filter(|key| key[0] > at).cloned().collect::<Vec<_>>());
            prop_assert_eq!(store.scan_from(&[at]).next().map(|(key, _)| key[0]), model.0.keys().map(|key| key[0]).find(|it| *it >= at));
        }
    }
}
