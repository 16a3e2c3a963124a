//! Datagrams, each encrypted by XChaCha20-Poly1305 with a random nonce of 192 bits; such nonces practically never repeat.
//!
//! ```text
//! "KVSX"  version  nonce  ciphertext of (sender, time, datagram)  tag
//! 4       1        24     8 + 8 + up to 1168                      16
//! ```
//!
//! The first five bytes and the cookie are authenticated as well.
//!
//! Replayed datagrams are refused: a datagram's time must be in a window around this node's clock, and each datagram in the
//! window is accepted once. The node remembers up to [`MAX_SEEN`] accepted datagrams. With more, the window becomes narrower,
//! so that no datagram in it is forgotten. Three kinds of replays are still accepted once, and do no more harm than a network
//! that duplicates and delays datagrams: of a datagram for another node; of one that was sent in the window before this node
//! started; and of one that was sent before this node's clock was set back by more than the window.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chacha20poly1305::XNonce;
use chacha20poly1305::aead::{Aead as _, Payload};
use parking_lot::Mutex;

use super::Keys;
use crate::membership::{MAX_DATAGRAM, SEALED_MAGIC, Seal};
use crate::wall_clock::wall_ms;

const VERSION: u8 = 1;
const HEADER: usize = SEALED_MAGIC.len() + 1;
const NONCE: usize = 24;
const TAG: usize = 16;
const SENDER: usize = 8;
const TIME: usize = 8;
/// The bytes that encryption adds to a datagram.
pub const OVERHEAD: usize = HEADER + NONCE + SENDER + TIME + TAG;
/// The longest encrypted datagram. With UDP and IPv6 headers it has at most 1280 bytes, the minimum MTU of IPv6.
pub const MAX_SEALED: usize = 1280 - 40 - 8;
const _: () = assert!(MAX_DATAGRAM + OVERHEAD <= MAX_SEALED);

/// How far a datagram's time may be from this node's clock, in addition to `maxClockSkew`. It is long so that a node with a
/// wrong clock is still seen by membership, and reported by name when it is linked to.
const WINDOW: Duration = Duration::from_mins(5);
/// How many datagrams are remembered, at about 40 bytes each. A node accepts at most some hundred per second in a cluster of
/// any size.
pub const MAX_SEEN: usize = 1 << 16;

/// The datagrams that were refused since the start, by reason.
#[derive(Debug, Default)]
pub struct RefusedDatagrams {
    /// Not encrypted.
    pub plaintext: AtomicU64,
    /// Not from a node.
    pub garbage: AtomicU64,
    /// Another version of the encryption.
    pub version: AtomicU64,
    /// An impossible length.
    pub length: AtomicU64,
    /// No key decrypts it: another cookie or key, or it was altered.
    pub key: AtomicU64,
    /// Sent by this node.
    pub reflected: AtomicU64,
    /// Its time is outside the window.
    pub stale: AtomicU64,
    /// It was accepted before.
    pub replayed: AtomicU64,
}

impl RefusedDatagrams {
    /// Each reason with its count.
    pub fn read(&self) -> [(&'static str, u64); 8] {
        [
            ("plaintext", &self.plaintext),
            ("garbage", &self.garbage),
            ("version", &self.version),
            ("length", &self.length),
            ("key", &self.key),
            ("reflected", &self.reflected),
            ("stale", &self.stale),
            ("replayed", &self.replayed),
        ]
        .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
    }
}

/// Why a datagram was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error(
        "the datagram is not encrypted, but this node uses encryption: give all nodes the same encryption settings"
    )]
    Plaintext,
    #[error("the datagram is not from a kvasir node")]
    Garbage,
    #[error(
        "the datagram is encrypted by version {0}, this node speaks {VERSION}: run nodes of neighbouring releases together"
    )]
    Version(u8),
    #[error("the datagram has an impossible length of {0} bytes")]
    Length(usize),
    #[error(
        "none of this node's keys decrypts the datagram: its sender has another cookie or key, or it was altered on its way"
    )]
    Key,
    #[error("the datagram is one of this node's own, sent back")]
    Reflected,
    #[error("the datagram's time differs by {0} ms from this node's: it was delayed, or a clock is wrong")]
    Stale(u64),
    #[error("the datagram was received before: datagrams are replayed")]
    Replayed,
}

