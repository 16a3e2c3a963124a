//! The replication protocol as a plain state machine: messages and the time
//! go in, messages come out. No sockets, no wall clock, no randomness; the
//! simulator and the server drive the same code.
//!
//! `docs/replication.md` tells the algorithm as a whole. In short: a write
//! has a [`Dot`]; the vector says up to which stamp everything of an origin was
//! taken in; own writes are pushed from a bounded log, and what a peer lacks
//! otherwise goes in a delta that answers its Sync. Tombstones are dropped once
//! all seats of an agreed roster vouch that they hold them; who was not part of
//! that agreement begins anew. Links need not be reliable: a lost, doubled or
//! late message costs another Sync, never a write.

mod collect;
mod delta;
mod life;
mod link;
mod log;
mod push;
mod roster;
mod vector;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kvasir_proto::peer::v1::{
    Ack, Digest, Entry, Message, Report, SeatState, Standing, Want, message::Kind,
};

pub use self::link::LinkId;
use self::life::Bag;
use self::link::Link;
use self::log::Log;
pub use self::log::{LOG_MAX_BYTES, LOG_MAX_ENTRIES};
use self::roster::Roster;
pub use self::roster::{MAX_ENDED, MAX_SEATS, Seat};
pub use self::vector::{Cover, Vector};
use crate::clock::{Clock, Dot, ms_of};
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
/// An evicted process that comes back later than this brings no writes along.
pub const REMEMBER_EVICTED_MS: u64 = 60 * 60 * 1000;

/// What a replica must know at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This process: never used before, never to be used again. Not 0.
    pub origin: u64,
    /// The node, unique in the cluster; a later process of the name replaces
    /// an earlier one.
    pub name: String,
    /// Whether it is a member of the cluster proper, not a sidecar.
    pub voter: bool,
    /// When the process started, milliseconds since 1970.
    pub started_ms: u64,
    /// How many voters the cluster is meant to have; 0: as many as are known.
    pub voters: usize,
    /// After how long a silence a seat may be given up on, milliseconds.
    pub evict_after_ms: u64,
    /// Between two heartbeats, and between two digests, milliseconds.
    pub sync_interval_ms: u64,
    /// A peer whose clock is further ahead than this is refused, milliseconds.
    pub max_clock_skew_ms: u64,
    /// Client writes that would take the store above this many bytes are refused.
    pub max_memory: Option<u64>,
    /// When the store is full, values that will end make room, those that end
    /// first going first.
    pub evict_ending: bool,
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
    /// Times that this node began anew, its life having been ended by others.
    pub returns: u64,
    /// Writes of ended seats of this node that no member had, and that were
    /// issued again under a new dot.
    pub reissued: u64,
    /// Times that writes which a dead node had half sent were taken as they are.
    pub adoptions: u64,
    /// Values deleted to make room.
    pub evicted_keys: u64,
    /// Peers' writes that found no room.
    pub no_room: u64,
}

/// A process at the other end of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerId {
    /// The process.
    pub origin: u64,
    /// The node.
    pub name: String,
    /// Whether it is a member of the cluster proper, not a sidecar.
    pub voter: bool,
    /// When its seat was taken, milliseconds since 1970 by its own clock.
    pub started_ms: u64,
    /// Whether it brings writes of an ended seat that it has yet to issue again.
    pub returning: bool,
}

/// What a watcher of the map, or of the cluster, may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key has a new record: a value, or none.
    Wrote(Bytes, Record),
    /// The value under the key came to its end; its dot.
    Expired(Bytes, Dot),
    /// The map was taken anew: what was told before may not hold.
    Reset,
    /// A seat was given up on by a majority.
    Evicted(Seat),
    /// A write was issued again: its dot, and the new one.
    Reissued(Dot, Dot),
}

/// Who holds a write, as far as this node was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holders {
    /// Linked peers, by name, that said so.
    pub peers: usize,
    /// Voters among them, and this node if it is one.
    pub voters: usize,
    /// Seats that take part and have not said so.
    pub lacking: usize,
    /// How many voters are a majority.
    pub majority: usize,
}

/// Whether a node holds a write that was seen elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// That, or one that beats it.
    Covered,
    /// Not yet.
    Behind,
    /// It was lost with its node.
    Lost,
}

