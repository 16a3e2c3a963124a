//! What the store takes in and hands out.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Deref;

use bytes::Bytes;

use crate::order::{compare, equal};

/// Bits of the counter below the milliseconds of a timestamp.
const COUNTER_BITS: u32 = 16;

/// The identity of a write. The larger dot wins a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dot {
    /// The timestamp: 48 bits of milliseconds since 1970 above 16 bits of counter. Not 0.
    pub hlc: u64,
    /// The process that took the write.
    pub origin: u64,
}

/// A write that is taken in.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// Its identity.
    pub dot: Dot,
    /// The value; `None` for a delete. A value of more than [`INLINE`](crate::INLINE) bytes is shared, so it must
    /// own its memory: a slice of a frame would keep the whole frame alive. A shorter value is copied.
    pub value: Option<&'a Bytes>,
    /// When the value ends, milliseconds since 1970. Not 0.
    pub expires_ms: Option<u64>,
    /// The dot under which the write was made, if it was issued again.
    pub first: Option<Dot>,
}

/// What a key holds.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    pub(crate) key: Key<'a>,
    pub(crate) dot: Dot,
    pub(crate) value: Option<Value<'a>>,
    pub(crate) expires_ms: Option<u64>,
    pub(crate) first: Option<Dot>,
}

impl<'a> Entry<'a> {
    /// The key.
    pub const fn key(&self) -> Key<'a> {
        self.key
    }

    /// The write that won the key.
    pub const fn dot(&self) -> Dot {
        self.dot
    }

    /// The value; `None` for a tombstone: a delete, or a value that ended and was freed.
    pub const fn value(&self) -> Option<Value<'a>> {
        self.value
    }

    /// When the value ends or ended, milliseconds since 1970.
    pub const fn expires_ms(&self) -> Option<u64> {
        self.expires_ms
    }

    /// The dot under which the write was made, if it was issued again.
    pub const fn first(&self) -> Option<Dot> {
        self.first
    }

    /// The value, unless it has ended at `now_ms`.
    pub fn live(&self, now_ms: u64) -> Option<Value<'a>> {
        self.value.filter(|_| self.expires_ms.is_none_or(|end| end > now_ms))
    }

    /// The timestamp since which an entry without a value is a tombstone: the delete's own, or that of the value's
    /// end. The same on every node.
    pub(crate) fn dead_since(&self) -> u64 {
        dead_since(self.dot.hlc, self.expires_ms)
    }
}

pub(crate) fn dead_since(hlc: u64, expires_ms: Option<u64>) -> u64 {
    expires_ms.map_or(hlc, |end| hlc.max(stamp_at(end.min(ms_of(u64::MAX)))))
}

pub(crate) const fn stamp_at(ms: u64) -> u64 {
    ms << COUNTER_BITS
}

pub(crate) const fn ms_of(hlc: u64) -> u64 {
    hlc >> COUNTER_BITS
}

/// A value in the store.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// At most [`INLINE`](crate::INLINE) bytes, inside a page.
    Inline(&'a [u8]),
    /// A longer value, which can be shared.
    Shared(&'a Bytes),
}

impl Value<'_> {
    /// The value with memory of its own: a short one is copied, a long one shared.
    pub fn to_bytes(&self) -> Bytes {
        match self {
            Self::Inline(bytes) => Bytes::copy_from_slice(bytes),
            Self::Shared(bytes) => Bytes::clone(bytes),
        }
    }
}

impl Deref for Value<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Inline(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

/// A key in the store: what the keys of its page begin with, and the rest.
#[derive(Clone, Copy)]
pub struct Key<'a> {
    pub(crate) prefix: &'a [u8],
    pub(crate) suffix: &'a [u8],
}

impl<'a> Key<'a> {
    /// Its length.
    #[expect(clippy::len_without_is_empty, reason = "no caller asks whether a key is empty")]
    pub const fn len(&self) -> usize {
        self.prefix.len() + self.suffix.len()
    }

    /// The key in two parts, of which each may be empty.
    pub const fn parts(&self) -> [&'a [u8]; 2] {
        [self.prefix, self.suffix]
    }

    /// A copy.
    pub fn to_vec(&self) -> Vec<u8> {
        [self.prefix, self.suffix].concat()
    }

    /// A copy that can be shared.
    pub fn to_bytes(&self) -> Bytes {
        self.to_vec().into()
    }

    /// Replaces what is in `buffer` by the key.
    pub fn write_to(&self, buffer: &mut Vec<u8>) {
        buffer.clear();
        buffer.extend_from_slice(self.prefix);
        buffer.extend_from_slice(self.suffix);
    }

    /// Whether it begins with `start`.
    pub fn starts_with(&self, start: &[u8]) -> bool {
        let (first, rest) = start.split_at(start.len().min(self.prefix.len()));
        self.prefix.starts_with(first) && self.suffix.starts_with(rest)
    }

    pub(crate) fn bytes(self) -> impl Iterator<Item = u8> {
        self.prefix.iter().chain(self.suffix).copied()
    }

    /// The key without its first `skip` bytes.
    pub(crate) fn skip(self, skip: usize) -> Self {
        let in_prefix = skip.min(self.prefix.len());
        Self { prefix: &self.prefix[in_prefix..], suffix: &self.suffix[skip - in_prefix..] }
    }
}

impl PartialEq<[u8]> for Key<'_> {
    fn eq(&self, other: &[u8]) -> bool {
        other
            .split_at_checked(self.prefix.len())
            .is_some_and(|(prefix, suffix)| equal(self.prefix, prefix) && equal(self.suffix, suffix))
    }
}

impl PartialOrd<[u8]> for Key<'_> {
    fn partial_cmp(&self, other: &[u8]) -> Option<Ordering> {
        let (prefix, suffix) = other.split_at(other.len().min(self.prefix.len()));
        Some(compare(self.prefix, prefix).then_with(|| compare(self.suffix, suffix)))
    }
}

impl fmt::Debug for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}{}\"", self.prefix.escape_ascii(), self.suffix.escape_ascii())
    }
}
