//! A page: some neighbouring entries in one allocation of about their size.
//!
//! ```text
//! prefix · tags, 1 each · slots, 2 each · free · entries
//! entry: length of suffix varint · suffix · body
//! ```
//!
//! Every key begins with the prefix. A tag is a byte of the key's hash. A slot is how far before the end of the page
//! its entry begins, in 13 bits, and above them 3 more bits of the hash. Both are in key order. Entries are packed at the end of the page without gaps, the newest
//! first. A page whose entries take more than [`MAX`] has one entry only; slots do not matter there.

mod build;

use bytes::Bytes;

use crate::body::{Body, Place, put_varint, take_varint, varint_len};
use crate::cost::allocated;
use crate::order::{begins, common, compare, equal};
use crate::record::Key;

/// A page with more than one entry is at most this long, bytes.
pub(crate) const MAX: usize = 8192;
/// A shorter page is joined with a neighbour, if there is room.
pub(crate) const FEW: usize = MAX / 8 * 3;
/// Two pages are joined to one that is at most this long.
pub(crate) const JOINED: usize = MAX / 4 * 3;
/// What an entry takes besides itself: tag and slot.
const INDEX: usize = 3;
/// The bits of a slot that say where its entry is: as many as [`MAX`] needs.
const DISTANCE: u16 = (1 << 13) - 1;
const _: () = assert!(MAX - INDEX <= DISTANCE as usize);

/// The earliest end and the earliest tombstone below a place of the tree, each less 1; `u64::MAX`: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mins {
    pub(crate) end: u64,
    pub(crate) dead: u64,
}

impl Mins {
    pub(crate) const NONE: Self = Self { end: u64::MAX, dead: u64::MAX };

    pub(crate) fn and(self, other: Self) -> Self {
        Self { end: self.end.min(other.end), dead: self.dead.min(other.dead) }
    }

    pub(crate) fn of(body: &Body) -> Self {
        let less = |number: Option<u64>| number.map_or(u64::MAX, |number| number.saturating_sub(1));
        Self { end: less(body.ends()), dead: less(body.dead_since()) }
    }

    /// Whether one of these may be one of the least.
    fn touches(self, least: Self) -> bool {
        self.end < u64::MAX && self.end <= least.end || self.dead < u64::MAX && self.dead <= least.dead
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Page {
    data: Box<[u8]>,
    /// Values that are not in the page itself.
    long: Option<Box<Long>>,
    mins: Mins,
    /// The bytes of all entries.
    heap: u32,
    prefix: u32,
    len: u16,
}

#[derive(Debug, Default)]
struct Long(Vec<Bytes>);

/// Eleven bits of a key's hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    byte: u8,
    /// In the bits of a slot that are not its distance.
    high: u16,
}

impl Tag {
    /// Not from the lowest bits of the hash, which choose the bucket.
    pub(crate) const fn of(hash: u64) -> Self {
        Self { byte: (hash >> 56) as u8, high: (hash >> 40) as u16 & !DISTANCE }
    }
}

/// An entry to be put into a page.
#[derive(Debug)]
pub(crate) struct New<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) tag: Tag,
    pub(crate) body: &'a mut [u8],
    /// The value, if it is a long one; taken when it is in the page.
    pub(crate) long: Option<Bytes>,
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    Done,
    /// The page would get too long.
    Full {
        /// The place of the entry.
        at: usize,
        /// Whether the key is new.
        new: bool,
    },
}

impl Default for Page {
    fn default() -> Self {
        Self { data: Box::default(), long: None, mins: Mins::NONE, heap: 0, prefix: 0, len: 0 }
    }
}

impl Page {
    pub(crate) fn len(&self) -> usize {
        self.len.into()
    }

    pub(crate) const fn mins(&self) -> Mins {
        self.mins
    }

    /// The bytes in use.
    pub(crate) fn used(&self) -> usize {
        self.prefix as usize + INDEX * self.len() + self.heap as usize
    }

    #[cfg(test)]
    /// The bytes allocated: those of the page, and those of the table of long values.
    pub(crate) fn allocated(&self) -> u64 {
        let long = self.long.as_ref().map_or(0, |long| {
            allocated((long.0.capacity() * size_of::<Bytes>()) as u64) + allocated(size_of::<Long>() as u64)
        });
        allocated(self.data.len() as u64) + long
    }