/// One replica.
#[derive(Debug)]
pub struct Replica {
    settings: Settings,
    clock: Clock,
    store: Store,
    /// Everything of an origin up to a stamp was taken in. Invariant: for each
    /// write at or below it, the store holds that write or one that beats it,
    /// or both are deleted and at or below `collected`.
    vector: Vector,
    log: Log,
    /// Boxed: each is taken out while it is worked on.
    links: BTreeMap<LinkId, Box<Link>>,
    next_link: LinkId,
    ready: bool,
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
    /// All tombstones up to this stamp may be dropped; whatever arrives with a
    /// stamp up to it was taken in before.
    collected: u64,
    /// Of seats that were given up on up to this stamp, it may no longer be
    /// known which of their writes were taken in.
    forgotten: u64,
    /// Something came in, or a beat has passed, since the last tick.
    heard: bool,
    /// What each seat last vouched for.
    reports: BTreeMap<u64, Report>,
    /// The largest stamp that this node vouched for.
    vouched: u64,
    /// What it had vouched for when it first heard of a seat.
    vouched_before: BTreeMap<u64, u64>,
    /// Since when there was no link to a seat.
    silent_since: BTreeMap<u64, u64>,
    /// While writes that ended seats had half sent are looked for: the members
    /// that are still to be asked.
    adopting: Option<BTreeSet<u64>>,
    /// What ended seats of this node left, until it is issued again.
    bags: Vec<Bag>,
    /// The link that a snapshot was last asked of.
    sponsor: LinkId,
    /// A peer's write found no room, at this time.
    full_since_ms: Option<u64>,

    /// Kept only while someone watches.
    changes: Option<Vec<Change>>,
}

