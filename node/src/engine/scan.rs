//! Scans of the store, for listings and watches.

use super::types::Value;
use crate::store::Record;

/// A scan looks at no more than this many records each time it holds the lock.
pub(super) const LIST_STEP: usize = 4096;

/// The record's value, if it is live. The bytes are shared, not copied.
pub(super) fn live(record: &Record, now_ms: u64) -> Option<Value> {
    let value = record.live(now_ms)?;
    Some(Value { value: value.clone(), dot: record.dot, expires_ms: record.expires_ms })
}
