//! Keys in the order of their bytes, compared eight at a time: most of the work of a lookup is comparisons, and musl,
//! which released nodes are linked with, compares one byte at a time.

use std::borrow::Borrow;
use std::cmp::Ordering;

use bytes::Bytes;

/// A key of the map.
#[derive(Clone, Debug)]
pub(super) struct Key(pub(super) Bytes);

/// What a key can be looked up by, such as a borrowed key.
pub(super) trait Sought {
    fn bytes(&self) -> &[u8];
}

impl Sought for Key {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Sought for &[u8] {
    fn bytes(&self) -> &[u8] {
        self
    }
}

impl<'a> Borrow<dyn Sought + 'a> for Key {
    fn borrow(&self) -> &(dyn Sought + 'a) {
        self
    }
}

impl Ord for dyn Sought + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(self.bytes(), other.bytes())
    }
}

impl PartialOrd for dyn Sought + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for dyn Sought + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for dyn Sought + '_ {}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(&self.0, &other.0)
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Key {}

fn compare(a: &[u8], b: &[u8]) -> Ordering {
    let ((whole_a, rest_a), (whole_b, rest_b)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (x, y) in whole_a.iter().zip(whole_b) {
        let (x, y) = (u64::from_be_bytes(*x), u64::from_be_bytes(*y));
        if x != y {
            return x.cmp(&y);
        }
    }
    match whole_a.len().cmp(&whole_b.len()) {
        Ordering::Equal => rest_a.iter().cmp(rest_b),
        Ordering::Less => rest_a.iter().cmp(whole_b[whole_a.len()].iter()),
        // Compares the next word of `a` with the rest of `b`, which is shorter than a word: they are never equal.
        Ordering::Greater => whole_a[whole_b.len()].iter().cmp(rest_b.iter()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_are_in_the_order_of_their_bytes(
            common in prop::collection::vec(any::<u8>(), 0..20),
            a in prop::collection::vec(0u8..3, 0..20),
            b in prop::collection::vec(0u8..3, 0..20),
        ) {
            let (a, b) = ([&common[..], &a].concat(), [&common[..], &b].concat());
            prop_assert_eq!(compare(&a, &b), a.cmp(&b));
        }
    }
}
