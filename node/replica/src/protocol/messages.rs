//! Links come and go, messages come in, messages go out.

use kvasir_proto::peer::v1::{Ack, Message, Want, message::Kind};

use super::link::{Link, LinkId};
use super::replica::Replica;
use super::roster::Seat;
use super::stamps;
use super::types::{PeerId, Violation};

impl Replica {
    /// Adds a link for a new connection to a peer, and drops older links to it.
    pub fn link_up(&mut self, peer: PeerId) -> LinkId {
        let PeerId { origin, name, voter, started_ms, returning } = peer;
        let id = self.outbox.open(origin, if self.ready { Want::Missing } else { Want::Hello });
        if self.roster.get(origin).is_none() {
            self.roster.take(origin, Seat::joining(name, voter, started_ms, returning));
            self.outbox.announce_roster();
        }
        self.agreement.is_linked(origin);
        id
    }

    /// Drops the link of a connection that ended; does nothing if it was dropped before.
    pub fn link_down(&mut self, link: LinkId) {
        if self.outbox.links.remove(&link).is_some() {
            // A restart waits until this process is not heard.
            for link in self.outbox.links.values_mut().filter(|l| l.sent_namesake) {
                link.report_due = true;
            }
        }
    }

    /// Takes a message of a link. On an error the caller closes the link.
    pub fn receive(&mut self, link: LinkId, message: Message, now_ms: u64) -> Result<(), Violation> {
        if !message.kind.as_ref().is_none_or(stamps::are_possible) {
            return Err(Violation::Malformed);
        }
        let link = if !self.is_up(link) && planted!("old-connection-heard") {
            self.outbox.links.keys().next().copied().unwrap_or(link)
        } else {
            link
        };
        // Messages of an older connection are dropped.
        let Some(mut state) = self.outbox.links.remove(&link) else { return Ok(()) };
        let me = self.settings.origin;
        state.silent_beats = 0;
        self.agreement.heard |= !matches!(message.kind, Some(Kind::Push(_) | Kind::Ack(_) | Kind::Digest(_)));
        let result = match message.kind {
            Some(Kind::Push(push)) => self.take_push(&mut state, push, now_ms),
            Some(Kind::Digest(digest)) => {
                self.take_digest(&mut state, &digest);
                Ok(())
            }
            Some(Kind::Sync(sync)) => self.take_sync(&mut state, &sync, now_ms),
            Some(Kind::Delta(delta)) => self.take_delta(link, &mut state, delta, now_ms),
            Some(Kind::Ack(ack)) => {
                state.acked = state.acked.max(ack.hlc);
                Ok(())
            }
            Some(Kind::Report(report)) => {
                self.take_report(&mut state, report, now_ms);
                Ok(())
            }
            Some(Kind::Roster(roster)) => self.take_roster(roster, now_ms),
            None => Err(Violation::Unknown),
        };
        // After a reset, the node has new links.
        if me == self.settings.origin {
            self.outbox.links.insert(link, state);
        }
        self.seek_sponsor(now_ms);
        result
    }

    /// The links for which [`Self::poll_send`] may have something. With many peers, most links have nothing to send: polling each
    /// would cost more than sending.
    pub fn due(&self) -> impl Iterator<Item = LinkId> {
        let own = self.to_push();
        self.outbox.links.iter().filter(move |(_, link)| link.is_due(own)).map(|(&id, _)| id)
    }

    /// The timestamp up to which own writes can be pushed.
    fn to_push(&self) -> Option<u64> {
        self.ready.then(|| self.map.seen(self.settings.origin))
    }

    /// The next message for a link whose last message was sent; `None` if there is nothing to send. Writes that pile up between
    /// two calls are sent together.
    pub fn poll_send(&mut self, link: LinkId, now_ms: u64) -> Option<Message> {
        let mut state = self.outbox.links.remove(&link)?;
        let due = state.is_due(self.to_push());
        let kind = self.next_message(&mut state, now_ms);
        debug_assert!(due || kind.is_none(), "`due` does not list the link that has {kind:?} to send");
        self.outbox.links.insert(link, state);
        kind.map(|kind| Message { kind: Some(kind) })
    }

    fn next_message(&mut self, link: &mut Link, now_ms: u64) -> Option<Kind> {
        if std::mem::take(&mut link.roster_due) {
            return Some(Kind::Roster(self.roster.to_wire()));
        }
        if let Some(want) = link.request.take() {
            return Some(Kind::Sync(self.cut_sync(link, want, now_ms)));
        }
        if std::mem::take(&mut link.ack_due) {
            let above_gap = link.ahead.filter(|_| planted!("ack-above-gap")).map_or(0, |(_, to)| to);
            return Some(Kind::Ack(Ack { hlc: self.map.seen(link.origin).max(above_gap) }));
        }
        let push = link.cursor.filter(|&cursor| self.to_push().is_some_and(|own| cursor < own));
        if let Some(prev) = push
            && (link.push_next && !planted!("push-waits-for-delta") || link.scan.is_none())
        {
            link.push_next = false;
            return Some(Kind::Push(self.cut_push(link, prev, now_ms)));
        }
        link.push_next = true;
        if let Some(mut scan) = link.scan.take() {
            let delta = self.cut_delta(link, &mut scan);
            if !delta.last {
                link.scan = Some(scan);
            }
            return Some(Kind::Delta(delta));
        }
        if std::mem::take(&mut link.report_due) {
            return Some(Kind::Report(self.cut_report(link, now_ms)));
        }
        // The digest follows the pushes, so that both sides cover this node up to the same timestamp.
        if std::mem::take(&mut link.digest_due) {
            return self.cut_digest().map(Kind::Digest);
        }
        None
    }
}
