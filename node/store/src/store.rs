//! The map and its sums.

use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::INLINE;
use crate::body::{Body, Content};
use crate::cost;
use crate::node::{Children, Node};
use crate::origins::Origins;
use crate::page::{Mins, New, Page, Tag};
use crate::record::{Dot, Entry, Key, Write, ms_of};
use crate::scan::{Scan, entry};

/// Buckets that a map's fingerprint is also kept by, so that two maps which
/// differ need not be exchanged whole.
pub const BUCKETS: usize = 1024;

/// A last-writer-wins map.
#[derive(Debug, Default)]
pub struct Store {
    root: Node,
    origins: Origins,
    sums: Sums,
    /// What the next entry is written to before it is put into its page.
    scratch: Vec<u8>,
    key: Vec<u8>,
}

/// What is known of all entries together.
#[derive(Debug)]
struct Sums {
    len: u64,
    with_value: u64,
    ending: u64,
    memory: u64,
    /// What of `memory` tombstones take.
    buried: u64,
    fingerprint: u128,
    buckets: Box<[u128; BUCKETS]>,
}

impl Default for Sums {
    fn default() -> Self {
        let buckets = Box::new([0; BUCKETS]);
        Self { len: 0, with_value: 0, ending: 0, memory: 0, buried: 0, fingerprint: 0, buckets }
    }
}

/// What an entry counts for.
#[derive(Clone, Copy, Debug)]
struct Share {
    dot: Dot,
    /// The number of its origin.
    number: u32,
    cost: u64,
    has_value: bool,
    ends: bool,
}

impl Share {
    fn of(held: &Entry<'_>, number: u32) -> Self {
        Self {
            dot: held.dot,
            number,
            cost: cost(held),
            has_value: held.value.is_some(),
            ends: held.value.is_some() && held.expires_ms.is_some(),
        }
    }
}

impl Sums {
    fn add(&mut self, key: &[u8], hash: u64, share: Share) {
        self.len += 1;
        self.count(share, u64::wrapping_add);
        self.mix(key, hash, share.dot, u128::wrapping_add);
    }

    fn take(&mut self, key: &[u8], hash: u64, share: Share) {
        self.len -= 1;
        self.count(share, u64::wrapping_sub);
        self.mix(key, hash, share.dot, u128::wrapping_sub);
    }

    fn count(&mut self, share: Share, how: fn(u64, u64) -> u64) {
        self.memory = how(self.memory, share.cost);
        self.with_value = how(self.with_value, share.has_value.into());
        self.ending = how(self.ending, share.ends.into());
        if !share.has_value {
            self.buried = how(self.buried, share.cost);
        }
    }

    fn mix(&mut self, key: &[u8], hash: u64, dot: Dot, how: fn(u128, u128) -> u128) {
        let summand = summand(key, dot);
        self.fingerprint = how(self.fingerprint, summand);
        let bucket = &mut self.buckets[hash as usize % BUCKETS];
        *bucket = how(*bucket, summand);
    }
}

