//! The bounded log of this node's own writes, from which pushes are cut. A peer that falls behind its start gets a delta.

use std::collections::VecDeque;
use std::num::NonZeroU64;

use bytes::Bytes;
use kvasir_proto::peer::v1::Entry;

use crate::clock::Dot;

/// An own write. Smaller than an [`Entry`]: after its map, a full log is the largest thing that a node holds.
#[derive(Debug, Default)]
pub(super) struct Own {
    pub(super) hlc: u64,
    pub(super) key: Bytes,
    pub(super) value: Option<Bytes>,
    pub(super) expires_ms: Option<NonZeroU64>,
    /// See `first` and `replaced` of an entry: most writes have neither.
    pub(super) others: Option<Box<Others>>,
}

/// Other dots that an own write refers to.
#[derive(Debug, Default)]
pub(super) struct Others {
    pub(super) first: Dot,
    pub(super) replaced: Dot,
}

impl Own {
    /// The bytes of key and value.
    pub(super) fn size(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Bytes::len)
    }

    pub(super) fn to_entry(&self) -> Entry {
        let (first, replaced) = self.others.as_ref().map_or_else(Default::default, |o| (o.first, o.replaced));
        Entry {
            key: self.key.clone(),
            hlc: self.hlc,
            origin: 0,
            deleted: self.value.is_none(),
            value: self.value.clone().unwrap_or_default(),
            expires_ms: self.expires_ms.map_or(0, NonZeroU64::get),
            first_hlc: first.hlc,
            first_origin: first.origin,
            replaced_hlc: replaced.hlc,
            replaced_origin: replaced.origin,
        }
    }
}

/// Own writes in the order of their timestamps.
#[derive(Debug, Default)]
pub(super) struct Log {
    entries: VecDeque<Own>,
    bytes: usize,
    /// The timestamp of the last write that was dropped; 0: none was.
    floor: u64,
    max_entries: usize,
    max_bytes: usize,
}

impl Log {
    pub(super) fn new(max_entries: usize, max_bytes: usize) -> Self {
        Self { max_entries, max_bytes, ..Self::default() }
    }

    pub(super) fn append(&mut self, entry: Own) {
        self.bytes += entry.size();
        if planted!("log-keeps-one-write-per-key") {
            self.entries.retain(|e| e.key != entry.key);
        }
        // Dropped before the push, so that the queue does not double its capacity for one write.
        while self.entries.len() >= self.max_entries || self.bytes > self.max_bytes {
            let Some(dropped) = self.entries.pop_front() else { break };
            self.bytes -= dropped.size();
            if !planted!("log-forgets-what-it-dropped") {
                self.floor = dropped.hlc;
            }
        }
        self.entries.push_back(entry);
    }

    /// Whether every write above `hlc` is still here.
    pub(super) const fn covers(&self, hlc: u64) -> bool {
        hlc >= self.floor
    }

    /// Starts the log of another origin.
    pub(super) fn reset(&mut self) {
        (self.bytes, self.floor) = (0, 0);
        self.entries.clear();
    }

    /// The writes above `hlc`, oldest first.
    pub(super) fn above(&self, hlc: u64) -> impl Iterator<Item = &Own> {
        self.entries.range(self.entries.partition_point(|e| e.hlc <= hlc)..)
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::LOG_MAX_BYTES;
    use super::*;

    #[test]
    fn keeps_the_newest_and_knows_what_it_dropped() {
        let mut log = Log::new(3, LOG_MAX_BYTES);
        for hlc in 1..=5 {
            log.append(Own { hlc, ..Own::default() });
        }
        assert_eq!(log.above(3).map(|e| e.hlc).collect::<Vec<_>>(), [4, 5]);
        assert!(log.covers(2) && !log.covers(1));
    }

    #[test]
    fn log_keeps_few_bytes_and_always_the_last_write() {
        let mut log = Log::new(100, 10);
        let own = |hlc, len| Own { hlc, value: Some(vec![0; len].into()), ..Own::default() };
        for hlc in 1..=5 {
            log.append(own(hlc, 4));
        }
        assert_eq!(log.above(0).map(|e| e.hlc).collect::<Vec<_>>(), [4, 5]);
        assert!(log.covers(3) && !log.covers(2));
        log.append(own(6, 11));
        assert_eq!(log.above(0).map(|e| e.hlc).collect::<Vec<_>>(), [6]);
        assert!(log.covers(5) && !log.covers(4));
    }
}
