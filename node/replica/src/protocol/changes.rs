//! What changes, for those that watch.

use bytes::Bytes;

use super::roster::Seat;
use crate::clock::Dot;
use crate::store::Record;

/// What a watcher of the map, or of the cluster, may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key has a new record, with or without a value.
    Wrote(Bytes, Record),
    /// The value under the key has ended; with the dot of its write.
    Expired(Bytes, Dot),
    /// The map was replaced: earlier changes may not hold.
    Reset,
    /// A majority evicted the seat.
    Evicted(Seat),
    /// A write was reissued: its former dot, and its new one.
    Reissued(Dot, Dot),
}

/// The changes since they were last taken; kept only while someone watches.
#[derive(Debug, Default)]
pub(super) struct Changes {
    kept: Option<Vec<Change>>,
}

impl Changes {
    pub(super) fn watch(&mut self, on: bool) {
        self.kept = on.then(Vec::new);
    }

    pub(super) const fn are_watched(&self) -> bool {
        self.kept.is_some()
    }

    pub(super) fn note(&mut self, change: Change) {
        if let Some(kept) = &mut self.kept {
            kept.push(change);
        }
    }

    pub(super) fn take(&mut self) -> Vec<Change> {
        self.kept.as_mut().map(std::mem::take).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_kept_only_while_watched() {
        let mut changes = Changes::default();
        changes.note(Change::Reset);
        assert_eq!(changes.take(), []);
        changes.watch(true);
        changes.note(Change::Reset);
        assert_eq!(changes.take(), [Change::Reset]);
        assert_eq!(changes.take(), [], "taken once");
        changes.note(Change::Reset);
        changes.watch(false);
        assert_eq!(changes.take(), []);
    }
}