impl Store {
    /// The entry of a key, a tombstone too.
    pub fn get(&self, key: &[u8]) -> Option<Entry<'_>> {
        let (page, at) = self.find(key, xxh3_64(key))?;
        Some(entry(page, at, &self.origins))
    }

    fn share(&self, key: &[u8], hash: u64) -> Option<Share> {
        let (page, at) = self.find(key, hash)?;
        Some(Share::of(&entry(page, at, &self.origins), page.body(at).origin))
    }

    /// The place of a key.
    fn find(&self, key: &[u8], hash: u64) -> Option<(&Page, usize)> {
        let mut node = &self.root;
        loop {
            let at = node.locate(key);
            match &node.children {
                Children::Nodes(nodes) => node = &nodes[at],
                Children::Pages(pages) => {
                    let page = pages.get(at)?;
                    return Some((page, page.find(key, Tag::of(hash))?));
                }
            }
        }
    }

    /// Takes a write if it beats what is there. Returns whether it did.
    pub fn merge(&mut self, key: &[u8], write: &Write<'_>) -> bool {
        let hash = xxh3_64(key);
        let old = self.share(key, hash);
        if old.is_some_and(|old| old.dot >= write.dot) {
            return false;
        }
        let content = match write.value {
            None => Content::Tombstone,
            Some(value) if value.len() > INLINE => Content::Long,
            Some(value) => Content::Short(value),
        };
        let long = write.value.filter(|value| value.len() > INLINE).cloned();
        let origin = self.origins.take(write.dot.origin);
        self.scratch.clear();
        Body::write(&mut self.scratch, (write.dot.hlc, origin), write.expires_ms, write.first, content);
        if let Some(old) = old {
            self.sums.take(key, hash, old);
            self.origins.give_back(old.number);
        }
        let value = write.value.map(bytes::Bytes::len);
        let share = Share {
            dot: write.dot,
            number: origin,
            cost: cost_with(key.len(), value, write.expires_ms.is_some(), write.first.is_some()),
            has_value: value.is_some(),
            ends: value.is_some() && write.expires_ms.is_some(),
        };
        self.sums.add(key, hash, share);
        let mut new = New { key, tag: Tag::of(hash), body: &mut self.scratch, long };
        if let Some((separator, right)) = self.root.put(&mut new) {
            let left = std::mem::take(&mut self.root);
            self.root = Node::above(left, separator, right);
        }
        self.root.lower();
        true
    }

    /// Frees the values that have ended at `now_ms`, at most `limit` of them, and hands each key and dot to `ended`.
    /// What is left is a tombstone with the dot of the write.
    ///
    /// The page with the value that ended first comes first, and then all of that page. Reads do not depend on it:
    /// they compare the time themselves.
    pub fn expire(&mut self, now_ms: u64, mut limit: usize, mut ended: impl FnMut(Key<'_>, Dot)) {
        while limit > 0 && self.sums.ending > 0 {
            let Self { root, origins, sums, scratch, .. } = self;
            let least = root.mins().end;
            if least >= now_ms {
                break;
            }
            let done = root.change_least(&|mins: Mins| mins.end == least, |page| {
                let mut done = 0;
                for at in 0..page.len() {
                    let (_, body, _) = page.entry(at);
                    if done == limit || body.ends().is_none_or(|end| end > now_ms) {
                        continue;
                    }
                    let held = entry(page, at, origins);
                    sums.count(Share::of(&held, body.origin), u64::wrapping_sub);
                    ended(held.key, held.dot);
                    let left = Entry { value: None, ..held };
                    sums.count(Share::of(&left, body.origin), u64::wrapping_add);
                    scratch.clear();
                    let name = (body.hlc, body.origin);
                    Body::write(scratch, name, body.expires_ms, body.first, Content::Tombstone);
                    page.bury(at, scratch);
                    done += 1;
                }
                page.find_mins();
                done
            });
            limit -= done.unwrap_or(limit);
            self.root.lower();
        }
    }

    /// Drops the tombstones of `stamp` and before, at most `limit` of them.
    /// Returns whether none of them is left: only then is the fingerprint a
    /// function of what was taken in and of `stamp`.
    ///
    /// The caller knows that every member holds each of them, and has
    /// [expired](Self::expire) what ends by the stamp, whatever the wall clock
    /// says: of what has not, nothing is dropped.
    pub fn collect(&mut self, stamp: u64, mut limit: usize) -> bool {
        while limit > 0 && self.oldest_tombstone().is_some_and(|oldest| oldest <= stamp) {
            let Self { root, origins, sums, key: name, .. } = self;
            let least = root.mins().dead;
            let done = root.change_least(&|mins: Mins| mins.dead == least, |page| {
                let mut left = limit;
                page.drop_if(|page, at| {
                    let (held, number) = (entry(page, at, origins), page.body(at).origin);
                    if left == 0 || held.value.is_some() || held.dead_since() > stamp {
                        return false;
                    }
                    left -= 1;
                    held.key.write_to(name);
                    sums.take(name, xxh3_64(name), Share::of(&held, number));
                    origins.give_back(number);
                    true
                })
            });
            limit -= done.unwrap_or(limit);
            self.root.lower();
        }
        self.is_collected(stamp)
    }

    /// The stamp since which the oldest tombstone is one.
    pub fn oldest_tombstone(&self) -> Option<u64> {
        (self.tombstones() > 0).then(|| self.root.mins().dead + 1)
    }

    /// Whether nothing is left that [`Self::collect`] would drop.
    pub fn is_collected(&self, stamp: u64) -> bool {
        self.oldest_tombstone().is_none_or(|since| since > stamp)
            && (self.sums.ending == 0 || self.root.mins().end >= ms_of(stamp))
    }

    /// The key of the value that ends first, for eviction; of those that end at one time the first in key order.
    pub fn first_to_end(&self) -> Option<Key<'_>> {
        let least = self.root.mins().end;
        let is = |mins: Mins| mins.end == least && least < u64::MAX;
        let mut node = &self.root;
        loop {
            let at = node.least(is)?;
            match &node.children {
                Children::Nodes(nodes) => node = &nodes[at],
                Children::Pages(pages) => return pages[at].first(is).map(|place| pages[at].key(place)),
            }
        }
    }

    /// Takes an entry out, tombstone or not, without a trace: not a delete.
    pub fn remove(&mut self, key: &[u8]) {
        let hash = xxh3_64(key);
        let Some(held) = self.share(key, hash) else { return };
        self.sums.take(key, hash, held);
        self.origins.give_back(held.number);
        self.root.remove(key, Tag::of(hash));
        self.root.lower();
    }

    /// Entries, tombstones included.
    pub const fn len(&self) -> usize {
        self.sums.len as usize
    }

    /// Whether there is no entry, not even a tombstone.
    pub const fn is_empty(&self) -> bool {
        self.sums.len == 0
    }

    /// Entries after `after` (from the first, with `None`), in key order.
    pub fn scan(&self, after: Option<&[u8]>) -> Scan<'_> {
        Scan::new(&self.root, &self.origins, after.unwrap_or_default(), after.is_some())
    }

    /// Entries of keys at or after `first`, in key order.
    pub fn scan_from(&self, first: &[u8]) -> Scan<'_> {
        Scan::new(&self.root, &self.origins, first, false)
    }

    /// Entries of keys that begin with `prefix`, in key order.
    pub fn scan_prefix<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = Entry<'a>> {
        self.scan_from(prefix).take_while(move |held| held.key.starts_with(prefix))
    }

    /// Keys that hold a value whose memory is not freed.
    pub const fn keys(&self) -> u64 {
        self.sums.with_value
    }

    /// Deletes and expired values still remembered.
    pub const fn tombstones(&self) -> u64 {
        self.sums.len - self.sums.with_value
    }

    /// The memory of all entries, bytes: at most a tenth less than what the process takes for them. What the keys
    /// have in common is counted as if they had not, so that the sum is a function of the entries.
    pub const fn memory(&self) -> u64 {
        self.sums.memory
    }

    /// What of [`Self::memory`] deletes and expired values take.
    pub const fn buried(&self) -> u64 {
        self.sums.buried
    }

    /// What [`Self::memory`] would rise by if a value without an end were put
    /// under a new key.
    pub const fn cost_of(key_len: usize, value_len: usize) -> u64 {
        cost::of(key_len, value_len)
    }

    /// What [`Self::memory`] would rise by if a value that has none were given an end.
    pub const COST_OF_END: u64 = cost::END;

    /// What [`Self::memory`] counts for a key's entry.
    pub fn cost_at(&self, key: &[u8]) -> u64 {
        self.get(key).map_or(0, |held| cost(&held))
    }

    /// A commutative sum over all entries: equal on two replicas with equal
    /// maps, whatever the order in which they came to be so.
    pub const fn fingerprint(&self) -> u128 {
        self.sums.fingerprint
    }

    /// The fingerprint by buckets of keys, see [`bucket_of`].
    pub const fn buckets(&self) -> &[u128; BUCKETS] {
        &self.sums.buckets
    }
}

