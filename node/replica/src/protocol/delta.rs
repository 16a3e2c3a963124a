//! Deltas: what a peer lacks, by a scan of the store in key order, in numbered parts.

use kvasir_proto::peer::v1::{Delta, Entry, Seen, Stranger, Want};

use super::limits::MESSAGE_MAX_BYTES;
use super::link::{Awaiting, Link, LinkId, Scan, Select};
use super::push::Taken;
use super::replica::Replica;
use super::settings::Bounds;
use super::types::Violation;
#[cfg(planted)]
use super::vector::to_wire;
use crate::clock::{Dot, ms_of, stamp_at};
use crate::store::{Record, bucket_of};

impl Replica {
    pub(super) fn take_delta(
        &mut self,
        id: LinkId,
        link: &mut Link,
        mut delta: Delta,
        now_ms: u64,
    ) -> Result<(), Violation> {
        let Some(awaiting) = &mut link.awaiting else { return Ok(()) };
        if delta.id != awaiting.id || delta.seq < awaiting.next_seq {
            return Ok(()); // an answer to an older request, or a part that came twice
        }
        let (want, mut refused) = (awaiting.want, awaiting.refused);
        let snapshot = want == Want::Snapshot;
        if delta.seq > awaiting.next_seq && !planted!("lost-part-not-missed") {
            link.awaiting = None;
            link.request = Some(if snapshot { Want::Hello } else { want });
            return Ok(());
        }
        awaiting.next_seq += 1;
        awaiting.since_ms = now_ms;
        // A node without a map takes only a snapshot; a node with a map takes entries only from peers that it merges with.
        let takes = if snapshot { !self.ready && self.joining.sponsor == id } else { self.accepts(link) };
        // If any part was not taken, the vector in the last part must not be merged.
        refused |= !takes && !planted!("untaken-part-ignored");
        if takes {
            refused |= self.take_entries(std::mem::take(&mut delta.entries), want, now_ms)? == Taken::NoRoom;
        }
        if snapshot && takes && refused {
            // Without these entries the rest of the snapshot is useless.
            link.awaiting = None;
            link.request = Some(Want::Hello);
            return Ok(());
        }
        let complete = delta.last || delta.seq == 0 && planted!("vector-joined-before-last-part");
        let request = link.awaiting.take().map(|a| Awaiting { refused, ..a });
        match request {
            Some(request) if complete => self.finish_delta(link, &request, delta, now_ms),
            request => {
                link.awaiting = request;
                Ok(())
            }
        }
    }

    fn take_entries(&mut self, entries: Vec<Entry>, want: Want, now_ms: u64) -> Result<Taken, Violation> {
        let mut taken = Taken::Yes;
        for entry in entries {
            // Covered means held or beaten, except in a repair: there, coverage is in doubt.
            let in_doubt = want == Want::Repair && (!self.is_forgotten(&entry) || planted!("repair-revives-deleted"));
            let lacking = entry.hlc > self.map.covered(entry.origin) || planted!("covered-entry-taken-again");
            if (want == Want::Snapshot || in_doubt || lacking) && self.take_entry(&entry, now_ms)? == Taken::NoRoom {
                taken = Taken::NoRoom;
            }
        }
        Ok(taken)
    }

    /// Finishes an answer whose last part has come.
    fn finish_delta(
        &mut self,
        link: &mut Link,
        request: &Awaiting,
        delta: Delta,
        now_ms: u64,
    ) -> Result<(), Violation> {
        let me = self.settings.origin;
        link.synced = true;
        link.peer_ready = delta.ready;
        self.take_name(link, delta.namesake, now_ms);
        if me != self.settings.origin {
            return Ok(());
        }
        link.note_held(&delta.seen, delta.standing.as_ref(), &self.map.vector);
        let standing = delta.standing.unwrap_or_default();
        let stranger = Stranger::try_from(delta.stranger).map_err(|_| Violation::Unknown)?;
        let (ready, want) = (delta.ready, request.want);
        if stranger != Stranger::No && self.resets_for(link.origin, stranger, &standing) {
            self.reset(stranger, now_ms);
        } else if !request.refused && want == Want::Snapshot {
            if !self.take_snapshot(link, delta, now_ms)? {
                return Ok(());
            }
        } else if !request.refused {
            self.join_vector(link, delta.seen, request.adopting);
        }
        if !self.ready && ready && want == Want::Hello {
            self.clock.observe(standing.collected);
        }
        if std::mem::take(&mut link.again) {
            link.ask(Want::Missing);
        }
        Ok(())
    }

    /// Finishes a snapshot: all entries of the sponsor's map have come. Returns `false` if this node reset, or if the sponsor
    /// has left.
    fn take_snapshot(&mut self, link: &mut Link, delta: Delta, now_ms: u64) -> Result<bool, Violation> {
        if !delta.ready || delta.seen.is_empty() || self.name_in_doubt() {
            return Ok(true);
        }
        let me = self.settings.origin;
        self.take_roster(delta.roster.unwrap_or_default(), now_ms)?;
        if me != self.settings.origin {
            return Ok(false);
        }
        let others = self.outbox.links.values().any(|l| self.may_sponsor(l));
        if !self.roster.is_live(link.origin) && others && !planted!("departed-sponsor-admits") {
            // The sponsor has left: the other nodes would not know that it admitted this node.
            return Ok(false);
        }
        self.finish_snapshot(&delta.seen, &delta.standing.unwrap_or_default(), now_ms);
        // `finish_snapshot` greeted the peers of all other links; this one was taken out while it is worked on.
        if !planted!("sponsor-not-greeted") {
            link.greet();
        }
        Ok(true)
    }

