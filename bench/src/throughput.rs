//! How many operations one node does, and what each costs.
//!
//! The load runs on the same machine, so the figure to compare is the node's own processor time for each operation.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use crate::load::{self, Outcome, Work, get, put};
use crate::node::{Node, Start};
use crate::report::{Report, number, table};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The `kvasir-node` to measure
    #[arg(long, default_value = "target/x86_64-unknown-linux-musl/release/kvasir-node")]
    node: PathBuf,
    /// How many keys the node holds
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// Seconds for each row
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Only rows whose names contain this
    #[arg(long, default_value = "")]
    only: String,
}

const VALUE: usize = 64;

fn key(n: u64) -> String {
    format!("bench/key-{n:08}")
}

/// Numbers below `keys` in a pseudorandom order.
fn scatter(n: u64, keys: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % keys
}

pub(crate) async fn run(options: &Options) -> anyhow::Result<Report> {
    let mut node = Node::start(Start {
        program: &options.node,
        name: "alone",
        address: [127, 0, 0, 1].into(),
        namespace: None,
        flags: vec!["--join-timeout=1s".into()],
    })?;
    node.ready().await?;
    let began = std::time::Instant::now();
    let before = node.cpu_time()?;
    node.fill(0, options.keys, |n| (key(n), vec![b'v'; VALUE])).await?;
    let fill = Outcome { operations: options.keys, time: began.elapsed(), took_us: Vec::new() };
    let mut rows = vec![row("BatchPut of 1,000", fill, node.cpu_time()?.saturating_sub(before))];

    let (keys, time) = (options.keys, Duration::from_secs(options.seconds));
    let gets: Work = Arc::new(move |n| get(key(scatter(n, keys))));
    let puts: Work = Arc::new(move |n| put(key(scatter(n, keys)), VALUE));
    for (name, work, window, piped) in [
        ("Get, one call at a time", &gets, 1, false),
        ("Get, 64 calls at a time", &gets, 64, false),
        ("Put, 64 calls at a time", &puts, 64, false),
        ("Get, 128 in a pipe", &gets, 128, true),
        ("Put, 128 in a pipe", &puts, 128, true),
    ] {
        if !name.contains(&options.only) {
            continue;
        }
        let before = node.cpu_time()?;
        let kv = node.kv().await?;
        let outcome = if piped {
            load::pipe(kv, window, time, work.clone(), 0, 1).await?
        } else {
            load::unary(kv, window, time, work.clone()).await?
        };
        rows.push(row(name, outcome, node.cpu_time()?.saturating_sub(before)));
        eprintln!("{}", rows[rows.len() - 1].join("  "));
    }
    let head = [
        "operation",
        "a second",
        "median",
        "p99",
        "the node's processor time per operation",
        "operations per core and second",
    ];
    Ok(Report { name: "throughput", text: table(&head, &rows) })
}

fn row(name: &str, mut outcome: Outcome, worked: Duration) -> Vec<String> {
    let each_us = worked.as_secs_f64() * 1e6 / outcome.operations as f64;
    let took = |us: u64| if us == 0 { "–".to_owned() } else { format!("{:.2} ms", us as f64 / 1e3) };
    vec![
        name.to_owned(),
        number(outcome.rate()),
        took(outcome.took_us(0.5)),
        took(outcome.took_us(0.99)),
        format!("{each_us:.1} µs"),
        number(1e6 / each_us),
    ]
}
