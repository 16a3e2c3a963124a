//! Messages of a peer that may send anything: well-formed, often with values that the replica knows, never trustworthy.

use bytes::Bytes;
use kvasir_proto::peer::v1::{
    Ack, Delta, Digest, Entry, Message, Namesake, Push, Report, Roster, Seat, Seen, Standing, Sync, message::Kind,
};
use kvasir_replica::protocol::{Cover, Replica};

use super::{START_MS, Side, key, stamp};
use crate::input::Input;

pub(super) fn message(input: &mut Input<'_>, side: &Side, now_ms: u64) -> Message {
    Stray::new(side, now_ms).message(input)
}

struct Stray<'s> {
    replica: &'s Replica,
    /// What the replica sent to this peer.
    asked: &'s [Message],
    /// Timestamps that mean something to the replica.
    known: Vec<u64>,
}

impl<'s> Stray<'s> {
    fn new(side: &'s Side, now_ms: u64) -> Self {
        let replica = &side.replica;
        let covers = replica.vector().values().flat_map(|cover| [cover.seen, cover.last, cover.beyond]);
        let known = covers.chain([replica.collected(), kvasir_replica::clock::stamp_at(now_ms)]).collect();
        Self { replica, asked: &side.asked, known }
    }

    fn stamp(&self, input: &mut Input<'_>) -> u64 {
        any_stamp(input, &self.known)
    }

    fn entries(&self, input: &mut Input<'_>) -> Vec<Entry> {
        many(input, |input| entry(input, &self.known))
    }

    /// From the last message that has it, or 0.
    fn asked(&self, want: fn(&Kind) -> Option<u64>) -> u64 {
        self.asked.iter().rev().filter_map(|message| message.kind.as_ref()).find_map(want).unwrap_or(0)
    }

    fn standing(&self, input: &mut Input<'_>) -> Standing {
        let (founded_hlc, founded_by) = if input.flag() { self.replica.founding() } else { (self.stamp(input), 11) };
        Standing {
            founded_hlc,
            founded_by,
            promised: input.flag(),
            collected: if input.flag() { self.replica.collected() } else { self.stamp(input) },
            forgotten: if input.flag() { self.stamp(input) } else { 0 },
            vouched: if input.flag() { self.stamp(input) } else { 0 },
        }
    }

    fn seen(&self, input: &mut Input<'_>) -> Vec<Seen> {
        let mut some = many(input, |input| Seen {
            origin: any_origin(input),
            hlc: self.stamp(input),
            last: self.stamp(input),
            beyond: if input.flag() { self.stamp(input) } else { 0 },
        });
        // As much as the replica has itself.
        if input.flag() {
            let cover = |(&origin, cover): (&u64, &Cover)| Seen {
                origin,
                hlc: cover.seen,
                last: cover.last,
                beyond: cover.beyond,
            };
            some.extend(self.replica.vector().iter().map(cover));
        }
        some
    }

    fn roster(&self, input: &mut Input<'_>) -> Roster {
        Roster {
            seats: many(input, |input| Seat {
                origin: any_origin(input),
                name: input.of(&["a", "b", "c"]).to_owned(),
                voter: input.flag(),
                started_ms: if input.flag() { input.number() } else { START_MS },
                state: i32::from(input.byte() % 5),
                since_hlc: self.stamp(input),
                returning: input.flag(),
                sponsor: any_origin(input),
                began_hlc: self.stamp(input),
                agreed_hlc: self.stamp(input),
            }),
        }
    }

    fn push(&self, input: &mut Input<'_>) -> Push {
        let prev = self.stamp(input);
        let now_ms = START_MS + u64::from(input.byte()) * 100;
        Push { prev, last: self.stamp(input), entries: self.entries(input), now_ms }
    }

    fn digest(&self, input: &mut Input<'_>) -> Digest {
        let fingerprint = self.replica.store().fingerprint() ^ u128::from(input.below(3) as u64);
        Digest {
            seen_hash: self.asked(|kind| if let Kind::Digest(digest) = kind { Some(digest.seen_hash) } else { None }),
            fingerprint_hi: (fingerprint >> 64) as u64,
            fingerprint_lo: fingerprint as u64,
            forgotten: self.replica.forgotten(),
        }
    }

