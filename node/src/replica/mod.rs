//! The replication protocol as a plain state machine: messages and the time
//! go in, messages come out. No sockets, no wall clock, no randomness; the
//! simulator and the server drive the same code.
//!
//! `docs/architecture.md` tells the algorithm as a whole. In short: a write
//! has a [`Dot`]; `seen` says up to which stamp everything of an origin was
//! taken in; own writes are pushed from a bounded log, and what a peer lacks
//! otherwise goes in a delta that answers its Sync. Links need not be
//! reliable: a lost, doubled or late message costs another Sync, never a write.

mod link;
mod log;

use std::collections::BTreeMap;

use bytes::Bytes;
use kvasir_proto::peer::v1::{Ack, Delta, Digest, Entry, Message, Push, Seen, Sync, message::Kind};
use xxhash_rust::xxh3::Xxh3;

pub use self::link::LinkId;
use self::link::{Awaiting, Link, Request, Scan, Vector};
use self::log::Log;
pub use self::log::{LOG_MAX_BYTES, LOG_MAX_ENTRIES};
use crate::clock::{Clock, Dot, ms_of, stamp_at};
use crate::store::{Record, Store};

/// A message carries at most this many bytes of keys and values, plus one entry.
pub const MESSAGE_MAX_BYTES: usize = 256 << 10;
/// A message carries at most this many entries.
pub const MESSAGE_MAX_ENTRIES: usize = 4096;
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

/// What a replica must know at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This process: never used before, never to be used again. Not 0.
    pub origin: u64,
    /// Between two heartbeats, and between two digests, milliseconds.
    pub sync_interval_ms: u64,
    /// A peer whose clock is further ahead than this is refused, milliseconds.
    pub max_clock_skew_ms: u64,
    /// Client writes that would take the store above this many bytes are refused.
    pub max_memory: Option<u64>,
    /// Whether this node may be ready without having synced from a ready one,
    /// when every peer that is known is as new as itself.
    pub may_found: bool,
    /// Whether to serve alone when `join_timeout_ms` brought no ready peer.
    pub serve_alone: bool,
    /// How long to look for a ready peer, milliseconds.
    pub join_timeout_ms: u64,
    /// Bounds on single steps and on the log; small ones only in simulations.
    pub bounds: Bounds,
}

/// How much is done at once, and kept.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// See [`LOG_MAX_ENTRIES`].
    pub log_entries: usize,
    /// See [`MESSAGE_MAX_ENTRIES`].
    pub message_entries: usize,
    /// See [`SCAN_STEP`].
    pub scan_step: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { log_entries: LOG_MAX_ENTRIES, message_entries: MESSAGE_MAX_ENTRIES, scan_step: SCAN_STEP }
    }
}

/// Why a write was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node is full: it holds {held} of at most {limit} bytes (maxMemory); delete keys or raise the limit")]
pub struct Full {
    /// Accounted bytes now.
    pub held: u64,
    /// The limit.
    pub limit: u64,
}

/// Why a link must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The peer's clock is too far ahead of ours.
    #[error(
        "the peer's clock is {ahead_ms} ms ahead, at most {limit_ms} ms (maxClockSkew): check the time service of both machines"
    )]
    ClockAhead {
        /// By how much.
        ahead_ms: u64,
        /// What is allowed.
        limit_ms: u64,
    },
    /// The peer sent what the protocol does not have.
    #[error("the peer sent a message without a kind: it speaks another version of the protocol")]
    Unknown,
    /// An entry that no node makes: without a key or without a stamp.
    #[error("the peer sent an entry without a key or a stamp")]
    Malformed,
}

/// What discovery and membership know that the replica cannot.
#[derive(Clone, Copy, Debug, Default)]
pub struct View {
    /// Every discovery provider has answered at least once.
    pub answered: bool,
    /// Addresses of other nodes that were found and have no link yet.
    pub unlinked: usize,
}

