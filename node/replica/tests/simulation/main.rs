//! Whole clusters of replicas in one thread, on a network that loses, doubles,
//! delays, reorders and cuts, with crashes, restarts, evictions, clocks that
//! differ and jump, full nodes, TTLs, sessions and acknowledgements, by seed.
//!
//! One run in ten has the production membership as well; `MEMBERSHIP=1` gives
//! it to all, `MEMBERSHIP=0` to none.
//!
//! `SEEDS=n` runs n seeds (default 5000) from `FROM` (default 0, and then the
//! known ones first), and `SEED=s` one, with its trace. A seed that fails is cut
//! down to the operations that it takes to fail, and those are printed as a trace;
//! `SHRINK=0` leaves that out, `SHRINK=1` does it for the one `SEED`.

#![allow(unreachable_pub)] // a test is nobody's library

mod check;
mod plan;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use plan::{KNOWN, KNOWN_SINCE, Plan};
use world::World;

/// Runs of a shorter and shorter plan, at most, to cut down one that fails.
const SHRINK_RUNS: usize = 400;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| v.parse::<u64>().expect("SEED, SEEDS and FROM are numbers"))
}

fn plan_of(seed: u64) -> Plan {
    Plan::new(seed, number("MEMBERSHIP").map(|n| n != 0))
}

fn fails(plan: &Plan) -> bool {
    catch_unwind(AssertUnwindSafe(|| World::new(plan, false).run())).is_err()
}

/// Leaves out operations as long as it fails without them.
fn shrink(mut plan: Plan) -> Plan {
    let mut runs = 0;
    let mut chunk = plan.ops.len() / 2;
    while chunk > 0 && runs < SHRINK_RUNS {
        let mut at = 0;
        while at < plan.ops.len() && runs < SHRINK_RUNS {
            let mut shorter = plan.clone();
            shorter.ops.drain(at..(at + chunk).min(plan.ops.len()));
            runs += 1;
            if fails(&shorter) {
                plan = shorter;
            } else {
                at += chunk;
            }
        }
        chunk /= 2;
    }
    plan
}

/// Fails with the trace of a plan, cut down.
fn show(plan: Plan) {
    std::panic::set_hook(Box::new(|_| ()));
    let plan = shrink(plan);
    let _ = std::panic::take_hook();
    World::new(&plan, true).run();
}

#[test]
fn clusters_keep_every_promise_whatever_the_network_does() {
    if let Some(seed) = number("SEED") {
        let plan = plan_of(seed);
        return if number("SHRINK") == Some(1) { show(plan) } else { World::new(&plan, true).run() };
    }
    let from = number("FROM");
    let first = from.unwrap_or(0);
    let seeds = first..first + number("SEEDS").unwrap_or(5_000);
    let known = KNOWN.into_iter().chain(KNOWN_SINCE).filter(|seed| from.is_none() && !seeds.contains(seed));
    let queue = Mutex::new(known.chain(seeds.clone()).enumerate());
    let failed = AtomicU64::new(u64::MAX);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while failed.load(Ordering::Relaxed) == u64::MAX {
                    let Some((done, seed)) = queue.lock().expect("nobody panics with it").next() else { return };
                    if fails(&plan_of(seed)) {
                        failed.fetch_min(seed, Ordering::Relaxed);
                    }
                    if done > 0 && done.is_multiple_of(100_000) {
                        println!("about {done} of {} seeds passed", seeds.end - seeds.start);
                    }
                }
            });
        }
    });
    let failed = failed.load(Ordering::Relaxed);
    if failed < u64::MAX {
        let plan = plan_of(failed);
        let membership = u64::from(plan.membership);
        println!(
            "seed {failed} failed; replay it, cut down to what it takes as below, with:\n    \
             SEED={failed} MEMBERSHIP={membership} SHRINK=1 cargo test -p kvasir-replica --test simulation -- --nocapture"
        );
        if number("SHRINK") != Some(0) {
            show(plan);
        }
        panic!("seed {failed} failed");
    }
}
