//! The map of one replica: key → the write that won it, in key order, with
//! expiry, memory accounting and a fingerprint. Knows nothing of peers and has
//! no clock: callers bring `now_ms`.
//!
//! Entries are packed into the pages of a B+tree, see `docs/adr/0007-packed-store.md`.

mod body;
mod cost;
mod node;
mod order;
mod origins;
mod page;
mod record;
mod scan;
mod store;
#[cfg(test)]
mod tests;

pub use record::{Dot, Entry, Key, Value, Write};
pub use scan::Scan;
pub use store::{BUCKETS, Store, bucket_of};

/// Longer values are shared with their readers; others are copied, bytes.
pub const INLINE: usize = 512;
