//! What happens as time passes.

use kvasir_proto::peer::v1::Want;

use super::limits::{DIGEST_FANOUT, RETRY_MS, SYNC_TIMEOUT_MS};
use super::link::Awaiting;
use super::replica::Replica;
use super::settings::View;

impl Replica {
    /// Must be called at least every few dozen milliseconds.
    pub fn tick(&mut self, view: View, now_ms: u64) {
        self.map.expire(now_ms, &mut self.changes);
        let late =
            |a: &mut Awaiting| now_ms.saturating_sub(a.since_ms) > SYNC_TIMEOUT_MS && !planted!("sync-never-times-out");
        for link in self.outbox.links.values_mut() {
            if let Some(awaiting) = link.awaiting.take_if(late) {
                // Another peer may send the snapshot instead.
                link.request = Some(match awaiting.want {
                    Want::Snapshot => Want::Hello,
                    other => other,
                });
            }
        }
        // The heartbeat goes on even if the wall clock jumps ahead or back.
        if now_ms >= self.next_beat_ms || self.next_beat_ms - now_ms > self.settings.sync_interval_ms {
            self.next_beat_ms = now_ms + self.settings.sync_interval_ms;
            self.beat(now_ms);
        }
        // Agreement changes with messages, not with time alone.
        if std::mem::take(&mut self.agreement.heard) || !self.backlogs.is_empty() {
            self.collect(now_ms);
            self.adopt_orphans();
            self.reissue_backlogs(now_ms);
        } else if self.ready {
            self.drop_forgotten();
        }
        if !self.ready {
            self.seek_sponsor(now_ms);
            self.found_if_due(view, now_ms);
        }
    }

    fn beat(&mut self, now_ms: u64) {
        self.agreement.heard = true;
        if self.ready {
            let seen = self.clock.tick(now_ms);
            self.map.vector.entry(self.settings.origin).or_default().seen = seen;
        }
        self.evict_silent(now_ms);
        self.settle_names(now_ms);
        self.count_beats();
        for link in self.outbox.links.values_mut() {
            link.report_due = true;
            // A peer that is not admitted yet answers with a Sync of its own, by which this node decides.
            let asked = self.agreement.adopting.as_ref().is_some_and(|pending| pending.contains(&link.origin));
            if self.ready && link.peer_ready && (!link.compatible || asked) {
                link.ask(Want::Missing);
            }
        }
        if self.draining {
            self.ask_what_is_held();
        }
        for _ in 0..DIGEST_FANOUT.min(self.outbox.links.len()) {
            let Some(link) = self.outbox.next_for_digest() else { break };
            link.digest_due = self.ready && link.compatible;
        }
        if let Some(since) = self.full_since_ms
            && now_ms.abs_diff(since) >= RETRY_MS
        {
            self.full_since_ms = None;
            for link in self.outbox.links.values_mut().filter(|_| self.ready) {
                link.ask(Want::Missing);
            }
        }
    }
}
