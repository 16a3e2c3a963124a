//! What a replica remembers of one link to one peer. A new connection is a new
//! link: nothing is carried over from an older one.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvasir_proto::peer::v1::{Seen, Stranger, Want};

use super::name::Namesake;
use super::vector::{Cover, Vector};
use crate::store::BUCKETS;

/// Names a link; never used twice by a replica.
pub type LinkId = u64;

/// The answer to a peer's Sync, under way.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) id: u32,
    pub(super) seq: u32,
    pub(super) what: Select,
    /// The last key that was looked at.
    pub(super) after: Option<Bytes>,
    /// No entry is left to look at: only the last part is owed.
    pub(super) exhausted: bool,
    /// What the peer may join once it has everything.
    pub(super) seen: Vec<Seen>,
    pub(super) stranger: Stranger,
    /// Up to which stamp of each origin the peer held everything when it asked.
    pub(super) held: BTreeMap<u64, u64>,
}

/// Which entries an answer brings.
#[derive(Debug)]
pub(super) enum Select {
    /// Those that the peer did not claim to have seen.
    Missing,
    /// All.
    Everything,
    /// All of the buckets that differ.
    Buckets(Box<[bool; BUCKETS]>),
}

/// Our Sync that the peer has not answered to the end.
#[derive(Debug)]
pub(super) struct Awaiting {
    pub(super) id: u32,
    pub(super) next_seq: u32,
    pub(super) want: Want,
    /// When the request or the last part of the answer passed.
    pub(super) since_ms: u64,
    /// Some entry was not taken: the vector must not be joined.
    pub(super) refused: bool,
    /// It was sent in search of what ended seats had half sent.
    pub(super) adopting: bool,
}

// Each flag is a fact of its own: no two of them make a state.
#[allow(clippy::struct_excessive_bools)]
#[derive(Debug)]
pub(super) struct Link {
    /// The peer's process.
    pub(super) origin: u64,
    /// Whether what the peer sends may be taken: its map and ours go back to
    /// one founding, and it was let in by one who takes part.
    pub(super) compatible: bool,
    /// The stamp up to which our own writes were pushed; `None` until the
    /// peer's first Sync says where to begin.
    pub(super) cursor: Option<u64>,
    /// The stamp up to which the peer said it holds our writes.
    pub(super) acked: u64,
    /// What the peer last said it holds of everyone that is known here.
    pub(super) theirs: Vector,
    /// And up to which stamp it had forgotten what was deleted.
    pub(super) their_collected: u64,
    /// Pushed writes of the peer that we hold above a gap: (prev, last).
    pub(super) ahead: Option<(u64, u64)>,
    pub(super) ack_due: bool,
    pub(super) digest_due: bool,
    pub(super) report_due: bool,
    pub(super) roster_due: bool,
    pub(super) request: Option<Want>,
    /// A Sync is to follow the one whose answer is under way.
    pub(super) again: bool,
    pub(super) awaiting: Option<Awaiting>,
    pub(super) requests: u32,
    pub(super) scan: Option<Scan>,
    /// The peer's newest Sync.
    pub(super) answered: u32,
    /// Pushes and delta parts take turns; whose it is.
    pub(super) push_next: bool,
    /// Digests with equal vectors and different fingerprints since the maps were last equal.
    pub(super) strikes: u32,
    pub(super) peer_ready: bool,
    /// A Sync of ours was answered to the end.
    pub(super) synced: bool,
    /// Beats since something came from the peer.
    pub(super) silent_beats: u32,
    /// Beats in which the holder of the peer's name was heard beside it.
    pub(super) twin_beats: u32,
    /// The peer was told last that another has its name.
    pub(super) told_namesake: bool,
    /// Who has this node's name, by the peer's last word.
    pub(super) namesake: Option<Namesake>,
}

impl Link {
    pub(super) const fn new(origin: u64) -> Self {
        Self {
            origin,
            compatible: false,
            cursor: None,
            acked: 0,
            theirs: Vector::new(),
            their_collected: 0,
            ahead: None,
            ack_due: false,
            digest_due: false,
            report_due: false,
            roster_due: true,
            request: None,
            again: false,
            awaiting: None,
            requests: 0,
            scan: None,
            answered: 0,
            push_next: true,
            strikes: 0,
            peer_ready: false,
            synced: false,
            silent_beats: 0,
            twin_beats: 0,
            told_namesake: false,
            namesake: None,
        }
    }

    /// Whether there may be something to send; `own`: the last stamp that is to
    /// be pushed.
    pub(super) fn is_due(&self, own: Option<u64>) -> bool {
        self.roster_due
            || self.request.is_some()
            || self.ack_due
            || self.scan.is_some()
            || self.report_due
            || self.digest_due
            || own.is_some_and(|own| self.cursor.is_some_and(|cursor| cursor < own))
    }

    /// This node has become ready: who waits for a ready peer must hear of it, and the others judge.
    pub(super) fn greet(&mut self) {
        self.cursor.get_or_insert(0);
        self.awaiting = None;
        self.request = Some(Want::Missing);
        self.roster_due = true;
    }

    /// Asks for something, unless an answer is under way.
    pub(super) fn ask(&mut self, want: Want) {
        if self.awaiting.is_none() {
            self.request.get_or_insert(want);
        }
    }
}

/// A vector as it travels.
pub(super) fn to_wire(vector: &Vector) -> Vec<Seen> {
    vector
        .iter()
        .map(|(&origin, cover)| Seen { origin, hlc: cover.seen, last: cover.last, beyond: cover.beyond })
        .collect()
}

/// One origin of a vector that has travelled.
pub(super) const fn from_wire(seen: &Seen) -> (u64, Cover) {
    (seen.origin, Cover { seen: seen.hlc, last: seen.last, beyond: seen.beyond })
}
