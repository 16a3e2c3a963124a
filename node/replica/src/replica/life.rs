//! How a node comes to hold what the cluster holds: a snapshot from a ready
//! peer, or a founding. One whose life was ended by others begins anew the same
//! way, and issues again what no member had of it.

use std::collections::BTreeSet;

use bytes::Bytes;
use kvasir_proto::peer::v1::{Roster as WireRoster, SeatState, Seen, Standing, Stranger, Want};
use xxhash_rust::xxh3::xxh3_64;

use super::link::{Link, LinkId};
use super::roster::{MAX_SEATS, from_wire};
use super::{Change, Cover, LATE_KEYS, Replica, SCAN_STEP, Seat, Settings, Vector, View, Violation, founding_of, link};
use crate::clock::{Dot, ms_of};
use crate::store::{Record, Store};

/// What an ended seat of this node left, until it is issued again.
#[derive(Debug)]
pub(super) struct Bag {
    store: Store,
    vector: Vector,
    founding: (u64, u64),
    promised: bool,
    collected: u64,
    vouched: u64,
    forgotten: u64,
    /// Of an origin that the snapshot knew nothing of, writes up to this stamp
    /// were taken in before.
    floor: u64,
    /// The members were told of the last writes that it knows.
    told: bool,
    /// Something of it came too late.
    late: bool,
    /// The last key that was looked at.
    after: Option<Bytes>,
}

impl Bag {
    pub(super) fn len(&self) -> usize {
        self.store.len()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.store.scan(None).map(|(key, _)| &key[..])
    }

    pub(super) const fn memory(&self) -> u64 {
        self.store.memory()
    }
}

impl Replica {
    /// Asks one ready peer for a snapshot, if none is on its way. Not at once the one whose map others have just refused: among two
    /// maps that have not met yet, the other may be the one that stands.
    pub(super) fn seek_sponsor(&mut self, now_ms: u64) {
        let asked = |l: &Link| {
            l.request == Some(Want::Snapshot) || l.awaiting.as_ref().is_some_and(|a| a.want == Want::Snapshot)
        };
        // One that has no room for what is there tries again now and then.
        let full = self.full_since_ms.is_some() && !planted!("full-node-asks-at-once");
        let hindered = full || self.name_in_doubt();
        if self.ready || hindered || self.links.values().any(|l| asked(l)) {
            return;
        }
        let long = now_ms.saturating_sub(self.started_ms) >= self.settings.sync_interval_ms;
        let misled_by = self.misled_by.filter(|_| !long && !planted!("refused-map-asked-again"));
        let (roster, sponsor) = (&self.roster, self.sponsor);
        let able =
            |(_, l): &(&u64, &mut Box<Link>)| l.peer_ready && l.awaiting.is_none() && misled_by != Some(l.origin);
        // One that is about to leave, if there is no other.
        let rank =
            |id: LinkId, l: &Link| (!roster.is_live(l.origin) ^ planted!("leaving-sponsor-first"), id <= sponsor, id);
        let next = self.links.iter_mut().filter(able).min_by_key(|(id, l)| rank(**id, l));
        if let Some((&id, link)) = next {
            link.request = Some(Want::Snapshot);
            (self.sponsor, self.sponsor_origin) = (id, Some(link.origin));
            // Of a snapshot that broke off, nothing is kept.
            self.clear();
        }
    }

    /// Whether a peer holds what the cluster holds, and takes part.
    pub(super) fn may_sponsor(&self, link: &Link) -> bool {
        link.peer_ready && self.roster.is_live(link.origin)
    }

