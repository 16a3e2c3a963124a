//! The promises of `docs/replication.md`, judged from outside: five real nodes,
//! each in a network namespace of its own, under the load of some twenty
//! clients, while processes are killed, frozen and told to leave, and links
//! cut, one way and both, made to lose packets and to crawl. Every call is
//! recorded with when it began, when it ended and what came of it; when the
//! faults are over and the nodes equal, the history is judged.
//!
//! What happens is drawn from a seed; when it meets which call is not. So a seed
//! makes a run alike, not the same: a run that fails keeps its history and the
//! nodes' logs.
//!
//! `make histories MINUTES=n SEED=s` runs it for longer, with progress, and
//! `HISTORY=file` judges a history that was kept.

mod check;
mod clients;
mod history;
mod namespaces;
mod nemesis;
mod node;
mod observer;
mod run;

use std::time::Duration;

/// Needs root, and the programs of iproute2 and nftables.
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
