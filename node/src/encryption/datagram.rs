//! Datagrams that are encrypted by XChaCha20-Poly1305, each by itself: with
//! nonces of 192 random bits, no two of which are ever equal.
//!
//! ```text
//! "KVSX"  version  nonce  ciphertext of (sender, time, datagram)  tag
//! 4       1        24     8 + 8 + up to 1168                      16
//! ```
//!
//! The first five bytes and the cookie are authenticated with it.
//!
//! A datagram that is sent again by somebody else is refused: its time must be
//! within a window around this node's, and of those in the window each is taken
//! once. What was taken is remembered up to [`MAX_SEEN`]; beyond that the window
//! gets narrower, and never forgets what it should know. Three gaps are left,
//! which do no more harm than a network that doubles and delays datagrams: one
//! that was meant for another node, and one sent in the window before this node
//! started, is taken once; and once again what was sent before this node's clock
//! was set back by more than the window.

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
/// What encryption adds to a datagram.
pub const OVERHEAD: usize = HEADER + NONCE + SENDER + TIME + TAG;
/// The longest that is sent or taken: with its UDP and IPv6 headers it is within
/// 1280 bytes, the least that an IPv6 network carries whole.
pub const MAX_SEALED: usize = 1280 - 40 - 8;
const _: () = assert!(MAX_DATAGRAM + OVERHEAD <= MAX_SEALED);

/// How far from this node's clock a datagram's time may be, beside what clocks
/// may differ by: long, so that a node with a wrong clock is still seen, and
/// told of by name when it is linked to.
const WINDOW: Duration = Duration::from_mins(5);
/// Datagrams that are remembered, at about 40 bytes each. A node takes some
/// hundred in a second at most, however large its cluster.
pub const MAX_SEEN: usize = 1 << 16;

/// Datagrams that were refused, by reason, since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Not encrypted.
    pub plaintext: AtomicU64,
    /// Nothing that a node sends.
    pub garbage: AtomicU64,
    /// Another version of this.
    pub version: AtomicU64,
    /// Longer or shorter than any that is sent.
    pub length: AtomicU64,
    /// No key opens it: another cookie or key, or it was changed.
    pub key: AtomicU64,
    /// This node's own.
    pub reflected: AtomicU64,
    /// Its time is out of the window.
    pub stale: AtomicU64,
    /// It was taken before.
    pub replayed: AtomicU64,
}

impl Counters {
    /// Each reason and its figure.
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
    #[error("it is not encrypted, and this node's are: give all nodes the same encryption settings")]
    Plaintext,
    #[error("it is none of a kvasir node")]
    Garbage,
    #[error("it is encrypted by version {0}, this node speaks {VERSION}: run nodes of neighbouring releases together")]
    Version(u8),
    #[error("it has {0} bytes, which none that is sent has")]
    Length(usize),
    #[error("none of this node's keys opens it: its sender has another cookie or key, or it was changed on its way")]
    Key,
    #[error("it is one of this node's own, sent back")]
    Reflected,
    #[error("its time is {0} ms from this node's: it was held back, or a clock is wrong")]
    Stale(u64),
    #[error("it was sent before: somebody repeats datagrams")]
    Replayed,
}

/// Seals what is sent and opens what comes.
pub struct Sealer {
    keys: Keys,
    /// This process, so that it knows its own.
    me: u64,
    window_ms: u64,
    /// This node's clock, milliseconds since 1970.
    clock: fn() -> u64,
    seen: Mutex<Seen>,
    counters: Counters,
}

/// What was taken and is in the window, oldest first.
struct Seen {
    datagrams: BTreeSet<(u64, u128)>,
    /// What is not later is refused: to remember it there was no room.
    floor_ms: u64,
    /// What is not later was before the window, and is not remembered.
    passed_ms: u64,
    limit: usize,
}

impl Sealer {
    /// With these keys; peers' clocks may differ by `max_clock_skew`.
    pub fn new(keys: Keys, max_clock_skew: Duration) -> Self {
        Self::with(keys, max_clock_skew, MAX_SEEN, wall_ms)
    }

    /// The same, which remembers `limit` datagrams and reads the time, milliseconds since 1970, from `clock`.
    pub fn with(keys: Keys, max_clock_skew: Duration, limit: usize, clock: fn() -> u64) -> Self {
        let window = WINDOW.saturating_add(max_clock_skew);
        Self {
            keys,
            me: rand::random(),
            window_ms: u64::try_from(window.as_millis()).unwrap_or(u64::MAX),
            clock,
            seen: Mutex::new(Seen { datagrams: BTreeSet::new(), floor_ms: 0, passed_ms: 0, limit }),
            counters: Counters::default(),
        }
    }

