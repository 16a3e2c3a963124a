//! The bounded log of this node's own writes, as they were made: what pushes
//! are cut from. A peer that falls behind its start is served by a delta.

use std::collections::VecDeque;

use kvasir_proto::peer::v1::Entry;

/// At most this many writes are kept.
pub const LOG_MAX_ENTRIES: usize = 65_536;
/// At most this many bytes of keys and values are kept, and always the last write.
pub const LOG_MAX_BYTES: usize = 32 << 20;

/// Own writes in the order of their stamps.
#[derive(Debug, Default)]
pub(super) struct Log {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// The stamp of the last write that was dropped; 0: none was.
    floor: u64,
    max_entries: usize,
}

impl Log {
    pub(super) fn new(max_entries: usize) -> Self {
        Self { max_entries, ..Self::default() }
    }

    pub(super) fn append(&mut self, entry: Entry) {
        self.bytes += size(&entry);
        // First: the queue would double once for the one that is too many.
        while self.entries.len() >= self.max_entries || self.bytes > LOG_MAX_BYTES {
            let Some(dropped) = self.entries.pop_front() else { break };
            self.bytes -= size(&dropped);
            self.floor = dropped.hlc;
        }
        self.entries.push_back(entry);
    }

    /// Whether every write above `hlc` is still here.
    pub(super) const fn covers(&self, hlc: u64) -> bool {
        hlc >= self.floor
    }

    /// Begins a log of another origin.
    pub(super) fn reset(&mut self) {
        (self.bytes, self.floor) = (0, 0);
        self.entries.clear();
    }

    /// The writes above `hlc`, oldest first.
    pub(super) fn above(&self, hlc: u64) -> impl Iterator<Item = &Entry> {
        self.entries.range(self.entries.partition_point(|e| e.hlc <= hlc)..)
    }
}

/// The bytes of an entry's key and value.
pub(super) fn size(entry: &Entry) -> usize {
    entry.key.len() + entry.value.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest_and_knows_what_it_dropped() {
        let mut log = Log::new(3);
        for hlc in 1..=5 {
            log.append(Entry { hlc, ..Entry::default() });
        }
        assert_eq!(log.above(3).map(|e| e.hlc).collect::<Vec<_>>(), [4, 5]);
        assert!(log.covers(2) && !log.covers(1));
    }
}