    /// The snapshot is whole.
    pub(super) fn finish_snapshot(&mut self, seen: &[Seen], standing: &Standing, now_ms: u64) {
        let held = std::mem::replace(&mut self.vector, seen.iter().map(link::from_wire).collect());
        while let Some(bag) = self.bags.pop_if(|_| planted!("reset-keeps-old-map")) {
            for (key, record) in bag.store.scan(None) {
                self.store.merge(key.clone(), record.clone());
            }
        }
        (self.founding, self.promised, self.collected) = (founding_of(standing), standing.promised, standing.collected);
        (self.forgotten, self.vouched) = (standing.forgotten.min(standing.collected), standing.vouched);
        // Some of what came was written while the sponsor was scanning.
        for (origin, cover) in held.into_iter().filter(|_| !planted!("written-during-snapshot-covered")) {
            self.note_write(Dot { hlc: cover.wrote(), origin });
        }
        for s in seen {
            self.clock.observe(s.hlc);
        }
        self.clock.observe(standing.collected);
        for bag in &mut self.bags {
            // Of a map that is further behind, it says nothing.
            bag.floor = if bag.founding == self.founding { bag.collected.min(self.collected) } else { 0 };
        }
        self.become_ready(now_ms);
    }

    /// Issues again what ended seats of this node left and no member has, once
    /// the members agree on what they have: a write that only one of them has
    /// covered may be deleted there.
    pub(super) fn issue_bags(&mut self, now_ms: u64) {
        let agreed = || self.is_agreed() || planted!("reissued-before-agreement");
        let my_turn = || self.is_my_turn() || planted!("reissued-out-of-turn");
        if self.bags.is_empty() || !self.ready || !agreed() || !my_turn() {
            return;
        }
        let Some(mut bag) = self.bags.pop() else { return };
        if !std::mem::replace(&mut bag.told, true) && !planted!("backlog-not-announced") && self.tell_of(&bag) {
            self.bags.push(bag);
            return;
        }
        let step: Vec<_> =
            bag.store.scan(bag.after.as_deref()).take(SCAN_STEP).map(|(k, r)| (k.clone(), r.clone())).collect();
        let more = step.len() == SCAN_STEP;
        bag.after = step.last().map(|(key, _)| key.clone()).filter(|_| more);
        for (key, record) in step {
            if self.is_beaten(&key, &record) || self.is_known(&bag, record.dot) {
                bag.store.remove(&key);
            } else if !self.roster.is_live(record.dot.origin) {
                bag.store.remove(&key);
                if self.is_too_late(&bag, record.dot.hlc) {
                    // One that has ended counts, too: it would have beaten what is older.
                    self.counters.too_late += 1;
                    bag.late = true;
                    if self.late_keys.len() < LATE_KEYS {
                        self.late_keys.push(key);
                    }
                } else {
                    self.issue_again(key, &record, now_ms);
                }
            } // else its origin is there, and will bring it itself
        }
        if bag.store.is_empty() {
            // What came too late is not covered, but lost. Nor are deletes that a map of another founding had forgotten.
            let whole = bag.founding == self.founding || bag.forgotten == 0;
            if (!bag.late || planted!("too-late-covered")) && whole {
                self.join_bag(&bag);
            }
            if self.bags.is_empty() {
                self.roster.returned(self.settings.origin, self.clock.tick(now_ms));
                self.roster_changed();
            }
        } else {
            self.bags.push(bag);
        }
    }

    /// Another may return with the same writes, when this node has gone again: what was issued, deleted and forgotten
    /// meanwhile would come back with it. So before the first is issued all members know of them as of half-sent
    /// ones, by which deletes wait for whoever may return. Returns whether there is something that they did not know.
    fn tell_of(&mut self, bag: &Bag) -> bool {
        let before = self.roster_hash();
        for (&origin, cover) in &bag.vector {
            if !self.roster.is_live(origin) && !self.is_too_late(bag, cover.wrote()) {
                self.note_write(Dot { hlc: cover.wrote(), origin });
            }
        }
        before != self.roster_hash()
    }

    /// Of several that return, one after the other issues what it brought, and
    /// each first takes in what those before it did: their bags may hold writes
    /// that this node's had deleted. So may what a member wrote before this node joined, and its sponsor lacked.
    fn is_my_turn(&self) -> bool {
        let me = self.settings.origin;
        let began = self.roster.get(me).map_or(0, |seat| seat.began);
        let until = |seat: &Seat| match seat.state {
            SeatState::Member if !planted!("reissued-before-members-writes") => seat.since.max(began),
            _ => seat.since,
        };
        self.roster
            .iter()
            .filter(|(origin, seat)| *origin != me && seat.is_live())
            .all(|(origin, seat)| !(seat.returning && origin < me) && until(seat) <= self.vector_seen(origin))
    }

