//! The memory that a node accounts to its entries, against the growth of its process, which includes the log and the buffers
//! of sockets.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use kvasir_proto::v1::BatchDeleteRequest;

use crate::node::{BATCH, Node, Start};
use crate::report::{Report, number, table};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The `kvasir-node` to measure
    #[arg(long, default_value = "target/x86_64-unknown-linux-musl/release/kvasir-node")]
    node: PathBuf,
    /// Entries of each shape
    #[arg(long, default_value_t = 1_000_000)]
    entries: u64,
    /// Only shapes whose names contain this
    #[arg(long, default_value = "")]
    only: String,
}

struct Shape {
    name: &'static str,
    key: fn(u64) -> String,
    value: usize,
    /// Written out of key order.
    scattered: bool,
    /// How often each entry is written again.
    rewrites: u64,
    after: After,
}

/// What happens once all entries are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    Nothing,
    /// All keys are deleted. Tombstones stay: `voters` is 3, and a lone node has no majority.
    Deleted,
    /// All keys are deleted, and the tombstones dropped.
    Collected,
}

fn short(n: u64) -> String {
    format!("{n:08x}")
}

fn usual(n: u64) -> String {
    format!("bench/key-{n:08}")
}

const SHAPES: [Shape; 9] = [
    Shape { name: "64 B values", key: usual, value: 64, scattered: false, rewrites: 0, after: After::Nothing },
    Shape {
        name: "64 B values, in random order",
        key: usual,
        value: 64,
        scattered: true,
        rewrites: 0,
        after: After::Nothing,
    },
    Shape {
        name: "64 B values, written three times",
        key: usual,
        value: 64,
        scattered: true,
        rewrites: 2,
        after: After::Nothing,
    },
    Shape { name: "8 B keys, 8 B values", key: short, value: 8, scattered: false, rewrites: 0, after: After::Nothing },
    Shape {
        name: "8 B keys, 8 B values, in random order",
        key: short,
        value: 8,
        scattered: true,
        rewrites: 0,
        after: After::Nothing,
    },
    Shape { name: "1 KiB values", key: usual, value: 1024, scattered: true, rewrites: 0, after: After::Nothing },
    Shape { name: "100 B values", key: usual, value: 100, scattered: true, rewrites: 0, after: After::Nothing },
    Shape {
        name: "tombstones of 64 B values",
        key: usual,
        value: 64,
        scattered: true,
        rewrites: 0,
        after: After::Deleted,
    },
    Shape {
        name: "64 B values, all deleted and forgotten",
        key: usual,
        value: 64,
        scattered: true,
        rewrites: 0,
        after: After::Collected,
    },
];

/// A permutation of the numbers below 2^20, and of each later block of as many: each step is invertible.
fn scatter(n: u64) -> u64 {
    let mut low = n & 0xf_ffff;
    for factor in [0x9e37_79b1, 0x85eb_ca6b] {
        low = low.wrapping_mul(factor) & 0xf_ffff;
        low ^= low >> 11;
    }
    low | n & !0xf_ffff
}

pub(crate) async fn run(options: &Options) -> anyhow::Result<Report> {
    let mut rows = Vec::new();
    for shape in SHAPES.iter().filter(|s| s.name.contains(&options.only)) {
        rows.push(measure(options, shape).await?);
        eprintln!("{}", rows[rows.len() - 1].join("  "));
    }
    let head = ["entries", "accounted", "the process grew by", "accounted / grown", "bytes an entry", "at most"];
    Ok(Report { name: "memory", text: table(&head, &rows) })
}

async fn measure(options: &Options, shape: &Shape) -> anyhow::Result<Vec<String>> {
    let mut node = Node::start(Start {
        program: &options.node,
        name: "alone",
        address: [127, 0, 0, 1].into(),
        namespace: None,
        // Without a majority no tombstone is dropped.
        flags: vec![
            "--join-timeout=1s".into(),
            "--serve-alone".into(),
            format!("--voters={}", if shape.after == After::Collected { 1 } else { 3 }),
        ],
    })?;
    node.ready().await?;
    let before = node.resident()?;
    let accounted_before = node.metric("kvasir_memory_bytes").await?;
    let (key, value, scattered) = (shape.key, shape.value, shape.scattered);
    let at = move |n| if scattered { scatter(n) } else { n };
    for _ in 0..=shape.rewrites {
        node.fill(0, options.entries, move |n| (key(at(n)), vec![b'v'; value])).await?;
    }
    if shape.after != After::Nothing {
        delete(&node, options.entries, key).await?;
    }
    if shape.after == After::Collected {
        node.until("without tombstones", |status| status["tombstones"] == 0).await?;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let accounted = node.metric("kvasir_memory_bytes").await? - accounted_before;
    let grown = node.resident()?.saturating_sub(before) as f64;
    Ok(vec![
        shape.name.to_owned(),
        format!("{} MB", number(accounted / 1e6)),
        format!("{} MB", number(grown / 1e6)),
        if shape.after == After::Collected { "–".to_owned() } else { format!("{:.2}", accounted / grown) },
        number(grown / options.entries as f64),
        format!("{} MB", number(node.peak()? as f64 / 1e6)),
    ])
}

async fn delete(node: &Node, entries: u64, key: fn(u64) -> String) -> anyhow::Result<()> {
    let mut kv = node.kv().await?;
    for from in (0..entries).step_by(BATCH) {
        let keys = (from..entries.min(from + BATCH as u64)).map(|n| key(scatter(n))).collect();
        kv.batch_delete(BatchDeleteRequest { keys, ..BatchDeleteRequest::default() }).await?;
    }
    Ok(())
}
