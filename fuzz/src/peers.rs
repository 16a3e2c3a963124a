//! The peer port: two replicas whose messages are lost, doubled, late and spoilt, and one of which hears from a third
//! that says anything. Whatever they hear, each stays consistent and goes on.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use kvasir_node::transport::frame::{self, Mode};
use kvasir_proto::peer::v1::{
    Ack, Delta, Digest, Entry, Hello, Message, Namesake, Push, Report, Roster, Seat, Seen, Standing, Sync,
    message::Kind,
};
use kvasir_replica::clock::Dot;
use kvasir_replica::protocol::{Bounds, LOG_MAX_BYTES, LinkId, PeerId, Replica, Settings, View};
use kvasir_replica::store::Store;
use prost::Message as _;

use crate::answers::decoded;
use crate::input::{Input, chunk};

const START_MS: u64 = 1_700_000_000_000;
/// The largest frame that is read here.
const LIMIT: usize = 1 << 16;
const MAX_MEMORY: u64 = 4096;

// ---- frames

/// What comes from the socket, before and after the handshake.
pub(crate) fn run_frames(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without sockets");
    runtime.block_on(async {
        let mut stream = bytes;
        if bytes.first() == Some(&b'k') && frame::read_preamble(&mut stream, Mode::Plain, frame::VERSION).await.is_err()
        {
            assert!(!bytes.starts_with(&Mode::Plain.preamble(frame::VERSION)));
            return;
        }
        if let Ok(hello) = frame::read::<Hello>(&mut &stream[..], LIMIT).await {
            again(&hello).await;
        }
        let mut replica = ready(7, "a");
        let link = replica.link_up(peer(9, "b"));
        while let Ok(message) = frame::read::<Message>(&mut stream, LIMIT).await {
            again(&message).await;
            if replica.receive(link, message, START_MS + 5).is_err() {
                break;
            }
            while replica.poll_send(link, START_MS + 5).is_some() {}
        }
        check(&replica);
        goes_on(&mut replica, START_MS + 10);
    });
}

/// What was read is the same when it is written and read again.
async fn again<M: prost::Message + Default + PartialEq + std::fmt::Debug>(message: &M) {
    let mut wire = BytesMut::new();
    frame::append(&mut wire, message);
    assert!(wire.len() <= LIMIT * 2, "{} bytes", wire.len());
    let read: M = frame::read(&mut &wire[..], wire.len()).await.expect("our own frame");
    assert_eq!(read, *message);
}

pub(crate) fn frame_seeds() -> Vec<Vec<u8>> {
    let mut replica = ready(9, "b");
    let link = replica.link_up(peer(7, "a"));
    replica.put("key".into(), "value".into(), Some(START_MS + 9999), START_MS).expect("there is room");
    let mut stream = Mode::Plain.preamble(frame::VERSION).to_vec();
    let frame = |message: Kind| {
        let body = Message { kind: Some(message) }.encode_to_vec();
        [&u32::try_from(body.len()).expect("short").to_be_bytes()[..], &body].concat()
    };
    while let Some(message) = replica.poll_send(link, START_MS) {
        stream.extend(frame(message.kind.expect("of a kind")));
    }
    let push =
        Push { prev: 0, last: stamp(4), entries: vec![entry(&mut Input::new(b"\x01\x05\x03\x01"), &[])], now_ms: 0 };
    let digest = Digest { seen_hash: 1, fingerprint_hi: 2, fingerprint_lo: 3, forgotten: 0 };
    vec![stream, [frame(Kind::Push(push)), frame(Kind::Ack(Ack { hlc: 1 })), frame(Kind::Digest(digest))].concat()]
}

// ---- replicas

fn settings(origin: u64, name: &str) -> Settings {
    Settings {
        origin,
        name: name.to_owned(),
        voter: true,
        started_ms: START_MS - origin,
        voters: 2,
        evict_after_ms: 2_000,
        sync_interval_ms: 100,
        max_clock_skew_ms: 10_000,
        max_memory: Some(MAX_MEMORY),
        evict_ending: origin == 7,
        may_found: true,
        serve_alone: true,
        join_timeout_ms: 500,
        bounds: Bounds {
            log_entries: 8,
            log_bytes: LOG_MAX_BYTES,
            message_entries: 3,
            scan_step: 4,
            remember_ended_ms: 1_000,
            remember_evicted_ms: 1_000,
            ended_seats: 2,
            kept_deletes: 4,
        },
    }
}