    /// Whether something newer than a record of a bag stands. A write that was
    /// issued again is only as new as when it was made.
    fn is_beaten(&self, key: &Bytes, record: &Record) -> bool {
        self.store.get(key).is_some_and(|held| {
            *held.first.as_deref().filter(|_| !planted!("reissued-counts-as-new")).unwrap_or(&held.dot) >= record.dot
        })
    }

    /// Whether the cluster has taken in a write of a bag.
    fn is_known(&self, bag: &Bag, dot: Dot) -> bool {
        match self.vector.get(&dot.origin) {
            Some(cover) => dot.hlc <= cover.seen && !planted!("known-writes-reissued"),
            None => dot.hlc <= bag.floor,
        }
    }

    /// Whether a later delete of a bag's write may be forgotten: then the write must not come back. But all of a map of
    /// another founding may exist nowhere else.
    fn is_too_late(&self, bag: &Bag, hlc: u64) -> bool {
        bag.founding == self.founding && hlc <= self.forgotten && !planted!("too-late-reissued")
    }

    /// What the bag's map covered is covered now: it was issued again, or
    /// beaten. Others who return with the same writes will hear of it.
    fn join_bag(&mut self, bag: &Bag) {
        for (&origin, cover) in &bag.vector {
            if !self.roster.is_live(origin) {
                self.cover(origin, cover.seen, cover.last);
            }
        }
    }

    /// The content of a write under a new dot.
    pub(super) fn issue_again(&mut self, key: Bytes, record: &Record, now_ms: u64) {
        let value = record.live(now_ms).cloned();
        let expires_ms = record.expires_ms.filter(|_| value.is_some());
        let first = record.first.as_deref().copied().unwrap_or(record.dot);
        let dot = self.write(key, value, expires_ms, Some(first), now_ms);
        self.counters.reissued += 1;
        self.tell(Change::Reissued(record.dot, dot));
    }

    /// This seat is over: others have ended it, or hold another founding's map.
    /// The node takes a new one, and what it holds goes into a bag.
    pub(super) fn begin_anew(&mut self, why: Stranger, now_ms: u64) {
        if self.leaving {
            return;
        }
        self.ended_because = why;
        self.counters.returns += 1;
        let ended = self.clock.tick(now_ms);
        // A map that was not whole yet has nothing to bring along.
        if self.ready && !planted!("reset-without-backlog") {
            self.bags.push(Bag {
                store: std::mem::take(&mut self.store),
                vector: std::mem::take(&mut self.vector),
                founding: self.founding,
                promised: self.promised,
                collected: self.collected,
                vouched: self.vouched,
                forgotten: self.forgotten,
                floor: 0,
                told: false,
                late: false,
                after: None,
            });
        }
        let origin = self.settings.origin;
        let seat = self.roster.get(origin).cloned();
        self.roster.end(origin, SeatState::Ended, ended);
        // The clock never gave this stamp before: no origin was ever drawn from it.
        self.settings.origin = next_origin(origin, ended);
        let started_ms = seat.map_or(now_ms, |s| now_ms.max(s.started_ms.saturating_add(1)));
        self.settings.started_ms = started_ms;
        if self.refused.is_some() {
            self.settings.name = Self::name_of_its_own(&self.settings.name, self.settings.origin);
        }
        let Settings { origin, ref name, voter, .. } = self.settings;
        self.roster.take(origin, Seat::joining(name.clone(), voter, started_ms, !self.bags.is_empty()));
        self.beats = 0;
        (self.ready, self.founding, self.promised) = (false, (0, 0), false);
        (self.collected, self.forgotten, self.vouched) = (0, 0, 0);
        self.clear();
        self.log.reset();
        self.reports.clear();
        self.adopting = None;
        self.misled_by = self.sponsor_origin.take().filter(|_| why != Stranger::Ended);
        self.sponsor = 0;
        self.started_ms = now_ms;
        self.links.clear();
    }

    fn clear(&mut self) {
        (self.store, self.vector) = (Store::default(), Vector::new());
        self.tell(Change::Reset);
    }

