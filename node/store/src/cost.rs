//! What entries are accounted with: a function of the entry alone, so that equal maps have equal sums.

/// What an entry takes besides key and value: tag and slot, lengths, flags, origin and timestamp, its share of what
/// each page takes.
const SLOT: u64 = 18;
/// What an end adds to an entry.
pub(crate) const END: u64 = 5;
/// What the dot of the first issue adds to an entry.
pub(crate) const FIRST: u64 = 17;
/// Of a page this part is free on average.
const FREE: u64 = 11;
/// What a long value takes besides its bytes: its place in the page's table, and the three words of those who own it.
const LONG: u64 = 34 + allocated(24);

/// What an allocation of `len` bytes takes: 8, or up to 64 a multiple of 16, and above that one of four sizes to each
/// doubling. So it is in mimalloc, which the node uses, and about so in the other allocators in use.
pub(crate) const fn allocated(len: u64) -> u64 {
    match len {
        0 => 0,
        1..=8 => 8,
        9..=64 => len.next_multiple_of(16),
        _ => len.next_multiple_of(1 << ((len - 1).ilog2() - 2)),
    }
}

/// What a value without an end takes, and its key.
pub(crate) const fn of(key_len: usize, value_len: usize) -> u64 {
    let (inside, outside) =
        if value_len > crate::INLINE { (0, LONG + allocated(value_len as u64)) } else { (value_len as u64, 0) };
    let inside = key_len as u64 + inside;
    SLOT + inside + inside / FREE + outside
}
