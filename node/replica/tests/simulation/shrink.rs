//! Reduces a failing plan to the operations that are needed for the failure.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::plan::{NEAR_MS, Plan};
use crate::world::World;

/// How many reduced plans are run at most.
const MAX_RUNS: usize = 1_000;

pub fn fails(plan: &Plan) -> bool {
    catch_unwind(AssertUnwindSafe(|| World::new(plan, false).run())).is_err()
}

/// Leaves out operations and faults of the network as long as the plan still fails.
pub fn shrink(mut plan: Plan) -> Plan {
    let mut runs = 0;
    let mut chunk = plan.ops.len().div_ceil(2);
    loop {
        let before = plan.ops.len();
        let mut at = 0;
        while at < plan.ops.len() && runs < MAX_RUNS {
            let mut shorter = plan.clone();
            shorter.ops.drain(at..(at + chunk).min(plan.ops.len()));
            runs += 1;
            if fails(&shorter) {
                plan = shorter;
            } else {
                at += chunk;
            }
        }
        if runs >= MAX_RUNS || chunk <= 1 && plan.ops.len() == before {
            break;
        }
        chunk = (chunk / 2).max(1);
    }
    for simplify in SIMPLER {
        let mut simpler = plan.clone();
        simplify(&mut simpler);
        if fails(&simpler) {
            plan = simpler;
        }
    }
    plan
}

const SIMPLER: [fn(&mut Plan); 7] = [
    |plan| plan.membership = false,
    |plan| plan.loss = 0.0,
    |plan| plan.duplicate = 0.0,
    |plan| plan.slow = (0, 0),
    |plan| plan.room = None,
    |plan| plan.apart = None,
    |plan| plan.skew_ms = NEAR_MS,
];
