//! How pages are split, joined and given other prefixes; and the long values.

use super::{INDEX, JOINED, New, Page};
use crate::body::{Place, varint_len};
use crate::cost::allocated;
use crate::order::common;
use crate::record::Key;

impl Page {
    /// An empty page with a prefix.
    pub(super) fn with_prefix(prefix: &[u8], used: usize) -> Self {
        let mut data = vec![0; allocated(used as u64) as usize].into_boxed_slice();
        data[..prefix.len()].copy_from_slice(prefix);
        Self { data, prefix: prefix.len() as u32, ..Self::default() }
    }

    /// Rewrites the page with a shorter prefix, and room for `spare` bytes.
    pub(super) fn shorten_prefix(&mut self, prefix: usize, spare: usize) {
        let mut page = Self::with_prefix(&self.prefix()[..prefix], self.len_with(prefix) + spare);
        page.append(self, 0..self.len());
        page.long = self.long.take();
        page.mins = self.mins;
        *self = page;
    }

    /// Copies entries of another page behind those that are here. Their long values are not copied.
    fn append(&mut self, from: &Self, entries: std::ops::Range<usize>) {
        for at in entries {
            let (suffix, body) = from.raw(at);
            let key = Key { prefix: from.prefix(), suffix }.skip(self.prefix as usize);
            self.place(self.len(), from.tag(at), key.parts(), body);
        }
    }

    /// What the keys of two places have in common.
    fn shared(&self, at: usize, other: &Self, other_at: usize) -> usize {
        let ([a, b], [c, d]) = (self.key(at).parts(), other.key(other_at).parts());
        let start = common(a, c);
        if start < a.len().min(c.len()) {
            return start;
        }
        let (rest, other_rest) = (Key { prefix: a, suffix: b }.skip(start), Key { prefix: c, suffix: d }.skip(start));
        start + rest.bytes().zip(other_rest.bytes()).take_while(|(x, y)| x == y).count()
    }

    /// A page of some of the entries, with the longest prefix that they have.
    fn part(&mut self, entries: std::ops::Range<usize>) -> Self {
        let prefix = self.shared(entries.start, self, entries.end - 1);
        let mut start = Vec::new();
        self.key(entries.start).write_to(&mut start);
        let sizes = entries.clone().map(|at| {
            let (suffix, body) = self.raw(at);
            let suffix = self.prefix as usize + suffix.len() - prefix;
            INDEX + varint_len(suffix as u64) + suffix + body.len()
        });
        let mut page = Self::with_prefix(&start[..prefix], prefix + sizes.sum::<usize>());
        page.append(self, entries);
        if self.long.is_some() {
            for at in 0..page.len() {
                page.move_long(at, self);
            }
        }
        page.find_mins();
        page
    }

    /// Takes the long value of an entry over from the page that it was in.
    fn move_long(&mut self, at: usize, from: &mut Self) {
        if let Place::Long(index) = self.body(at).place {
            let long = from.long.as_mut().expect("an entry refers to it");
            let value = std::mem::take(&mut long.0[usize::from(index)]);
            let index = self.push_long(value);
            self.set_long(at, index);
        }
    }

    /// Splits off about half of the bytes; there are at least two entries.
    pub(crate) fn split(&mut self) -> Self {
        let half = self.heap as usize / 2;
        let mut before = 0;
        let mut middle = 0;
        while middle < self.len() - 1 && (middle == 0 || before < half) {
            let (suffix, body) = self.raw(middle);
            before += suffix.len() + body.len();
            middle += 1;
        }
        let right = self.part(middle..self.len());
        *self = self.part(0..middle);
        right
    }

    /// Takes in the entries of the page after it, if the two are short enough.
    pub(crate) fn join(&mut self, next: &mut Self) -> bool {
        let prefix = self.shared(0, next, next.len() - 1).min(self.prefix as usize).min(next.prefix as usize);
        let used = self.len_with(prefix) + next.len_with(prefix) - prefix;
        if used > JOINED {
            return false;
        }
        let mut page = Self::with_prefix(&self.prefix()[..prefix], used);
        page.append(self, 0..self.len());
        page.append(next, 0..next.len());
        page.long = self.long.take();
        for at in self.len()..page.len() {
            page.move_long(at, next);
        }
        page.mins = self.mins.and(next.mins);
        *self = page;
        true
    }

    /// Drops the entries for which `goes` holds. Returns how many.
    pub(crate) fn drop_if(&mut self, mut goes: impl FnMut(&Self, usize) -> bool) -> usize {
        let before = self.len();
        let mut page = Self::with_prefix(self.prefix(), self.used());
        for at in 0..before {
            if !goes(self, at) {
                let (suffix, body) = self.raw(at);
                page.place(page.len(), self.tag(at), [&[], suffix], body);
            }
        }
        let dropped = before - page.len();
        if dropped > 0 {
            if self.long.is_some() {
                for at in 0..page.len() {
                    page.move_long(at, self);
                }
            }
            page.find_mins();
            *self = page;
        }
        dropped
    }

    // ---- long values

    fn push_long(&mut self, value: bytes::Bytes) -> u16 {
        let long = self.long.get_or_insert_default();
        if long.0.len() == long.0.capacity() {
            long.0.reserve_exact(long.0.len() / 8 + 1);
        }
        long.0.push(value);
        (long.0.len() - 1) as u16
    }

    /// Stores the long value of an entry, and writes its index into the body.
    pub(super) fn add_long(&mut self, new: &mut New<'_>) {
        if let Some(value) = new.long.take() {
            let index = self.push_long(value);
            let end = new.body.len();
            new.body[end - 2..].copy_from_slice(&index.to_le_bytes());
        }
    }

    fn set_long(&mut self, at: usize, index: u16) {
        let (suffix, body) = self.raw(at);
        let end = self.start(at) + varint_len(suffix.len() as u64) + suffix.len() + body.len();
        self.data[end - 2..end].copy_from_slice(&index.to_le_bytes());
    }

    /// Drops a long value. The last one gets its index.
    pub(super) fn drop_long(&mut self, index: u16) {
        let long = self.long.as_mut().expect("an entry refers to it");
        let last = (long.0.len() - 1) as u16;
        long.0.swap_remove(index.into());
        if last == 0 {
            self.long = None;
        } else if last != index {
            let moved = (0..self.len()).find(|at| self.body(*at).place == Place::Long(last));
            self.set_long(moved.expect("each long value has an entry"), index);
        }
    }

    /// The bytes of the page's entries and long values, and how the parts of the page fit: for tests.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        let mut heap = 0;
        let mut long = Vec::new();
        let mut mins = super::Mins::NONE;
        for at in 0..self.len() {
            let (suffix, body) = self.raw(at);
            heap += varint_len(suffix.len() as u64) + suffix.len() + body.len();
            let body = crate::body::Body::read(body);
            mins = mins.and(super::Mins::of(&body));
            if let Place::Long(index) = body.place {
                long.push(usize::from(index));
            }
            if at > 0 {
                assert!(crate::order::compare(&self.key(at - 1).to_vec(), &self.key(at).to_vec()).is_lt());
            }
        }
        long.sort_unstable();
        let values = self.long.as_ref().map_or(0, |long| long.0.len());
        assert_eq!(long, (0..values).collect::<Vec<_>>());
        assert_eq!((heap, mins), (self.heap as usize, self.mins));
        assert!(self.used() <= self.data.len() && (self.len() == 1 || self.used() <= super::MAX));
    }
}
