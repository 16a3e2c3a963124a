//! The store as a whole, next to a plain map.

mod model;
mod random;
mod rules;

use proptest::test_runner::Config;

/// Miri is slow, and keeps programs from writing files.
pub(crate) fn few_under_miri() -> Config {
    if cfg!(miri) { Config { cases: 8, failure_persistence: None, ..Config::default() } } else { Config::default() }
}
