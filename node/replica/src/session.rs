//! What a session has seen: of each origin, the last write that was read or
//! written with it, and up to which stamp it needs no list, since all nodes held
//! everything. Its token travels with the client, so that any node can tell
//! whether it holds as much. Knows nothing of clients.

use std::collections::BTreeMap;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use xxhash_rust::xxh3::xxh3_64;

use crate::clock::Dot;
use crate::replica::{Coverage, Replica};

/// Origins that a token may name: those with writes that not every node is known
/// to hold, so a handful as a rule. It makes a token at most 16 KiB long.
pub const MAX_ORIGINS: usize = 1000;

/// The first byte of a token.
const FORM: u8 = 2;
/// Form, checksum, founding and stamp.
const HEAD: usize = 1 + 4 + 16 + 8;
const ENTRY: usize = 16;

/// What was wrong with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("session: not a token that a node of this release gave; begin a new session with an empty one")]
pub struct BadToken;

/// A session as its token tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// The founding that the map of the last node went back to.
    founding: (u64, u64),
    /// What it saw up to this stamp, all held who took part: it was left out.
    collected: u64,
    seen: BTreeMap<u64, u64>,
}

/// The session saw writes of more than [`MAX_ORIGINS`] processes that not all
/// nodes are known to hold: its token would be too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooWide;

impl Session {
    /// Notes a write that was read or written.
    pub fn saw(&mut self, dot: Dot) {
        let seen = self.seen.entry(dot.origin).or_default();
        *seen = dot.hlc.max(*seen);
    }

    /// The founding that the map of the last node went back to.
    pub const fn founding(&self) -> (u64, u64) {
        self.founding
    }

    /// Whether a node holds what the session saw.
    pub fn coverage(&self, replica: &Replica) -> Coverage {
        let dots = self.seen.iter().map(|(&origin, &hlc)| replica.coverage(Dot { hlc, origin }, self.founding));
        dots.fold(replica.coverage_of_all(self.collected, self.founding), Coverage::max)
    }

    /// After a call at a node that [covers](Self::coverage) it: leaves out what
    /// all nodes hold, so that the token is as short as it may be.
    pub fn shorten(&mut self, replica: &Replica) -> Result<(), TooWide> {
        if self.founding != replica.founding() {
            (self.founding, self.collected) = (replica.founding(), 0);
        }
        let collected = replica.collected();
        let before = self.seen.len();
        self.seen.retain(|_, hlc| *hlc > collected);
        if self.seen.len() < before && !planted!("session-forgets-stable-part") {
            self.collected = self.collected.max(collected);
        }
        if self.seen.len() > MAX_ORIGINS { Err(TooWide) } else { Ok(()) }
    }

    /// The token. [`Self::shorten`] makes it as short as it may be.
    pub fn encode(&self) -> Bytes {
        let mut body = BytesMut::with_capacity(HEAD + ENTRY * self.seen.len());
        body.put_u64(self.founding.0);
        body.put_u64(self.founding.1);
        body.put_u64(self.collected);
        for (&origin, &hlc) in &self.seen {
            body.put_u64(origin);
            body.put_u64(hlc);
        }
        let mut token = BytesMut::with_capacity(HEAD + body.len());
        token.put_u8(FORM);
        token.put_u32(checksum(&body));
        token.put(body);
        token.freeze()
    }

    /// Reads a token; an empty one begins a session.
    pub fn decode(token: &[u8]) -> Result<Self, BadToken> {
        if token.is_empty() {
            return Ok(Self::default());
        }
        let whole = token.len() >= HEAD && (token.len() - HEAD).is_multiple_of(ENTRY);
        if !whole || token.len() > HEAD + ENTRY * MAX_ORIGINS || token[0] != FORM {
            return Err(BadToken);
        }
        let mut rest = &token[1..];
        if rest.get_u32() != checksum(rest) {
            return Err(BadToken);
        }
        let (founding, collected) = ((rest.get_u64(), rest.get_u64()), rest.get_u64());
        let mut seen = BTreeMap::new();
        while rest.has_remaining() {
            seen.insert(rest.get_u64(), rest.get_u64());
        }
        Ok(Self { founding, collected, seen })
    }
}

/// Against what was cut or mixed up on its way, not against malice: a made-up
/// token harms only its own session.
fn checksum(body: &[u8]) -> u32 {
    xxh3_64(body) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_empty_token_begins_a_session_and_others_come_back() {
        assert_eq!(Session::decode(&[]), Ok(Session::default()));
        let mut session = Session { founding: (3, 4), collected: 5, ..Session::default() };
        session.saw(Dot { hlc: 9, origin: 1 });
        session.saw(Dot { hlc: 7, origin: 1 });
        session.saw(Dot { hlc: 2, origin: u64::MAX });
        let token = session.encode();
        assert_eq!(token.len(), HEAD + 2 * ENTRY);
        let read = Session::decode(&token).unwrap();
        assert_eq!(read, session);
        assert_eq!(read.seen.into_iter().collect::<Vec<_>>(), [(1, 9), (u64::MAX, 2)]);
    }

    #[test]
    fn the_largest_token_is_within_its_promise() {
        let mut session = Session::default();
        for origin in 0..MAX_ORIGINS as u64 {
            session.saw(Dot { hlc: 1, origin });
        }
        let token = session.encode();
        assert!(token.len() <= 16 << 10, "{}", token.len());
        assert!(Session::decode(&token).is_ok());
        session.saw(Dot { hlc: 1, origin: u64::MAX });
        assert_eq!(Session::decode(&session.encode()), Err(BadToken));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_a_changed_token_is_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            entries in prop::collection::btree_map(any::<u64>(), any::<u64>(), 0..20),
            at: prop::sample::Index,
            flip in 1u8..,
        ) {
            let _ = Session::decode(&bytes);
            let session = Session { founding: (1, 2), collected: 3, seen: entries };
            let mut token = session.encode().to_vec();
            prop_assert_eq!(Session::decode(&token), Ok(session));
            let at = at.index(token.len());
            token[at] ^= flip;
            prop_assert_eq!(Session::decode(&token), Err(BadToken));
        }
    }
}
