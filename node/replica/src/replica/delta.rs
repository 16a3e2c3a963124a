//! Sync and delta: what a peer lacks, by a scan of the store in key order.

use std::collections::BTreeMap;

use kvasir_proto::peer::v1::{Delta, Entry, Seen, Standing, Stranger, Sync, Want};

use super::link::{Awaiting, Link, LinkId, Scan, Select, to_wire};
use super::push::Taken;
use super::{Bounds, MESSAGE_MAX_BYTES, RELAY_AFTER_MS, Replica, Violation, link};
use crate::clock::{Dot, ms_of, stamp_at};
use crate::store::{BUCKETS, bucket_of};

impl Replica {
    pub(super) fn cut_sync(&mut self, link: &mut Link, want: Want, now_ms: u64) -> Sync {
        link.requests += 1;
        link.awaiting = Some(Awaiting {
            id: link.requests,
            next_seq: 0,
            want,
            since_ms: now_ms,
            refused: false,
            adopting: self.adopting.is_some(),
        });
        self.counters.syncs += 1;
        let seat = self.roster.get(self.settings.origin);
        let (sponsor, began_hlc) = seat.map_or((0, 0), |seat| (seat.sponsor, seat.began));
        Sync {
            id: link.requests,
            want: want.into(),
            // Until the map is there, there is nothing to claim.
            seen: if self.ready { to_wire(&self.vector) } else { Vec::new() },
            ready: self.ready,
            standing: Some(self.standing()),
            buckets: match want {
                Want::Repair => self.store.buckets().iter().flat_map(|b| b.to_le_bytes()).collect::<Vec<_>>().into(),
                _ => bytes::Bytes::new(),
            },
            // To hear what it holds once it has what this node will take with it.
            echo: !link.compatible || self.draining,
            sponsor,
            began_hlc,
        }
    }

    pub(super) fn take_sync(&mut self, link: &mut Link, sync: &Sync, now_ms: u64) -> Result<(), Violation> {
        // One that came twice must not start the numbered parts anew: the two
        // scans would be cut at different keys.
        if sync.id < link.answered || sync.id == link.answered && !planted!("doubled-sync-restarts-parts") {
            return Ok(());
        }
        let want = Want::try_from(sync.want).map_err(|_| Violation::Unknown)?;
        link.answered = sync.id;
        self.note_held(link, &sync.seen, sync.standing.as_ref());
        if sync.ready && self.roster.admit(link.origin, sync.sponsor, sync.began_hlc) {
            self.roster_changed();
            if self.ready {
                self.welcome();
            }
        }
        let held: BTreeMap<u64, u64> = sync.seen.iter().map(|s| (s.origin, s.hlc)).collect();
        let refused = !link.compatible;
        let stranger = self.judge(link, sync);
        link.peer_ready = sync.ready;
        if refused && link.compatible {
            // What came until now was not taken, and will not be sent again by itself.
            link.again = link.awaiting.is_some();
            link.ask(Want::Missing);
            link.report_due = true;
        } else if sync.echo {
            link.ask(if self.ready { Want::Missing } else { Want::Hello });
        }
        let answer = |what, seen, exhausted, held| Scan {
            id: sync.id,
            seq: 0,
            what,
            after: None,
            exhausted,
            seen,
            stranger,
            held,
        };
        link.scan = Some(match want {
            Want::Snapshot
                if self.ready && (self.holder_of(link.origin).is_none() || planted!("live-name-given-away")) =>
            {
                answer(Select::Everything, to_wire(&self.vector), false, held)
            }
            Want::Missing | Want::Repair if link.compatible => self.answer_missing(link, sync, want, held, now_ms),
            _ => answer(Select::Everything, Vec::new(), true, held),
        });
        if link.scan.as_ref().is_some_and(|scan| !scan.exhausted) {
            self.counters.scans += 1;
        }
        Ok(())
    }

    fn note_held(&self, link: &mut Link, seen: &[Seen], standing: Option<&Standing>) {
        if !seen.is_empty() {
            link.their_collected = standing.map_or(0, |s| s.collected);
            let known = seen.iter().filter(|s| self.vector.contains_key(&s.origin));
            link.theirs = known.map(link::from_wire).collect();
        }
    }