    /// Everything that the peer's vector covers was taken in.
    fn join_vector(&mut self, link: &mut Link, theirs: Vec<Seen>, adopting: bool) {
        for Seen { origin, hlc, last, beyond } in theirs {
            // The peer has not retired this origin yet.
            if self.roster.get(origin).is_none() && hlc.max(last).max(beyond) <= self.map.standing.collected {
                continue;
            }
            self.clock.observe(hlc);
            self.cover(origin, hlc, last);
            // The peer holds this write, or one that beats it, and so does this node now.
            self.note_write(Dot { hlc: beyond, origin });
        }
        self.close_gap(link);
        link.ack_due = true;
        if let Some(pending) = self.agreement.adopting.as_mut().filter(|_| adopting) {
            pending.remove(&link.origin);
        }
    }

    /// Whether an entry is a tombstone or an ended value at or below the GC watermark, and its key has no record here: the
    /// sender will drop it too.
    fn is_forgotten(&self, entry: &Entry) -> bool {
        let ended = entry.hlc.max(stamp_at(entry.expires_ms.min(ms_of(u64::MAX))));
        (entry.deleted || entry.expires_ms > 0)
            && ended <= self.map.standing.forgotten
            && self.map.store.get(&entry.key).is_none()
    }

    pub(super) fn cut_delta(&mut self, link: &mut Link, scan: &mut Scan) -> Delta {
        let entries = if scan.exhausted { Vec::new() } else { self.cut_entries(scan) };
        self.counters.entries_out += entries.len() as u64;
        let seq = scan.seq;
        scan.seq += 1;
        let last = scan.exhausted;
        let snapshot = matches!(scan.what, Select::Everything);
        // If the peer no longer takes part, tombstones that it lacks may have been dropped here, and are then missing from this
        // answer.
        if last && !snapshot && !self.accepts(link) && !planted!("answer-to-evicted-claims-all") {
            scan.seen.clear();
        }
        #[cfg(planted)]
        if last && !scan.seen.is_empty() && planted!("vector-of-scan-end") {
            scan.seen = to_wire(&self.map.vector);
        }
        let namesake = if last { self.name_for(link) } else { None };
        if namesake.is_some() && !planted!("live-name-given-away") {
            scan.seen.clear();
        }
        link.sent_namesake |= namesake.is_some();
        let whole = last && snapshot && !scan.seen.is_empty();
        let with_vector = last || planted!("vector-joined-before-last-part");
        Delta {
            id: scan.id,
            seq,
            entries,
            last,
            seen: if with_vector { std::mem::take(&mut scan.seen) } else { Vec::new() },
            ready: self.ready,
            // The standing as it is now: a snapshot lacks tombstones that were dropped meanwhile.
            standing: Some(self.map.standing.to_wire()),
            stranger: scan.stranger.into(),
            roster: (whole && !planted!("snapshot-without-roster")).then(|| self.roster.to_wire()),
            namesake,
        }
    }

    /// The next entries of a scan.
    fn cut_entries(&self, scan: &mut Scan) -> Vec<Entry> {
        let (mut entries, mut bytes, mut last_key) = (Vec::new(), 0, None);
        let Bounds { message_entries, scan_step, .. } = self.settings.bounds;
        scan.exhausted = true;
        let records = self.map.store.scan(scan.after.as_deref());
        #[cfg(planted)]
        let records = crate::planted::order(records, &self.map.store, scan.after.as_ref());
        for (looked, (key, record)) in records.enumerate() {
            if bytes >= MESSAGE_MAX_BYTES || entries.len() == message_entries || looked == scan_step {
                scan.exhausted = false;
                break;
            }
            last_key = Some(key);
            let Dot { hlc, origin } = record.dot;
            let wanted = match &scan.what {
                Select::Missing => scan.held.get(&origin).is_none_or(|&held| held < hlc),
                Select::Everything => true,
                Select::Buckets(differ) => differ[bucket_of(key)],
            };
            if wanted {
                bytes += key.len() + record.value.as_ref().map_or(0, bytes::Bytes::len);
                entries.push(entry(key, record));
            }
        }
        scan.after = last_key.cloned().or_else(|| scan.after.take());
        entries
    }
}

/// A record of the store as an entry of a delta.
fn entry(key: &bytes::Bytes, record: &Record) -> Entry {
    let Record { dot: Dot { hlc, origin }, value, expires_ms, first } = record;
    Entry {
        key: key.clone(),
        hlc: *hlc,
        origin: *origin,
        deleted: value.is_none(),
        value: value.clone().unwrap_or_default(),
        expires_ms: expires_ms.unwrap_or(0),
        first_hlc: first.as_ref().map_or(0, |f| f.hlc),
        first_origin: first.as_ref().map_or(0, |f| f.origin),
        ..Entry::default()
    }
}