    fn prefix(&self) -> &[u8] {
        &self.data[..self.prefix as usize]
    }

    fn tag(&self, at: usize) -> Tag {
        Tag { byte: self.data[self.prefix as usize + at], high: self.slot(at) & !DISTANCE }
    }

    fn slot_place(&self, at: usize) -> usize {
        self.prefix as usize + self.len() + 2 * at
    }

    fn slot(&self, at: usize) -> u16 {
        let place = self.slot_place(at);
        u16::from_le_bytes([self.data[place], self.data[place + 1]])
    }

    fn set_slot(&mut self, at: usize, slot: u16) {
        let place = self.slot_place(at);
        self.data[place..place + 2].copy_from_slice(&slot.to_le_bytes());
    }

    /// Where an entry begins.
    fn start(&self, at: usize) -> usize {
        self.data.len() - if self.len == 1 { self.heap as usize } else { (self.slot(at) & DISTANCE).into() }
    }

    /// The suffix of an entry, and all bytes behind it.
    #[inline]
    fn split_entry(&self, at: usize) -> (&[u8], &[u8]) {
        let entry = &self.data[self.start(at)..];
        let mut from = 0;
        let len = take_varint(entry, &mut from) as usize;
        entry[from..].split_at(len)
    }

    /// An entry as it is stored: its suffix and its body.
    fn raw(&self, at: usize) -> (&[u8], &[u8]) {
        let (suffix, rest) = self.split_entry(at);
        (suffix, &rest[..Body::read(rest).len])
    }

