//! The replication protocol as a plain state machine: messages and the time
//! go in, messages come out. No sockets, no wall clock, no randomness; the
//! simulator and the server drive the same code.
//!
//! `docs/replication.md` tells the algorithm as a whole. In short: a write
//! has a [`Dot`]; the vector says up to which stamp everything of an origin was
//! taken in; own writes are pushed from a bounded log, and what a peer lacks
//! otherwise goes in a delta that answers its Sync. Tombstones are dropped once
//! all seats of an agreed roster vouch that they hold them, and kept for a while if
//! they may have to beat what an evicted node brings; who was not part of that
//! agreement begins anew. Links need not be reliable: a lost, doubled or
//! late message costs another Sync, never a write.

mod collect;
mod delta;
mod judge;
mod life;
mod link;
mod log;
mod name;
mod observe;
mod push;
mod roster;
mod stamps;
mod types;
mod vector;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;

use bytes::Bytes;
use kvasir_proto::peer::v1::{Ack, Digest, Message, Report, Standing, Stranger, Want, message::Kind};
use xxhash_rust::xxh3::Xxh3;

use self::life::Bag;
pub use self::link::LinkId;
use self::link::{Awaiting, Link};
pub use self::log::{LOG_MAX_BYTES, LOG_MAX_ENTRIES};
use self::log::{Log, Others, Own};
pub use self::name::{HEARD_BEATS, Namesake, TWIN_BEATS};
use self::roster::Roster;
pub use self::roster::{MAX_ENDED, MAX_SEATS, Seat};
pub use self::stamps::STAMP_END;
pub use self::types::{Bounds, Change, Counters, Coverage, Full, Holders, Need, PeerId, Settings, View, Violation};
pub use self::vector::{Cover, Vector};
use crate::clock::{Clock, Dot};
use crate::store::{Record, Store};

/// A message carries at most this many bytes of keys and values, plus one entry.
pub const MESSAGE_MAX_BYTES: usize = 256 << 10;
/// A message carries at most this many entries: the receiver takes them in about a
/// millisecond, for which its clients wait.
pub const MESSAGE_MAX_ENTRIES: usize = 1024;
/// One step of a delta looks at no more than this many records, so that the
/// caller's lock is never held for long.
pub const SCAN_STEP: usize = 8192;
/// One tick frees at most this many expired values.
pub const EXPIRE_STEP: usize = 8192;
/// A third node's write is relayed only to a peer that has not heard from that
/// node for this long: until then the node's own push is on its way.
pub const RELAY_AFTER_MS: u64 = 2_000;
/// A Sync without an answer, or with an answer that stalls, is repeated after this.
pub const SYNC_TIMEOUT_MS: u64 = 5_000;
/// Digests that must show equal vectors and different maps, with none between
/// that shows equal maps, before the maps are exchanged whole.
pub const STRIKES: u32 = 3;
/// Links that get a digest at each sync interval, in turn.
pub const DIGEST_FANOUT: usize = 3;

/// A node that holds `maxMemory` takes no client's write, but what peers write
/// up to this much more, as a part of the limit: peers are not refused for a
/// few writes that were on their way.
pub const HEADROOM: u64 = 8;
/// How often a node without room asks again for what it could not take.
pub const RETRY_MS: u64 = 1_000;
/// Tombstones are dropped up to a multiple of this: nodes whose vouchers
/// arrive at different moments still come to the same stamp.
pub const COLLECT_STEP_MS: u64 = 4_096;
/// An ended seat is remembered for at least this long, so that a session which
/// saw its writes can be told that they are lost.
pub const REMEMBER_ENDED_MS: u64 = 10 * 60 * 1000;
/// Of writes that come back too late, this many keys are kept for the log.
pub const LATE_KEYS: usize = 20;
/// For this long after an eviction tombstones are kept that may have to beat what the process brings when it rejoins.
pub const REMEMBER_EVICTED_MS: u64 = 60 * 60 * 1000;
/// A node with more tombstones than this keeps none for processes that may rejoin, nor one whose tombstones take more than a
/// [`HEADROOM`]th of `maxMemory`: it drops the oldest, and older writes of those processes are lost.
pub const KEPT_DELETES: u64 = 1 << 18;

