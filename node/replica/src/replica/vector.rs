//! The version vector: what was taken in of each origin.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::Xxh3;

/// What is known of one origin's writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cover {
    /// Every write of the origin up to this stamp was taken in.
    pub seen: u64,
    /// The last of those writes; heartbeats make `seen` larger. Of an origin that
    /// writes no more it may be above `seen`: what is between them and not held
    /// by all is lost.
    pub last: u64,
    /// The last write that is held above both, where something before it may be
    /// missing; 0: none.
    pub beyond: u64,
}

impl Cover {
    /// Everything up to `seen` was taken in, the last write being `last`.
    pub(super) fn join(&mut self, seen: u64, last: u64) {
        self.seen = self.seen.max(seen);
        self.last = self.last.max(last);
        if self.beyond <= self.seen {
            self.last = self.last.max(self.beyond);
        }
        if self.beyond <= self.last {
            self.beyond = 0;
        }
    }

    /// A write is held.
    pub(super) fn note(&mut self, hlc: u64) {
        if hlc <= self.seen {
            self.last = self.last.max(hlc);
        } else if hlc > self.last {
            self.beyond = self.beyond.max(hlc);
        }
    }

    /// What came before `beyond` and is not held is lost.
    pub(super) fn adopt(&mut self) {
        self.last = self.last.max(self.beyond);
        self.beyond = 0;
    }

    /// The last write that is known.
    pub(super) fn wrote(&self) -> u64 {
        self.last.max(self.beyond)
    }

    /// Equal for two nodes that took in the same writes of the origin, whatever heartbeats each has had. One that
    /// holds a write above a gap is equal to nobody who does not, nor to one for whom there is no gap.
    pub(super) fn hash(&self, origin: u64, hash: &mut Xxh3) {
        let taken_in = if planted!("gap-not-in-hash") { 0 } else { self.last.min(self.seen) };
        for part in [origin, taken_in, self.last, self.beyond] {
            hash.update(&part.to_le_bytes());
        }
    }
}

/// Covers by origin.
pub type Vector = BTreeMap<u64, Cover>;
