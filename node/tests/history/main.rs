//! The promises of `docs/replication.md`, checked from outside: five real nodes, each in its own network namespace,
//! under the load of some twenty clients, while processes are killed, frozen and terminated, and links are cut in one or
//! both directions, made lossy and slow. Every call is recorded with its start, its end and its outcome; when the faults
//! are over and the nodes equal, the history is checked.
//!
//! A seed determines the faults, but not which call they hit. So two runs of a seed are similar, not identical: a run
//! that fails keeps its history and the nodes' logs.
//!
//! `make histories MINUTES=n SEED=s` runs longer, with progress, and `HISTORY=file` checks a kept history.

mod check;
mod clients;
mod history;
mod namespaces;
mod nemesis;
mod node;
mod observer;
mod run;

use std::time::Duration;

/// Needs root, iproute2 and nftables.
#[test]
fn five_nodes_keep_their_promises() {
    if let Ok(file) = std::env::var("HISTORY") {
        return run::judge(&file);
    }
    if !namespaces::inside() {
        return namespaces::enter("five_nodes_keep_their_promises");
    }
    let number = |name: &str| {
        let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
        Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name}={text} is not a whole number")))
    };
    let lasts = number("MINUTES").map_or(Duration::from_secs(30), Duration::from_mins);
    let seed = number("SEED").unwrap_or_else(|| rand::random_range(0..1_000_000));
    let kept = run::run(seed, lasts);
    namespaces::leave(kept);
}