    /// Whether this node may found a cluster with the peers that it is linked to. A peer that it cannot talk to may hold
    /// what a cluster holds, as may one that it does not reach: a map that is founded beside theirs would be empty.
    fn may_found(&self, view: View, waited: bool) -> bool {
        let complete = view.answered && view.unlinked == 0;
        let waited = waited && !planted!("silent-address-stops-founding");
        let mut links = self.links.values();
        let all_new = links.all(|l| l.synced && (!l.peer_ready || planted!("newcomer-founds-beside-ready")));
        // Not all for ever: an address that discovery names may be of a machine that is gone for good.
        if !self.settings.may_found
            || !all_new
            || planted!("joining-nodes-deadlock") && !self.links.is_empty()
            || !(complete || waited)
            || view.refused > 0 && !planted!("founded-beside-refused-peer")
        {
            return false;
        }
        let group = self.reached_voters();
        match self.settings.voters {
            0 if view.strangers > 0 && !planted!("unnamed-peer-overlooked") => false,
            0 if complete => true,
            0 => {
                let named =
                    if planted!("minority-of-named-founds") { group } else { group.saturating_add(view.unlinked) };
                // Of two, neither alone.
                let least = if planted!("founded-before-discovery") { 0 } else { 2 };
                group > named.max(least) / 2
            }
            // A majority of the voters is empty and linked: a stranger is none of them.
            voters => group > voters / 2 || planted!("minority-founds"),
        }
    }

    /// Voters that this one reaches, itself included. By name: the link to a process that has ended may still be up beside
    /// its successor's.
    fn reached_voters(&self) -> usize {
        let voters = self.links.values().filter_map(|l| self.roster.get(l.origin)).filter(|seat| seat.voter);
        let names = voters.map(|seat| &seat.name).chain([&self.settings.name]);
        if planted!("restart-counts-twice") {
            return names.count();
        }
        names.collect::<BTreeSet<_>>().len()
    }

    /// How many voters a node that waits for others to found a cluster reaches, itself included, and of how many it needs
    /// a majority (0: the number is not set). `None` of a node that is ready, or is linked to one that is.
    pub fn founders(&self) -> Option<(usize, usize)> {
        let waits = !self.ready && !self.links.values().any(|l| l.peer_ready);
        let wanted = if self.settings.may_found { self.settings.voters } else { 0 };
        waits.then(|| (self.reached_voters(), wanted))
    }

    /// Makes a node that waits for peers ready, if it is to wait no longer.
    pub(super) fn consider_ready(&mut self, view: View, now_ms: u64) {
        let waited = now_ms.saturating_sub(self.started_ms) >= self.settings.join_timeout_ms;
        let alone = self.settings.serve_alone && waited && !self.links.values().any(|l| l.peer_ready);
        let view = if view.unlinked == usize::MAX && planted!("unknown-means-none") {
            View { answered: false, ..View::ALONE }
        } else {
            view
        };
        let name_in_doubt = || self.name_in_doubt() && !planted!("founded-under-anothers-name");
        if !alone && !self.may_found(view, waited) || name_in_doubt() {
            return;
        }
        self.sponsor_origin = None;
        // Of a snapshot whose sponsor died, nothing is kept: if its map lives on elsewhere, nobody could tell later
        // what of it was deleted there.
        if planted!("old-map-taken-up-silently") {
            (self.store, self.vector) = (Store::default(), Vector::new());
        } else if !planted!("partial-snapshot-kept") {
            self.clear();
        }
        if let Some(bag) = self.bags.pop() {
            // Nobody is there to return to: the old map is as good as any.
            (self.store, self.vector) = (bag.store, bag.vector);
            (self.founding, self.promised) = (bag.founding, bag.promised);
            (self.collected, self.vouched, self.forgotten) = (bag.collected, bag.vouched, bag.forgotten);
        } else {
            self.founding = (self.clock.tick(now_ms), self.settings.origin);
        }
        self.become_ready(now_ms);
    }

