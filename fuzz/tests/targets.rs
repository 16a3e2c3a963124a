//! All targets without a fuzzer: with the seeds, with corrupted seeds, and with random inputs. The same on every
//! machine.

use kvasir_fuzz::{TARGETS, Target};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};

/// Inputs for each target. Slow targets get fewer.
fn cases(target: &Target) -> u32 {
    match target.name {
        "certificates" | "admission" => 300,
        "settings" | "noise" => 1000,
        _ => 3000,
    }
}

#[test]
fn no_input_breaks_a_promise() {
    let only = std::env::var("FUZZ").unwrap_or_default();
    let chosen = || TARGETS.iter().filter(|target| target.name.contains(&only));
    // Each target runs in its own thread, so that a failing one does not stop the others.
    let failed: Vec<_> = std::thread::scope(|scope| {
        let runs: Vec<_> = chosen().map(|target| (target.name, scope.spawn(|| try_all(target)))).collect();
        runs.into_iter().filter_map(|(name, run)| run.join().is_err().then_some(name)).collect()
    });
    assert_eq!(failed, [] as [&str; 0], "see above");
}

fn try_all(target: &Target) {
    let seeds = (target.seeds)();
    for seed in &seeds {
        (target.run)(seed);
    }
    let config =
        Config { cases: cases(target), rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..Config::default() };
    let spoilt =
        (prop::sample::select(seeds), prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6))
            .prop_map(|(mut bytes, changes)| {
                for (at, byte) in changes {
                    if !bytes.is_empty() {
                        let at = at.index(bytes.len());
                        bytes[at] = byte;
                    }
                }
                bytes
            });
    let chance = prop::collection::vec(any::<u8>(), 0..300);
    let inputs = prop_oneof![spoilt, chance];
    let run = |bytes: Vec<u8>| {
        (target.run)(&bytes);
        Ok(())
    };
    match TestRunner::new(config).run(&inputs, run) {
        Ok(()) => {}
        Err(TestError::Fail(why, bytes)) => panic!("{}: {why}: b\"{}\"", target.name, bytes.escape_ascii()),
        Err(error) => panic!("{}: {error}", target.name),
    }
}