    /// What was refused.
    pub const fn counters(&self) -> &Counters {
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
        self.seen.lock().take(time_ms, u128::from_be_bytes(start), now_ms, self.window_ms)?;
        Ok(plain[SENDER + TIME..].to_vec())
    }
}

impl Seen {
    fn take(&mut self, time_ms: u64, nonce: u128, now_ms: u64, window_ms: u64) -> Result<(), Refused> {
        // A clock that was set back brings the window to where it was. One that was set back by
        // more than the window makes a new beginning: else nothing would be taken until it has caught up.
        let passed_ms = if self.passed_ms < now_ms { self.passed_ms } else { 0 };
        let floor_ms = self.floor_ms.max(passed_ms);
        if time_ms <= floor_ms {
            return Err(Refused::Stale(floor_ms - time_ms));
        }
        // The window's beginning moves on: what is before it is refused by its time.
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
    fn a_datagram_comes_out_as_it_went_in_and_once() {
        let (ours, theirs) = (sealer("c", &[1, 2]), sealer("c", &[2, 1]));
        for datagram in [&b""[..], b"hello", &[7; MAX_DATAGRAM]] {
            let sealed = theirs.seal_at(datagram, NOW);
            assert_eq!(sealed.len(), OVERHEAD + datagram.len());
            assert_eq!(ours.open_at(&sealed, NOW).unwrap(), datagram, "either key opens");
            assert_eq!(ours.open_at(&sealed, NOW), Err(Refused::Replayed));
        }
        assert!(ours.open_at(&theirs.seal_at(b"hello", NOW), NOW).is_ok(), "the same again, sealed again, is another");
    }

    #[test]
    fn another_cookie_another_key_and_each_change_are_refused() {
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
        assert!(ours.open_at(&sealed, NOW).is_ok(), "none of that made it unopenable");
    }

    #[test]
    fn what_is_not_encrypted_is_told_from_garbage() {
        let ours = sealer("c", &[1]);
        assert_eq!(ours.open_at(b"KVSW\x01and more", NOW), Err(Refused::Plaintext));
        assert_eq!(ours.open_at(b"", NOW), Err(Refused::Garbage));
        assert_eq!(ours.open_at(&[0; 100], NOW), Err(Refused::Garbage));
        assert_eq!(ours.open_at(b"KVSX\x02and more", NOW), Err(Refused::Version(2)));
    }

    #[test]
    fn its_own_is_refused() {
        let ours = sealer("c", &[1]);
        assert_eq!(ours.open_at(&ours.seal_at(b"hello", NOW), NOW), Err(Refused::Reflected));
    }

    #[test]
    fn what_is_out_of_the_window_is_refused_and_remembered_no_longer() {
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
    fn a_clock_that_is_set_back_brings_nothing_back_and_keeps_nobody_out() {
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
        // By more than the window: what is sent from now on is taken all the same.
        assert!(ours.open_at(&theirs.seal_at(b"fourth", NOW - 9000), NOW - 9000).is_ok());
    }

    #[test]
    fn what_is_remembered_is_bounded_and_nothing_is_taken_twice_for_it() {
        let (ours, theirs) = (sealer("c", &[1]), sealer("c", &[1]));
        ours.seen.lock().limit = 10;
        let sent: Vec<_> = (0..100).map(|n| theirs.seal_at(b"hello", NOW + n)).collect();
        let taken = sent.iter().filter(|sealed| ours.open_at(sealed, NOW).is_ok()).count();
        assert_eq!((taken, ours.seen.lock().datagrams.len()), (100, 10));
        assert!(sent.iter().all(|sealed| ours.open_at(sealed, NOW).is_err()));
        // Late ones are lost for it, as datagrams may be.
        assert!(matches!(ours.open_at(&theirs.seal_at(b"hello", NOW), NOW), Err(Refused::Stale(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_open_and_none_make_it_panic(mut bytes: Vec<u8>, headed: bool) {
            let ours = sealer("c", &[1]);
            if headed {
                bytes.splice(0..0, *b"KVSX\x01");
            }
            prop_assert!(ours.open_at(&bytes, NOW).is_err());
        }
    }
}
