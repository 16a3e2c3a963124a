//! The bytes of an entry besides its key:
//!
//! ```text
//! flags 1 · origin varint · timestamp 7 or 8 · [end varint] · [first 16] · value
//! value: length varint and bytes | index of a long one 2 | nothing for a tombstone
//! ```

use std::ops::Range;

use crate::record::{Dot, dead_since, ms_of, stamp_at};

/// Timestamps count from here, the end of 2025: seven bytes hold them for 17 years.
const EPOCH: u64 = stamp_at(1_767_200_000_000);

const EARLY: u8 = 1;
const TOMBSTONE: u8 = 2;
const ENDS: u8 = 4;
const FIRST: u8 = 8;
const LONG: u8 = 16;

/// Where the value of an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nowhere: a tombstone.
    Gone,
    /// In the body.
    Here(Range<usize>),
    /// Among the long values of the page.
    Long(u16),
}

/// An entry besides its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Body {
    pub(crate) origin: u32,
    pub(crate) hlc: u64,
    pub(crate) expires_ms: Option<u64>,
    pub(crate) first: Option<Dot>,
    pub(crate) place: Place,
    /// Its bytes.
    pub(crate) len: usize,
}

/// What is written as the value of an entry.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Content<'a> {
    Tombstone,
    Short(&'a [u8]),
    /// The page fills in the index.
    Long,
}

impl Body {
    /// Appends an entry to `out`.
    pub(crate) fn write(
        out: &mut Vec<u8>,
        (hlc, origin): (u64, u32),
        expires_ms: Option<u64>,
        first: Option<Dot>,
        content: Content<'_>,
    ) {
        let since = hlc.wrapping_sub(EPOCH).to_le_bytes();
        let early = since[7] != 0;
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        out.push(
            flag(early, EARLY)
                | flag(expires_ms.is_some(), ENDS)
                | flag(first.is_some(), FIRST)
                | match content {
                    Content::Tombstone => TOMBSTONE,
                    Content::Short(_) => 0,
                    Content::Long => LONG,
                },
        );
        push_varint(out, origin.into());
        out.extend_from_slice(if early { &since } else { &since[..7] });
        if let Some(end) = expires_ms {
            push_varint(out, zigzag(end.wrapping_sub(ms_of(hlc))));
        }
        if let Some(dot) = first {
            out.extend_from_slice(&dot.hlc.to_le_bytes());
            out.extend_from_slice(&dot.origin.to_le_bytes());
        }
        match content {
            Content::Tombstone => (),
            Content::Short(value) => {
                push_varint(out, value.len() as u64);
                out.extend_from_slice(value);
            }
            Content::Long => out.extend_from_slice(&[0, 0]),
        }
    }

    /// Reads an entry that begins where `bytes` begin.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let flags = bytes[0];
        let mut at = 1;
        let origin = take_varint(bytes, &mut at) as u32;
        let mut since = [0; 8];
        if flags & EARLY == 0 {
            since[..7].copy_from_slice(&bytes[at..at + 7]);
            at += 7;
        } else {
            since.copy_from_slice(&bytes[at..at + 8]);
            at += 8;
        }
        let hlc = u64::from_le_bytes(since).wrapping_add(EPOCH);
        let expires_ms = (flags & ENDS != 0).then(|| unzigzag(take_varint(bytes, &mut at)).wrapping_add(ms_of(hlc)));
        let first = (flags & FIRST != 0).then(|| {
            let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
            at += 16;
            Dot { hlc: number(at - 16), origin: number(at - 8) }
        });
        let place = match flags & (TOMBSTONE | LONG) {
            0 => {
                let len = take_varint(bytes, &mut at) as usize;
                at += len;
                Place::Here(at - len..at)
            }
            LONG => {
                at += 2;
                Place::Long(u16::from_le_bytes([bytes[at - 2], bytes[at - 1]]))
            }
            _ => Place::Gone,
        };
        Self { origin, hlc, expires_ms, first, place, len: at }
    }

    /// When the value ends, if there is one and it does.
    pub(crate) fn ends(&self) -> Option<u64> {
        self.expires_ms.filter(|_| self.place != Place::Gone)
    }

    /// The timestamp since which it is a tombstone, if it is one.
    pub(crate) fn dead_since(&self) -> Option<u64> {
        (self.place == Place::Gone).then(|| dead_since(self.hlc, self.expires_ms))
    }
}