// Each flag is a fact of its own: no two of them make a state.
#[allow(clippy::struct_excessive_bools)]
/// One replica.
#[derive(Debug)]
pub struct Replica {
    settings: Settings,
    clock: Clock,
    store: Store,
    /// Everything of an origin up to a stamp was taken in. Invariant: for each
    /// write at or below it, the store holds that write or one that beats it,
    /// or both are deleted and at or below `forgotten`.
    vector: Vector,
    log: Log,
    /// Boxed: each is taken out while it is worked on.
    links: BTreeMap<LinkId, Box<Link>>,
    next_link: LinkId,
    ready: bool,
    /// It is about to leave.
    draining: bool,
    leaving: bool,
    started_ms: u64,
    next_beat_ms: u64,
    /// The link that had the last digest.
    digested: LinkId,
    counters: Counters,

    /// Who takes part.
    roster: Roster,
    /// The founding that the map goes back to: when, by whom. Zero: none yet.
    founding: (u64, u64),
    /// Whether a majority of the voters was ever part of it.
    promised: bool,
    /// All that take part hold every write up to this stamp; whatever arrives
    /// with a stamp up to it was taken in before.
    collected: u64,
    /// All tombstones up to this stamp may be dropped; not above `collected`. Of
    /// a write above it, it is known whether a later one of its key was taken in.
    forgotten: u64,
    /// Something came in, or a beat has passed, since the last tick.
    heard: bool,
    /// What each seat last vouched for.
    reports: BTreeMap<u64, Report>,
    /// The largest stamp that this node vouched for, or who gave it its map: it holds as much.
    vouched: u64,
    /// Since when there was no link to a seat.
    silent_since: BTreeMap<u64, u64>,
    /// While writes that ended seats had half sent are looked for: the members
    /// that are still to be asked.
    adopting: Option<BTreeSet<u64>>,
    /// Why this node last began anew.
    ended_because: Stranger,
    /// What ended seats of this node left, until it is issued again.
    bags: Vec<Bag>,
    /// Keys of the first writes that came too late to be reissued.
    late_keys: Vec<Bytes>,
    /// The link that a snapshot was last asked of.
    sponsor: LinkId,
    /// Whose snapshot it was.
    sponsor_origin: Option<u64>,
    /// Whose snapshot others did not accept, the last time.
    misled_by: Option<u64>,
    /// A peer's write found no room, at this time.
    full_since_ms: Option<u64>,
    /// Beats since this seat was taken.
    beats: u32,
    /// Who has this node's name, once that is certain.
    refused: Option<Namesake>,

    /// Kept only while someone watches.
    changes: Option<Vec<Change>>,
}

impl Replica {
    /// An empty replica that starts at `now_ms`.
    pub fn new(settings: Settings, now_ms: u64) -> Self {
        let mut roster = Roster::default();
        let Settings { origin, ref name, voter, started_ms, .. } = settings;
        roster.take(origin, Seat::joining(name.clone(), voter, started_ms, false));
        Self {
            clock: Clock::default(),
            store: Store::default(),
            vector: Vector::new(),
            log: Log::new(settings.bounds.log_entries, settings.bounds.log_bytes),
            links: BTreeMap::new(),
            next_link: 1,
            ready: false,
            draining: false,
            leaving: false,
            started_ms: now_ms,
            next_beat_ms: now_ms,
            digested: 0,
            counters: Counters::default(),
            roster,
            founding: (0, 0),
            promised: false,
            collected: 0,
            forgotten: 0,
            heard: true,
            reports: BTreeMap::new(),
            vouched: 0,
            silent_since: BTreeMap::new(),
            adopting: None,
            ended_because: Stranger::No,
            bags: Vec::new(),
            late_keys: Vec::new(),
            sponsor: 0,
            sponsor_origin: None,
            misled_by: None,
            full_since_ms: None,
            beats: 0,
            refused: None,
            changes: None,
            settings,
        }
    }

    // ---- what clients do

    /// Writes a value that ends at `expires_ms`, if that is given.
    ///
    /// Key and value must own their memory, see [`Store::merge`].
    pub fn put(&mut self, key: Bytes, value: Bytes, expires_ms: Option<u64>, now_ms: u64) -> Result<Dot, Full> {
        if let Some(limit) = self.settings.max_memory {
            let cost = Store::cost_of(key.len(), value.len());
            if !self.make_room(&key, cost, limit, now_ms) {
                return Err(Full { cost, held: self.store.memory(), limit });
            }
        }
        Ok(self.write(key, Some(value), expires_ms, None, now_ms))
    }