fn ready(origin: u64, name: &str) -> Replica {
    let mut replica = Replica::new(settings(origin, name), START_MS - 1000);
    replica.tick(View::ALONE, START_MS);
    assert!(replica.is_ready());
    replica
}

fn peer(origin: u64, name: &str) -> PeerId {
    PeerId { origin, name: name.to_owned(), voter: true, started_ms: START_MS - origin, returning: false }
}

fn stamp(ms: u64) -> u64 {
    kvasir_replica::clock::stamp_at(START_MS + ms)
}

/// What must hold between any two steps: the sums are those of the records.
fn check(replica: &Replica) {
    let store = replica.store();
    let mut recount = Store::default();
    for (key, record) in store.scan(None) {
        assert!(!key.is_empty(), "a record without a key");
        assert!(recount.merge(key.clone(), record.clone()));
    }
    assert_eq!(
        (store.len(), store.keys(), store.tombstones(), store.memory()),
        (recount.len(), recount.keys(), recount.tombstones(), recount.memory())
    );
    assert_eq!(store.fingerprint(), recount.fingerprint());
    assert!(store.buckets() == recount.buckets(), "the sums of the buckets are wrong");
    assert_eq!(store.is_collected(u64::MAX), recount.is_collected(u64::MAX));
    assert_eq!(store.first_to_end(), recount.first_to_end());
    let beside = MAX_MEMORY / kvasir_replica::protocol::HEADROOM + store.tombstones() * 512;
    assert!(store.memory() <= MAX_MEMORY + beside, "{} bytes", store.memory());
    for (origin, cover) in replica.vector() {
        assert!(cover.beyond == 0 || cover.beyond > cover.seen.min(cover.last), "{origin}: {cover:?}");
    }
    assert_eq!(replica.seats().filter(|(origin, _)| *origin == replica.origin()).count(), 1, "no seat of its own");
}

/// It takes a write that beats all there is, gives it back, and deletes it.
fn goes_on(replica: &mut Replica, now_ms: u64) {
    let before = replica.store().scan(None).map(|(_, record)| record.dot.hlc).max().unwrap_or(0);
    let Ok(dot) = replica.put("k1".into(), "v".into(), None, now_ms) else { return };
    assert!(dot.hlc > before && dot.origin == replica.origin(), "{dot:?} after {before}");
    let held = replica.store().get(b"k1").expect("it was put");
    assert_eq!((held.dot, held.live(now_ms)), (dot, Some(&Bytes::from_static(b"v"))));
    assert!(replica.vector()[&dot.origin].seen >= dot.hlc);
    let deleted = replica.delete("k1".into(), now_ms).expect("it is there");
    assert!(deleted > dot && replica.store().get(b"k1").is_none_or(|record| record.live(now_ms).is_none()));
    check(replica);
}