/// Figures of a replica since its start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Deltas that were answered with a scan of the store.
    pub scans: u64,
    /// Syncs that were sent.
    pub syncs: u64,
    /// Times that equal vectors came with different maps: a bug, bad memory,
    /// or what a node left half-sent when it died.
    pub divergences: u64,
    /// Entries taken from peers.
    pub entries_in: u64,
    /// Entries sent to peers.
    pub entries_out: u64,
}

/// One replica.
#[derive(Debug)]
pub struct Replica {
    settings: Settings,
    clock: Clock,
    store: Store,
    /// Everything of an origin up to a stamp was taken in. Invariant: for each
    /// write at or below it, the store holds that write or one that beats it.
    seen: Vector,
    /// The last write (not heartbeat) that is known of each origin.
    wrote: Vector,
    log: Log,
    links: BTreeMap<LinkId, Link>,
    next_link: LinkId,
    ready: bool,
    started_ms: u64,
    next_beat_ms: u64,
    /// The link that had the last digest.
    digested: LinkId,
    counters: Counters,
}

impl Replica {
    /// An empty replica that starts at `now_ms`.
    pub fn new(settings: Settings, now_ms: u64) -> Self {
        Self {
            clock: Clock::default(),
            store: Store::default(),
            seen: Vector::new(),
            wrote: Vector::new(),
            log: Log::new(settings.bounds.log_entries),
            links: BTreeMap::new(),
            next_link: 1,
            ready: false,
            started_ms: now_ms,
            next_beat_ms: now_ms,
            digested: 0,
            counters: Counters::default(),
            settings,
        }
    }

    // ---- what clients do

    /// Writes a value that ends at `expires_ms`, if that is given.
    ///
    /// Key and value must own their memory, see [`Store::merge`].
    pub fn put(&mut self, key: Bytes, value: Bytes, expires_ms: Option<u64>, now_ms: u64) -> Result<Dot, Full> {
        if let Some(limit) = self.settings.max_memory {
            let old =
                self.store.get(&key).map_or(0, |r| Store::cost_of(key.len(), r.value.as_ref().map_or(0, Bytes::len)));
            let held = self.store.memory();
            if held - old + Store::cost_of(key.len(), value.len()) > limit {
                return Err(Full { held, limit });
            }
        }
        Ok(self.write(key, Some(value), expires_ms, now_ms))
    }

    /// Deletes a key. `None` when nothing was there.
    pub fn delete(&mut self, key: Bytes, now_ms: u64) -> Option<Dot> {
        self.store.get(&key)?.live(now_ms)?;
        Some(self.write(key, None, None, now_ms))
    }

    fn write(&mut self, key: Bytes, value: Option<Bytes>, expires_ms: Option<u64>, now_ms: u64) -> Dot {
        let dot = Dot { hlc: self.clock.tick(now_ms), origin: self.settings.origin };
        self.log.append(Entry {
            key: key.clone(),
            hlc: dot.hlc,
            origin: 0,
            deleted: value.is_none(),
            value: value.clone().unwrap_or_default(),
            expires_ms: expires_ms.unwrap_or(0),
        });
        let took = self.store.merge(key, Record { dot, value, expires_ms });
        debug_assert!(took, "a stamp of our own is above everything we hold");
        self.seen.insert(dot.origin, dot.hlc);
        self.wrote.insert(dot.origin, dot.hlc);
        dot
    }

    // ---- links

    /// A connection to the process `origin` is up. Older links to it are dropped.
    pub fn link_up(&mut self, origin: u64) -> LinkId {
        self.links.retain(|_, l| l.origin != origin);
        let id = self.next_link;
        self.next_link += 1;
        self.links.insert(id, Link::new(origin));
        id
    }

    /// The connection ended. Knows nothing of a link that was dropped before.
    pub fn link_down(&mut self, link: LinkId) {
        self.links.remove(&link);
    }

    /// Whether the link was not dropped.
    pub fn is_up(&self, link: LinkId) -> bool {
        self.links.contains_key(&link)
    }

