//! Prints what the store takes and how long it needs, next to a `BTreeMap` of `Bytes` with indexes of ends and
//! tombstones: a million entries, keys of 16 bytes, values of 64.
//!
//! `cargo run --release -p kvasir-store --example table`. Times are processor time, both maps in turns, medians of five.
//! Memory is what a process of its own grows by, besides keys and values.

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::process::Command;

use bytes::Bytes;
use kvasir_store::{Dot, Store, Write};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ENTRIES: u64 = 1_000_000;
const READS: u64 = 200_000;
const ROUNDS: usize = 5;
const START_MS: u64 = 1_800_000_000_000;
const VALUE: [u8; 64] = [b'v'; 64];

/// What is measured of a map.
trait Map {
    fn put(&mut self, key: &[u8], n: u64, value: Option<&[u8]>, ends: bool);
    fn get(&self, key: &[u8]) -> u64;
    fn scan(&self) -> u64;
    fn collect(&mut self);
}

impl Map for Store {
    fn put(&mut self, key: &[u8], n: u64, value: Option<&[u8]>, ends: bool) {
        let value = value.map(Bytes::copy_from_slice);
        let dot = Dot { hlc: stamp(n), origin: 1 };
        self.merge(key, &Write { dot, value: value.as_ref(), expires_ms: ends.then(|| end(n)), first: None });
    }

    fn get(&self, key: &[u8]) -> u64 {
        Self::get(self, key).map_or(0, |held| held.dot().hlc + u64::from(held.value().map_or(0, |value| value[0])))
    }

    fn scan(&self) -> u64 {
        Self::scan(self, None).map(|held| held.dot().hlc ^ held.key().len() as u64).fold(0, u64::wrapping_add)
    }

    fn collect(&mut self) {
        while !Self::collect(self, u64::MAX, 4096) {}
    }
}

struct Record {
    hlc: u64,
    value: Option<Bytes>,
    expires_ms: Option<u64>,
    /// Part of its size.
    _origin: u64,
    _first: Option<Box<Dot>>,
}

/// The plain map.
#[derive(Default)]
struct Plain {
    map: BTreeMap<Bytes, Record>,
    ends: BTreeSet<(u64, Bytes)>,
    dead: BTreeSet<(u64, Bytes)>,
    fingerprint: u128,
    bucket: u64,
}

impl Plain {
    fn forget(&mut self, key: &Bytes, old: &Record) {
        self.fingerprint = self.fingerprint.wrapping_sub(summand(key, old.hlc));
        match (old.expires_ms, &old.value) {
            (Some(end), Some(_)) => drop(self.ends.remove(&(end, key.clone()))),
            (_, None) => drop(self.dead.remove(&(old.hlc, key.clone()))),
            _ => (),
        }
    }
}

impl Map for Plain {
    fn put(&mut self, key: &[u8], n: u64, value: Option<&[u8]>, ends: bool) {
        let key = Bytes::copy_from_slice(key);
        let value = value.map(Bytes::copy_from_slice);
        drop(value.clone());
        let record = Record { hlc: stamp(n), value, expires_ms: ends.then(|| end(n)), _origin: 1, _first: None };
        self.bucket ^= xxh3_64(&key);
        self.fingerprint = self.fingerprint.wrapping_add(summand(&key, record.hlc));
        match (record.expires_ms, &record.value) {
            (Some(end), Some(_)) => drop(self.ends.insert((end, key.clone()))),
            (_, None) => drop(self.dead.insert((record.hlc, key.clone()))),
            _ => (),
        }
        if let Some(old) = self.map.insert(key.clone(), record) {
            self.forget(&key, &old);
        }
    }

    fn get(&self, key: &[u8]) -> u64 {
        self.map.get(key).map_or(0, |held| held.hlc + u64::from(held.value.as_ref().map_or(0, |value| value[0])))
    }

    fn scan(&self) -> u64 {
        self.map.iter().map(|(key, held)| held.hlc ^ key.len() as u64).fold(0, u64::wrapping_add)
    }

    fn collect(&mut self) {
        while let Some((hlc, key)) = self.dead.pop_first() {
            self.map.remove(&key);
            self.fingerprint = self.fingerprint.wrapping_sub(summand(&key, hlc));
        }
    }
}

fn summand(key: &[u8], hlc: u64) -> u128 {
    let mut input = [0; 32];
    input[..8].copy_from_slice(&hlc.to_le_bytes());
    input[16..].copy_from_slice(key);
    xxh3_128(&input)
}

/// A hundred writes a millisecond.
const fn stamp(n: u64) -> u64 {
    ((START_MS + n / 100) << 16) | (n % 100)
}

const fn end(n: u64) -> u64 {
    START_MS + 3_600_000 + n / 100
}

/// Key `n` of those whose beginnings are the same, or of random ones.
fn key(random: bool, n: u64) -> [u8; 16] {
    let text = if random { format!("{:016x}", xxh3_64(&n.to_le_bytes())) } else { format!("bench/{n:010}") };
    text.as_bytes().try_into().expect("sixteen characters")
}

/// Every number below 2^20 once, out of order: each step can be undone.
fn scatter(mut n: u64) -> u64 {
    for factor in [0x9e37_79b1, 0x85eb_ca6b] {
        n = n.wrapping_mul(factor) & 0xf_ffff;
        n ^= n >> 11;
    }
    n
}