fn cost(held: &Entry<'_>) -> u64 {
    let value = held.value.map(|value| value.len());
    cost_with(held.key.len(), value, held.expires_ms.is_some(), held.first.is_some())
}

const fn cost_with(key: usize, value: Option<usize>, ends: bool, first: bool) -> u64 {
    let value = if let Some(len) = value { len } else { 0 };
    cost::of(key, value) + if ends { cost::END } else { 0 } + if first { cost::FIRST } else { 0 }
}

/// The bucket of a key.
pub fn bucket_of(key: &[u8]) -> usize {
    xxh3_64(key) as usize % BUCKETS
}

/// A dot names one write, so key and dot stand for the value too.
fn summand(key: &[u8], dot: Dot) -> u128 {
    let mut short = [0; 16 + 112];
    let mut long = Vec::new();
    let input = if let Some(input) = short.get_mut(..16 + key.len()) {
        input
    } else {
        long.resize(16 + key.len(), 0);
        &mut long
    };
    input[..8].copy_from_slice(&dot.hlc.to_le_bytes());
    input[8..16].copy_from_slice(&dot.origin.to_le_bytes());
    input[16..].copy_from_slice(key);
    xxh3_128(input)
}

#[cfg(test)]
impl Store {
    /// How the parts of the tree fit.
    pub(crate) fn check(&self) {
        self.root.check(None, None);
    }

    /// The bytes of all pages.
    pub(crate) fn allocated(&self) -> u64 {
        self.root.allocated()
    }
}