    /// Takes a message of a link. On an error the caller closes the link.
    pub fn receive(&mut self, link: LinkId, message: Message, now_ms: u64) -> Result<(), Violation> {
        // What an older connection left is dropped.
        let Some(mut state) = self.links.remove(&link) else { return Ok(()) };
        let result = match message.kind {
            Some(Kind::Push(push)) => self.take_push(&mut state, push, now_ms),
            Some(Kind::Digest(digest)) => {
                self.take_digest(&mut state, &digest);
                Ok(())
            }
            Some(Kind::Sync(sync)) => {
                self.take_sync(&mut state, &sync, now_ms);
                Ok(())
            }
            Some(Kind::Delta(delta)) => self.take_delta(&mut state, delta, now_ms),
            Some(Kind::Ack(ack)) => {
                state.acked = state.acked.max(ack.hlc);
                Ok(())
            }
            None => Err(Violation::Unknown),
        };
        self.links.insert(link, state);
        result
    }

    fn take_push(&mut self, link: &mut Link, push: Push, now_ms: u64) -> Result<(), Violation> {
        // Judged of the link's peer only: one bad stamp that is relayed must
        // not block everything that is relayed with it.
        let (ahead_ms, limit_ms) = (ms_of(push.last).saturating_sub(now_ms), self.settings.max_clock_skew_ms);
        if ahead_ms > limit_ms {
            return Err(Violation::ClockAhead { ahead_ms, limit_ms });
        }
        self.clock.observe(push.last);
        let covered = self.covered(link.origin);
        let wrote = !push.entries.is_empty();
        for mut entry in push.entries {
            entry.origin = link.origin;
            if entry.hlc > covered {
                self.take_entry(&entry)?;
            }
        }
        if push.prev <= covered {
            self.cover(link.origin, push.last);
            self.close_gap(link);
            link.ack_due |= wrote;
        } else {
            // Something between is missing. The entries count all the same,
            // and the gap is what the delta must close.
            link.ahead = match link.ahead {
                // Only what joins without a gap may count as one stretch.
                Some((from, to)) if push.prev <= to && from <= push.last => {
                    Some((from.min(push.prev), to.max(push.last)))
                }
                _ => Some((push.prev, push.last)),
            };
            if link.awaiting.is_none() {
                link.request.get_or_insert(Request::Missing);
            }
        }
        Ok(())
    }

    fn take_digest(&mut self, link: &mut Link, digest: &Digest) {
        let theirs = u128::from(digest.fingerprint_hi) << 64 | u128::from(digest.fingerprint_lo);
        if digest.seen_hash != self.seen_hash() {
            if link.awaiting.is_none() {
                link.request.get_or_insert(Request::Missing);
            }
        } else if theirs == self.store.fingerprint() {
            link.strikes = 0;
        } else {
            link.strikes += 1;
            if link.strikes >= STRIKES && link.awaiting.is_none() {
                link.strikes = 0;
                self.counters.divergences += 1;
                link.request = Some(Request::Full);
            }
        }
    }