struct Side {
    replica: Replica,
    link: LinkId,
    /// To the one who says anything.
    stray: LinkId,
    out: Vec<Message>,
    /// What was last said to the stranger: what it may answer to.
    asked: Vec<Message>,
    origin: u64,
    newest: Dot,
    held: BTreeMap<Bytes, Dot>,
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut now_ms = START_MS;
    let view = View::ALONE;
    let mut sides = [(7, "a"), (9, "b")].map(|(origin, name)| {
        let replica = if input.flag() { ready(origin, name) } else { Replica::new(settings(origin, name), START_MS) };
        let (newest, held) = (Dot::default(), BTreeMap::new());
        Side { replica, link: 0, stray: 0, out: Vec::new(), asked: Vec::new(), origin, newest, held }
    });
    connect(&mut sides);
    while !input.is_empty() {
        let at = input.below(2);
        let (here, there) = {
            let [a, b] = &mut sides;
            if at == 0 { (a, b) } else { (b, a) }
        };
        match input.below(16) {
            0 | 1 => {
                now_ms += u64::from(input.byte());
                here.replica.tick(view, now_ms);
            }
            2 => {
                now_ms = (now_ms + u64::from(input.byte()) * 100).saturating_sub(u64::from(input.byte()) * 20);
                here.replica.tick(view, now_ms);
            }
            3 | 4 => {
                let key = key(&mut input);
                let value = Bytes::from(vec![7; input.below(200)]);
                let end = input.flag().then(|| now_ms + u64::from(input.byte()) * 8);
                if let Ok(dot) = here.replica.put(key.clone(), value.clone(), end, now_ms) {
                    wrote(here, dot);
                    let held = here.replica.store().get(&key).expect("it was put");
                    assert_eq!((held.dot, held.value.as_ref(), held.expires_ms), (dot, Some(&value), end));
                }
            }
            5 => {
                let key = key(&mut input);
                let was = here.replica.store().get(&key).is_some_and(|record| record.live(now_ms).is_some());
                let deleted = here.replica.delete(key, now_ms);
                assert_eq!(deleted.is_some(), was);
                if let Some(dot) = deleted {
                    wrote(here, dot);
                }
            }
            6 => {
                let touched = here.replica.touch(key(&mut input), Some(now_ms + u64::from(input.byte())), now_ms);
                if let Ok(Some(dot)) = touched {
                    wrote(here, dot);
                }
            }
            7 | 8 => say(here, now_ms),
            9 | 10 => {
                say(there, now_ms);
                for message in std::mem::take(&mut there.out) {
                    heard(here, message, now_ms);
                }
            }
            11 => {
                if !there.out.is_empty() {
                    let message = there.out[input.below(there.out.len())].clone();
                    heard(here, message, now_ms);
                }
            }
            12 => {
                let Some(message) = there.out.last() else { continue };
                let mut wire = message.encode_to_vec();
                for _ in 0..=input.below(3) {
                    let at = usize::from(input.byte()) % wire.len().max(1);
                    let mask = input.byte();
                    wire.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= mask);
                }
                if let Ok(message) = Message::decode(&wire[..]) {
                    heard(here, message, now_ms);
                }
            }
            13 | 14 => {
                if !here.replica.is_up(here.stray) {
                    here.stray = here.replica.link_up(peer(11, if input.flag() { "c" } else { "b" }));
                }
                while let Some(message) = here.replica.poll_send(here.stray, now_ms) {
                    here.asked.push(message);
                }
                let message = anything(&mut input, here, now_ms);
                if here.replica.receive(here.stray, message, now_ms).is_err() {
                    here.replica.link_down(here.stray);
                }
            }
            _ => match input.below(6) {
                0 => here.replica.link_down(here.link),
                1 => here.replica.link_down(here.stray),
                2 => here.replica.leave(now_ms),
                3 => here.replica.set_voters(input.below(5)),
                4 => {
                    if let Some(message) = decoded::<Message>(input.chunk()) {
                        heard(here, message, now_ms);
                    }
                }
                _ => connect(&mut sides),
            },
        }
        let side = &mut sides[at];
        let many = side.asked.len().saturating_sub(8);
        side.asked.drain(..many);
        progress(side);
        check(&side.replica);
    }
    for side in &mut sides {
        side.replica.tick(view, now_ms);
        goes_on(&mut side.replica, now_ms);
    }
}

/// Both learn of the connection, as after a handshake.
fn connect([a, b]: &mut [Side; 2]) {
    let (id_a, id_b) = (a.replica.id(), b.replica.id());
    a.link = a.replica.link_up(id_b);
    b.link = b.replica.link_up(id_a);
    a.out.clear();
    b.out.clear();
}

/// What there is to say is on its way, and may wait there.
fn say(side: &mut Side, now_ms: u64) {
    while let Some(message) = side.replica.poll_send(side.link, now_ms) {
        assert!(message.encoded_len() <= LIMIT, "{} bytes", message.encoded_len());
        side.out.push(message);
        assert!(side.out.len() < 10_000, "it never ends");
    }
    let many = side.out.len().saturating_sub(32);
    side.out.drain(..many);
}