/// Encrypts and decrypts datagrams.
pub struct Sealer {
    keys: Keys,
    /// Identifies this process, so that it recognises its own datagrams.
    me: u64,
    window_ms: u64,
    /// This node's clock, milliseconds since 1970.
    clock: fn() -> u64,
    seen: Mutex<Seen>,
    counters: RefusedDatagrams,
}

/// The accepted datagrams in the window, oldest first.
struct Seen {
    datagrams: BTreeSet<(u64, u128)>,
    /// Datagrams up to this time were forgotten for lack of room, and are refused.
    floor_ms: u64,
    /// Datagrams up to this time left the window and were forgotten.
    passed_ms: u64,
    limit: usize,
}

impl Sealer {
    /// Peers' clocks may differ by `max_clock_skew`.
    pub fn new(keys: Keys, max_clock_skew: Duration) -> Self {
        Self::with(keys, max_clock_skew, MAX_SEEN, wall_ms)
    }

    /// Remembers at most `limit` datagrams, and reads the time (milliseconds since 1970) from `clock`.
    pub fn with(keys: Keys, max_clock_skew: Duration, limit: usize, clock: fn() -> u64) -> Self {
        let window = WINDOW.saturating_add(max_clock_skew);
        Self {
            keys,
            me: rand::random(),
            window_ms: u64::try_from(window.as_millis()).unwrap_or(u64::MAX),
            clock,
            seen: Mutex::new(Seen { datagrams: BTreeSet::new(), floor_ms: 0, passed_ms: 0, limit }),
            counters: RefusedDatagrams::default(),
        }
    }

    /// The refused datagrams.
    pub const fn counters(&self) -> &RefusedDatagrams {
        &self.counters
    }

    /// How far a datagram's time may be from this node's clock, milliseconds.
    pub const fn window_ms(&self) -> u64 {
        self.window_ms
    }

    /// How many datagrams are remembered.
    pub fn remembered(&self) -> usize {
        self.seen.lock().datagrams.len()
    }

    fn seal_at(&self, datagram: &[u8], now_ms: u64) -> Vec<u8> {
        let ring = self.keys.now();
        let nonce: [u8; NONCE] = rand::random();
        let mut sealed = Vec::with_capacity(OVERHEAD + datagram.len());
        sealed.extend_from_slice(&SEALED_MAGIC);
        sealed.push(VERSION);
        let bound = [&sealed[..], &ring.cookie].concat();
        sealed.extend_from_slice(&nonce);
        let plain = [&self.me.to_be_bytes(), &now_ms.to_be_bytes(), datagram].concat();
        let secret = ring
            .primary()
            .datagram
            .encrypt(XNonce::from_slice(&nonce), Payload { msg: &plain, aad: &bound })
            .expect("the cipher takes any message below 256 GiB");
        sealed.extend_from_slice(&secret);
        sealed
    }

    fn open_at(&self, sealed: &[u8], now_ms: u64) -> Result<Vec<u8>, Refused> {
        if sealed.starts_with(&crate::membership::MAGIC) {
            return Err(Refused::Plaintext);
        }
        let Some((header, rest)) = sealed.split_at_checked(HEADER) else { return Err(Refused::Garbage) };
        if header[..HEADER - 1] != SEALED_MAGIC {
            return Err(Refused::Garbage);
        }
        if header[HEADER - 1] != VERSION {
            return Err(Refused::Version(header[HEADER - 1]));
        }
        if !(OVERHEAD..=MAX_SEALED).contains(&sealed.len()) {
            return Err(Refused::Length(sealed.len()));
        }
        let (nonce, secret) = rest.split_at(NONCE);
        let ring = self.keys.now();
        let bound = [header, &ring.cookie].concat();
        let payload = || Payload { msg: secret, aad: &bound };
        let opened = ring.keys.iter().find_map(|key| key.datagram.decrypt(XNonce::from_slice(nonce), payload()).ok());
        let plain = opened.ok_or(Refused::Key)?;
        let number = |at: usize| u64::from_be_bytes(plain[at..at + 8].try_into().expect("8 bytes are 8 bytes"));
        let (sender, time_ms) = (number(0), number(SENDER));
        if sender == self.me {
            return Err(Refused::Reflected);
        }
        let away_ms = now_ms.abs_diff(time_ms);
        if away_ms > self.window_ms {
            return Err(Refused::Stale(away_ms));
        }
        let start = nonce[..16].try_into().expect("a nonce has 24 bytes");
        self.seen.lock().accept(time_ms, u128::from_be_bytes(start), now_ms, self.window_ms)?;
        Ok(plain[SENDER + TIME..].to_vec())
    }
}

