//! A node that stops hands over what its peers lack, then ends its seat.

use kvasir_proto::peer::v1::{SeatState, Want};

use super::link::{Link, LinkId};
use super::replica::Replica;
use super::vector::Cover;

impl Replica {
    /// Prepares to leave. At once and at each beat it asks its peers whether they hold the writes that it has of nodes
    /// without a link, see [`Self::uncovered`]: it may be the only node with these writes.
    pub fn drain(&mut self) {
        self.draining = true;
        self.ask_what_is_held();
    }

    pub(super) fn ask_what_is_held(&mut self) {
        let behind: Vec<LinkId> =
            self.outbox.links.iter().filter(|(_, l)| self.unshared(l) > 0).map(|(&id, _)| id).collect();
        for id in behind {
            if let Some(link) = self.outbox.links.get_mut(&id) {
                link.ask(Want::Missing);
            }
        }
    }

    /// Leaves: this node's attestation is no longer required.
    pub fn leave(&mut self, now_ms: u64) {
        self.leaving = true;
        let now = self.clock.tick(now_ms);
        self.roster.end(self.settings.origin, SeatState::Ended, now);
        self.outbox.announce_roster();
    }

    /// How much (no linked peer, not every linked peer) is known to hold. Counts own writes that are still in the log,
    /// records that are still to be reissued, and one for each node without a link that may have sent writes to this node
    /// alone.
    pub fn uncovered(&self) -> (usize, usize) {
        let any = self.outbox.links.values().map(|l| l.acked).max().unwrap_or(0);
        let all = self.outbox.links.values().map(|l| l.acked).min().unwrap_or(0);
        let lacked = || self.outbox.links.values().map(|l| self.unshared(l));
        let (by_all, by_any) = match (lacked().min(), lacked().max()) {
            (Some(min), Some(max)) if !planted!("drain-hands-over-own-only") => (min, max),
            _ => (0, 0),
        };
        let brought = self.backlogs.len();
        (self.outbox.log.above(any).count() + brought + by_all, self.outbox.log.above(all).count() + brought + by_any)
    }

    /// Keys of own writes that are still in the log and that no linked peer is known to hold, oldest write first; then keys
    /// that are still to be reissued.
    pub fn uncovered_keys(&self) -> impl Iterator<Item = &[u8]> {
        let any = self.outbox.links.values().map(|l| l.acked).max().unwrap_or(0);
        self.outbox.log.above(any).map(|entry| &entry.key[..]).chain(self.backlogs.keys())
    }

    /// The number of nodes without a link of which this node holds writes that the peer may lack.
    pub(super) fn unshared(&self, link: &Link) -> usize {
        let lacked = |origin: &u64, cover: &Cover| {
            // The peer has retired an origin that it does not list.
            let forgotten = Cover { seen: link.their_collected, ..Cover::default() };
            let theirs = link.theirs.get(origin).copied().unwrap_or(forgotten);
            let held = theirs.seen.max(theirs.last);
            cover.wrote() > self.map.floor(&self.roster, *origin)
                && (held < cover.last || held.max(theirs.beyond) < cover.beyond)
                && *origin != self.settings.origin
                && !self.outbox.is_linked(*origin)
        };
        self.map.vector.iter().filter(|(origin, cover)| lacked(origin, cover)).count()
    }
}