fn heard(side: &mut Side, message: Message, now_ms: u64) {
    if side.replica.receive(side.link, message, now_ms).is_err() {
        side.replica.link_down(side.link);
    }
}

/// Own writes rise for as long as the origin is one.
fn wrote(side: &mut Side, dot: Dot) {
    assert!(dot.hlc > side.newest.hlc, "{dot:?} after {:?}", side.newest);
    assert_eq!(dot.origin, side.replica.origin());
    side.newest = dot;
}

/// No key goes back to an older version while the map is one and the same. What comes before it is ready, it may drop.
fn progress(side: &mut Side) {
    let anew = side.origin != side.replica.origin() || !side.replica.is_ready();
    side.origin = side.replica.origin();
    if anew {
        side.held.clear();
    }
    if !side.replica.is_ready() {
        return;
    }
    for (key, record) in side.replica.store().scan(None) {
        let before = side.held.insert(key.clone(), record.dot);
        assert!(
            before.is_none_or(|before| before <= record.dot),
            "{key:?} went back from {before:?} to {:?}",
            record.dot
        );
    }
    side.held.retain(|key, _| side.replica.store().get(key).is_some());
}

// ---- what a stranger may say

fn key(input: &mut Input<'_>) -> Bytes {
    Bytes::from(format!("k{}", input.below(6)))
}

/// Stamps that mean something to the replica, and any.
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

fn entry(input: &mut Input<'_>, known: &[u64]) -> Entry {
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

fn anything(input: &mut Input<'_>, side: &Side, now_ms: u64) -> Message {
    let replica = &side.replica;
    let known: Vec<u64> = replica
        .vector()
        .values()
        .flat_map(|cover| [cover.seen, cover.last, cover.beyond])
        .chain([replica.collected(), kvasir_replica::clock::stamp_at(now_ms)])
        .collect();
    let known = &known[..];
    let standing = |input: &mut Input<'_>| {
        let (founded_hlc, founded_by) = if input.flag() { replica.founding() } else { (any_stamp(input, known), 11) };
        Standing {
            founded_hlc,
            founded_by,
            promised: input.flag(),
            collected: if input.flag() { replica.collected() } else { any_stamp(input, known) },
            forgotten: if input.flag() { any_stamp(input, known) } else { 0 },
            vouched: if input.flag() { any_stamp(input, known) } else { 0 },
        }
    };
    let seen = |input: &mut Input<'_>| {
        let mut some = many(input, |input| Seen {
            origin: any_origin(input),
            hlc: any_stamp(input, known),
            last: any_stamp(input, known),
            beyond: if input.flag() { any_stamp(input, known) } else { 0 },
        });
        // As much as the replica has itself.
        if input.flag() {
            let cover = |(&origin, cover): (&u64, &kvasir_replica::protocol::Cover)| Seen {
                origin,
                hlc: cover.seen,
                last: cover.last,
                beyond: cover.beyond,
            };
            some.extend(replica.vector().iter().map(cover));
        }
        some
    };
    let entries = |input: &mut Input<'_>| many(input, |input| entry(input, known));
    let asked = |want: fn(&Kind) -> Option<u64>| {
        side.asked.iter().rev().filter_map(|message| message.kind.as_ref()).find_map(want).unwrap_or(0)
    };
    let roster = |input: &mut Input<'_>| Roster {
        seats: many(input, |input| Seat {
            origin: any_origin(input),
            name: input.of(&["a", "b", "c"]).to_owned(),
            voter: input.flag(),
            started_ms: if input.flag() { input.number() } else { START_MS },
            state: i32::from(input.byte() % 5),
            since_hlc: any_stamp(input, known),
            returning: input.flag(),
            sponsor: any_origin(input),
            began_hlc: any_stamp(input, known),
            agreed_hlc: any_stamp(input, known),
        }),
    };
    let id = u32::try_from(asked(|kind| if let Kind::Sync(sync) = kind { Some(sync.id.into()) } else { None }));
    let kind = match input.below(8) {
        0 => {
            let prev = any_stamp(input, known);
            let now_ms = START_MS + u64::from(input.byte()) * 100;
            Kind::Push(Push { prev, last: any_stamp(input, known), entries: entries(input), now_ms })
        }
        1 => {
            let fingerprint = replica.store().fingerprint() ^ u128::from(input.below(3) as u64);
            let fingerprint_hi = (fingerprint >> 64) as u64;
            let own = asked(|kind| if let Kind::Digest(digest) = kind { Some(digest.seen_hash) } else { None });
            let forgotten = replica.forgotten();
            Kind::Digest(Digest { seen_hash: own, fingerprint_hi, fingerprint_lo: fingerprint as u64, forgotten })
        }
        2 | 3 => Kind::Sync(Sync {
            id: u32::from(input.byte()),
            want: i32::from(input.byte() % 5),
            seen: seen(input),
            ready: !input.flag(),
            standing: Some(standing(input)),
            buckets: Bytes::from(vec![0; input.below(2) * 16 * kvasir_replica::store::BUCKETS]),
            echo: input.flag(),
            // Whom the replica let in itself may be merged with.
            sponsor: if input.flag() { any_origin(input) } else { replica.origin() },
            began_hlc: any_stamp(input, known),
        }),
        4 => Kind::Delta(Delta {
            id: id.unwrap_or(0),
            seq: input.below(3) as u32,
            entries: entries(input),
            last: !input.flag(),
            seen: seen(input),
            ready: !input.flag(),
            standing: Some(standing(input)),
            stranger: if input.byte() == 1 { i32::from(input.byte()) } else { 0 },
            roster: input.flag().then(|| roster(input)),
            namesake: namesake(input),
        }),
        5 => Kind::Ack(Ack { hlc: any_stamp(input, known) }),
        6 => Kind::Report(Report {
            roster_hash: asked(|kind| if let Kind::Report(report) = kind { Some(report.roster_hash) } else { None }),
            stable: any_stamp(input, known),
            standing: Some(standing(input)),
            silent: many(input, any_origin),
            voters: u32::from(input.byte()),
            namesake: namesake(input),
        }),
        _ => Kind::Roster(roster(input)),
    };
    Message { kind: Some(kind) }
}