    /// Whether a record of `cost` bytes fits under the key; makes room if that
    /// is allowed. A value is evicted by a delete like any other: dropping it
    /// here alone would let it come back.
    fn make_room(&mut self, key: &[u8], cost: u64, limit: u64, now_ms: u64) -> bool {
        loop {
            if self.store.memory() - self.store.cost_at(key) + cost <= limit {
                return true;
            }
            let victim = self.settings.evict_ending.then(|| self.store.first_to_end().cloned()).flatten();
            let Some(victim) = victim.filter(|_| self.ready) else { return false };
            if planted!("evicted-locally") {
                self.store.remove(&victim);
            } else {
                self.write(victim, None, None, None, now_ms);
            }
            self.counters.evicted_keys += 1;
        }
    }

    /// Deletes a key. `None` when nothing was there.
    pub fn delete(&mut self, key: Bytes, now_ms: u64) -> Option<Dot> {
        self.store.get(&key)?.live(now_ms)?;
        Some(self.write(key, None, None, None, now_ms))
    }

    /// Gives a live value a new end, or none. `None` when nothing was there.
    pub fn touch(&mut self, key: Bytes, expires_ms: Option<u64>, now_ms: u64) -> Result<Option<Dot>, Full> {
        let live = self.store.get(&key).and_then(|held| Some((held.live(now_ms)?.clone(), held.expires_ms)));
        let Some((value, ends)) = live else { return Ok(None) };
        if let Some(limit) = self.settings.max_memory
            && ends.is_none()
            && expires_ms.is_some()
        {
            let cost = self.store.cost_at(&key) + Store::COST_OF_END;
            if !self.make_room(&key, cost, limit, now_ms) {
                return Err(Full { cost, held: self.store.memory(), limit });
            }
        }
        Ok(Some(self.write(key, Some(value), expires_ms, None, now_ms)))
    }

    fn write(
        &mut self,
        key: Bytes,
        value: Option<Bytes>,
        expires_ms: Option<u64>,
        first: Option<Dot>,
        now_ms: u64,
    ) -> Dot {
        let dot = Dot { hlc: self.clock.tick(now_ms), origin: self.settings.origin };
        let others = |held: &Dot| held.origin != dot.origin && held.hlc > self.collected;
        let replaced = self.store.get(&key).map(|held| held.dot).filter(others);
        let own = Own {
            hlc: dot.hlc,
            key: key.clone(),
            value: value.clone(),
            expires_ms: expires_ms.and_then(NonZeroU64::new),
            others: (first.is_some() || replaced.is_some())
                .then(|| Box::new(Others { first: first.unwrap_or_default(), replaced: replaced.unwrap_or_default() })),
        };
        if value.is_some() || !planted!("delete-not-pushed") {
            self.log.append(own);
        }
        let took = self.merge(key, Record { dot, value, expires_ms, first: first.map(Box::new) });
        debug_assert!(took, "a stamp of our own is above everything we hold");
        self.vector.insert(dot.origin, Cover { seen: dot.hlc, last: dot.hlc, beyond: 0 });
        dot
    }

    fn merge(&mut self, key: Bytes, record: Record) -> bool {
        let Some(changes) = &mut self.changes else { return self.store.merge(key, record) };
        let change = Change::Wrote(key.clone(), record.clone());
        let took = self.store.merge(key, record);
        if took {
            changes.push(change);
        }
        took
    }

    fn tell(&mut self, change: Change) {
        if let Some(changes) = &mut self.changes {
            changes.push(change);
        }
    }

    /// From now on, or no longer, what changes is kept for [`Self::take_changes`].
    pub fn watch(&mut self, on: bool) {
        self.changes = on.then(Vec::new);
    }

    /// What changed since the last call, in order. To be called after every
    /// call that takes `&mut self` while [watched](Self::watch).
    pub fn take_changes(&mut self) -> Vec<Change> {
        self.changes.as_mut().map(std::mem::take).unwrap_or_default()
    }

