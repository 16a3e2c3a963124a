//! The version vector: what was taken in from each origin.

use std::collections::BTreeMap;

use kvasir_proto::peer::v1::Seen;
use xxhash_rust::xxh3::Xxh3;

/// What is known of one origin's writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cover {
    /// Every write of the origin up to this timestamp was taken in.
    pub seen: u64,
    /// The last write that counts as taken in; heartbeats make `seen` larger. If the origin is gone, `last` may be above
    /// `seen`: writes between the two that not all nodes hold are lost.
    pub last: u64,
    /// The last write that is held above both, so that something before it may be missing; 0: none.
    pub beyond: u64,
}

impl Cover {
    /// Notes that all writes up to `seen` were taken in, and that `last` is the last of them.
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

    /// Notes that a write is held.
    pub(super) fn note(&mut self, hlc: u64) {
        if hlc <= self.seen {
            self.last = self.last.max(hlc);
        } else if hlc > self.last {
            self.beyond = self.beyond.max(hlc);
        }
    }

    /// Counts `beyond` as taken in: writes before it that are not held are lost.
    pub(super) fn adopt(&mut self) {
        self.last = self.last.max(self.beyond);
        self.beyond = 0;
    }

    /// The last write that is known.
    pub(super) fn wrote(&self) -> u64 {
        self.last.max(self.beyond)
    }

    /// Equal for two nodes that took in the same writes of the origin, whatever heartbeats each has had. A node that holds a
    /// write above a gap differs from one that lacks the write, and from one that has no gap there.
    pub(super) fn hash(&self, origin: u64, hash: &mut Xxh3) {
        let taken_in = if planted!("gap-not-in-hash") { 0 } else { self.last.min(self.seen) };
        for part in [origin, taken_in, self.last, self.beyond] {
            hash.update(&part.to_le_bytes());
        }
    }
}

/// Covers by origin.
pub type Vector = BTreeMap<u64, Cover>;

/// A vector as it is sent.
pub(super) fn to_wire(vector: &Vector) -> Vec<Seen> {
    vector
        .iter()
        .map(|(&origin, cover)| Seen { origin, hlc: cover.seen, last: cover.last, beyond: cover.beyond })
        .collect()
}

/// One origin of a vector that a peer sent.
pub(super) const fn from_wire(seen: &Seen) -> (u64, Cover) {
    (seen.origin, Cover { seen: seen.hlc, last: seen.last, beyond: seen.beyond })
}