    pub(crate) fn key(&self, at: usize) -> Key<'_> {
        Key { prefix: self.prefix(), suffix: self.split_entry(at).0 }
    }

    /// An entry's key, its body, and the bytes that places in the body refer to.
    pub(crate) fn entry(&self, at: usize) -> (Key<'_>, Body, &[u8]) {
        let (suffix, rest) = self.split_entry(at);
        (Key { prefix: self.prefix(), suffix }, Body::read(rest), rest)
    }

    pub(crate) fn body(&self, at: usize) -> Body {
        Body::read(self.split_entry(at).1)
    }

    pub(crate) fn long(&self, index: u16) -> &Bytes {
        &self.long.as_ref().expect("an entry refers to it").0[usize::from(index)]
    }

    /// The place of a key, if it is here.
    pub(crate) fn find(&self, key: &[u8], tag: Tag) -> Option<usize> {
        let prefix = self.prefix as usize;
        if !begins(key, &self.data[..prefix]) {
            return None;
        }
        let suffix = &key[prefix..];
        // Read before the slot is known, so that both come from memory at the same time.
        let slots = prefix + self.len();
        std::hint::black_box(self.data.get(slots + self.len() / 2).copied());
        std::hint::black_box(self.data.get(slots + self.len() / 2 * 3).copied());
        let tags = &self.data[prefix..slots];
        let (words, rest) = tags.as_chunks::<8>();
        let is_here = |at: &usize| self.slot(*at) & !DISTANCE == tag.high && equal(self.split_entry(*at).0, suffix);
        for (word, eight) in words.iter().enumerate() {
            let mut found = tag_in(u64::from_le_bytes(*eight), tag.byte);
            while found != 0 {
                let at = word * 8 + found.trailing_zeros() as usize / 8;
                if is_here(&at) {
                    return Some(at);
                }
                found &= found - 1;
            }
        }
        let first = words.len() * 8;
        rest.iter().enumerate().filter(|(_, other)| **other == tag.byte).map(|(at, _)| first + at).find(is_here)
    }

    /// How many keys are less than `key`.
    pub(crate) fn position(&self, key: &[u8]) -> usize {
        if !begins(key, self.prefix()) {
            return if compare(key, self.prefix()).is_lt() { 0 } else { self.len() };
        }
        let suffix = &key[self.prefix as usize..];
        let (mut low, mut high) = (0, self.len());
        // Keys often come in order.
        if high > 0 && compare(self.split_entry(high - 1).0, suffix).is_lt() {
            return high;
        }
        while low < high {
            let middle = low.midpoint(high);
            if compare(self.split_entry(middle).0, suffix).is_lt() {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The first entry for which `is` holds.
    pub(crate) fn first(&self, is: impl Fn(Mins) -> bool) -> Option<usize> {
        (0..self.len()).find(|at| is(Mins::of(&self.body(*at))))
    }

    /// How long the page would be with a prefix of `prefix` bytes, at most as many as it has now.
    fn len_with(&self, prefix: usize) -> usize {
        let longer = self.prefix as usize - prefix;
        if longer == 0 {
            return self.used();
        }
        let longer = |at: usize| {
            let now = self.split_entry(at).0.len();
            longer + varint_len((now + longer) as u64) - varint_len(now as u64)
        };
        self.used() - (self.prefix as usize - prefix) + (0..self.len()).map(longer).sum::<usize>()
    }

    /// What the prefix is to be with another key.
    fn prefix_with(&self, key: &[u8]) -> usize {
        if self.len == 0 { key.len() } else { common(key, self.prefix()) }
    }

    /// Whether there is room for a key that is not here.
    pub(crate) fn takes(&self, key: &[u8], body: usize) -> bool {
        let prefix = self.prefix_with(key);
        self.len == 0 || self.len_with(prefix) + Self::added(key.len() - prefix, body) <= MAX
    }

    const fn added(suffix: usize, body: usize) -> usize {
        INDEX + varint_len(suffix as u64) + suffix + body
    }

    /// Puts an entry in, in place of the one that its key has.
    pub(crate) fn put(&mut self, new: &mut New<'_>) -> Put {
        match self.find(new.key, new.tag) {
            Some(at) => self.replace(at, new),
            None => self.insert(new),
        }
    }

    fn replace(&mut self, at: usize, new: &mut New<'_>) -> Put {
        let old = self.body(at);
        let used = self.used() - old.len + new.body.len();
        if used > MAX && self.len > 1 {
            return Put::Full { at, new: false };
        }
        if used > self.data.len() {
            self.resize(used);
        }
        if let Place::Long(index) = old.place {
            self.drop_long(index);
        }
        self.add_long(new);
        self.set_body(at, old.len, new.body);
        self.count(&old, &Body::read(new.body));
        Put::Done
    }

    fn insert(&mut self, new: &mut New<'_>) -> Put {
        if self.len == 0 {
            *self = Self::with_prefix(new.key, new.key.len() + Self::added(0, new.body.len()));
        }
        let at = self.position(new.key);
        let prefix = self.prefix_with(new.key);
        let suffix = &new.key[prefix..];
        let added = Self::added(suffix.len(), new.body.len());
        let used = self.len_with(prefix) + added;
        if self.len > 0 && used > MAX {
            return Put::Full { at, new: true };
        }
        if prefix < self.prefix as usize {
            self.shorten_prefix(prefix, added);
        } else if used > self.data.len() {
            self.resize(used);
        }
        self.add_long(new);
        self.place(at, new.tag, [&[], suffix], new.body);
        self.mins = self.mins.and(Mins::of(&Body::read(new.body)));
        Put::Done
    }

    /// Writes an entry for which there is room, its suffix in two parts.
    fn place(&mut self, at: usize, tag: Tag, suffix: [&[u8]; 2], body: &[u8]) {
        let (prefix, len) = (self.prefix as usize, self.len());
        let slots = prefix + len + 2 * at;
        self.data.copy_within(slots..prefix + INDEX * len, slots + 3);
        self.data.copy_within(prefix + at..slots, prefix + at + 1);
        self.data[prefix + at] = tag.byte;
        let suffix_len = suffix[0].len() + suffix[1].len();
        self.heap += (varint_len(suffix_len as u64) + suffix_len + body.len()) as u32;
        self.len += 1;
        self.set_slot(at, self.heap as u16 & DISTANCE | tag.high);
        let start = self.data.len() - self.heap as usize;
        let entry = &mut self.data[start..];
        let mut end = put_varint(entry, suffix_len as u64);
        for part in [suffix[0], suffix[1], body] {
            entry[end..end + part.len()].copy_from_slice(part);
            end += part.len();
        }
    }

    /// Takes an entry out.
    pub(crate) fn remove(&mut self, at: usize) {
        let body = self.body(at);
        if let Place::Long(index) = body.place {
            self.drop_long(index);
        }
        let start = self.start(at);
        let suffix = self.split_entry(at).0.len();
        let size = varint_len(suffix as u64) + suffix + body.len;
        self.shift(start, size, 0);
        let (prefix, len) = (self.prefix as usize, self.len());
        let slots = prefix + len + 2 * at;
        self.data.copy_within(prefix + at + 1..slots, prefix + at);
        self.data.copy_within(slots + 2..prefix + INDEX * len, slots - 1);
        self.len -= 1;
        if Mins::of(&body).touches(self.mins) {
            self.find_mins();
        }
    }

    /// Writes another body for an entry, for which there is room.
    fn set_body(&mut self, at: usize, old_len: usize, body: &[u8]) {
        let start = self.start(at);
        let suffix = self.split_entry(at).0.len();
        let end = start + varint_len(suffix as u64) + suffix + old_len;
        if body.len() != old_len {
            self.shift(end - old_len, old_len, body.len());
        }
        self.data[end - body.len()..end].copy_from_slice(body);
    }

    /// Makes `old` bytes of the heap at `place` into `new` bytes: moves what is before them, and corrects the slots.
    fn shift(&mut self, place: usize, old: usize, new: usize) {
        let heap = self.data.len() - self.heap as usize;
        self.data.copy_within(heap..place, heap + old - new);
        let limit = self.data.len() - place;
        let by = (new as u16).wrapping_sub(old as u16);
        let slots = self.slot_place(0)..self.slot_place(self.len());
        for slot in self.data[slots].as_chunks_mut::<2>().0 {
            let before = u16::from_le_bytes(*slot);
            if usize::from(before & DISTANCE) >= limit {
                *slot = (before.wrapping_add(by) & DISTANCE | before & !DISTANCE).to_le_bytes();
            }
        }
        self.heap = (self.heap as usize + new - old) as u32;
        if self.len == 1 {
            self.set_slot(0, self.heap as u16 & DISTANCE | self.slot(0) & !DISTANCE);
        }
    }

    /// Moves to an allocation with room for `used` bytes.
    fn resize(&mut self, used: usize) {
        let mut data = vec![0; allocated(used as u64) as usize].into_boxed_slice();
        let (index, heap) = (self.prefix as usize + INDEX * self.len(), self.heap as usize);
        data[..index].copy_from_slice(&self.data[..index]);
        let (to, from) = (data.len() - heap, self.data.len() - heap);
        data[to..].copy_from_slice(&self.data[from..]);
        self.data = data;
    }

    /// Gives back memory, if a smaller allocation is enough with some room to grow.
    pub(crate) fn shrink(&mut self) {
        let roomy = self.used() + self.used() / 16;
        if allocated(roomy as u64) < self.data.len() as u64 {
            self.resize(roomy);
        }
    }

    fn count(&mut self, old: &Body, new: &Body) {
        if Mins::of(old).touches(self.mins) {
            self.find_mins();
        } else {
            self.mins = self.mins.and(Mins::of(new));
        }
    }

    /// Takes the value out of an entry: `body` is what is left. The caller finds the minima then.
    pub(crate) fn bury(&mut self, at: usize, body: &[u8]) {
        let old = self.body(at);
        if let Place::Long(index) = old.place {
            self.drop_long(index);
        }
        self.set_body(at, old.len, body);
    }

    pub(crate) fn find_mins(&mut self) {
        self.mins = (0..self.len()).fold(Mins::NONE, |mins, at| mins.and(Mins::of(&self.body(at))));
    }
}

/// The bytes of eight tags that are `tag`, as their highest bits. Those above a right one may be wrong.
const fn tag_in(eight: u64, tag: u8) -> u64 {
    const ONES: u64 = u64::MAX / 0xff;
    let differ = eight ^ (ONES * tag as u64);
    differ.wrapping_sub(ONES) & !differ & (ONES << 7)
}