    fn take_sync(&mut self, link: &mut Link, sync: &Sync, now_ms: u64) {
        // One that came twice must not start the numbered parts anew: the two
        // scans would be cut at different keys.
        if sync.id <= link.answered {
            return;
        }
        link.answered = sync.id;
        let me = self.settings.origin;
        let theirs: Vector = sync.seen.iter().map(|s| (s.origin, s.hlc)).collect();
        let held = |origin: u64| theirs.get(&origin).copied().unwrap_or(0);
        if sync.ready && !link.peer_ready && !self.ready && link.awaiting.is_none() {
            link.request.get_or_insert(Request::Missing);
        }
        link.peer_ready = sync.ready;
        link.acked = link.acked.max(held(me));

        // What a scan must bring: own writes that the log has lost, and other
        // nodes' writes that will not come from those nodes themselves.
        let stale = stamp_at(now_ms.saturating_sub(RELAY_AFTER_MS));
        let lacks = |origin: u64, last: u64| held(origin) < last;
        let scan = sync.full
            || self.wrote.iter().any(|(&origin, &last)| {
                lacks(origin, last) && if origin == me { !self.log.covers(held(me)) } else { held(origin) < stale }
            });
        let mut seen = self.seen.clone();
        if scan {
            self.counters.scans += 1;
            link.cursor = Some(self.covered(me));
        } else {
            link.cursor = Some(held(me).min(self.covered(me)));
            // A write that the vector covers may be beaten here by one that the
            // peer lacks: it may join the vector only if it lacks nothing.
            if self.wrote.iter().any(|(&origin, &last)| lacks(origin, last)) {
                seen.clear();
            }
        }
        link.scan = Some(Scan {
            id: sync.id,
            seq: 0,
            theirs,
            full: sync.full,
            after: None,
            exhausted: !scan,
            seen,
            ready: self.ready,
        });
    }

    fn take_delta(&mut self, link: &mut Link, delta: Delta, now_ms: u64) -> Result<(), Violation> {
        let Some(awaiting) = &mut link.awaiting else { return Ok(()) };
        if delta.id != awaiting.id || delta.seq < awaiting.next_seq {
            return Ok(()); // an answer to an older request, or a part that came twice
        }
        let full = awaiting.full;
        if delta.seq > awaiting.next_seq {
            link.awaiting = None;
            link.request = Some(if full { Request::Full } else { Request::Missing });
            return Ok(());
        }
        awaiting.next_seq += 1;
        awaiting.since_ms = now_ms;
        for entry in delta.entries {
            // Covered means held or beaten: except when that is what is in doubt.
            if full || entry.hlc > self.covered(entry.origin) {
                self.take_entry(&entry)?;
            }
        }
        if delta.last {
            link.awaiting = None;
            for Seen { origin, hlc } in delta.seen {
                self.clock.observe(hlc);
                self.cover(origin, hlc);
            }
            self.close_gap(link);
            link.ack_due = true;
            link.synced = true;
            if link.peer_ready && !delta.ready && !self.ready {
                link.request = Some(Request::Missing);
            }
            if delta.ready {
                link.peer_ready = true;
                self.become_ready();
            }
        }
        Ok(())
    }

    fn take_entry(&mut self, entry: &Entry) -> Result<(), Violation> {
        if entry.key.is_empty() || entry.hlc == 0 || entry.origin == 0 {
            return Err(Violation::Malformed);
        }
        self.counters.entries_in += 1;
        let dot = Dot { hlc: entry.hlc, origin: entry.origin };
        self.clock.observe(dot.hlc);
        let wrote = self.wrote.entry(dot.origin).or_default();
        *wrote = dot.hlc.max(*wrote);
        let value = (!entry.deleted).then(|| Bytes::copy_from_slice(&entry.value));
        let expires_ms = (entry.expires_ms > 0).then_some(entry.expires_ms);
        self.store.merge(Bytes::copy_from_slice(&entry.key), Record { dot, value, expires_ms });
        Ok(())
    }

    /// What was held above a gap counts once the gap is closed.
    fn close_gap(&mut self, link: &mut Link) {
        if let Some((from, to)) = link.ahead
            && from <= self.covered(link.origin)
        {
            self.cover(link.origin, to);
            link.ahead = None;
        }
    }

    fn covered(&self, origin: u64) -> u64 {
        self.seen.get(&origin).copied().unwrap_or(0)
    }

    fn cover(&mut self, origin: u64, hlc: u64) {
        // What a peer says of us is old news.
        if origin != self.settings.origin {
            let seen = self.seen.entry(origin).or_default();
            *seen = hlc.max(*seen);
        }
    }