    // ---- links

    /// A connection to a peer is up. Older links to it are dropped.
    pub fn link_up(&mut self, peer: PeerId) -> LinkId {
        let PeerId { origin, name, voter, started_ms, returning } = peer;
        self.links.retain(|_, l| l.origin != origin);
        let id = self.next_link;
        self.next_link += 1;
        let mut link = Box::new(Link::new(origin));
        link.request = Some(if self.ready { Want::Missing } else { Want::Hello });
        self.links.insert(id, link);
        if self.roster.get(origin).is_none() {
            self.roster.take(origin, Seat::joining(name, voter, started_ms, returning));
            self.roster_changed();
        }
        self.silent_since.remove(&origin);
        id
    }

    /// The connection ended. Knows nothing of a link that was dropped before.
    pub fn link_down(&mut self, link: LinkId) {
        if self.links.remove(&link).is_some() {
            // A restart waits for this process not to be heard.
            for link in self.links.values_mut().filter(|l| l.told_namesake) {
                link.report_due = true;
            }
        }
    }

    /// Whether the link was not dropped.
    pub fn is_up(&self, link: LinkId) -> bool {
        self.links.contains_key(&link)
    }

    /// Takes a message of a link. On an error the caller closes the link.
    pub fn receive(&mut self, link: LinkId, message: Message, now_ms: u64) -> Result<(), Violation> {
        if !message.kind.as_ref().is_none_or(stamps::are_possible) {
            return Err(Violation::Malformed);
        }
        let link = if !self.is_up(link) && planted!("old-connection-heard") {
            self.links.keys().next().copied().unwrap_or(link)
        } else {
            link
        };
        // What an older connection left is dropped.
        let Some(mut state) = self.links.remove(&link) else { return Ok(()) };
        let me = self.settings.origin;
        state.silent_beats = 0;
        self.heard |= !matches!(message.kind, Some(Kind::Push(_) | Kind::Ack(_) | Kind::Digest(_)));
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
        // One that began anew has new links.
        if me == self.settings.origin {
            self.links.insert(link, state);
        }
        self.seek_sponsor(now_ms);
        result
    }

    /// The links for which [`Self::poll_send`] may have something. Of many peers
    /// most have nothing to be told: to ask for each would cost more than the
    /// telling.
    pub fn due(&self) -> impl Iterator<Item = LinkId> {
        let own = self.to_push();
        self.links.iter().filter(move |(_, link)| link.is_due(own)).map(|(&id, _)| id)
    }

    /// Up to where own writes are to be pushed.
    fn to_push(&self) -> Option<u64> {
        self.ready.then(|| self.vector_seen(self.settings.origin))
    }

    /// The next message for a link whose last one was sent; `None` until there
    /// is something to say. Writes that pile up between two calls leave together.
    pub fn poll_send(&mut self, link: LinkId, now_ms: u64) -> Option<Message> {
        let mut state = self.links.remove(&link)?;
        let due = state.is_due(self.to_push());
        let kind = self.next_message(&mut state, now_ms);
        debug_assert!(due || kind.is_none(), "who goes by `due` would not have sent {kind:?}");
        self.links.insert(link, state);
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
            return Some(Kind::Ack(Ack { hlc: self.vector_seen(link.origin).max(above_gap) }));
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
        // After pushes, so that our own stamp is the same on both sides.
        if std::mem::take(&mut link.digest_due) && self.store.is_collected(self.forgotten) {
            let fingerprint = self.store.fingerprint();
            return Some(Kind::Digest(Digest {
                seen_hash: self.seen_hash(),
                fingerprint_hi: (fingerprint >> 64) as u64,
                fingerprint_lo: fingerprint as u64,
                forgotten: self.forgotten,
            }));
        }
        None
    }

    // ---- time

