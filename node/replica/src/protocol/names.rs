//! What a node does when another process has its name, see `namesake`.
//!
//! A process that lost its name while it was cut off holds writes that the others lack. It hands them over under a name
//! derived from its own before it ends.

use kvasir_proto::peer::v1::{Namesake as WireNamesake, Stranger};

use super::link::Link;
use super::replica::Replica;
use super::types::Namesake;
use crate::clock::stamp_at;

impl Replica {
    /// Notes what a peer says about this node's name.
    pub(super) fn take_name(&mut self, link: &mut Link, namesake: Option<WireNamesake>, now_ms: u64) {
        link.namesake = namesake.map(|it| Namesake { origin: it.origin, started_ms: it.started_ms });
        if let Some(holder) = link.namesake.filter(|_| namesake.is_some_and(|it| it.for_good))
            && !self.ready
            && self.joining.refused.is_none()
        {
            self.refuse(holder, now_ms);
        }
    }

    /// Gives up this node's name, which belongs to another process for good. This node reissues its backlog from a seat
    /// under a derived name, which neither votes nor founds.
    fn refuse(&mut self, holder: Namesake, now_ms: u64) {
        self.joining.refused = Some(holder);
        if planted!("replaced-drops-backlog") {
            self.backlogs.clear();
        }
        if !self.backlogs.is_empty() {
            self.settings.voter &= planted!("replaced-still-votes");
            (self.settings.may_found, self.settings.serve_alone) = (false, false);
            self.reset(Stranger::Ended, now_ms);
        }
    }

    /// If two members of this node's map have one name, one of them ends. A seat of another epoch is left alone until the
    /// epochs are compared: its process may be the one that keeps its map.
    pub(super) fn settle_names(&mut self, now_ms: u64) {
        if !self.ready || planted!("predecessor-not-ended") {
            return;
        }
        let stranger = |&origin: &u64| !self.was_admitted(origin) && !planted!("names-settled-before-epochs");
        let strangers: Vec<u64> = self.roster.members().filter(stranger).collect();
        // A node that has just started may not have read the wall clock yet.
        let now = self.clock.last().max(stamp_at(now_ms));
        if !self.roster.settle_names(&strangers, now, self.map.standing.forgotten) {
            return;
        }
        if !self.leaving && !self.roster.is_live(self.settings.origin) {
            // Another process took this node's name while no peer heard this node.
            self.reset(Stranger::Ended, now_ms);
        } else {
            self.outbox.announce_roster();
        }
    }
}
