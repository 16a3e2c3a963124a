//! The peer port: two replicas whose messages are lost, duplicated, late or corrupt, and a third peer that sends anything
//! (`stray`). Whatever arrives, each replica stays consistent and keeps working.

mod stray;

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use kvasir_node::transport::frame::{self, Mode};
use kvasir_proto::peer::v1::{Ack, Digest, Hello, Message, Push, message::Kind};
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

/// Bytes from the socket, before and after the handshake.
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
            round_trips(&hello).await;
        }
        let mut replica = ready(7, "a");
        let link = replica.link_up(peer(9, "b"));
        while let Ok(message) = frame::read::<Message>(&mut stream, LIMIT).await {
            round_trips(&message).await;
            if replica.receive(link, message, START_MS + 5).is_err() {
                break;
            }
            while replica.poll_send(link, START_MS + 5).is_some() {}
        }
        check(&replica);
        works(&mut replica, START_MS + 10);
    });
}

/// A message that was read is equal after it is written and read again.
async fn round_trips<M: prost::Message + Default + PartialEq + std::fmt::Debug>(message: &M) {
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
    let push = Push {
        prev: 0,
        last: stamp(4),
        entries: vec![stray::entry(&mut Input::new(b"\x01\x05\x03\x01"), &[])],
        now_ms: 0,
    };
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

/// Holds between any two steps: the store's sums are those of its records.
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
    let headroom = MAX_MEMORY / kvasir_replica::protocol::HEADROOM + store.tombstones() * 512;
    assert!(store.memory() <= MAX_MEMORY + headroom, "{} bytes", store.memory());
    for (origin, cover) in replica.vector() {
        assert!(cover.beyond == 0 || cover.beyond > cover.seen.min(cover.last), "{origin}: {cover:?}");
    }
    assert_eq!(replica.seats().filter(|(origin, _)| *origin == replica.origin()).count(), 1, "no seat of its own");
}

/// The replica accepts a write that wins over all others, returns it, and deletes it.
fn works(replica: &mut Replica, now_ms: u64) {
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
    /// The link to the peer that sends anything.
    stray: LinkId,
    out: Vec<Message>,
    /// The last messages to that peer, which it may answer.
    asked: Vec<Message>,
    origin: u64,
    newest: Dot,
    held: BTreeMap<Bytes, Dot>,
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut now_ms = START_MS;
    let mut sides = [(7, "a"), (9, "b")].map(|(origin, name)| {
        let replica = if input.flag() { ready(origin, name) } else { Replica::new(settings(origin, name), START_MS) };
        let (newest, held) = (Dot::default(), BTreeMap::new());
        Side { replica, link: 0, stray: 0, out: Vec::new(), asked: Vec::new(), origin, newest, held }
    });
    connect(&mut sides);
    while !input.is_empty() {
        let at = input.below(2);
        step(&mut input, &mut sides, at, &mut now_ms);
        let side = &mut sides[at];
        let many = side.asked.len().saturating_sub(8);
        side.asked.drain(..many);
        progress(side);
        check(&side.replica);
    }
    for side in &mut sides {
        side.replica.tick(View::ALONE, now_ms);
        works(&mut side.replica, now_ms);
    }
}

fn key(input: &mut Input<'_>) -> Bytes {
    Bytes::from(format!("k{}", input.below(6)))
}

/// One step of the side `at`.
fn step(input: &mut Input<'_>, sides: &mut [Side; 2], at: usize, now_ms: &mut u64) {
    let (here, there) = {
        let [a, b] = &mut *sides;
        if at == 0 { (a, b) } else { (b, a) }
    };
    match input.below(16) {
        0 | 1 => {
            *now_ms += u64::from(input.byte());
            here.replica.tick(View::ALONE, *now_ms);
        }
        2 => {
            *now_ms = (*now_ms + u64::from(input.byte()) * 100).saturating_sub(u64::from(input.byte()) * 20);
            here.replica.tick(View::ALONE, *now_ms);
        }
        3 | 4 => put(input, here, *now_ms),
        5 => delete(input, here, *now_ms),
        6 => {
            let end = |input: &mut Input<'_>| Some(*now_ms + u64::from(input.byte()));
            if let Ok(Some(dot)) = here.replica.touch(key(input), end(input), *now_ms) {
                wrote(here, dot);
            }
        }
        7 | 8 => send(here, *now_ms),
        9 | 10 => {
            send(there, *now_ms);
            for message in std::mem::take(&mut there.out) {
                receive(here, message, *now_ms);
            }
        }
        11 => {
            if !there.out.is_empty() {
                let message = there.out[input.below(there.out.len())].clone();
                receive(here, message, *now_ms);
            }
        }
        12 => receive_corrupt(input, here, there, *now_ms),
        13 | 14 => receive_stray(input, here, *now_ms),
        _ => match input.below(6) {
            0 => here.replica.link_down(here.link),
            1 => here.replica.link_down(here.stray),
            2 => here.replica.leave(*now_ms),
            3 => here.replica.set_voters(input.below(5)),
            4 => {
                if let Some(message) = decoded::<Message>(input.chunk()) {
                    receive(here, message, *now_ms);
                }
            }
            _ => connect(sides),
        },
    }
}

