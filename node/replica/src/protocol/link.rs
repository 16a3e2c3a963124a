//! The state of one link to one peer. A new connection is a new link, and takes over nothing from an older one.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvasir_proto::peer::v1::{Seen, Standing, Stranger, Want};

use super::types::Namesake;
use super::vector::{self, Vector};
use crate::store::BUCKETS;

/// Identifies a link; never used twice by a replica.
pub type LinkId = u64;

/// The answer to a peer's Sync, while it is sent.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) id: u32,
    pub(super) seq: u32,
    pub(super) what: Select,
    /// The last key that was looked at.
    pub(super) after: Option<Bytes>,
    /// Whether no entry is left to look at, and only the last part has to be sent.
    pub(super) exhausted: bool,
    /// The vector that the peer may join once it has everything.
    pub(super) seen: Vec<Seen>,
    pub(super) stranger: Stranger,
    /// Up to which timestamp of each origin the peer held everything when it sent its Sync.
    pub(super) held: BTreeMap<u64, u64>,
}

/// Which entries an answer brings.
#[derive(Debug)]
pub(super) enum Select {
    /// Those that the peer does not cover.
    Missing,
    /// All.
    Everything,
    /// All of the buckets that differ.
    Buckets(Box<[bool; BUCKETS]>),
}

/// A Sync of this node that the peer has not answered completely.
#[derive(Debug)]
pub(super) struct Awaiting {
    pub(super) id: u32,
    pub(super) next_seq: u32,
    pub(super) want: Want,
    /// When the request was sent, or the latest part of the answer came.
    pub(super) since_ms: u64,
    /// Whether some entry was not taken, so that the vector must not be joined.
    pub(super) refused: bool,
    /// Whether it was sent to look for partial writes.
    pub(super) adopting: bool,
}

// The flags are independent of each other: they do not encode a state.
#[allow(clippy::struct_excessive_bools)]
#[derive(Debug)]
pub(super) struct Link {
    /// The peer's process.
    pub(super) origin: u64,
    /// Whether this node takes what the peer sends: both maps are of one epoch, and the peer was admitted.
    pub(super) compatible: bool,
    /// The timestamp up to which own writes were pushed; `None` until the peer's first Sync says where to begin.
    pub(super) cursor: Option<u64>,
    /// The timestamp up to which the peer says that it covers this node's writes.
    pub(super) acked: u64,
    /// The vector that the peer last sent, without origins that are unknown here.
    pub(super) theirs: Vector,
    /// The peer's stability watermark with that vector.
    pub(super) their_collected: u64,
    /// Pushed writes of the peer that are held above a gap: (prev, last).
    pub(super) ahead: Option<(u64, u64)>,
    pub(super) ack_due: bool,
    pub(super) digest_due: bool,
    pub(super) report_due: bool,
    pub(super) roster_due: bool,
    pub(super) request: Option<Want>,
    /// Whether another Sync must follow the one whose answer is on its way.
    pub(super) again: bool,
    pub(super) awaiting: Option<Awaiting>,
    pub(super) requests: u32,
    pub(super) scan: Option<Scan>,
    /// The peer's newest Sync.
    pub(super) answered: u32,
    /// Pushes and parts of a delta take turns: a push is next.
    pub(super) push_next: bool,
    /// Digests with equal vectors and different fingerprints since the maps were last equal.
    pub(super) strikes: u32,
    pub(super) peer_ready: bool,
    /// Whether a Sync of this node was answered completely.
    pub(super) synced: bool,
    /// Beats since something came from the peer.
    pub(super) silent_beats: u32,
    /// Beats in which the holder of the peer's name was heard since the peer came.
    pub(super) twin_beats: u32,
    /// Whether the last report to the peer says that another process has its name.
    pub(super) sent_namesake: bool,
    /// The process that has this node's name, according to the peer's last report.
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
            sent_namesake: false,
            namesake: None,
        }
    }

    /// Whether there may be something to send; `own`: the last timestamp to be pushed.
    pub(super) fn is_due(&self, own: Option<u64>) -> bool {
        self.roster_due
            || self.request.is_some()
            || self.ack_due
            || self.scan.is_some()
            || self.report_due
            || self.digest_due
            || own.is_some_and(|own| self.cursor.is_some_and(|cursor| cursor < own))
    }

    /// Greets the peer when this node has become ready: a peer that waits for a ready node must learn of it, and a ready peer
    /// must decide whether to admit this node.
    pub(super) fn greet(&mut self) {
        self.cursor.get_or_insert(0);
        self.awaiting = None;
        self.request = Some(Want::Missing);
        self.roster_due = true;
    }

    /// Requests something, unless an answer is on its way.
    pub(super) fn ask(&mut self, want: Want) {
        if self.awaiting.is_none() {
            self.request.get_or_insert(want);
        }
    }

    /// Notes what the peer says that it holds.
    pub(super) fn note_held(&mut self, seen: &[Seen], standing: Option<&Standing>, known: &Vector) {
        if !seen.is_empty() {
            self.their_collected = standing.map_or(0, |s| s.collected);
            self.theirs = seen.iter().filter(|s| known.contains_key(&s.origin)).map(vector::from_wire).collect();
        }
    }
}
