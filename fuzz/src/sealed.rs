//! Encrypted membership datagrams of several nodes: lost, late, duplicated, reflected, corrupt and spliced, between
//! clocks that go forward and back; and arbitrary bytes.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Duration;

use kvasir_node::config::{EncryptionConfig, KEY_BYTES, Keyring};
use kvasir_node::encryption::Keys;
use kvasir_node::encryption::datagram::{MAX_SEALED, OVERHEAD, Sealer};
use kvasir_node::membership::{MAX_DATAGRAM, Seal as _};
use kvasir_node::reload::Reloads;

use crate::input::{Input, chunk};

const START_MS: u64 = 1_700_000_000_000;
/// How many datagrams the node remembers here.
const LIMIT: usize = 8;
/// `KVSX` and the version, followed by the nonce.
const HEADER: usize = 5;
const NONCE: usize = 24;

thread_local! {
    static NOW_MS: Cell<u64> = const { Cell::new(START_MS) };
}

/// Keys of one repeated byte each.
pub(crate) fn keys(cookie: &str, keys: &[u8]) -> Keys {
    let ring = Keyring { cookie: cookie.into(), keys: keys.iter().map(|key| [*key; KEY_BYTES]).collect() };
    let stop = tokio_util::sync::CancellationToken::new();
    Keys::start(&EncryptionConfig::Given(ring), &Reloads::default(), stop).expect("no file is read")
}

fn sealer(cookie: &str, with: &[u8], limit: usize) -> Sealer {
    Sealer::with(keys(cookie, with), Duration::from_secs(1), limit, || NOW_MS.get())
}

/// The sender of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Friend,
    Ourselves,
    Stranger,
}

struct Sent {
    of: Of,
    sealed: Vec<u8>,
    datagram: Vec<u8>,
    time_ms: u64,
    taken: bool,
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    NOW_MS.set(START_MS);
    let ours = sealer("c", &[1, 2], LIMIT);
    let window = ours.window_ms();
    let others = [
        (Of::Friend, sealer("c", &[2, 1], LIMIT)),
        (Of::Friend, sealer("c", &[1], LIMIT)),
        (Of::Stranger, sealer("c", &[3], LIMIT)),
        (Of::Stranger, sealer("d", &[1], LIMIT)),
    ];
    let mut sent: Vec<Sent> = Vec::new();
    let (mut peak_ms, mut taken) = (START_MS, 0);
    while !input.is_empty() {
        let wire = match input.below(12) {
            0..=2 => {
                // The sender's clock may differ.
                let now_ms = NOW_MS.get();
                let skew_ms = u64::from(input.byte()) * window / 64;
                NOW_MS.set(if input.flag() { now_ms + skew_ms } else { now_ms - skew_ms });
                let time_ms = NOW_MS.get();
                let (of, sender) = match others.get(input.below(others.len() + 1)) {
                    Some((of, sender)) => (*of, sender),
                    None => (Of::Ourselves, &ours),
                };
                let datagram = match input.below(8) {
                    0 => vec![7; MAX_DATAGRAM],
                    _ => input.chunk().iter().copied().take(MAX_DATAGRAM).collect(),
                };
                let sealed = sender.seal(&datagram);
                NOW_MS.set(now_ms);
                assert_eq!(sealed.len(), OVERHEAD + datagram.len());
                assert!(sealed.len() <= MAX_SEALED, "{} bytes", sealed.len());
                sent.push(Sent { of, sealed, datagram, time_ms, taken: false });
                continue;
            }
            3 => {
                NOW_MS.set(NOW_MS.get() + u64::from(input.byte()) * window / 100);
                continue;
            }
            4 => {
                NOW_MS.set((NOW_MS.get() - u64::from(input.byte()) * window / 200).max(START_MS / 2));
                continue;
            }
            5 => input.chunk().to_vec(),
            6 => [b"KVSX\x01", input.chunk()].concat(),
            _ if sent.is_empty() => continue,
            7..=9 => sent[input.below(sent.len())].sealed.clone(),
            10 => corrupt(&mut input, &sent),
            _ => spliced(&mut input, &sent),
        };
        peak_ms = peak_ms.max(NOW_MS.get());
        let good = sent.iter_mut().find(|sent| sent.sealed == wire);
        if deliver(&ours, &wire, good, peak_ms, taken < LIMIT) {
            taken += 1;
        }
        assert!(ours.remembered() <= LIMIT, "{} are remembered", ours.remembered());
    }
}