    /// Must be called at least every few dozen milliseconds.
    pub fn tick(&mut self, view: View, now_ms: u64) {
        self.expire(now_ms);
        let late =
            |a: &mut Awaiting| now_ms.saturating_sub(a.since_ms) > SYNC_TIMEOUT_MS && !planted!("sync-never-times-out");
        for link in self.links.values_mut() {
            if let Some(awaiting) = link.awaiting.take_if(late) {
                // A snapshot may come from somewhere else.
                link.request = Some(match awaiting.want {
                    Want::Snapshot => Want::Hello,
                    other => other,
                });
            }
        }
        // The wall clock may jump either way: neither stops the heartbeat.
        if now_ms >= self.next_beat_ms || self.next_beat_ms - now_ms > self.settings.sync_interval_ms {
            self.next_beat_ms = now_ms + self.settings.sync_interval_ms;
            self.beat(now_ms);
        }
        // What is agreed changes with what peers report, not with the time.
        if std::mem::take(&mut self.heard) || !self.bags.is_empty() {
            self.collect(now_ms);
            self.adopt_orphans();
            self.issue_bags(now_ms);
        } else if self.ready {
            self.drop_forgotten();
        }
        if !self.ready {
            self.seek_sponsor(now_ms);
            self.consider_ready(view, now_ms);
        }
    }

    fn beat(&mut self, now_ms: u64) {
        self.heard = true;
        if self.ready {
            let seen = self.clock.tick(now_ms);
            self.vector.entry(self.settings.origin).or_default().seen = seen;
        }
        self.judge_silence(now_ms);
        self.settle_names(now_ms);
        self.count_beats();
        for link in self.links.values_mut() {
            link.report_due = true;
            // The peer is yet to be judged, which takes a Sync of its.
            let asked = self.adopting.as_ref().is_some_and(|pending| pending.contains(&link.origin));
            if self.ready && link.peer_ready && (!link.compatible || asked) {
                link.ask(Want::Missing);
            }
        }
        if self.draining {
            self.ask_what_is_held();
        }
        for _ in 0..DIGEST_FANOUT.min(self.links.len()) {
            let next = self.links.range(self.digested + 1..).next().or_else(|| self.links.first_key_value());
            let Some(id) = next.map(|(&id, _)| id) else { break };
            self.digested = id;
            if let Some(link) = self.links.get_mut(&id) {
                link.digest_due = self.ready && link.compatible;
            }
        }
        if let Some(since) = self.full_since_ms
            && now_ms.abs_diff(since) >= RETRY_MS
        {
            self.full_since_ms = None;
            for link in self.links.values_mut().filter(|_| self.ready) {
                link.ask(Want::Missing);
            }
        }
    }

    fn expire(&mut self, now_ms: u64) {
        let changes = &mut self.changes;
        self.store.expire(now_ms, EXPIRE_STEP, |key, record| {
            if let Some(changes) = changes {
                changes.push(Change::Expired(key.clone(), record.dot));
            }
        });
    }

    fn vector_seen(&self, origin: u64) -> u64 {
        self.vector.get(&origin).map_or(0, |c| c.seen)
    }

    /// The stamp up to which everything of an origin was taken in. What is at
    /// or below `collected` was taken in of every origin, known or not.
    fn covered(&self, origin: u64) -> u64 {
        if planted!("stable-not-covered") {
            return self.vector_seen(origin);
        }
        self.vector_seen(origin).max(self.collected)
    }

    /// The stamp up to which a peer needs not be asked about an origin: what is
    /// at or below `collected` was taken in by all. But of a seat that has
    /// ended, some may return with writes that were not.
    fn floor(&self, origin: u64) -> u64 {
        if self.roster.get(origin).is_none_or(Seat::is_live) { self.collected } else { 0 }
    }

    fn cover(&mut self, origin: u64, seen: u64, last: u64) {
        // What a peer says of us is old news.
        if origin != self.settings.origin {
            self.vector.entry(origin).or_default().join(seen, last);
        }
    }

    /// Equal on two nodes that took in the same writes.
    fn seen_hash(&self) -> u64 {
        let mut hash = Xxh3::new();
        for (&origin, cover) in self.vector.iter().filter(|(o, c)| c.wrote() > self.floor(**o)) {
            cover.hash(origin, &mut hash);
        }
        hash.digest()
    }

    fn standing(&self) -> Standing {
        let (founded_hlc, founded_by) = self.founding;
        Standing {
            founded_hlc,
            founded_by,
            promised: self.promised,
            collected: self.collected,
            forgotten: self.forgotten,
            vouched: self.vouched,
        }
    }
}

fn founding_of(standing: &Standing) -> (u64, u64) {
    (standing.founded_hlc, standing.founded_by)
}