fn keys(random: bool, in_order: bool) -> Vec<[u8; 16]> {
    let mut keys: Vec<_> = (0..1 << 20).map(scatter).filter(|n| *n < ENTRIES).map(|n| key(random, n)).collect();
    if in_order {
        keys.sort_unstable();
    }
    keys
}

fn make(name: &str) -> Box<dyn Map> {
    if name == "store" { Box::new(Store::default()) } else { Box::new(Plain::default()) }
}

/// A figure of `/proc`; 0 where there is none.
fn read(file: &str, find: impl Fn(&str) -> Option<f64>) -> f64 {
    std::fs::read_to_string(file).ok().and_then(|text| find(&text)).unwrap_or(0.0)
}

fn resident() -> f64 {
    let line =
        |text: &str| text.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
    read("/proc/self/status", line) * 1024.0
}

/// Processor time of this thread, nanoseconds.
fn now() -> f64 {
    std::thread::yield_now();
    read("/proc/thread-self/schedstat", |text| text.split(' ').next()?.parse().ok())
}

/// A process of its own: fills a map and says what it grew by.
fn fill(name: &str, shape: &str) {
    let keys = keys(shape.contains("random"), shape.contains("in order"));
    let before = resident();
    let mut map = make(name);
    let dead = shape.starts_with("tombstones");
    for (n, key) in keys.iter().enumerate() {
        map.put(key, n as u64, (!dead).then_some(&VALUE[..]), shape.starts_with("with an end"));
    }
    if shape.starts_with("after") {
        for (n, key) in keys.iter().enumerate() {
            map.put(key, ENTRIES + n as u64, None, false);
        }
        map.collect();
    }
    // The allocator gives memory back after a while, when it is used.
    for len in 0..3000 {
        std::thread::sleep(std::time::Duration::from_micros(100));
        black_box(vec![1_u8; len * 4]);
    }
    println!("{}", resident() - before);
}

fn memory() {
    println!("\n| bytes an entry besides key and value | BTreeMap | store |\n| --- | ---: | ---: |");
    let shapes = [
        "shared beginnings, in order",
        "shared beginnings, in no order",
        "random, in order",
        "random, in no order",
        "with an end, random, in no order",
        "tombstones, random, in no order",
        "after a million deletes, random, in no order (MB in all)",
    ];
    for shape in shapes {
        let shape = shape.replace("in no order", "scattered");
        let grown = ["map", "store"].map(|name| {
            let child = Command::new(std::env::current_exe().expect("this program"))
                .args([name, &shape])
                .env("MIMALLOC_PURGE_DELAY", "10") // as the image has it
                .output()
                .expect("this program runs");
            String::from_utf8_lossy(&child.stdout).trim().parse::<f64>().expect("a number")
        });
        let own = if shape.starts_with("tombstones") { 16.0 } else { 80.0 };
        let figures =
            grown.map(|bytes| if shape.starts_with("after") { bytes / 1e6 } else { bytes / ENTRIES as f64 - own });
        println!("| {shape} | {:.1} | {:.1} |", figures[0], figures[1]);
    }
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn times(random: bool, in_order: bool) {
    const WHAT: [&str; 4] = ["insert", "lookup", "scan", "overwrite"];
    let keys = keys(random, in_order);
    let asked: Vec<_> = (0..READS).map(|n| key(random, scatter(n * 5) % ENTRIES)).collect();
    let mut taken: [[Vec<f64>; 4]; 2] = Default::default();
    for _ in 0..ROUNDS {
        let mut maps = ["map", "store"].map(make);
        let mut inserts = [0.0; 2];
        for (part, keys) in keys.chunks(50_000).enumerate() {
            for (map, inserts) in maps.iter_mut().zip(&mut inserts) {
                let start = now();
                let first = part as u64 * 50_000;
                keys.iter().zip(first..).for_each(|(key, n)| map.put(key, n, Some(&VALUE), false));
                *inserts += now() - start;
            }
        }
        for ((map, taken), inserts) in maps.iter_mut().zip(&mut taken).zip(inserts) {
            taken[0].push(inserts / ENTRIES as f64);
            let start = now();
            black_box(asked.iter().map(|key| map.get(key)).fold(0, u64::wrapping_add));
            taken[1].push((now() - start) / READS as f64);
            let start = now();
            black_box(map.scan());
            taken[2].push((now() - start) / ENTRIES as f64);
            let start = now();
            asked.iter().zip(ENTRIES..).for_each(|(key, n)| map.put(key, n, Some(&VALUE), false));
            taken[3].push((now() - start) / READS as f64);
        }
    }
    let [plain, store] = taken.map(|taken| taken.map(median));
    for (at, what) in WHAT.iter().enumerate() {
        let kind = if random { "random" } else { "shared beginnings" };
        let order = if in_order { "in order" } else { "in no order" };
        println!(
            "| {what}, {kind}, {order} | {:.0} | {:.0} | {:.2} |",
            plain[at],
            store[at],
            store[at] / plain[at].max(1.0)
        );
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [name, shape] = &args[..] {
        return fill(name, shape);
    }
    memory();
    println!("\n| ns of processor time | BTreeMap | store | ratio |\n| --- | ---: | ---: | ---: |");
    for (random, in_order) in [(false, true), (false, false), (true, true), (true, false)] {
        times(random, in_order);
    }
}