/// One of the datagrams, with bits flipped, cut or extended.
fn corrupt(input: &mut Input<'_>, sent: &[Sent]) -> Vec<u8> {
    let mut wire = sent[input.below(sent.len())].sealed.clone();
    for _ in 0..=input.below(3) {
        let at = usize::from(input.byte()) * 5 % wire.len();
        wire[at] ^= input.byte();
    }
    match input.below(4) {
        0 => wire.truncate(usize::from(input.byte()) * 5),
        1 => wire.extend_from_slice(input.chunk()),
        _ => {}
    }
    wire
}

/// The first bytes of one datagram and the rest of another.
fn spliced(input: &mut Input<'_>, sent: &[Sent]) -> Vec<u8> {
    let (one, two) = (&sent[input.below(sent.len())].sealed, &sent[input.below(sent.len())].sealed);
    let cut = input.of(&[HEADER, HEADER + NONCE, HEADER + NONCE + 16, OVERHEAD - 16]);
    [&one[..cut], &two[cut..]].concat()
}

/// Returns whether the datagram was accepted, after checking that this is right; `room`: all accepted datagrams fit
/// into the memory for replays.
fn deliver(ours: &Sealer, wire: &[u8], good: Option<&mut Sent>, peak_ms: u64, room: bool) -> bool {
    let (now_ms, window) = (NOW_MS.get(), ours.window_ms());
    let before: BTreeMap<_, _> = ours.counters().read().into();
    let opened = ours.open(wire);
    let counted: Vec<_> = ours.counters().read().into_iter().filter(|(name, count)| before[name] != *count).collect();
    match &opened {
        Ok(_) => assert_eq!(counted, [], "what is taken is not refused"),
        Err((reason, error)) => assert_eq!(counted, [(*reason, before[reason] + 1)], "{error}"),
    }
    let reason = opened.as_ref().err().map(|(reason, _)| *reason);
    let Some(sent) = good else {
        assert!(reason.is_some(), "a forged datagram was accepted");
        return false;
    };
    // After a clock went back by a window or more, a replay may pass.
    let set_back = now_ms + window <= peak_ms;
    match sent.of {
        Of::Stranger => assert_eq!(reason, Some("key")),
        Of::Ourselves => assert_eq!(reason, Some("reflected")),
        Of::Friend if now_ms.abs_diff(sent.time_ms) > window => assert_eq!(reason, Some("stale")),
        Of::Friend if sent.taken => {
            assert!(matches!(reason, Some("replayed" | "stale")) || set_back, "it was taken twice: {reason:?}");
        }
        Of::Friend => {
            let must = room && !set_back && sent.time_ms + window > peak_ms;
            assert!(reason.is_none() || (!must && reason == Some("stale")), "a good one was refused: {reason:?}");
        }
    }
    if let Ok(datagram) = &opened {
        assert_eq!(*datagram, sent.datagram);
        sent.taken = true;
    }
    opened.is_ok()
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    // (kind, ...): send, wait, deliver.
    let send = |skew: u8, ahead: u8, who: u8, text: &[u8]| [&[0, skew, ahead, who, 1][..], &chunk(text)].concat();
    let each: Vec<u8> = (0..5).flat_map(|who| send(0, 0, who, b"hello")).collect();
    let all = |from: u8, to: u8| (from..to).flat_map(|at| [7, at]).collect::<Vec<u8>>();
    let crowd: Vec<u8> = (0..20).flat_map(|n| [send(n, n & 1, n & 1, b"a"), vec![7, n]].concat()).collect();
    vec![
        [&each[..], &all(0, 5), &all(0, 5)].concat(),
        // Late, and with the clock set back.
        [&each[..], &all(0, 1), &[3, 120], &send(0, 0, 1, b"later"), &all(0, 6), &[4, 100], &all(0, 6)].concat(),
        [&each[..], &[3, 200, 3, 200], &send(0, 0, 0, b"x"), &all(0, 6), &[4, 255, 4, 255, 4, 255], &all(0, 6)]
            .concat(),
        [&crowd[..], &all(0, 20)].concat(),
        [&each[..], &[10, 0, 0, 9, 1, 2, 10, 1, 0, 3, 4, 0, 6, 11, 0, 1, 0, 11, 0, 1, 1, 11, 0, 1, 2, 11, 0, 1, 3]]
            .concat(),
        [&[0, 0, 0, 0, 0], &all(0, 1)[..], &[6], &chunk(&[9; 80]), &[5], &chunk(b"KVSW\x01 in the clear")].concat(),
    ]
}
