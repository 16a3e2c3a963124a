//! How much memory the process may have, and which share of it entries get.
//!
//! `maxMemory` bounds entries alone. What the process takes besides was measured: docs/benchmarks.md has the figures.

mod cgroup;

use kvasir_formats::defaults;

use crate::replica::{HEADROOM, LOG_MAX_BYTES, LOG_MAX_ENTRIES};

pub use self::cgroup::{Limit, limit};

/// What a node takes before it holds anything.
pub const EMPTY: u64 = defaults::EMPTY_NODE_BYTES;
/// What messages of clients and peers take while they are under way.
const MESSAGES: u64 = 24 << 20;
/// What a node needs besides what grows with its entries.
pub const NEEDS: u64 = EMPTY + MESSAGES;
/// The least that a share has to be: less holds a single value of the longest kind at best.
pub const LEAST_SHARE: u64 = 1 << 20;
/// The least limit of a process that leaves entries [`LEAST_SHARE`].
pub const LEAST_LIMIT: u64 = defaults::LEAST_MEMORY_LIMIT;
/// A share is a multiple of this, and so a figure that can be read.
const UNIT: u64 = 1 << 20;
/// Of `maxMemory`, what the log of own writes may keep of values that are no longer in the map.
const LOG_PART: u64 = 8;
/// The log keeps at least this much.
const LEAST_LOG: u64 = 1 << 20;
/// Of `maxMemory`, what the account of an entry may be too low by, with what the allocator keeps of freed memory.
const SLACK_PART: u64 = 8;

/// The `maxMemory` that fits into a process with this memory limit.
///
/// A full node takes `maxMemory`, an eighth more for what its peers write ([`HEADROOM`]), an eighth for its log and an
/// eighth for what the account misses.
pub const fn share(limit: u64) -> u64 {
    const WHOLE: u64 = HEADROOM * LOG_PART * SLACK_PART;
    const BESIDE: u64 = WHOLE / HEADROOM + WHOLE / LOG_PART + WHOLE / SLACK_PART;
    let bytes = limit.saturating_sub(NEEDS) / (WHOLE + BESIDE) * WHOLE;
    bytes - bytes % UNIT
}

/// How many bytes and how many writes the log of own writes keeps.
pub fn log_bounds(max_memory: Option<u64>) -> (usize, usize) {
    let full = LOG_MAX_BYTES as u64;
    let bytes = max_memory.map_or(full, |max| (max / LOG_PART).max(LEAST_LOG).min(full));
    // With few bytes go few writes: each takes room besides its key and value.
    let entries = LOG_MAX_ENTRIES as u64 * bytes / full;
    (bytes as usize, entries as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_as_the_documentation_says() {
        for (limit, expected) in [(0, 0), (48, 0), (50, 1), (96, 34), (256, 151), (1024, 709)] {
            assert_eq!(share(limit << 20) >> 20, expected, "of {limit} MiB");
        }
        assert!(share(LEAST_LIMIT) >= LEAST_SHARE && share(LEAST_LIMIT - UNIT) < LEAST_SHARE);
    }

    #[test]
    fn log_is_small_where_max_memory_is() {
        assert_eq!(log_bounds(None), (LOG_MAX_BYTES, LOG_MAX_ENTRIES));
        assert_eq!(log_bounds(Some(1 << 30)), (LOG_MAX_BYTES, LOG_MAX_ENTRIES));
        assert_eq!(log_bounds(Some(64 << 20)), (8 << 20, LOG_MAX_ENTRIES / 4));
        assert_eq!(log_bounds(Some(1)), (1 << 20, LOG_MAX_ENTRIES / 32));
    }
}