fn put(input: &mut Input<'_>, side: &mut Side, now_ms: u64) {
    let key = key(input);
    let value = Bytes::from(vec![7; input.below(200)]);
    let end = input.flag().then(|| now_ms + u64::from(input.byte()) * 8);
    if let Ok(dot) = side.replica.put(key.clone(), value.clone(), end, now_ms) {
        wrote(side, dot);
        let held = side.replica.store().get(&key).expect("it was put");
        assert_eq!((held.dot, held.value.as_ref(), held.expires_ms), (dot, Some(&value), end));
    }
}

fn delete(input: &mut Input<'_>, side: &mut Side, now_ms: u64) {
    let key = key(input);
    let was = side.replica.store().get(&key).is_some_and(|record| record.live(now_ms).is_some());
    let deleted = side.replica.delete(key, now_ms);
    assert_eq!(deleted.is_some(), was);
    if let Some(dot) = deleted {
        wrote(side, dot);
    }
}

/// The last message of `there`, with some bits flipped.
fn receive_corrupt(input: &mut Input<'_>, here: &mut Side, there: &Side, now_ms: u64) {
    let Some(message) = there.out.last() else { return };
    let mut wire = message.encode_to_vec();
    for _ in 0..=input.below(3) {
        let at = usize::from(input.byte()) % wire.len().max(1);
        let mask = input.byte();
        if let Some(byte) = wire.get_mut(at) {
            *byte ^= mask;
        }
    }
    if let Ok(message) = Message::decode(&wire[..]) {
        receive(here, message, now_ms);
    }
}

/// A message of a peer that may send anything.
fn receive_stray(input: &mut Input<'_>, side: &mut Side, now_ms: u64) {
    if !side.replica.is_up(side.stray) {
        side.stray = side.replica.link_up(peer(11, if input.flag() { "c" } else { "b" }));
    }
    while let Some(message) = side.replica.poll_send(side.stray, now_ms) {
        side.asked.push(message);
    }
    let message = stray::message(input, side, now_ms);
    if side.replica.receive(side.stray, message, now_ms).is_err() {
        side.replica.link_down(side.stray);
    }
}

/// Links both sides, as after a handshake.
fn connect([a, b]: &mut [Side; 2]) {
    let (id_a, id_b) = (a.replica.id(), b.replica.id());
    a.link = a.replica.link_up(id_b);
    b.link = b.replica.link_up(id_a);
    a.out.clear();
    b.out.clear();
}

/// Moves all pending messages into `out`, where they may wait.
fn send(side: &mut Side, now_ms: u64) {
    while let Some(message) = side.replica.poll_send(side.link, now_ms) {
        assert!(message.encoded_len() <= LIMIT, "{} bytes", message.encoded_len());
        side.out.push(message);
        assert!(side.out.len() < 10_000, "the exchange does not end");
    }
    let many = side.out.len().saturating_sub(32);
    side.out.drain(..many);
}

fn receive(side: &mut Side, message: Message, now_ms: u64) {
    if side.replica.receive(side.link, message, now_ms).is_err() {
        side.replica.link_down(side.link);
    }
}

/// The dots of one origin's writes increase.
fn wrote(side: &mut Side, dot: Dot) {
    assert!(dot.hlc > side.newest.hlc, "{dot:?} after {:?}", side.newest);
    assert_eq!(dot.origin, side.replica.origin());
    side.newest = dot;
}

/// No key goes back to an older version, except after a reset. A node that is not ready may drop what it has.
fn progress(side: &mut Side) {
    let reset = side.origin != side.replica.origin() || !side.replica.is_ready();
    side.origin = side.replica.origin();
    if reset {
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

// ---- seeds

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    // Two flags: which side is ready. Then steps: side, kind, arguments; here tick, put, exchange.
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
        // Found by the fuzzer: a write under this node's origin that it never made; a node that leaves, with few seats kept.
        include_bytes!("../found/peers-own-write").to_vec(),
        include_bytes!("../found/peers-leaves").to_vec(),
    ]
}
