//! Partial writes: writes of an origin that is gone, held above a gap that no node can close.

use super::replica::Replica;

impl Replica {
    /// Adopts partial writes under their own dots; a new dot would beat a delete that was made after the write. First asks
    /// every member for all that it holds of such origins, so that all members hold the same.
    pub(super) fn adopt_orphans(&mut self) {
        if !self.ready || self.map.partial(&self.roster).next().is_none() || !self.is_agreed() {
            self.agreement.adopting = None;
            return;
        }
        let (me, roster) = (self.settings.origin, &self.roster);
        let pending = self.agreement.adopting.get_or_insert_with(|| {
            roster.members().filter(|&o| o != me && !planted!("adopted-without-asking")).collect()
        });
        // A member that has left meanwhile will not answer.
        pending.retain(|&o| roster.is_live(o) || planted!("departed-node-asked"));
        if pending.is_empty() {
            for origin in self.map.partial(&self.roster).collect::<Vec<_>>() {
                self.map.vector.entry(origin).or_default().adopt();
            }
            self.agreement.adopting = None;
            self.counters.adoptions += 1;
        }
    }
}
