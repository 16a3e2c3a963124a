//! How this node changes its own identity: to stay a member, to begin as another process, and to leave.

use std::{num::NonZeroU8, time::Duration};

use super::{core::Core, events::Event};
use crate::NodeId;

/// How many times this node sends the news that it leaves: as often as it can, since no other node knows the news.
const LEAVE_TRANSMISSIONS: NonZeroU8 = NonZeroU8::MAX;

impl Core {
    /// Takes an identity that wins this node's address from `rival`.
    pub(super) fn outrank(&mut self, now: Duration, rival: &NodeId) {
        if let Some(next) = self.me().outranking(rival) {
            self.renew_as(now, next);
        }
    }

    /// Stays the same process under a new identity.
    pub(super) fn renew_as(&mut self, now: Duration, next: NodeId) {
        self.attempt(now, |foca, outbox| foca.change_identity(next, outbox));
        let me = self.me().clone();
        self.report(Event::Renewed(me));
        self.announcements.hasten(now);
    }

    /// Becomes the process `origin`.
    pub(super) fn reset(&mut self, now: Duration, origin: u64, started_ms: u64) {
        // Of two identities at one address the later start wins.
        let started_ms = started_ms.max(self.me().started_ms.saturating_add(1));
        let next = NodeId { origin, started_ms, ..self.me().clone() };
        self.attempt(now, |foca, outbox| foca.change_identity(next, outbox));
        self.announcements.hasten(now);
    }

    /// Tells all members that this node leaves.
    pub(super) fn leave(&mut self, now: Duration) {
        // foca itself would tell three members, who pass it on.
        self.widen_broadcasts(LEAVE_TRANSMISSIONS);
        let leaving = NodeId { leaving: true, ..self.me().clone() };
        self.attempt(now, |foca, outbox| foca.change_identity(leaving, outbox));
        self.attempt(now, |foca, outbox| foca.leave_cluster(outbox));
        self.timers.clear();
    }
}
