//! One rule at a time.

use bytes::Bytes;

use super::model::{Both, Record};
use crate::record::stamp_at;
use crate::{Dot, INLINE, Store, Value};

fn put(hlc: u64, value: &'static str, expires_ms: Option<u64>) -> Record {
    let value = Some(Bytes::from_static(value.as_bytes()));
    Record { dot: Dot { hlc, origin: 1 }, value, expires_ms, first: None }
}

fn delete(hlc: u64) -> Record {
    Record { dot: Dot { hlc, origin: 1 }, value: None, expires_ms: None, first: None }
}

#[test]
fn merge_keeps_the_larger_dot() {
    let mut both = Both::default();
    assert!(both.merge(b"k", &put(2, "new", None)));
    assert!(!both.merge(b"k", &put(1, "old", None)));
    assert!(!both.merge(b"k", &put(2, "again", None)));
    both.check();
    assert_eq!(both.store.get(b"k").and_then(|held| held.live(0)).as_deref(), Some(&b"new"[..]));
}

#[test]
fn value_ends_to_the_millisecond() {
    let mut store = Store::default();
    let mut both = Both::default();
    both.merge(b"k", &put(1, "v", Some(100)));
    std::mem::swap(&mut store, &mut both.store);
    let live = |store: &Store, now| store.get(b"k").is_some_and(|held| held.live(now).is_some());
    assert!(live(&store, 99) && !live(&store, 100));
    let before = store.fingerprint();
    store.expire(99, 10, |key, _| panic!("{key:?} ended"));
    let mut ended = Vec::new();
    store.expire(100, 10, |key, dot| ended.push((key.to_vec(), dot.hlc)));
    assert_eq!(ended, [(b"k".to_vec(), 1)]);
    assert_eq!((store.keys(), store.tombstones(), store.fingerprint()), (0, 1, before));
    assert!(!live(&store, 0), "what was freed does not come back with the clock");
}

#[test]
fn overwritten_end_does_not_end_the_new_value() {
    let mut both = Both::default();
    both.merge(b"k", &put(1, "v", Some(100)));
    both.merge(b"k", &put(2, "w", None));
    both.expire(1000, 10);
    both.check();
    assert!(both.store.get(b"k").is_some_and(|held| held.live(1000).is_some()));
}

#[test]
fn collect_goes_by_the_stamp() {
    let mut both = Both::default();
    both.merge(b"deleted", &delete(stamp_at(5)));
    both.merge(b"later", &delete(stamp_at(9)));
    both.merge(b"ended", &put(stamp_at(3), "v", Some(6)));
    both.merge(b"ends", &put(stamp_at(3), "v", Some(9)));
    assert!(!both.store.collect(stamp_at(7), 0), "what has ended is still there");
    both.expire(7, 9);
    assert!(!both.store.collect(stamp_at(7), 0), "no step does nothing");
    both.collect(stamp_at(7), 9);
    both.check();
    let left: Vec<_> = both.store.scan(None).map(|held| held.key().to_vec()).collect();
    assert_eq!(left, [b"ends".to_vec(), b"later".to_vec()]);
}

#[test]
fn first_to_end_is_the_first_in_key_order() {
    let mut both = Both::default();
    for number in (0..500).rev() {
        both.merge(format!("{number:03}").as_bytes(), &put(1, "v", Some(7 + number / 100 % 2)));
    }
    assert!(both.store.first_to_end().is_some_and(|key| key == b"000"[..]));
    both.remove(b"000");
    assert!(both.store.first_to_end().is_some_and(|key| key == b"001"[..]));
    both.check();
}

/// A value above [`INLINE`] is the one that was put in, not a copy.
#[test]
fn long_value_is_shared() {
    for (len, shared) in [(INLINE, false), (INLINE + 1, true)] {
        let mut both = Both::default();
        let value = Bytes::from(vec![7; len]);
        both.merge(b"k", &Record { value: Some(value.clone()), ..delete(1) });
        let held = both.store.get(b"k").and_then(|held| held.value()).expect("it was put");
        assert_eq!(matches!(held, Value::Shared(_)), shared);
        assert_eq!(held.to_bytes().as_ptr() == value.as_ptr(), shared);
        assert_eq!(held.to_bytes(), value);
    }
}

/// Whatever the order of the keys, pages are nearly full.
#[test]
fn pages_are_full_in_any_order() {
    type Order = fn(u64, u64) -> u64;
    let count: u64 = if cfg!(miri) { 300 } else { 20_000 };
    let orders: [(&str, Order); 4] = [
        ("rising", |n, _| n),
        ("falling", |n, count| count - n),
        ("none", |n, count| n * 7919 % count),
        ("two rising", |n, count| n / 2 + n % 2 * count),
    ];
    for (name, order) in orders {
        let mut both = Both::default();
        for n in 0..count {
            let key = xxhash_rust::xxh3::xxh3_128(&order(n, count).to_be_bytes()).to_be_bytes();
            let key =
                if name == "none" { key.to_vec() } else { [&order(n, count).to_be_bytes()[..], &key[..8]].concat() };
            both.merge(&key, &Record { value: Some(vec![1; 64].into()), ..delete(stamp_at(1_800_000_000_000)) });
        }
        let besides = both.store.allocated() / count - 80;
        assert!(besides <= 24, "{name}: {besides} bytes an entry");
        assert!(both.store.allocated() <= both.store.memory() * 11 / 10, "{name}");
    }
}

/// Deletes, as they come from clients and peers, over values.
#[test]
fn tombstone_frees_the_memory_of_its_value() {
    let count: u64 = if cfg!(miri) { 100 } else { 10_000 };
    let mut both = Both::default();
    let key = |n: u64| xxhash_rust::xxh3::xxh3_128(&n.to_be_bytes()).to_be_bytes();
    for n in 0..count {
        both.merge(&key(n), &Record { value: Some(vec![1; 64].into()), ..delete(stamp_at(1_800_000_000_000)) });
    }
    for n in 0..count {
        both.merge(&key(n), &delete(stamp_at(1_800_000_000_001)));
    }
    both.check();
    let besides = both.store.allocated() / count - 16;
    assert!(besides <= 24, "{besides} bytes a tombstone");
}

#[test]
fn scan_prefix_ends_with_the_prefix() {
    let mut both = Both::default();
    for key in ["a", "b", "b/1", "b/2", "b\u{7f}", "c"] {
        both.merge(key.as_bytes(), &put(1, "v", None));
    }
    let found: Vec<_> = both.store.scan_prefix(b"b/").map(|held| held.key().to_vec()).collect();
    assert_eq!(found, [b"b/1".to_vec(), b"b/2".to_vec()]);
    both.scan(b"b", true, 9);
    both.scan(b"", true, 9);
}