/// Another process with the addressee's name, as one peer of many says.
fn namesake(input: &mut Input) -> Option<Namesake> {
    (input.byte() == 1).then(|| Namesake {
        origin: any_origin(input),
        started_ms: u64::from(input.byte()),
        for_good: input.flag(),
    })
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    // Both ready, or one of them, or none; then (side, what, ...): tick, put, exchange.
    let talk: Vec<u8> =
        (0..12u8).flat_map(|i| [0, 0, 50, 0, 9, 1, 9, 0, 3, i, 30, 0, 1, 0, 60, 1, 9, 0, 9, 1, 5, i, 0, 9]).collect();
    let late: Vec<u8> =
        (0..8u8).flat_map(|i| [0, 3, i, 90, 1, 40, 0, 7, 1, 11, 1, 1, 2, 30, 5, 1, 12, i, 3, 9]).collect();
    let message = Message { kind: Some(Kind::Ack(Ack { hlc: stamp(3) })) };
    let raw = [&[1, 1, 0, 15, 4][..], &chunk(&message.encode_to_vec())].concat();
    let stray: Vec<u8> = (0..60u8).flat_map(|i| [i & 1, 13, 0, i % 8, i, 2, 1, 4, 1, 0, 1, i, 3, 1, 9]).collect();
    let with = |first: [u8; 2], steps: &[&[u8]]| [&first[..], &steps.concat()].concat();
    vec![
        with([1, 1], &[&talk]),
        with([1, 0], &[&talk, &late]),
        with([0, 0], &[&talk]),
        with([1, 1], &[&talk, &stray]),
        with([1, 0], &[&stray]),
        raw,
        // Found by the fuzzer: a write of this node's that it never made; a node that leaves, with few seats remembered.
        include_bytes!("found/peers-own-write").to_vec(),
        include_bytes!("found/peers-leaves").to_vec(),
    ]
}