impl Replica {
    /// An empty replica that starts at `now_ms`.
    pub fn new(settings: Settings, now_ms: u64) -> Self {
        let mut roster = Roster::default();
        roster.take(
            settings.origin,
            Seat {
                name: settings.name.clone(),
                voter: settings.voter,
                started_ms: settings.started_ms,
                state: SeatState::Joining,
                since: 0,
                returning: false,
            },
        );
        Self {
            clock: Clock::default(),
            store: Store::default(),
            vector: Vector::new(),
            log: Log::new(settings.bounds.log_entries),
            links: BTreeMap::new(),
            next_link: 1,
            ready: false,
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
            vouched_before: BTreeMap::new(),
            silent_since: BTreeMap::new(),
            adopting: None,
            bags: Vec::new(),
            sponsor: 0,
            full_since_ms: None,
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
                return Err(Full { held: self.store.memory(), limit });
            }
        }
        Ok(self.write(key, Some(value), expires_ms, None, now_ms))
    }

    /// Whether a record of `cost` bytes fits under the key; makes room if that
    /// is allowed. A value is evicted by a delete like any other: dropping it
    /// here alone would let it come back.
    fn make_room(&mut self, key: &[u8], cost: u64, limit: u64, now_ms: u64) -> bool {
        loop {
            let old =
                self.store.get(key).map_or(0, |r| Store::cost_of(key.len(), r.value.as_ref().map_or(0, Bytes::len)));
            if self.store.memory() - old + cost <= limit {
                return true;
            }
            let victim = self.settings.evict_ending.then(|| self.store.first_to_end().cloned()).flatten();
            let Some(victim) = victim.filter(|_| self.ready) else { return false };
            self.write(victim, None, None, None, now_ms);
            self.counters.evicted_keys += 1;
        }
    }

    /// Deletes a key. `None` when nothing was there.
    pub fn delete(&mut self, key: Bytes, now_ms: u64) -> Option<Dot> {
        self.store.get(&key)?.live(now_ms)?;
        Some(self.write(key, None, None, None, now_ms))
    }

    /// Gives a live value a new end, or none. `None` when nothing was there.
    pub fn touch(&mut self, key: Bytes, expires_ms: Option<u64>, now_ms: u64) -> Option<Dot> {
        let value = self.store.get(&key)?.live(now_ms)?.clone();
        Some(self.write(key, Some(value), expires_ms, None, now_ms))
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
        self.log.append(Entry {
            key: key.clone(),
            hlc: dot.hlc,
            origin: 0,
            deleted: value.is_none(),
            value: value.clone().unwrap_or_default(),
            expires_ms: expires_ms.unwrap_or(0),
            first_hlc: first.map_or(0, |f| f.hlc),
            first_origin: first.map_or(0, |f| f.origin),
        });
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
            let state = SeatState::Joining;
            self.vouched_before.insert(origin, self.vouched);
            self.roster.take(origin, Seat { name, voter, started_ms, state, since: 0, returning });
            self.roster_changed();
        }
        self.silent_since.remove(&origin);
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
        let me = self.settings.origin;
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
                self.take_report(&mut state, report);
                Ok(())
            }
            Some(Kind::Roster(roster)) => self.take_roster(roster, now_ms),
            None => Err(Violation::Unknown),
        };
        // One that began anew has new links.
        if me == self.settings.origin {
            self.links.insert(link, state);
        }
        self.seek_sponsor();
        result
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
        if std::mem::take(&mut link.roster_due) {
            return Some(Kind::Roster(self.roster.to_wire()));
        }
        if let Some(want) = link.request.take() {
            return Some(Kind::Sync(self.cut_sync(link, want, now_ms)));
        }
        if std::mem::take(&mut link.ack_due) {
            return Some(Kind::Ack(Ack { hlc: self.vector_seen(link.origin) }));
        }
        let push = link.cursor.filter(|&cursor| self.ready && cursor < self.vector_seen(self.settings.origin));
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
        if std::mem::take(&mut link.report_due) {
            return Some(Kind::Report(self.cut_report(now_ms)));
        }
        // After pushes, so that our own stamp is the same on both sides.
        if std::mem::take(&mut link.digest_due) && self.store.is_collected(self.collected) {
            let fingerprint = self.store.fingerprint();
            return Some(Kind::Digest(Digest {
                seen_hash: self.seen_hash(),
                fingerprint_hi: (fingerprint >> 64) as u64,
                fingerprint_lo: fingerprint as u64,
                collected: self.collected,
            }));
        }
        None
    }

    // ---- time

    /// Must be called at least every few dozen milliseconds.
    pub fn tick(&mut self, view: View, now_ms: u64) {
        self.expire(now_ms);
        for link in self.links.values_mut() {
            if let Some(awaiting) = link.awaiting.take_if(|a| now_ms.saturating_sub(a.since_ms) > SYNC_TIMEOUT_MS) {
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
            self.collect();
            self.adopt_orphans();
            self.issue_bags(now_ms);
        } else if self.ready {
            self.drop_collected();
        }
        if !self.ready {
            self.seek_sponsor();
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
        for link in self.links.values_mut() {
            link.report_due = true;
            // The peer is yet to be judged, which takes a Sync of its.
            let asked = self.adopting.as_ref().is_some_and(|pending| pending.contains(&link.origin));
            if self.ready && link.peer_ready && (!link.compatible || asked) {
                link.ask(Want::Missing);
            }
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
            for link in self.links.values_mut() {
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

    // ---- what others may know

    /// Whether it holds what a ready peer held when it joined, or was first.
    pub const fn is_ready(&self) -> bool {
        self.ready
    }

    /// The map.
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// What was taken in of each origin.
    pub const fn vector(&self) -> &Vector {
        &self.vector
    }

    /// Who takes part, by origin.
    pub fn seats(&self) -> impl Iterator<Item = (u64, &Seat)> {
        self.roster.iter()
    }

    /// Tombstones up to this stamp are dropped.
    pub const fn collected(&self) -> u64 {
        self.collected
    }

    /// The founding that the map goes back to: a stamp, and who founded.
    pub const fn founding(&self) -> (u64, u64) {
        self.founding
    }

    /// This node as its peers are to know it.
    pub fn id(&self) -> PeerId {
        PeerId {
            origin: self.settings.origin,
            name: self.settings.name.clone(),
            voter: self.settings.voter,
            started_ms: self.settings.started_ms,
            returning: !self.bags.is_empty(),
        }
    }

    /// The origin of this node's writes. Another one once the node has begun
    /// anew: all its links are gone then.
    pub const fn origin(&self) -> u64 {
        self.settings.origin
    }

    /// Whether a peer's write found no room lately.
    pub const fn is_overfull(&self) -> bool {
        self.full_since_ms.is_some()
    }

    /// Origins of the processes that are linked.
    pub fn linked(&self) -> impl Iterator<Item = u64> {
        self.links.values().map(|l| l.origin)
    }

    /// How many voters the cluster is meant to have, from now on.
    pub fn set_voters(&mut self, voters: usize) {
        self.settings.voters = voters;
    }

    /// Own writes that are still in the log and that no linked peer, or not
    /// every one, said it holds: `(none, not all)`. What is yet to be issued
    /// again nobody holds.
    pub fn uncovered(&self) -> (usize, usize) {
        let any = self.links.values().map(|l| l.acked).max().unwrap_or(0);
        let all = self.links.values().map(|l| l.acked).min().unwrap_or(0);
        (self.log.above(any).count() + self.brought(), self.log.above(all).count() + self.brought())
    }

    /// Records of ended seats of this node that are yet to be issued again, or
    /// found to be known.
    pub fn brought(&self) -> usize {
        self.bags.iter().map(Bag::len).sum()
    }

    /// Who holds this node's own write with the stamp `hlc`. Counted by name:
    /// a node that restarted is not two.
    pub fn holders(&self, hlc: u64) -> Holders {
        let mut names: Vec<(&str, bool)> = self
            .links
            .values()
            .filter(|l| l.acked >= hlc && l.compatible && self.roster.is_live(l.origin))
            .filter_map(|l| self.roster.get(l.origin).map(|seat| (seat.name.as_str(), seat.voter)))
            .filter(|(name, _)| *name != self.settings.name)
            .collect();
        names.sort_unstable();
        names.dedup_by_key(|(name, _)| *name);
        let voters = names.iter().filter(|(_, voter)| *voter).count() + usize::from(self.settings.voter);
        let others = self.roster.members().filter(|&o| o != self.settings.origin).count();
        Holders {
            peers: names.len(),
            voters,
            lacking: others.saturating_sub(names.len()),
            majority: self.majority(),
        }
    }

    /// Whether the write `dot`, which was seen on a node whose map goes back to
    /// `founding`, is held here.
    pub fn coverage(&self, dot: Dot, founding: (u64, u64)) -> Coverage {
        if dot.hlc <= self.vector_seen(dot.origin) {
            Coverage::Covered
        } else if dot.hlc <= self.collected {
            // Taken in by all, if it was of this founding. (What an evicted node
            // knew alone is neither covered nor lost until it has come back.)
            match self.roster.get(dot.origin) {
                Some(seat) if !seat.is_live() && self.roster.awaits_return() => Coverage::Behind,
                Some(seat) if !seat.is_live() => Coverage::Lost,
                _ if founding == self.founding => Coverage::Covered,
                _ => Coverage::Lost,
            }
        } else if self.roster.get(dot.origin).is_some_and(|seat| !seat.is_live()) && self.is_agreed() {
            Coverage::Lost
        } else {
            Coverage::Behind
        }
    }

    /// The age of the oldest moment that some linked peer has not yet vouched
    /// for, milliseconds; `None` with no link.
    pub fn lag_ms(&self, now_ms: u64) -> Option<u64> {
        self.links.values().map(|l| now_ms.saturating_sub(ms_of(self.vector_seen(l.origin)))).max()
    }

    /// Figures since the start.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    fn vector_seen(&self, origin: u64) -> u64 {
        self.vector.get(&origin).map_or(0, |c| c.seen)
    }

    /// The stamp up to which everything of an origin was taken in. What is at
    /// or below `collected` was taken in of every origin, known or not.
    fn covered(&self, origin: u64) -> u64 {
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

    fn seen_hash(&self) -> u64 {
        vector::hash(self.vector.iter().filter(|(o, c)| c.wrote() > self.floor(**o)))
    }

    fn standing(&self) -> Standing {
        let (founded_hlc, founded_by) = self.founding;
        Standing {
            founded_hlc,
            founded_by,
            promised: self.promised,
            collected: self.collected,
            forgotten: self.forgotten,
        }
    }
}

fn founding_of(standing: &Standing) -> (u64, u64) {
    (standing.founded_hlc, standing.founded_by)
}
