//! Digests, by which two nodes notice that they differ.

use kvasir_proto::peer::v1::{Digest, Want};

use super::limits::STRIKES;
use super::link::Link;
use super::map::Map;
use super::replica::Replica;

impl Replica {
    pub(super) fn take_digest(&mut self, link: &mut Link, digest: &Digest) {
        if !self.ready || !link.compatible {
            return;
        }
        let theirs = u128::from(digest.fingerprint_hi) << 64 | u128::from(digest.fingerprint_lo);
        if digest.seen_hash != self.map.hash(&self.roster) {
            return link.ask(Want::Missing);
        }
        // While one node has dropped more tombstones, or is about to, the maps cannot be compared.
        if digest.forgotten != self.map.standing.forgotten || !self.map.store.is_collected(self.map.standing.forgotten)
        {
            return;
        }
        if theirs == self.map.store.fingerprint() {
            link.strikes = 0;
        } else {
            link.strikes += 1;
            if link.strikes >= STRIKES && link.awaiting.is_none() {
                link.strikes = 0;
                self.counters.divergences += 1;
                link.request = Some(Want::Repair).filter(|_| !planted!("never-repaired"));
            }
        }
    }

    /// The digest of this node; `None` while there are tombstones to drop, which a comparison would count.
    pub(super) fn cut_digest(&self) -> Option<Digest> {
        let Map { store, standing, .. } = &self.map;
        let fingerprint = store.fingerprint();
        store.is_collected(standing.forgotten).then(|| Digest {
            seen_hash: self.map.hash(&self.roster),
            fingerprint_hi: (fingerprint >> 64) as u64,
            fingerprint_lo: fingerprint as u64,
            forgotten: standing.forgotten,
        })
    }
}
