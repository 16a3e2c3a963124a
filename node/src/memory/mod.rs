//! The memory limit of the process, and the share of it that entries get.
//!
//! `maxMemory` limits only entries. docs/benchmarks.md has measurements of what the process takes besides.

mod cgroup;

use kvasir_formats::defaults;

use crate::replica::{HEADROOM, LOG_MAX_BYTES, LOG_MAX_ENTRIES};

pub use self::cgroup::{Limit, limit};

/// What an empty node takes.
pub const EMPTY: u64 = defaults::EMPTY_NODE_BYTES;
/// What messages of clients and peers take while they are in flight.
const MESSAGES: u64 = 24 << 20;
/// What a node needs independently of its entries.
pub const NEEDS: u64 = EMPTY + MESSAGES;
/// The smallest share: it has room for one value of the maximum size.
pub const LEAST_SHARE: u64 = 1 << 20;
/// The lowest memory limit that leaves entries [`LEAST_SHARE`].
pub const LEAST_LIMIT: u64 = defaults::LEAST_MEMORY_LIMIT;
/// A share is a multiple of this, to be readable.
const UNIT: u64 = 1 << 20;
/// The part of `maxMemory` that values in the log may take that are no longer in the map: an eighth.
const LOG_PART: u64 = 8;
/// The smallest size of the log.
const LEAST_LOG: u64 = 1 << 20;
/// The part of `maxMemory` that the accounting of entries may miss, with memory that the allocator does not return: an eighth.
const SLACK_PART: u64 = 8;

/// The `maxMemory` that fits into a process with this memory limit.
///
/// A full node takes `maxMemory`, and an eighth of it for each of: its peers' writes ([`HEADROOM`]), its log, and what the
/// accounting misses.
pub const fn share(limit: u64) -> u64 {
    const WHOLE: u64 = HEADROOM * LOG_PART * SLACK_PART;
    const REST: u64 = WHOLE / HEADROOM + WHOLE / LOG_PART + WHOLE / SLACK_PART;
    let bytes = limit.saturating_sub(NEEDS) / (WHOLE + REST) * WHOLE;
    bytes - bytes % UNIT
}

/// How many bytes and how many writes the log keeps.
pub fn log_bounds(max_memory: Option<u64>) -> (usize, usize) {
    let full = LOG_MAX_BYTES as u64;
    let bytes = max_memory.map_or(full, |max| (max / LOG_PART).max(LEAST_LOG).min(full));
    // A log of fewer bytes keeps fewer writes, because each write takes memory besides key and value.
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
