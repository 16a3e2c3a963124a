//! The accounted memory of a map against what a process takes that holds it,
//! with the node's allocator. Each shape has a process of its own: what one
//! leaves behind would be counted to the next.

use std::process::Command;

use bytes::Bytes;
use kvasir_store::{Dot, Store, Write};
use xxhash_rust::xxh3::xxh3_64;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ENTRIES: u64 = 500_000;
const START_MS: u64 = 1_800_000_000_000;
/// Which shape a process is to take.
const SHAPE: &str = "KVASIR_MEMORY_SHAPE";

struct Shape {
    name: &'static str,
    key: fn(u64) -> String,
    /// Bytes; `None`: a delete, of a key that was never there unless `over`, as it comes from peers.
    value: Option<usize>,
    ends: bool,
    /// Each key has had a value of 64 bytes without an end before.
    over: bool,
    /// Between which bounds what is accounted is, in parts of what the process takes.
    bounds: [f64; 2],
}

fn random(n: u64) -> String {
    format!("{:016x}", xxh3_64(&n.to_be_bytes()))
}

fn short(n: u64) -> String {
    random(n)[..9].to_owned()
}

fn in_order(n: u64) -> String {
    format!("bench/key-{n:08}")
}

const WITHIN_A_TENTH: [f64; 2] = [0.9, 1.1];

const PLAIN: Shape =
    Shape { name: "64 B", key: random, value: Some(64), ends: false, over: false, bounds: WITHIN_A_TENTH };

const SHAPES: [Shape; 8] = [
    PLAIN,
    // What keys have in common is counted, but not stored.
    Shape { name: "64 B in key order", key: in_order, bounds: [0.9, 1.35], ..PLAIN },
    Shape { name: "8 B", key: short, value: Some(8), ..PLAIN },
    Shape { name: "400 B", value: Some(400), ..PLAIN },
    Shape { name: "1 KiB", value: Some(1024), ..PLAIN },
    Shape { name: "with an end", ends: true, ..PLAIN },
    Shape { name: "tombstones", value: None, ..PLAIN },
    // Just after the pages have shrunk, the allocator's own pages are partly empty.
    Shape { name: "tombstones of values", value: None, over: true, bounds: [0.6, 1.1], ..PLAIN },
];

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()).unwrap();
    kib.parse::<u64>().unwrap() * 1024
}

/// Fills a map; prints what it says that it takes, and what the process grew by.
fn fill(shape: &Shape) {
    let before = resident();
    let mut store = Store::default();
    let mut write = |n: u64, round, value: Option<usize>, ends: bool| {
        let key = (shape.key)(n);
        let value = value.map(|len| Bytes::from(vec![b'v'; len]));
        let dot = Dot { hlc: (START_MS + round * ENTRIES + n) << 16, origin: 1 };
        let expires_ms = ends.then_some(START_MS + n + 3_600_000);
        store.merge(key.as_bytes(), &Write { dot, value: value.as_ref(), expires_ms, first: None });
    };
    if shape.over {
        (0..ENTRIES).for_each(|n| write(n, 0, Some(64), false));
    }
    (0..ENTRIES).for_each(|n| write(n, 1, shape.value, shape.ends));
    // A read must not cost memory that was not accounted.
    let read: usize = store.scan(None).filter_map(|held| held.value()).map(|value| value.to_bytes().len()).sum();
    assert_eq!(read > 0, shape.value.is_some());
    // The allocator gives memory back after a while, when it is used.
    for len in 0..1000_usize {
        std::thread::sleep(std::time::Duration::from_micros(50));
        drop(std::hint::black_box(vec![1_u8; len * 8]));
    }
    println!("figures {} {}", store.memory(), resident() - before);
}

#[test]
fn memory_is_what_the_process_takes() {
    if let Ok(name) = std::env::var(SHAPE) {
        return fill(SHAPES.iter().find(|shape| shape.name == name).unwrap());
    }
    let mut wrong = Vec::new();
    for shape in &SHAPES {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "memory_is_what_the_process_takes", "--nocapture"])
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
        let [least, most] = shape.bounds;
        if !(least..=most).contains(&ratio) {
            wrong.push(format!("{}: {ratio:.3}", shape.name));
        }
    }
    assert!(wrong.is_empty(), "accounted / grown: {wrong:?}");
}