    /// The next message for a link whose last one was sent; `None` until there
    /// is something to say. Writes that pile up between two calls leave together.
    pub fn poll_send(&mut self, link: LinkId, now_ms: u64) -> Option<Message> {
        let mut state = self.links.remove(&link)?;
        let kind = self.next_message(&mut state, now_ms);
        self.links.insert(link, state);
        kind.map(|kind| Message { kind: Some(kind) })
    }

    fn next_message(&mut self, link: &mut Link, now_ms: u64) -> Option<Kind> {
        if let Some(request) = link.request.take() {
            link.requests += 1;
            let full = request == Request::Full;
            link.awaiting = Some(Awaiting { id: link.requests, next_seq: 0, full, since_ms: now_ms });
            self.counters.syncs += 1;
            let seen = wire(&self.seen);
            return Some(Kind::Sync(Sync { id: link.requests, seen, ready: self.ready, full }));
        }
        if std::mem::take(&mut link.ack_due) {
            return Some(Kind::Ack(Ack { hlc: self.covered(link.origin) }));
        }
        let push = link.cursor.filter(|&cursor| cursor < self.covered(self.settings.origin));
        if let Some(prev) = push
            && (link.push_next || link.scan.is_none())
        {
            link.push_next = false;
            return Some(Kind::Push(self.cut_push(link, prev)));
        }
        link.push_next = true;
        if let Some(mut scan) = link.scan.take() {
            let delta = self.cut_delta(&mut scan);
            if !delta.last {
                link.scan = Some(scan);
            }
            return Some(Kind::Delta(delta));
        }
        // After pushes, so that our own stamp is the same on both sides.
        std::mem::take(&mut link.digest_due).then(|| {
            let fingerprint = self.store.fingerprint();
            Kind::Digest(Digest {
                seen_hash: self.seen_hash(),
                fingerprint_hi: (fingerprint >> 64) as u64,
                fingerprint_lo: fingerprint as u64,
            })
        })
    }

    fn cut_push(&mut self, link: &mut Link, mut prev: u64) -> Push {
        let mut last = self.covered(self.settings.origin);
        if !self.log.covers(prev) {
            // The peer fell behind the log. It will see the gap and ask.
            prev = last;
        }
        let mut entries = Vec::new();
        let mut bytes = 0;
        for entry in self.log.above(prev) {
            if bytes >= MESSAGE_MAX_BYTES || entries.len() == self.settings.bounds.message_entries {
                last = entries.last().map_or(last, |e: &Entry| e.hlc);
                break;
            }
            bytes += log::size(entry);
            entries.push(entry.clone());
        }
        self.counters.entries_out += entries.len() as u64;
        link.cursor = Some(last);
        Push { prev, last, entries }
    }

    fn cut_delta(&mut self, scan: &mut Scan) -> Delta {
        if scan.exhausted {
            return Delta {
                id: scan.id,
                seq: scan.seq,
                entries: Vec::new(),
                last: true,
                seen: wire(&scan.seen),
                ready: scan.ready,
            };
        }
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut last_key = None;
        scan.exhausted = true;
        let Bounds { message_entries, scan_step, .. } = self.settings.bounds;
        let records = self.store.scan(scan.after.as_deref());
        for (looked, (key, record)) in records.enumerate() {
            if bytes >= MESSAGE_MAX_BYTES || entries.len() == message_entries || looked == scan_step {
                scan.exhausted = false;
                break;
            }
            last_key = Some(key);
            let Dot { hlc, origin } = record.dot;
            if scan.full || scan.theirs.get(&origin).is_none_or(|&held| held < hlc) {
                let value = record.value.clone().unwrap_or_default();
                bytes += key.len() + value.len();
                entries.push(Entry {
                    key: key.clone(),
                    hlc,
                    origin,
                    deleted: record.value.is_none(),
                    value,
                    expires_ms: record.expires_ms.unwrap_or(0),
                });
            }
        }
        scan.after = last_key.cloned().or_else(|| scan.after.take());
        self.counters.entries_out += entries.len() as u64;
        let seq = scan.seq;
        scan.seq += 1;
        let seen = if scan.exhausted { wire(&scan.seen) } else { Vec::new() };
        Delta { id: scan.id, seq, entries, last: scan.exhausted, seen, ready: scan.ready }
    }