    fn answer_missing(
        &mut self,
        link: &mut Link,
        sync: &Sync,
        want: Want,
        theirs: BTreeMap<u64, u64>,
        now_ms: u64,
    ) -> Scan {
        let me = self.settings.origin;
        let collected = sync.standing.unwrap_or_default().collected;
        let last = |origin: u64| sync.seen.iter().find(|s| s.origin == origin).map_or(0, |s| s.last);
        let covered = |origin: u64| theirs.get(&origin).copied().unwrap_or(0).max(self.floor(origin).min(collected));
        let held = |origin: u64| covered(origin).max(last(origin));
        let mine = theirs.get(&me).copied().unwrap_or(0);
        link.acked = link.acked.max(mine);

        // What a scan must bring: own writes that the log has lost, and other
        // nodes' writes that will not come from those nodes themselves.
        // Stamps far ahead of the clock, from one that was wrong once, stand still: they do not tell what is stale.
        let ahead = ms_of(self.clock.last()).saturating_sub(now_ms) > self.settings.max_clock_skew_ms;
        let stale = if ahead { u64::MAX } else { stamp_at(now_ms.saturating_sub(RELAY_AFTER_MS)) };
        let lacks = |origin: u64, last: u64| held(origin) < last;
        let scan = want == Want::Repair
            || self.vector.iter().any(|(&origin, cover)| {
                // What is covered of one that is gone, too: without a scan it would get across only when no write is on
                // its way.
                let uncovered = covered(origin) < cover.seen.min(cover.last)
                    && !self.roster.is_live(origin)
                    && !planted!("coverage-of-gone-not-sent");
                let lacking = lacks(origin, cover.wrote())
                    && if origin == me {
                        !self.log.covers(mine)
                    } else {
                        held(origin) < stale || !self.roster.is_live(origin) || self.draining && !self.is_linked(origin)
                    };
                uncovered || lacking
            });
        let mut seen = to_wire(&self.vector);
        if scan {
            link.cursor = Some(self.vector_seen(me));
        } else {
            link.cursor = Some(mine.min(self.vector_seen(me)));
            // A write that the vector covers may be beaten here by one that the
            // peer lacks: it may join the vector only if it lacks nothing.
            let lacking = self.vector.iter().any(|(&origin, cover)| lacks(origin, cover.wrote()));
            if lacking && !planted!("beaten-write-claimed") {
                seen.clear();
            }
        }
        let what = if want == Want::Repair {
            let mut differ = Box::new([false; BUCKETS]);
            for (at, bucket) in self.store.buckets().iter().enumerate() {
                differ[at] = sync.buckets.get(at * 16..at * 16 + 16) != Some(&bucket.to_le_bytes()[..]);
            }
            Select::Buckets(differ)
        } else {
            Select::Missing
        };
        Scan { id: sync.id, seq: 0, what, after: None, exhausted: !scan, seen, stranger: Stranger::No, held: theirs }
    }

    pub(super) fn take_delta(
        &mut self,
        id: LinkId,
        link: &mut Link,
        delta: Delta,
        now_ms: u64,
    ) -> Result<(), Violation> {
        let Some(awaiting) = &mut link.awaiting else { return Ok(()) };
        if delta.id != awaiting.id || delta.seq < awaiting.next_seq {
            return Ok(()); // an answer to an older request, or a part that came twice
        }
        let me = self.settings.origin;
        let want = awaiting.want;
        let snapshot = want == Want::Snapshot;
        if delta.seq > awaiting.next_seq && !planted!("lost-part-not-missed") {
            link.awaiting = None;
            link.request = Some(if snapshot { Want::Hello } else { want });
            return Ok(());
        }
        awaiting.next_seq += 1;
        awaiting.since_ms = now_ms;
        let (mut refused, adopting) = (awaiting.refused, awaiting.adopting);
        // Nothing is taken into a map that is not there yet but a snapshot, and
        // into one that is there, only from who may be merged with.
        let takes = if snapshot { !self.ready && self.sponsor == id } else { self.accepts(link) };
        // One part that was not taken voids the vector that comes with the last.
        refused |= !takes && !planted!("untaken-part-ignored");
        if takes {
            for entry in delta.entries {
                // Covered means held or beaten: except when that is what is in doubt.
                let in_doubt =
                    want == Want::Repair && (!self.is_forgotten(&entry) || planted!("repair-revives-deleted"));
                let retaken = planted!("covered-entry-taken-again");
                if snapshot || in_doubt || entry.hlc > self.covered(entry.origin) || retaken {
                    refused |= self.take_entry(&entry, now_ms)? == Taken::NoRoom;
                }
            }
        }
        if snapshot && takes && refused {
            // The rest would come for nothing.
            link.awaiting = None;
            link.request = Some(Want::Hello);
            return Ok(());
        }
        let complete = delta.last || delta.seq == 0 && planted!("vector-joined-before-last-part");
        if !complete {
            link.awaiting = link.awaiting.take().map(|a| Awaiting { refused, ..a });
            return Ok(());
        }
        link.awaiting = None;
        link.synced = true;
        link.peer_ready = delta.ready;
        self.take_name(link, delta.namesake, now_ms);
        if me != self.settings.origin {
            return Ok(());
        }
        self.note_held(link, &delta.seen, delta.standing.as_ref());
        let standing = delta.standing.unwrap_or_default();
        let stranger = Stranger::try_from(delta.stranger).map_err(|_| Violation::Unknown)?;
        if stranger != Stranger::No && self.heeds(link.origin, stranger, &standing) {
            self.begin_anew(stranger, now_ms);
        } else if snapshot && !refused {
            if delta.ready && !delta.seen.is_empty() && !self.name_in_doubt() {
                self.take_roster(delta.roster.unwrap_or_default(), now_ms)?;
                if me != self.settings.origin {
                    return Ok(());
                }
                let others = self.links.values().any(|l| self.may_sponsor(l));
                if !self.roster.is_live(link.origin) && others && !planted!("departed-sponsor-admits") {
                    // It left meanwhile: others would not know the one that it let in.
                    return Ok(());
                }
                self.finish_snapshot(&delta.seen, &standing, now_ms);
                // It was taken out of the links, which greeted their peers.
                if !planted!("sponsor-not-greeted") {
                    link.greet();
                }
            }
        } else if !refused {
            for Seen { origin, hlc, last, beyond } in delta.seen {
                // The peer has yet to forget it.
                if self.roster.get(origin).is_none() && hlc.max(last).max(beyond) <= self.collected {
                    continue;
                }
                self.clock.observe(hlc);
                self.cover(origin, hlc, last);
                // Held there, or beaten: so it is here, now.
                self.note_write(Dot { hlc: beyond, origin });
            }
            self.close_gap(link);
            link.ack_due = true;
            if let Some(pending) = self.adopting.as_mut().filter(|_| adopting) {
                pending.remove(&link.origin);
            }
        }
        if !self.ready && delta.ready && want == Want::Hello {
            self.clock.observe(standing.collected);
        }
        if std::mem::take(&mut link.again) {
            link.ask(Want::Missing);
        }
        Ok(())
    }

