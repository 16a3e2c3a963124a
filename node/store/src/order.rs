//! Keys in the order of their bytes, compared eight at a time: musl, which the
//! node is shipped with, compares one byte at a time.

use std::cmp::Ordering;

/// The order of two keys.
pub(crate) fn compare(a: &[u8], b: &[u8]) -> Ordering {
    let ((whole_a, rest_a), (whole_b, rest_b)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (x, y) in whole_a.iter().zip(whole_b) {
        let (x, y) = (u64::from_be_bytes(*x), u64::from_be_bytes(*y));
        if x != y {
            return x.cmp(&y);
        }
    }
    let same = whole_a.len().min(whole_b.len()) * 8;
    // At least one of the two has less than eight bytes left.
    match (whole_a.len() * 8 > same, whole_b.len() * 8 > same) {
        (true, _) => head(&a[same..]).cmp(&head(rest_b)).then(Ordering::Greater),
        (_, true) => head(rest_a).cmp(&head(&b[same..])).then(Ordering::Less),
        _ => head(rest_a).cmp(&head(rest_b)).then(rest_a.len().cmp(&rest_b.len())),
    }
}

/// Whether two keys are the same.
#[inline]
pub(crate) fn equal(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let ((whole_a, rest_a), (whole_b, rest_b)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    whole_a.iter().zip(whole_b).all(|(x, y)| u64::from_ne_bytes(*x) == u64::from_ne_bytes(*y))
        && head(rest_a) == head(rest_b)
}

/// Whether `key` begins with `prefix`.
#[inline]
pub(crate) fn begins(key: &[u8], prefix: &[u8]) -> bool {
    key.get(..prefix.len()).is_some_and(|start| equal(start, prefix))
}

/// The first eight bytes as a number of the same order; zeros stand for what is missing.
#[inline]
pub(crate) fn head(key: &[u8]) -> u64 {
    if let Some(whole) = key.first_chunk::<8>() {
        return u64::from_be_bytes(*whole);
    }
    // Two overlapping reads for four to seven bytes, single bytes below.
    if let (Some(first), Some(last)) = (key.first_chunk::<4>(), key.last_chunk::<4>()) {
        let low = u64::from(u32::from_be_bytes(*last)) << (64 - 8 * key.len());
        return u64::from(u32::from_be_bytes(*first)) << 32 | low;
    }
    key.iter().enumerate().fold(0, |head, (at, byte)| head | u64::from(*byte) << (56 - 8 * at))
}

/// How many bytes two keys begin with in common.
pub(crate) fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(crate::tests::few_under_miri())]

        #[test]
        fn order_is_that_of_bytes(
            common in prop::collection::vec(any::<u8>(), 0..20),
            a in prop::collection::vec(0u8..3, 0..20),
            b in prop::collection::vec(0u8..3, 0..20),
        ) {
            let (x, y) = ([&common[..], &a].concat(), [&common[..], &b].concat());
            prop_assert_eq!(compare(&x, &y), x.cmp(&y));
            prop_assert_eq!(equal(&x, &y), x == y);
            prop_assert_eq!(begins(&x, &common), true);
            prop_assert_eq!(begins(&a, &b), a.starts_with(&b));
            let shared = super::common(&x, &y);
            prop_assert!(x[..shared] == y[..shared] && x.get(shared).is_none_or(|byte| y.get(shared) != Some(byte)));
            let padded = |key: &[u8]| u64::from_be_bytes(std::array::from_fn(|at| key.get(at).copied().unwrap_or(0)));
            prop_assert_eq!(head(&x), padded(&x));
        }
    }
}