/// Small numbers for what is near 0 on both sides.
const fn zigzag(number: u64) -> u64 {
    (number << 1) ^ (number.cast_signed() >> 63).cast_unsigned()
}

const fn unzigzag(number: u64) -> u64 {
    (number >> 1) ^ (number & 1).wrapping_neg()
}

/// The bytes of a number as a varint.
pub(crate) const fn varint_len(number: u64) -> usize {
    (70 - (number | 1).leading_zeros() as usize) / 7
}

pub(crate) fn push_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Writes a number at the beginning of `out`; returns the bytes that it took.
pub(crate) fn put_varint(out: &mut [u8], mut number: u64) -> usize {
    let mut at = 0;
    while number >= 0x80 {
        out[at] = number as u8 | 0x80;
        number >>= 7;
        at += 1;
    }
    out[at] = number as u8;
    at + 1
}

/// The number at `at`, which moves behind it.
pub(crate) fn take_varint(bytes: &[u8], at: &mut usize) -> u64 {
    let first = bytes[*at];
    *at += 1;
    let mut number = u64::from(first & 0x7f);
    let (mut more, mut shift) = (first & 0x80 != 0, 7);
    while more {
        let byte = bytes[*at];
        *at += 1;
        number |= u64::from(byte & 0x7f) << shift;
        (more, shift) = (byte & 0x80 != 0, shift + 7);
    }
    number
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stamps() -> impl Strategy<Value = u64> {
        prop_oneof![any::<u64>(), EPOCH - 9..EPOCH + 9, Just(0), Just(u64::MAX), 0u64..1 << 40]
    }

    proptest! {
        #![proptest_config(crate::tests::few_under_miri())]

        #[test]
        fn body_is_read_as_written(
            (hlc, end) in (stamps(), prop::option::of(stamps())),
            origin in prop_oneof![any::<u32>(), 0u32..200],
            first in prop::option::of((stamps(), any::<u64>())),
            value in prop::option::of(prop::collection::vec(any::<u8>(), 0..300)),
            long in any::<bool>(),
        ) {
            let first = first.map(|(hlc, origin)| Dot { hlc, origin });
            let content = match &value {
                None => Content::Tombstone,
                Some(_) if long => Content::Long,
                Some(value) => Content::Short(value),
            };
            let mut bytes = Vec::new();
            Body::write(&mut bytes, (hlc, origin), end, first, content);
            let len = bytes.len();
            bytes.push(0xff);
            let body = Body::read(&bytes);
            prop_assert_eq!((body.origin, body.hlc, body.expires_ms, body.first, body.len), (origin, hlc, end, first, len));
            match (content, body.place) {
                (Content::Short(value), Place::Here(place)) => prop_assert_eq!(value, &bytes[place]),
                (Content::Long, Place::Long(0)) | (Content::Tombstone, Place::Gone) => (),
                other => prop_assert!(false, "{:?}", other),
            }
        }

        #[test]
        fn varint_is_read_as_written(number in prop_oneof![any::<u64>(), 0u64..1 << 20]) {
            let mut bytes = Vec::new();
            push_varint(&mut bytes, number);
            let mut other = [0; 10];
            prop_assert_eq!(put_varint(&mut other, number), bytes.len());
            prop_assert_eq!(&other[..bytes.len()], &bytes[..]);
            prop_assert_eq!(varint_len(number), bytes.len());
            let mut at = 0;
            prop_assert_eq!((take_varint(&bytes, &mut at), at), (number, bytes.len()));
            prop_assert_eq!(unzigzag(zigzag(number)), number);
        }
    }
}
