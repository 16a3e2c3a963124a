//! What a peer attests.

use kvasir_proto::peer::v1::{Report, Standing, Want};

use super::link::Link;
use super::map::epoch_of;
use super::replica::Replica;

impl Replica {
    pub(super) fn take_report(&mut self, link: &mut Link, report: Report, now_ms: u64) {
        let standing: Standing = report.standing.unwrap_or_default();
        // Only a node that is ready has an epoch.
        link.peer_ready = epoch_of(&standing) != (0, 0);
        self.take_name(link, report.namesake, now_ms);
        let same_epoch = self.ready && epoch_of(&standing) == self.map.standing.epoch;
        if report.roster_hash != self.roster_hash() {
            link.roster_due = true;
        }
        if self.ready && !same_epoch && link.peer_ready {
            link.ask(Want::Missing);
        }
        if same_epoch && link.compatible && self.roster.is_live(link.origin) {
            self.map.standing.promised |= standing.promised;
            // A node that collected had the attestation of all, this node's included. An attestation of this node stays true,
            // even if this node would not repeat it now.
            let attested = if planted!("attestation-taken-back") { 0 } else { self.map.standing.attested };
            let mut held = self.stable(now_ms).max(attested);
            if planted!("agreed-without-this-node") {
                held = u64::MAX;
            }
            self.map.standing.collected = self.map.standing.collected.max(standing.collected.min(held));
            if !planted!("peers-watermark-ignored") {
                self.map.standing.forgotten =
                    self.map.standing.forgotten.max(standing.forgotten.min(self.map.standing.collected));
            }
            self.agreement.reports.insert(link.origin, report);
        }
    }
}