impl Seen {
    fn accept(&mut self, time_ms: u64, nonce: u128, now_ms: u64, window_ms: u64) -> Result<(), Refused> {
        // A clock that was set back moves the window back, to where datagrams were forgotten: they are refused. But after a
        // clock was set back by more than the window, nothing would be accepted until it has caught up; so then the
        // node forgets that.
        let passed_ms = if self.passed_ms < now_ms { self.passed_ms } else { 0 };
        let floor_ms = self.floor_ms.max(passed_ms);
        if time_ms <= floor_ms {
            return Err(Refused::Stale(floor_ms - time_ms));
        }
        // Datagrams before the window need not be remembered: they are refused by their time.
        let oldest_ms = now_ms.saturating_sub(window_ms);
        while let Some((time_ms, _)) = self.datagrams.first().copied().filter(|(time_ms, _)| *time_ms < oldest_ms) {
            self.datagrams.pop_first();
            self.passed_ms = self.passed_ms.max(time_ms);
        }
        if !self.datagrams.insert((time_ms, nonce)) {
            return Err(Refused::Replayed);
        }
        while self.datagrams.len() > self.limit {
            let Some((time_ms, _)) = self.datagrams.pop_first() else { break };
            self.floor_ms = self.floor_ms.max(time_ms);
        }
        Ok(())
    }
}

impl Seal for Sealer {
    fn seal(&self, datagram: &[u8]) -> Vec<u8> {
        self.seal_at(datagram, (self.clock)())
    }

    fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, (&'static str, String)> {
        self.open_at(sealed, (self.clock)()).map_err(|refused| {
            let counters = &self.counters;
            let (reason, counter) = match refused {
                Refused::Plaintext => ("plaintext", &counters.plaintext),
                Refused::Garbage => ("garbage", &counters.garbage),
                Refused::Version(_) => ("version", &counters.version),
                Refused::Length(_) => ("length", &counters.length),
                Refused::Key => ("key", &counters.key),
                Refused::Reflected => ("reflected", &counters.reflected),
                Refused::Stale(_) => ("stale", &counters.stale),
                Refused::Replayed => ("replayed", &counters.replayed),
            };
            counter.fetch_add(1, Ordering::Relaxed);
            (reason, refused.to_string())
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn sealer(cookie: &str, keys: &[u8]) -> Sealer {
        Sealer::new(Keys::of(cookie, keys), Duration::from_secs(10))
    }

    #[test]
    fn sealed_datagram_opens_unchanged_and_once() {
        let (ours, theirs) = (sealer("c", &[1, 2]), sealer("c", &[2, 1]));
        for datagram in [&b""[..], b"hello", &[7; MAX_DATAGRAM]] {
            let sealed = theirs.seal_at(datagram, NOW);
            assert_eq!(sealed.len(), OVERHEAD + datagram.len());
            assert_eq!(ours.open_at(&sealed, NOW).unwrap(), datagram, "either key decrypts");
            assert_eq!(ours.open_at(&sealed, NOW), Err(Refused::Replayed));
        }
        assert!(
            ours.open_at(&theirs.seal_at(b"hello", NOW), NOW).is_ok(),
            "the same content sealed again is another datagram"
        );
    }

    #[test]
    fn sealed_with_another_key_or_altered_is_refused() {
        let ours = sealer("c", &[1]);
        for theirs in [sealer("d", &[1]), sealer("c", &[2])] {
            assert_eq!(ours.open_at(&theirs.seal_at(b"hello", NOW), NOW), Err(Refused::Key));
        }
        let sealed = sealer("c", &[1]).seal_at(b"hello", NOW);
        for n in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[n] ^= 1;
            assert!(ours.open_at(&changed, NOW).is_err(), "byte {n}");
            assert!(ours.open_at(&sealed[..n], NOW).is_err(), "cut to {n}");
        }
        assert_eq!(ours.open_at(&[&sealed[..], b"!"].concat(), NOW), Err(Refused::Key));
        assert_eq!(ours.open_at(&[&sealed[..], &[0; MAX_SEALED]].concat(), NOW), Err(Refused::Length(1232 + 66)));
        assert_eq!(ours.open_at(&sealed[..OVERHEAD - 1], NOW), Err(Refused::Length(OVERHEAD - 1)));
        assert!(ours.open_at(&sealed, NOW).is_ok(), "the unaltered datagram still opens");
    }

    #[test]
    fn sealed_plaintext_and_garbage_are_distinguished() {
        let ours = sealer("c", &[1]);
        assert_eq!(ours.open_at(b"KVSW\x01and more", NOW), Err(Refused::Plaintext));
        assert_eq!(ours.open_at(b"", NOW), Err(Refused::Garbage));
        assert_eq!(ours.open_at(&[0; 100], NOW), Err(Refused::Garbage));
        assert_eq!(ours.open_at(b"KVSX\x02and more", NOW), Err(Refused::Version(2)));
    }

    #[test]
    fn sealed_by_this_node_is_refused() {
        let ours = sealer("c", &[1]);
        assert_eq!(ours.open_at(&ours.seal_at(b"hello", NOW), NOW), Err(Refused::Reflected));
    }

    #[test]
    fn sealed_outside_the_window_is_refused() {
        let (ours, theirs) = (sealer("c", &[1]), sealer("c", &[1]));
        let window = ours.window_ms;
        assert_eq!(window, 310_000);
        let sealed = theirs.seal_at(b"hello", NOW);
        assert_eq!(ours.open_at(&sealed, NOW + window + 1), Err(Refused::Stale(window + 1)));
        assert_eq!(ours.open_at(&sealed, NOW - window - 1), Err(Refused::Stale(window + 1)));
        assert!(ours.open_at(&sealed, NOW + window).is_ok());
        assert_eq!(ours.open_at(&sealed, NOW + window), Err(Refused::Replayed));
        assert!(ours.open_at(&theirs.seal_at(b"later", NOW + 2 * window + 1), NOW + 2 * window + 1).is_ok());
        assert_eq!(ours.seen.lock().datagrams.len(), 1);
    }

    #[test]
    fn clock_set_back_allows_no_replay_and_locks_out_none() {
        let (ours, theirs) = (sealer("c", &[1]), sealer("c", &[1]));
        let window = ours.window_ms;
        let first = theirs.seal_at(b"first", NOW);
        assert!(ours.open_at(&first, NOW).is_ok());
        // The clock jumps ahead, long enough for the first to be forgotten, and back.
        let ahead = NOW + window + 1000;
        assert!(ours.open_at(&theirs.seal_at(b"second", ahead), ahead).is_ok());
        assert_eq!(ours.remembered(), 1);
        assert_eq!(ours.open_at(&first, NOW + 2000), Err(Refused::Stale(0)));
        assert!(ours.open_at(&theirs.seal_at(b"third", NOW + 2000), NOW + 2000).is_ok());
        // Set back by more than the window: new datagrams are accepted.
        assert!(ours.open_at(&theirs.seal_at(b"fourth", NOW - 9000), NOW - 9000).is_ok());
    }

    #[test]
    fn sealed_memory_is_bounded_without_replays() {
        let (ours, theirs) = (sealer("c", &[1]), sealer("c", &[1]));
        ours.seen.lock().limit = 10;
        let sent: Vec<_> = (0..100).map(|n| theirs.seal_at(b"hello", NOW + n)).collect();
        let taken = sent.iter().filter(|sealed| ours.open_at(sealed, NOW).is_ok()).count();
        assert_eq!((taken, ours.seen.lock().datagrams.len()), (100, 10));
        assert!(sent.iter().all(|sealed| ours.open_at(sealed, NOW).is_err()));
        // The price: late datagrams are refused.
        assert!(matches!(ours.open_at(&theirs.seal_at(b"hello", NOW), NOW), Err(Refused::Stale(_))));
    }

    proptest! {
        #[test]
        fn sealed_bytes_at_random_never_open_nor_panic(mut bytes: Vec<u8>, headed: bool) {
            let ours = sealer("c", &[1]);
            if headed {
                bytes.splice(0..0, *b"KVSX\x01");
            }
            prop_assert!(ours.open_at(&bytes, NOW).is_err());
        }
    }
}
