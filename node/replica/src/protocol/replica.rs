//! One replica: what it holds, and what can be asked of it. The files of this folder that build on it have its behaviour.

use kvasir_proto::peer::v1::Stranger;

use super::agreement::Agreement;
use super::backlog::Backlogs;
use super::changes::{Change, Changes};
use super::joining::Joining;
use super::link::LinkId;
use super::map::Map;
use super::outbox::Outbox;
use super::roster::{Roster, Seat};
use super::settings::Settings;
use super::types::{Counters, PeerId};
use super::vector::Vector;
use crate::clock::{Clock, Dot, ms_of};
use crate::store::Store;

// The flags are independent of each other: they do not encode a state.
#[allow(clippy::struct_excessive_bools)]
/// One replica.
#[derive(Debug)]
pub struct Replica {
    pub(super) settings: Settings,
    pub(super) clock: Clock,
    pub(super) map: Map,
    pub(super) outbox: Outbox,
    /// Who takes part.
    pub(super) roster: Roster,
    pub(super) agreement: Agreement,
    pub(super) joining: Joining,
    pub(super) backlogs: Backlogs,
    pub(super) changes: Changes,
    pub(super) counters: Counters,
    pub(super) ready: bool,
    /// Whether it is about to leave.
    pub(super) draining: bool,
    pub(super) leaving: bool,
    pub(super) next_beat_ms: u64,
    /// Why this node last reset.
    pub(super) ended_because: Stranger,
    /// When a peer's write found no room, if that was lately.
    pub(super) full_since_ms: Option<u64>,
}

impl Replica {
    /// An empty replica that starts at `now_ms`.
    pub fn new(settings: Settings, now_ms: u64) -> Self {
        let mut roster = Roster::default();
        let Settings { origin, ref name, voter, started_ms, .. } = settings;
        roster.take(origin, Seat::joining(name.clone(), voter, started_ms, false));
        Self {
            clock: Clock::default(),
            map: Map::default(),
            outbox: Outbox::new(settings.bounds.log_entries, settings.bounds.log_bytes),
            roster,
            agreement: Agreement::new(),
            joining: Joining::new(now_ms),
            backlogs: Backlogs::default(),
            changes: Changes::default(),
            counters: Counters::default(),
            ready: false,
            draining: false,
            leaving: false,
            next_beat_ms: now_ms,
            ended_because: Stranger::No,
            full_since_ms: None,
            settings,
        }
    }

    /// Whether this node holds what a ready peer held, or founded the map.
    pub const fn is_ready(&self) -> bool {
        self.ready
    }

    /// The map.
    pub const fn store(&self) -> &Store {
        &self.map.store
    }

    /// What was taken in of each origin.
    pub const fn vector(&self) -> &Vector {
        &self.map.vector
    }

    /// Who takes part, by origin.
    pub fn seats(&self) -> impl Iterator<Item = (u64, &Seat)> {
        self.roster.iter()
    }

    /// The stability watermark: all seats that take part hold every write up to this timestamp.
    pub const fn collected(&self) -> u64 {
        self.map.standing.collected
    }

    /// The GC watermark: tombstones up to this timestamp are dropped; not above [`Self::collected`].
    pub const fn forgotten(&self) -> u64 {
        self.map.standing.forgotten
    }

    /// The epoch of the map: when it was founded, and by which process.
    pub const fn founding(&self) -> (u64, u64) {
        self.map.standing.epoch
    }

    /// How this node presents itself to peers.
    pub fn id(&self) -> PeerId {
        PeerId {
            origin: self.settings.origin,
            name: self.settings.name.clone(),
            voter: self.settings.voter,
            started_ms: self.settings.started_ms,
            returning: !self.backlogs.is_empty(),
        }
    }

    /// The origin of this node's writes. It changes with a reset, after which all links are gone.
    pub const fn origin(&self) -> u64 {
        self.settings.origin
    }

    /// Whether there was lately no room for a peer's write.
    pub const fn is_overfull(&self) -> bool {
        self.full_since_ms.is_some()
    }

    /// Origins of the processes that are linked.
    pub fn linked(&self) -> impl Iterator<Item = u64> {
        self.outbox.origins()
    }

    /// Sets how many voters the cluster is meant to have.
    pub fn set_voters(&mut self, voters: usize) {
        self.settings.voters = voters;
    }

    /// Keys of writes that came too late to be reissued, at most [`LATE_KEYS`](super::LATE_KEYS) since the start.
    pub fn late_keys(&self) -> impl Iterator<Item = &[u8]> {
        self.backlogs.late_keys()
    }

    /// Why this node last reset.
    pub const fn ended_because(&self) -> Stranger {
        self.ended_because
    }

    /// Records of the backlog that are still to be reissued, or to be found known.
    pub fn brought(&self) -> usize {
        self.backlogs.len()
    }

    /// The accounted memory of the records of [`Self::brought`], in bytes, in addition to [`Store::memory`].
    pub fn brought_memory(&self) -> u64 {
        self.backlogs.memory()
    }

    /// How old the oldest moment is that some linked peer has not announced yet, milliseconds; `None` without a link.
    pub fn lag_ms(&self, now_ms: u64) -> Option<u64> {
        self.outbox.links.values().map(|l| now_ms.saturating_sub(ms_of(self.map.seen(l.origin)))).max()
    }

    /// Figures since the start.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Starts or stops keeping changes for [`Self::take_changes`].
    pub fn watch(&mut self, on: bool) {
        self.changes.watch(on);
    }

    /// What changed since the last call, in order. While [watched](Self::watch), call it after every call that takes `&mut self`.
    pub fn take_changes(&mut self) -> Vec<Change> {
        self.changes.take()
    }

    /// Whether the link is up: it was not dropped.
    pub fn is_up(&self, link: LinkId) -> bool {
        self.outbox.links.contains_key(&link)
    }

    pub(super) fn cover(&mut self, origin: u64, seen: u64, last: u64) {
        // A peer knows no more of this node's writes than this node itself.
        if origin != self.settings.origin {
            self.map.cover(origin, seen, last);
        }
    }

    /// Notes that a write is held, unless all nodes are known to hold it, see
    /// [`Map::note_write`](super::map::Map::note_write). Peers know nothing new about this node's own writes.
    pub(super) fn note_write(&mut self, dot: Dot) {
        if dot.origin != self.settings.origin {
            self.map.note_write(dot);
        }
    }

    pub(super) fn clear(&mut self) {
        self.map.clear();
        self.changes.note(Change::Reset);
    }
}