    fn sync(&self, input: &mut Input<'_>) -> Sync {
        Sync {
            id: u32::from(input.byte()),
            want: i32::from(input.byte() % 5),
            seen: self.seen(input),
            ready: !input.flag(),
            standing: Some(self.standing(input)),
            buckets: Bytes::from(vec![0; input.below(2) * 16 * kvasir_replica::store::BUCKETS]),
            echo: input.flag(),
            // The replica may merge with a peer that it sponsors.
            sponsor: if input.flag() { any_origin(input) } else { self.replica.origin() },
            began_hlc: self.stamp(input),
        }
    }

    fn delta(&self, input: &mut Input<'_>) -> Delta {
        let id = self.asked(|kind| if let Kind::Sync(sync) = kind { Some(sync.id.into()) } else { None });
        Delta {
            id: u32::try_from(id).unwrap_or(0),
            seq: input.below(3) as u32,
            entries: self.entries(input),
            last: !input.flag(),
            seen: self.seen(input),
            ready: !input.flag(),
            standing: Some(self.standing(input)),
            stranger: if input.byte() == 1 { i32::from(input.byte()) } else { 0 },
            roster: input.flag().then(|| self.roster(input)),
            namesake: namesake(input),
        }
    }

    fn report(&self, input: &mut Input<'_>) -> Report {
        let roster_hash = |kind: &Kind| if let Kind::Report(report) = kind { Some(report.roster_hash) } else { None };
        Report {
            roster_hash: self.asked(roster_hash),
            stable: self.stamp(input),
            standing: Some(self.standing(input)),
            silent: many(input, any_origin),
            voters: u32::from(input.byte()),
            namesake: namesake(input),
        }
    }

    fn message(&self, input: &mut Input<'_>) -> Message {
        let kind = match input.below(8) {
            0 => Kind::Push(self.push(input)),
            1 => Kind::Digest(self.digest(input)),
            2 | 3 => Kind::Sync(self.sync(input)),
            4 => Kind::Delta(self.delta(input)),
            5 => Kind::Ack(Ack { hlc: self.stamp(input) }),
            6 => Kind::Report(self.report(input)),
            _ => Kind::Roster(self.roster(input)),
        };
        Message { kind: Some(kind) }
    }
}

/// A timestamp that the replica knows, one near it, or any.
fn any_stamp(input: &mut Input<'_>, known: &[u64]) -> u64 {
    match input.below(6) {
        0 => 0,
        1 => input.number(),
        2 if !known.is_empty() => input.of(known),
        3 if !known.is_empty() => input.of(known).wrapping_add(1),
        _ => stamp(u64::from(input.byte())),
    }
}

fn any_origin(input: &mut Input<'_>) -> u64 {
    match input.below(5) {
        0 => 7,
        1 => 9,
        2 => 11,
        3 => u64::from(input.byte()),
        _ => input.number(),
    }
}

pub(super) fn entry(input: &mut Input<'_>, known: &[u64]) -> Entry {
    Entry {
        key: if input.byte() == 0 { Bytes::new() } else { key(input) },
        hlc: any_stamp(input, known),
        origin: any_origin(input),
        deleted: input.flag(),
        value: Bytes::from(vec![1; input.below(64)]),
        expires_ms: if input.flag() { START_MS + u64::from(input.byte()) } else { 0 },
        first_hlc: if input.flag() { any_stamp(input, known) } else { 0 },
        first_origin: any_origin(input),
        replaced_hlc: if input.flag() { any_stamp(input, known) } else { 0 },
        replaced_origin: if input.flag() { any_origin(input) } else { 0 },
    }
}

fn many<T>(input: &mut Input<'_>, mut one: impl FnMut(&mut Input<'_>) -> T) -> Vec<T> {
    (0..input.below(4)).map(|_| one(input)).collect()
}

/// A claim that another process has the addressee's name.
fn namesake(input: &mut Input) -> Option<Namesake> {
    (input.byte() == 1).then(|| Namesake {
        origin: any_origin(input),
        started_ms: u64::from(input.byte()),
        for_good: input.flag(),
    })
}