    // ---- time

    /// Must be called at least every few dozen milliseconds.
    pub fn tick(&mut self, view: View, now_ms: u64) {
        self.store.expire(now_ms, EXPIRE_STEP);
        for link in self.links.values_mut() {
            if let Some(awaiting) = link.awaiting.take_if(|a| now_ms.saturating_sub(a.since_ms) > SYNC_TIMEOUT_MS) {
                link.request = Some(if awaiting.full { Request::Full } else { Request::Missing });
            }
        }
        // The wall clock may jump either way: neither stops the heartbeat.
        if now_ms >= self.next_beat_ms || self.next_beat_ms - now_ms > self.settings.sync_interval_ms {
            self.next_beat_ms = now_ms + self.settings.sync_interval_ms;
            self.seen.insert(self.settings.origin, self.clock.tick(now_ms));
            for _ in 0..DIGEST_FANOUT.min(self.links.len()) {
                let next = self.links.range(self.digested + 1..).next().or_else(|| self.links.first_key_value());
                let Some(id) = next.map(|(&id, _)| id) else { break };
                self.digested = id;
                if let Some(link) = self.links.get_mut(&id) {
                    link.digest_due = true;
                }
            }
        }
        if !self.ready {
            self.consider_ready(view, now_ms);
        }
    }

    fn consider_ready(&mut self, view: View, now_ms: u64) {
        let mut links = self.links.values();
        let first =
            self.settings.may_found && view.answered && view.unlinked == 0 && links.all(|l| l.synced && !l.peer_ready);
        let waited = now_ms.saturating_sub(self.started_ms) >= self.settings.join_timeout_ms;
        let alone = self.settings.serve_alone && waited && !self.links.values().any(|l| l.peer_ready);
        if first || alone {
            self.become_ready();
        }
    }

    fn become_ready(&mut self) {
        if !std::mem::replace(&mut self.ready, true) {
            // Those who wait for a ready peer must hear of it.
            for link in self.links.values_mut().filter(|l| !l.peer_ready) {
                link.request.get_or_insert(Request::Missing);
            }
        }
    }

    // ---- what others may know

    /// Whether it holds what a ready peer held when it joined, or was first.
    pub const fn is_ready(&self) -> bool {
        self.ready
    }

    /// The map.
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// Up to which stamp everything of each origin was taken in.
    pub const fn seen(&self) -> &BTreeMap<u64, u64> {
        &self.seen
    }

    /// Origins of the processes that are linked.
    pub fn linked(&self) -> impl Iterator<Item = u64> {
        self.links.values().map(|l| l.origin)
    }

    /// Own writes that are still in the log and that no linked peer, or not
    /// every one, said it holds: `(none, not all)`.
    pub fn uncovered(&self) -> (usize, usize) {
        let any = self.links.values().map(|l| l.acked).max().unwrap_or(0);
        let all = self.links.values().map(|l| l.acked).min().unwrap_or(0);
        (self.log.above(any).count(), self.log.above(all).count())
    }

    /// The age of the oldest moment that some linked peer has not yet vouched
    /// for, milliseconds; `None` with no link.
    pub fn lag_ms(&self, now_ms: u64) -> Option<u64> {
        self.links.values().map(|l| now_ms.saturating_sub(ms_of(self.covered(l.origin)))).max()
    }

    /// Figures since the start.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    fn seen_hash(&self) -> u64 {
        let mut hash = Xxh3::new();
        for (origin, hlc) in &self.seen {
            hash.update(&origin.to_le_bytes());
            hash.update(&hlc.to_le_bytes());
        }
        hash.digest()
    }
}

fn wire(vector: &Vector) -> Vec<Seen> {
    vector.iter().map(|(&origin, &hlc)| Seen { origin, hlc }).collect()
}
