//! Millions of random operations, each compared with the plain map.

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use super::model::{Both, Record};
use crate::record::stamp_at;
use crate::{Dot, INLINE};

const START_MS: u64 = 1_800_000_000_000;

/// A small generator: the seed of a case decides all of it.
struct Random(u64);

impl Random {
    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 16
    }

    fn below(&mut self, n: u64) -> u64 {
        self.number() % n
    }
}

/// What keys and values look like in one case.
#[derive(Clone, Copy, Debug)]
struct Shape {
    seed: u64,
    keys: u64,
    kind: u8,
    long_values: bool,
    rises: bool,
}

fn shapes() -> impl Strategy<Value = Shape> {
    let keys = prop_oneof![1u64..20, 100u64..2000];
    (any::<u64>(), keys, 0u8..5, any::<bool>(), any::<bool>())
        .prop_map(|(seed, keys, kind, long_values, rises)| Shape { seed, keys, kind, long_values, rises })
}

fn key(shape: Shape, random: &mut Random, step: u64) -> Vec<u8> {
    let number = if shape.rises && random.below(2) == 0 { step % shape.keys } else { random.below(shape.keys) };
    match shape.kind {
        0 => format!("some/common/beginning/of/more/than/forty/bytes/{number:06}").into_bytes(),
        1 => number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes().to_vec(),
        // Keys that begin with other keys, with zeros, and the empty key.
        2 => vec![(number % 3) as u8; (number / 3) as usize % 40],
        3 => [
            &b"long"[..],
            &vec![b'x'; (number % 7) as usize * if cfg!(miri) { 100 } else { 1500 }],
            &number.to_be_bytes(),
        ]
        .concat(),
        _ => format!("{}:{number}", ["a", "session", "user", "user/x"][(number % 4) as usize]).into_bytes(),
    }
}

fn record(shape: Shape, random: &mut Random, step: u64) -> Record {
    let near = random.below(50);
    let hlc = match random.below(200) {
        0 => 1 + random.number(),
        1 => u64::MAX - random.below(3),
        _ => stamp_at(START_MS + step) + near,
    };
    let len = match random.below(12) {
        0 => 0,
        1 if shape.long_values => INLINE as u64 - 2 + random.below(5),
        2 if shape.long_values => 1000 + random.below(3000),
        3 => random.below(300),
        _ => random.below(60),
    };
    let value = (random.below(5) > 0).then(|| Bytes::from(vec![random.number() as u8; len as usize]));
    let expires_ms = match random.below(12) {
        0..4 => Some(START_MS + step + random.below(500)),
        4 => Some(1 + random.number()),
        _ => None,
    };
    let first = (random.below(20) == 0).then(|| Dot { hlc: random.number(), origin: random.number() });
    Record { dot: Dot { hlc, origin: random.below(3) * 1_000_003 }, value, expires_ms, first }
}

fn run(shape: Shape, steps: u64) {
    let mut random = Random(shape.seed);
    let mut both = Both::default();
    for step in 0..steps {
        let key = key(shape, &mut random, step);
        // In some times more is taken out than put in.
        let drains = step / 500 % 3 == 2;
        match random.below(100) {
            0..50 if !drains => drop(both.merge(&key, &record(shape, &mut random, step))),
            0..60 => both.remove(&key),
            60..90 => both.get(&key),
            90..94 => both.scan(&key, random.below(2) == 0, 20),
            94..96 => both.expire(START_MS + step, random.below(40) as usize),
            96..98 => both.collect(stamp_at(START_MS + step.saturating_sub(50)), random.below(40) as usize),
            _ if random.below(50) == 0 => both.check(),
            _ => both.get(&key[..key.len() / 2]),
        }
    }
    both.check();
    both.expire(u64::MAX, usize::MAX);
    both.collect(u64::MAX, usize::MAX);
    both.check();
    let rest: Vec<_> = both.map.keys().cloned().collect();
    for key in &rest {
        both.remove(key);
    }
    both.check();
    assert_eq!(both.store.allocated(), 0, "pages are left");
}

/// `KVASIR_STORE_CASES` sets the number of cases, of 5,000 operations each.
#[test]
fn store_behaves_as_a_plain_map() {
    let cases = std::env::var("KVASIR_STORE_CASES").ok().and_then(|cases| cases.parse().ok());
    let (cases, steps) = if cfg!(miri) { (2, 100) } else { (cases.unwrap_or(600), 5000) };
    let config = Config { cases, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&shapes(), |shape| {
        run(shape, steps);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}
