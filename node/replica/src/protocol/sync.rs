//! Syncs: what a node asks its peers for, and what it decides to answer.

use std::collections::BTreeMap;

use kvasir_proto::peer::v1::{Stranger, Sync, Want};

use super::limits::RELAY_AFTER_MS;
use super::link::{Awaiting, Link, Scan, Select};
use super::replica::Replica;
use super::types::Violation;
use super::vector::to_wire;
use crate::clock::{ms_of, stamp_at};
use crate::store::BUCKETS;

impl Replica {
    pub(super) fn cut_sync(&mut self, link: &mut Link, want: Want, now_ms: u64) -> Sync {
        link.requests += 1;
        link.awaiting = Some(Awaiting {
            id: link.requests,
            next_seq: 0,
            want,
            since_ms: now_ms,
            refused: false,
            adopting: self.agreement.adopting.is_some(),
        });
        self.counters.syncs += 1;
        let seat = self.roster.get(self.settings.origin);
        let (sponsor, began_hlc) = seat.map_or((0, 0), |seat| (seat.sponsor, seat.began));
        Sync {
            id: link.requests,
            want: want.into(),
            // A node without a map covers nothing.
            seen: if self.ready { to_wire(&self.map.vector) } else { Vec::new() },
            ready: self.ready,
            standing: Some(self.map.standing.to_wire()),
            buckets: match want {
                Want::Repair => {
                    self.map.store.buckets().iter().flat_map(|b| b.to_le_bytes()).collect::<Vec<_>>().into()
                }
                _ => bytes::Bytes::new(),
            },
            // A draining node needs to know what the peer covers after the answer.
            echo: !link.compatible || self.draining,
            sponsor,
            began_hlc,
        }
    }

    pub(super) fn take_sync(&mut self, link: &mut Link, sync: &Sync, now_ms: u64) -> Result<(), Violation> {
        // A Sync that came twice must not restart the numbered parts: the two scans would be cut at different keys.
        if sync.id < link.answered || sync.id == link.answered && !planted!("doubled-sync-restarts-parts") {
            return Ok(());
        }
        let want = Want::try_from(sync.want).map_err(|_| Violation::Unknown)?;
        link.answered = sync.id;
        link.note_held(&sync.seen, sync.standing.as_ref(), &self.map.vector);
        if sync.ready && self.roster.admit(link.origin, sync.sponsor, sync.began_hlc) {
            self.outbox.announce_roster();
            if self.ready {
                self.cover_admitted();
            }
        }
        let held: BTreeMap<u64, u64> = sync.seen.iter().map(|s| (s.origin, s.hlc)).collect();
        let refused = !link.compatible;
        let stranger = self.admit_or_refuse(link, sync);
        link.peer_ready = sync.ready;
        if refused && link.compatible {
            // Earlier writes of the peer were not taken, and the peer does not send them again unasked.
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
                answer(Select::Everything, to_wire(&self.map.vector), false, held)
            }
            Want::Missing | Want::Repair if link.compatible => self.answer_missing(link, sync, want, held, now_ms),
            _ => answer(Select::Everything, Vec::new(), true, held),
        });
        if link.scan.as_ref().is_some_and(|scan| !scan.exhausted) {
            self.counters.scans += 1;
        }
        Ok(())
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
        let covered = |origin: u64| {
            theirs.get(&origin).copied().unwrap_or(0).max(self.map.floor(&self.roster, origin).min(collected))
        };
        let held = |origin: u64| covered(origin).max(last(origin));
        let mine = theirs.get(&me).copied().unwrap_or(0);
        link.acked = link.acked.max(mine);

        // A scan is needed for own writes that the log has dropped, and for other nodes' writes that those nodes will not
        // send themselves. If timestamps are far ahead of the wall clock, because some clock was wrong, they do not show
        // which writes are old enough to relay.
        let ahead = ms_of(self.clock.last()).saturating_sub(now_ms) > self.settings.max_clock_skew_ms;
        let stale = if ahead { u64::MAX } else { stamp_at(now_ms.saturating_sub(RELAY_AFTER_MS)) };
        let lacks = |origin: u64, last: u64| held(origin) < last;
        let scan = want == Want::Repair
            || self.map.vector.iter().any(|(&origin, cover)| {
                // A scan also transfers the coverage of an origin that is gone; without a scan it is transferred only while
                // no write is on its way.
                let uncovered = covered(origin) < cover.seen.min(cover.last)
                    && !self.roster.is_live(origin)
                    && !planted!("coverage-of-gone-not-sent");
                let lacking = lacks(origin, cover.wrote())
                    && if origin == me {
                        !self.outbox.log.covers(mine)
                    } else {
                        held(origin) < stale
                            || !self.roster.is_live(origin)
                            || self.draining && !self.outbox.is_linked(origin)
                    };
                uncovered || lacking
            });
        let mut seen = to_wire(&self.map.vector);
        if scan {
            link.cursor = Some(self.map.seen(me));
        } else {
            link.cursor = Some(mine.min(self.map.seen(me)));
            // A write that the vector covers may be beaten here by one that the peer lacks: the peer may join the vector only
            // if it lacks nothing.
            let lacking = self.map.vector.iter().any(|(&origin, cover)| lacks(origin, cover.wrote()));
            if lacking && !planted!("beaten-write-claimed") {
                seen.clear();
            }
        }
        let what = if want == Want::Repair {
            let mut differ = Box::new([false; BUCKETS]);
            for (at, bucket) in self.map.store.buckets().iter().enumerate() {
                differ[at] = sync.buckets.get(at * 16..at * 16 + 16) != Some(&bucket.to_le_bytes()[..]);
            }
            Select::Buckets(differ)
        } else {
            Select::Missing
        };
        Scan { id: sync.id, seq: 0, what, after: None, exhausted: !scan, seen, stranger: Stranger::No, held: theirs }
    }
}
