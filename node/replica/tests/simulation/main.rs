//! Whole clusters of replicas in one thread, by seed: on a network that loses, duplicates, delays, reorders and cuts,
//! with crashes, restarts, evictions, clocks that differ and jump, full nodes, TTLs, sessions and acks.
//!
//! One run in ten uses the production membership as well. `MEMBERSHIP=1` uses it in all runs, `MEMBERSHIP=0` in none.
//!
//! `SEEDS=n` runs n seeds (default 5000), from `FROM` (default 0). `SEED=s` runs one, and prints its trace.
//! A seed that fails is reduced to the operations that are needed for the failure, and their trace is printed.
//! `SHRINK=0` skips the reduction; `SHRINK=1` reduces the one `SEED`; `KEEP=name` also writes the reduced plan to
//! `kept/name.yaml`.
//!
//! Kept plans run in a test of their own. `KEPT=name` runs one, and prints its trace; `SHRINK=1` reduces it further.

#![allow(unreachable_pub)] // a test is not a library

mod check;
mod plan;
mod prelude;
mod shrink;
mod world;

use std::env;
use std::panic;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use plan::{Kept, Plan};
use shrink::{fails, shrink};
use world::World;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|value| value.parse::<u64>().expect("SEED, SEEDS, FROM, MEMBERSHIP and SHRINK are numbers"))
}

fn plan_of(seed: u64) -> Plan {
    Plan::new(seed, number("MEMBERSHIP").map(|n| n != 0))
}

/// Reduces a plan that fails, keeps it if asked to, and fails with its trace.
fn show(mut kept: Kept) {
    panic::set_hook(Box::new(|_| ()));
    kept.plan = shrink(kept.plan);
    _ = panic::take_hook();
    if let Ok(name) = env::var("KEEP") {
        kept.name = name;
        println!("{}: say in `found` what the run found", kept.write().display());
    }
    World::new(&kept.plan, true).run();
}

/// The first seed that fails.
fn run_seeds(seeds: std::ops::Range<u64>) -> Option<u64> {
    let count = seeds.end - seeds.start;
    let queue = Mutex::new(seeds.enumerate());
    let failed = AtomicU64::new(u64::MAX);
    let threads = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while failed.load(Ordering::Relaxed) == u64::MAX {
                    let Some((done, seed)) = queue.lock().expect("next() does not panic").next() else { return };
                    if fails(&plan_of(seed)) {
                        failed.fetch_min(seed, Ordering::Relaxed);
                    }
                    if done > 0 && done.is_multiple_of(100_000) {
                        println!("about {done} of {count} seeds passed");
                    }
                }
            });
        }
    });
    Some(failed.into_inner()).filter(|failed| *failed < u64::MAX)
}

/// Whatever the network does, clusters keep what docs/replication.md guarantees.
#[test]
fn clusters_keep_their_guarantees() {
    if env::var_os("KEPT").is_some() {
        return;
    }
    if let Some(seed) = number("SEED") {
        let kept = Kept::new("", plan_of(seed));
        return if number("SHRINK") == Some(1) { show(kept) } else { World::new(&kept.plan, true).run() };
    }
    let first = number("FROM").unwrap_or(0);
    let Some(failed) = run_seeds(first..first + number("SEEDS").unwrap_or(5_000)) else { return };
    let plan = plan_of(failed);
    let membership = u64::from(plan.membership);
    println!(
        "seed {failed} failed; replay and reduce it with:\n    \
         SEED={failed} MEMBERSHIP={membership} SHRINK=1 cargo test -p kvasir-replica --test simulation -- --nocapture"
    );
    if number("SHRINK") != Some(0) {
        show(Kept::new("", plan));
    }
    panic!("seed {failed} failed");
}

/// Runs that once failed do not fail again.
#[test]
fn kept_plans_pass() {
    if let Ok(name) = env::var("KEPT") {
        let kept = Kept::read(&name);
        return if number("SHRINK") == Some(1) { show(kept) } else { World::new(&kept.plan, true).run() };
    }
    if number("SEED").is_some() {
        return;
    }
    let kept = Kept::all();
    assert!(!kept.is_empty());
    for kept in kept {
        kept.check_notes();
        assert!(!fails(&kept.plan), "kept plan {} failed; trace it with KEPT={}", kept.name, kept.name);
    }
}
