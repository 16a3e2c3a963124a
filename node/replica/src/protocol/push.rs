//! Pushes: sends this node's writes from its log, and takes the pushes of peers.

use bytes::Bytes;
use kvasir_proto::peer::v1::{Entry, Push, Want};

use super::limits::{HEADROOM, MESSAGE_MAX_BYTES};
use super::link::Link;
use super::replica::Replica;
use super::types::Violation;
use crate::clock::{Dot, ms_of};
use crate::store::{Record, Store};

/// Whether an entry was taken, or there was no room for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Yes,
    NoRoom,
}

impl Replica {
    pub(super) fn take_push(&mut self, link: &mut Link, push: Push, now_ms: u64) -> Result<(), Violation> {
        // Judges the peer by its wall clock and not by its timestamps: these may follow another node's clock that is or was
        // ahead, and that is no reason to refuse the peer.
        let their_ms = if planted!("peer-blamed-for-timestamps") { ms_of(push.last) } else { push.now_ms };
        let (ahead_ms, limit_ms) = (their_ms.saturating_sub(now_ms), self.settings.max_clock_skew_ms);
        if ahead_ms > limit_ms {
            return Err(Violation::ClockAhead { ahead_ms, limit_ms });
        }
        self.clock.observe(push.last);
        if !self.accepts(link) {
            return Ok(());
        }
        let covered = self.map.covered(link.origin);
        let wrote = push.entries.last().map(|e| e.hlc);
        let mut room = true;
        for mut entry in push.entries {
            entry.origin = link.origin;
            if entry.hlc > covered {
                if self.take_entry(&entry, now_ms)? == Taken::NoRoom {
                    room = false;
                } else if !planted!("replaced-write-not-noted") {
                    self.note_replaced(&entry)?;
                }
            }
        }
        if push.prev > covered && !planted!("push-above-gap-covered") {
            // Something between is missing. The entries are taken all the same, and the answer to a Sync closes the gap.
            if room {
                link.ahead = match link.ahead {
                    // Two stretches are joined only if there is no gap between them.
                    Some((from, to))
                        if push.prev <= to && from <= push.last || planted!("stretches-joined-across-gap") =>
                    {
                        Some((from.min(push.prev), to.max(push.last)))
                    }
                    _ => Some((push.prev, push.last)),
                };
            }
            link.ack_due |= planted!("ack-above-gap");
            if !planted!("gap-left-to-digests") {
                link.ask(Want::Missing);
            }
        } else if room {
            self.cover(link.origin, push.last, wrote.unwrap_or(0));
            self.close_gap(link);
            link.ack_due |= wrote.is_some();
        }
        Ok(())
    }

    /// Covers the writes that were held above a gap, once the gap is closed.
    pub(super) fn close_gap(&mut self, link: &mut Link) {
        if let Some((from, to)) = link.ahead
            && (from <= self.map.covered(link.origin) || planted!("gap-closed-by-anything"))
        {
            self.cover(link.origin, to, 0);
            link.ahead = None;
        }
    }

    pub(super) fn take_entry(&mut self, entry: &Entry, now_ms: u64) -> Result<Taken, Violation> {
        if entry.key.is_empty() || entry.hlc == 0 || entry.origin == 0 {
            return Err(Violation::Malformed);
        }
        self.counters.entries_in += 1;
        let dot = Dot { hlc: entry.hlc, origin: entry.origin };
        self.clock.observe(dot.hlc);
        // A write that is held or beaten needs no room.
        if let Some(limit) = self.settings.max_memory
            && !entry.deleted
            && self.map.store.get(&entry.key).is_none_or(|held| held.dot < dot)
        {
            let cost = Store::cost_of(entry.key.len(), entry.value.len());
            // Tombstones can be dropped only once all nodes hold everything, so their memory must not keep this node from
            // taking a write.
            let limit = limit
                + limit / HEADROOM
                + if planted!("tombstones-refuse-peers") { 0 } else { self.map.store.buried() };
            if !self.make_room(&entry.key, cost, limit, now_ms) {
                self.counters.no_room += 1;
                self.full_since_ms.get_or_insert(now_ms);
                return Ok(if planted!("no-room-claimed") { Taken::Yes } else { Taken::NoRoom });
            }
        }
        self.note_write(dot);
        // Copied: a slice of a frame would keep the whole frame alive.
        let value = (!entry.deleted).then(|| Bytes::copy_from_slice(&entry.value));
        let expires_ms = (entry.expires_ms > 0).then_some(entry.expires_ms).map(|end| {
            if planted!("ttl-restarts-at-each-node") {
                return (end + now_ms).saturating_sub(ms_of(entry.hlc));
            }
            end
        });
        let first = Dot { hlc: entry.first_hlc, origin: entry.first_origin };
        let first = (first.hlc > 0).then(|| Box::new(first));
        self.map.merge(Bytes::copy_from_slice(&entry.key), Record { dot, value, expires_ms, first }, &mut self.changes);
        Ok(Taken::Yes)
    }

    /// Notes the write that the peer held and this entry replaced. If only the peer knew of that write, the write could come
    /// back from its writer once the peer is gone.
    fn note_replaced(&mut self, entry: &Entry) -> Result<(), Violation> {
        if entry.replaced_hlc >= entry.hlc || (entry.replaced_hlc == 0) != (entry.replaced_origin == 0) {
            return Err(Violation::Malformed);
        }
        if entry.replaced_hlc > self.map.covered(entry.replaced_origin) {
            self.note_write(Dot { hlc: entry.replaced_hlc, origin: entry.replaced_origin });
        }
        Ok(())
    }

    pub(super) fn cut_push(&mut self, link: &mut Link, mut prev: u64, now_ms: u64) -> Push {
        let mut last = self.map.seen(self.settings.origin);
        if !self.outbox.log.covers(prev) {
            // The peer fell behind the log. It will see the gap and send a Sync.
            prev = last;
        }
        let mut entries = Vec::new();
        let mut bytes = 0;
        for entry in self.outbox.log.above(prev) {
            if bytes >= MESSAGE_MAX_BYTES || entries.len() == self.settings.bounds.message_entries {
                last = entries.last().map_or(last, |e: &Entry| e.hlc);
                break;
            }
            bytes += entry.size();
            entries.push(entry.to_entry());
        }
        self.counters.entries_out += entries.len() as u64;
        link.cursor = Some(last);
        Push { prev, last, entries, now_ms }
    }
}