    /// Whether it is of a key of which nothing is remembered, and ended before
    /// all tombstones that were dropped here: who sends it will drop it too.
    fn is_forgotten(&self, entry: &Entry) -> bool {
        let ended = entry.hlc.max(stamp_at(entry.expires_ms.min(ms_of(u64::MAX))));
        (entry.deleted || entry.expires_ms > 0) && ended <= self.forgotten && self.store.get(&entry.key).is_none()
    }

    pub(super) fn cut_delta(&mut self, link: &mut Link, scan: &mut Scan) -> Delta {
        let mut entries = Vec::new();
        if !scan.exhausted {
            let mut bytes = 0;
            let mut last_key = None;
            scan.exhausted = true;
            let Bounds { message_entries, scan_step, .. } = self.settings.bounds;
            let records = self.store.scan(scan.after.as_deref());
            #[cfg(planted)]
            let records = crate::planted::order(records, &self.store, scan.after.as_ref());
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
                    let value = record.value.clone().unwrap_or_default();
                    bytes += key.len() + value.len();
                    entries.push(Entry {
                        key: key.clone(),
                        hlc,
                        origin,
                        deleted: record.value.is_none(),
                        value,
                        expires_ms: record.expires_ms.unwrap_or(0),
                        first_hlc: record.first.as_ref().map_or(0, |f| f.hlc),
                        first_origin: record.first.as_ref().map_or(0, |f| f.origin),
                        ..Entry::default()
                    });
                }
            }
            scan.after = last_key.cloned().or_else(|| scan.after.take());
        }
        self.counters.entries_out += entries.len() as u64;
        let seq = scan.seq;
        scan.seq += 1;
        let last = scan.exhausted;
        let snapshot = matches!(scan.what, Select::Everything);
        // Once a peer takes part no longer, what it lacks may be forgotten, and then is missing in this answer.
        if last && !snapshot && !self.accepts(link) && !planted!("answer-to-evicted-claims-all") {
            scan.seen.clear();
        }
        if last && !scan.seen.is_empty() && planted!("vector-of-scan-end") {
            scan.seen = to_wire(&self.vector);
        }
        let namesake = if last { self.name_for(link) } else { None };
        if namesake.is_some() && !planted!("live-name-given-away") {
            scan.seen.clear();
        }
        link.told_namesake |= namesake.is_some();
        let whole = last && snapshot && !scan.seen.is_empty();
        Delta {
            id: scan.id,
            seq,
            entries,
            last,
            seen: if last || planted!("vector-joined-before-last-part") {
                std::mem::take(&mut scan.seen)
            } else {
                Vec::new()
            },
            ready: self.ready,
            // As it is now: what was forgotten meanwhile is missing in a snapshot.
            standing: Some(self.standing()),
            stranger: scan.stranger.into(),
            roster: (whole && !planted!("snapshot-without-roster")).then(|| self.roster.to_wire()),
            namesake,
        }
    }
}