    fn become_ready(&mut self, now_ms: u64) {
        self.ready = true;
        // Of two that were let in under one name the later one stands.
        let began = self.roster.iter().filter(|(_, seat)| seat.name == self.settings.name).map(|(_, seat)| seat.began);
        began.for_each(|began| self.clock.observe(began));
        // Nothing was written here before: what follows is above all that was seen.
        let seen = self.clock.tick(now_ms);
        self.vector.insert(self.settings.origin, Cover { seen, last: 0, beyond: 0 });
        for link in self.links.values_mut() {
            link.greet();
        }
        self.roster.admit(self.settings.origin, self.sponsor_origin.unwrap_or(0), seen);
        if self.bags.is_empty() {
            self.roster.returned(self.settings.origin, seen);
        }
        self.own_name(seen);
        self.welcome();
        self.roster_changed();
    }

    /// This node is about to leave. Peers are asked, at once and at each beat, whether they hold what it holds of
    /// those whom it cannot hear, see [`Self::uncovered`]: it may be the last that does.
    pub fn drain(&mut self) {
        self.draining = true;
        self.ask_what_is_held();
    }

    pub(super) fn ask_what_is_held(&mut self) {
        let behind: Vec<LinkId> = self.links.iter().filter(|(_, l)| self.unshared(l) > 0).map(|(&id, _)| id).collect();
        for id in behind {
            if let Some(link) = self.links.get_mut(&id) {
                link.ask(Want::Missing);
            }
        }
    }

    /// This node goes: nobody needs to wait for its word.
    pub fn leave(&mut self, now_ms: u64) {
        self.leaving = true;
        let now = self.clock.tick(now_ms);
        self.roster.end(self.settings.origin, SeatState::Ended, now);
        self.roster_changed();
    }

    pub(super) fn take_roster(&mut self, roster: WireRoster, now_ms: u64) -> Result<(), Violation> {
        if roster.seats.len() > MAX_SEATS {
            return Err(Violation::Malformed);
        }
        let me = self.settings.origin;
        let mut changed = false;
        let mut ended = Vec::new();
        for seat in roster.seats {
            let (origin, seat) = from_wire(seat).ok_or(Violation::Malformed)?;
            if origin == me {
                if !seat.is_live() && !self.leaving && !planted!("evicted-goes-on") {
                    self.begin_anew(Stranger::Ended, now_ms);
                    return Ok(());
                }
            } else if seat.is_live() {
                changed |= self.roster.take(origin, seat);
            } else {
                ended.push((origin, seat));
            }
        }
        // Whom one let in that has left since was let in by one who took part.
        if changed && self.ready {
            self.welcome();
        }
        for (origin, seat) in ended {
            if !self.is_retired(origin, &seat) {
                changed |= self.roster.take(origin, seat);
            }
        }
        if changed {
            self.roster_changed();
        }
        self.settle_names(now_ms);
        Ok(())
    }

    /// Whether an account is of a seat that was rightly forgotten here.
    fn is_retired(&self, origin: u64, seat: &Seat) -> bool {
        self.roster.get(origin).is_none() && seat.state == SeatState::Ended && self.may_forget(origin, seat.since)
    }

    /// Whether an ended seat needs to be remembered no longer.
    pub(super) fn may_forget(&self, origin: u64, ended: u64) -> bool {
        let kept = ms_of(ended) + self.settings.bounds.remember_ended_ms;
        let cover = self.vector.get(&origin).copied().unwrap_or_default();
        let at_once = planted!("seat-retired-at-once");
        (!self.roster.awaits_return() || at_once)
            && cover.seen <= self.collected
            && cover.wrote() <= self.collected
            && (kept <= ms_of(self.collected) || at_once)
    }

    /// Peers must hear of it.
    pub(super) fn roster_changed(&mut self) {
        for link in self.links.values_mut() {
            link.roster_due = true;
        }
    }
}

/// The origin of a node that begins anew: never used before, not 0.
fn next_origin(origin: u64, ended: u64) -> u64 {
    let mut input = [0; 16];
    input[..8].copy_from_slice(&origin.to_le_bytes());
    input[8..].copy_from_slice(&ended.to_le_bytes());
    xxh3_64(&input).max(1)
}
