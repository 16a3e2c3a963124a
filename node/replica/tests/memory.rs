//! The memory that a store accounts for, against the growth of a process that fills it, with the node's allocator.
//!
//! Each shape of entries has a process of its own, because freed memory of one would be counted to the next.

use std::process::Command;

use bytes::Bytes;
use kvasir_replica::clock::Dot;
use kvasir_replica::store::{Record, Store};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ENTRIES: u64 = 1_000_000;
/// The environment variable that tells a process its shape.
const SHAPE: &str = "KVASIR_MEMORY_SHAPE";

struct Shape {
    name: &'static str,
    key: fn(u64) -> String,
    /// Bytes. `None`: a delete from a peer; of a key that was never there, unless `over`.
    value: Option<usize>,
    /// Written out of key order.
    scattered: bool,
    ends: bool,
    /// Each key had another value before, of 64 bytes and without an end.
    over: bool,
}

fn usual(n: u64) -> String {
    format!("bench/key-{n:08}")
}

fn short(n: u64) -> String {
    format!("{n:08x}")
}

const PLAIN: Shape = Shape { name: "64 B", key: usual, value: Some(64), scattered: true, ends: false, over: false };

const SHAPES: [Shape; 9] = [
    PLAIN,
    Shape { name: "64 B in key order", scattered: false, ..PLAIN },
    Shape { name: "8 B", key: short, value: Some(8), ..PLAIN },
    Shape { name: "8 B in key order", key: short, value: Some(8), scattered: false, ..PLAIN },
    Shape { name: "1 KiB", value: Some(1024), ..PLAIN },
    Shape { name: "with an end", ends: true, ..PLAIN },
    Shape { name: "with an end, over another value", ends: true, over: true, ..PLAIN },
    Shape { name: "tombstones", value: None, ..PLAIN },
    Shape { name: "tombstones of values", value: None, over: true, ..PLAIN },
];

/// A permutation of the numbers below 2^20: each step is invertible.
fn scatter(mut n: u64) -> u64 {
    for factor in [0x9e37_79b1, 0x85eb_ca6b] {
        n = n.wrapping_mul(factor) & 0xf_ffff;
        n ^= n >> 11;
    }
    n
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()).unwrap();
    kib.parse::<u64>().unwrap() * 1024
}

/// Fills a store. Prints the memory that it accounts for, and the growth of the process.
fn fill(shape: &Shape) {
    let before = resident();
    let mut store = Store::default();
    let mut write = |n, round, value: Option<usize>, ends: bool| {
        let key = (shape.key)(if shape.scattered { scatter(n) } else { n });
        let record = Record {
            dot: Dot { hlc: round * ENTRIES + n + 1, origin: 1 },
            value: value.map(|len| Bytes::copy_from_slice(&vec![b'v'; len])),
            expires_ms: ends.then_some(1_000_000 + scatter(n)),
            first: None,
        };
        assert!(store.merge(Bytes::copy_from_slice(key.as_bytes()), record));
    };
    if shape.over {
        (0..ENTRIES).for_each(|n| write(n, 0, Some(64), false));
    }
    (0..ENTRIES).for_each(|n| write(n, 1, shape.value, shape.ends));
    // Reads must not take memory that is not accounted for.
    let read: usize = store.scan(None).map(|(key, record)| (key.clone(), record.value.clone()).0.len()).sum();
    assert!(read > 0);
    println!("figures {} {}", store.memory(), resident() - before);
}

/// The memory of a million entries is accounted for within a tenth.
#[test]
fn memory_is_accounted_within_a_tenth() {
    if let Ok(name) = std::env::var(SHAPE) {
        return fill(SHAPES.iter().find(|shape| shape.name == name).unwrap());
    }
    let mut wrong = Vec::new();
    for shape in &SHAPES {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "memory_is_accounted_within_a_tenth", "--nocapture"])
            .env(SHAPE, shape.name)
            .env("MIMALLOC_PURGE_DELAY", "10") // as the image has it
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&child.stdout);
        // The test harness may have begun the line.
        let figures = output.lines().find_map(|line| Some(line.split_once("figures ")?.1)).unwrap_or_else(|| {
            panic!("{}: no figures: {output}{}", shape.name, String::from_utf8_lossy(&child.stderr));
        });
        let (accounted, grown) = figures.split_once(' ').unwrap();
        let ratio = accounted.parse::<f64>().unwrap() / grown.parse::<f64>().unwrap();
        println!("{}: accounted {accounted}, grown {grown}, {ratio:.3}", shape.name);
        if !(0.9..=1.1).contains(&ratio) {
            wrong.push(format!("{}: {ratio:.3}", shape.name));
        }
    }
    assert!(wrong.is_empty(), "accounted / grown: {wrong:?}");
}
