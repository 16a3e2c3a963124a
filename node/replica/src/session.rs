//! What a session has seen: for each origin, the last write that the session read or made, and a timestamp up to which all
//! nodes held everything, so that older writes need not be listed. The client carries the token, so that any node can tell
//! whether it covers the session. Knows nothing of clients.

use std::collections::BTreeMap;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use xxhash_rust::xxh3::xxh3_64;

use crate::clock::Dot;
use crate::protocol::{Coverage, Replica};

/// The most origins that a token may name. It names those with writes that not every node is known to hold: usually a
/// handful. It makes a token at most 16 KiB long.
pub const MAX_ORIGINS: usize = 1000;

/// The first byte of a token.
const FORM: u8 = 2;
/// Form, checksum, epoch and timestamp.
const HEAD: usize = 1 + 4 + 16 + 8;
const ENTRY: usize = 16;

/// What was wrong with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("session: not a token that a node of this release gave; begin a new session with an empty one")]
pub struct BadToken;

/// What a token holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// The epoch of the map of the last node.
    epoch: (u64, u64),
    /// Up to this timestamp, all seats that took part held what the session saw, so those writes are left out.
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

    /// The epoch of the map of the last node.
    pub const fn founding(&self) -> (u64, u64) {
        self.epoch
    }

    /// Whether a node holds what the session saw.
    pub fn coverage(&self, replica: &Replica) -> Coverage {
        let dots = self.seen.iter().map(|(&origin, &hlc)| replica.coverage(Dot { hlc, origin }, self.epoch));
        dots.fold(replica.coverage_of_all(self.collected, self.epoch), Coverage::max)
    }

    /// After a call at a node that [covers](Self::coverage) it: leaves out what
    /// all nodes hold, so that the token is as short as it may be.
    pub fn shorten(&mut self, replica: &Replica) -> Result<(), TooWide> {
        if self.epoch != replica.founding() {
            (self.epoch, self.collected) = (replica.founding(), 0);
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
        body.put_u64(self.epoch.0);
        body.put_u64(self.epoch.1);
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
        let (epoch, collected) = ((rest.get_u64(), rest.get_u64()), rest.get_u64());
        let mut seen = BTreeMap::new();
        while rest.has_remaining() {
            seen.insert(rest.get_u64(), rest.get_u64());
        }
        Ok(Self { epoch, collected, seen })
    }
}

/// The checksum detects tokens that were cut or corrupted, not forged ones: a forged token harms only its own
/// session.
fn checksum(body: &[u8]) -> u32 {
    xxh3_64(body) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn token_decodes_to_the_session_it_was_made_of() {
        assert_eq!(Session::decode(&[]), Ok(Session::default()));
        let mut session = Session { epoch: (3, 4), collected: 5, ..Session::default() };
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
        fn token_that_was_changed_is_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            entries in prop::collection::btree_map(any::<u64>(), any::<u64>(), 0..20),
            at: prop::sample::Index,
            flip in 1u8..,
        ) {
            let _ = Session::decode(&bytes);
            let session = Session { epoch: (1, 2), collected: 3, seen: entries };
            let mut token = session.encode().to_vec();
            prop_assert_eq!(Session::decode(&token), Ok(session));
            let at = at.index(token.len());
            token[at] ^= flip;
            prop_assert_eq!(Session::decode(&token), Err(BadToken));
        }
    }
}
