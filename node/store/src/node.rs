//! An inner node of the tree: pages or other nodes in key order, and the keys that separate them.

use crate::order::{begins, common, compare, head};
use crate::page::{FEW, Mins, New, Page, Put, Tag};

/// A node has at most this many children.
#[cfg(not(test))]
pub(crate) const FANOUT: usize = 256;
/// Small, so that tests have deep trees.
#[cfg(test)]
pub(crate) const FANOUT: usize = 8;

/// A longer prefix of the separators is not used.
const PREFIX: usize = 40;

/// Separators with `separators[i - 1] <= key < separators[i]` for each key below child `i`.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) children: Children,
    separators: Vec<Box<[u8]>>,
    /// The first eight bytes of each separator behind the prefix, so that a search touches little memory.
    heads: Vec<u64>,
    /// What all separators begin with; here, so that a search needs not read a separator.
    prefix: [u8; PREFIX],
    prefix_len: usize,
    mins: Mins,
}

#[derive(Debug)]
pub(crate) enum Children {
    Pages(Vec<Page>),
    Nodes(Vec<Node>),
}

impl Default for Node {
    fn default() -> Self {
        Self::new(Children::Pages(Vec::new()), Vec::new())
    }
}

impl Children {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Pages(pages) => pages.len(),
            Self::Nodes(nodes) => nodes.len(),
        }
    }

    fn mins(&self, at: usize) -> Mins {
        match self {
            Self::Pages(pages) => pages[at].mins(),
            Self::Nodes(nodes) => nodes[at].mins,
        }
    }

    fn split_off(&mut self, at: usize) -> Self {
        match self {
            Self::Pages(pages) => Self::Pages(split_off(pages, at)),
            Self::Nodes(nodes) => Self::Nodes(split_off(nodes, at)),
        }
    }

    fn append(&mut self, other: Self) {
        match (self, other) {
            (Self::Pages(pages), Self::Pages(other)) => pages.extend(other),
            (Self::Nodes(nodes), Self::Nodes(other)) => nodes.extend(other),
            _ => unreachable!("children of one level are of one kind"),
        }
    }
}

/// As [`Vec::split_off`], without giving both the memory of the whole.
fn split_off<T>(all: &mut Vec<T>, at: usize) -> Vec<T> {
    let right = all.split_off(at);
    all.shrink_to(at + at / 4);
    right
}

/// As [`Vec::insert`], without doubling the memory.
fn insert<T>(all: &mut Vec<T>, at: usize, new: T) {
    if all.len() == all.capacity() {
        all.reserve_exact(all.len() / 8 + 2);
    }
    all.insert(at, new);
}

/// The shortest key above `low` and not above `high`, which is above `low`.
fn between(low: &[u8], high: &[u8]) -> Box<[u8]> {
    high[..=common(low, high)].into()
}

impl Node {
    fn new(children: Children, separators: Vec<Box<[u8]>>) -> Self {
        let mut node =
            Self { children, separators, heads: Vec::new(), prefix: [0; PREFIX], prefix_len: 0, mins: Mins::NONE };
        node.find_heads();
        node.find_mins();
        node
    }

    pub(crate) fn above(left: Self, separator: Box<[u8]>, right: Self) -> Self {
        Self::new(Children::Nodes(vec![left, right]), vec![separator])
    }

    pub(crate) const fn mins(&self) -> Mins {
        self.mins
    }

    fn find_mins(&mut self) {
        self.mins = (0..self.children.len()).fold(Mins::NONE, |mins, at| mins.and(self.children.mins(at)));
    }

    fn prefix(&self) -> &[u8] {
        &self.prefix[..self.prefix_len]
    }

    /// The child whose keys `key` is, or would be, among.
    pub(crate) fn locate(&self, key: &[u8]) -> usize {
        let prefix = self.prefix();
        if !begins(key, prefix) {
            return if compare(key, prefix).is_lt() { 0 } else { self.heads.len() };
        }
        let wanted = head(&key[prefix.len()..]);
        let low = self.heads.partition_point(|head| *head < wanted);
        if self.heads.get(low) != Some(&wanted) {
            return low;
        }
        let high = low + self.heads[low..].partition_point(|head| *head == wanted);
        low + self.separators[low..high].partition_point(|separator| compare(separator, key).is_le())
    }

    /// The child with an entry that is among the least.
    pub(crate) fn least(&self, is: impl Fn(Mins) -> bool) -> Option<usize> {
        (0..self.children.len()).find(|at| is(self.children.mins(*at)))
    }

    // ---- separators

    fn find_heads(&mut self) {
        let prefix = match &self.separators[..] {
            [] => &[],
            [only] => &only[..],
            [first, .., last] => &first[..common(first, last)],
        };
        self.prefix_len = prefix.len().min(PREFIX);
        self.prefix[..self.prefix_len].copy_from_slice(&prefix[..self.prefix_len]);
        self.heads.clear();
        self.heads.extend(self.separators.iter().map(|separator| head(&separator[self.prefix_len..])));
    }

    fn shares_prefix(&self, separator: &[u8]) -> bool {
        !self.separators.is_empty() && begins(separator, self.prefix())
    }

    fn add_separator(&mut self, at: usize, separator: Box<[u8]>) {
        if self.shares_prefix(&separator) {
            insert(&mut self.heads, at, head(&separator[self.prefix_len..]));
            insert(&mut self.separators, at, separator);
        } else {
            insert(&mut self.separators, at, separator);
            self.find_heads();
        }
    }

    fn set_separator(&mut self, at: usize, separator: Box<[u8]>) {
        if self.shares_prefix(&separator) {
            self.heads[at] = head(&separator[self.prefix_len..]);
            self.separators[at] = separator;
        } else {
            self.separators[at] = separator;
            self.find_heads();
        }
    }

    fn drop_separator(&mut self, at: usize) {
        self.separators.remove(at);
        self.heads.remove(at);
    }

    // ---- writing

    /// Puts an entry in. Returns the right half and what separates it, if the node was split.
    pub(crate) fn put(&mut self, new: &mut New<'_>) -> Option<(Box<[u8]>, Self)> {
        let mut at = self.locate(new.key);
        match &mut self.children {
            Children::Nodes(nodes) => {
                let before = nodes[at].mins;
                if let Some((separator, right)) = nodes[at].put(new) {
                    insert(nodes, at + 1, right);
                    self.add_separator(at, separator);
                    self.find_mins();
                }
                self.changed(at, before);
                // Pages below may have become few, if the entry is smaller than the one before.
                self.settle(at);
            }
            Children::Pages(pages) => {
                if pages.is_empty() {
                    pages.push(Page::default());
                }
                at = self.put_in_page(at, new);
            }
        }
        (self.children.len() > FANOUT).then(|| self.split(at))
    }

    fn put_in_page(&mut self, mut at: usize, new: &mut New<'_>) -> usize {
        loop {
            let before = self.children.mins(at);
            let Children::Pages(pages) = &mut self.children else { unreachable!("it was asked") };
            let used = pages[at].used();
            match pages[at].put(new) {
                Put::Done => {
                    let shrank = pages[at].used() < used;
                    self.changed(at, before);
                    if shrank {
                        self.settle(at);
                    }
                    return at;
                }
                Put::Full { at: place, new: is_new } => {
                    at = self.make_room(at, is_new.then_some(place), new);
                    self.find_mins();
                }
            }
        }
    }

    /// Makes room for an entry that a page has no room for. Returns the page to put it in.
    ///
    /// At either end of the page nothing is split, so that pages are full when keys come in order.
    fn make_room(&mut self, at: usize, place: Option<usize>, new: &New<'_>) -> usize {
        let Children::Pages(pages) = &mut self.children else { unreachable!("it was asked") };
        let (len, body) = (pages[at].len(), new.body.len());
        if place == Some(len) {
            let separator = between(&pages[at].key(len - 1).to_vec(), new.key);
            if pages.get(at + 1).is_some_and(|next| next.takes(new.key, body)) {
                self.set_separator(at, separator);
            } else {
                insert(pages, at + 1, Page::default());
                self.add_separator(at, separator);
            }
            at + 1
        } else if place == Some(0) {
            let separator = between(new.key, &pages[at].key(0).to_vec());
            if at > 0 && pages[at - 1].takes(new.key, body) {
                self.set_separator(at - 1, separator);
                at - 1
            } else {
                insert(pages, at, Page::default());
                self.add_separator(at, separator);
                at
            }
        } else {
            let right = pages[at].split();
            let left = &pages[at];
            let separator = between(&left.key(left.len() - 1).to_vec(), &right.key(0).to_vec());
            let is_right = compare(new.key, &separator).is_ge();
            insert(pages, at + 1, right);
            self.add_separator(at, separator);
            at + usize::from(is_right)
        }
    }

    /// Corrects the minima after those of a child changed.
    fn changed(&mut self, at: usize, before: Mins) {
        let now = self.children.mins(at);
        let rose = |before: u64, now: u64, least: u64| before == least && now > before;
        if rose(before.end, now.end, self.mins.end) || rose(before.dead, now.dead, self.mins.dead) {
            self.find_mins();
        } else {
            self.mins = self.mins.and(now);
        }
    }

    /// Splits the node: in the middle, or at the end if the last child is the newest.
    fn split(&mut self, newest: usize) -> (Box<[u8]>, Self) {
        let len = self.children.len();
        let middle = if newest == len - 1 { len - 1 } else { len / 2 };
        let children = self.children.split_off(middle);
        let separators = split_off(&mut self.separators, middle);
        let separator = self.separators.pop().expect("one for each child but the first");
        self.heads.shrink_to(self.separators.len() + self.separators.len() / 4);
        self.find_heads();
        self.find_mins();
        (separator, Self::new(children, separators))
    }

    // ---- taking out

    /// Takes an entry out that is there.
    pub(crate) fn remove(&mut self, key: &[u8], tag: Tag) {
        let at = self.locate(key);
        let before = self.children.mins(at);
        match &mut self.children {
            Children::Nodes(nodes) => nodes[at].remove(key, tag),
            Children::Pages(pages) => {
                let place = pages[at].find(key, tag).expect("it was found before");
                pages[at].remove(place);
            }
        }
        self.changed(at, before);
        self.settle(at);
    }

    /// Changes the page with the least `mins` by `change`. Returns what that returned.
    pub(crate) fn change_least<T>(
        &mut self,
        is: &impl Fn(Mins) -> bool,
        change: impl FnOnce(&mut Page) -> T,
    ) -> Option<T> {
        let at = self.least(is)?;
        let before = self.children.mins(at);
        let done = match &mut self.children {
            Children::Nodes(nodes) => nodes[at].change_least(is, change)?,
            Children::Pages(pages) => change(&mut pages[at]),
        };
        self.changed(at, before);
        self.settle(at);
        Some(done)
    }

    /// Drops a child that has become empty, joins one that has become small with a neighbour, and gives back memory.
    fn settle(&mut self, at: usize) {
        let few = match &self.children {
            Children::Nodes(nodes) => nodes[at].children.len() < FANOUT / 4,
            Children::Pages(pages) => pages[at].used() < FEW,
        };
        if self.is_empty_at(at) {
            match &mut self.children {
                Children::Nodes(nodes) => drop(nodes.remove(at)),
                Children::Pages(pages) => drop(pages.remove(at)),
            }
            if !self.separators.is_empty() {
                self.drop_separator(at.saturating_sub(1));
            }
        } else if !(few && (self.join(at) || at > 0 && self.join(at - 1)))
            && let Children::Pages(pages) = &mut self.children
        {
            pages[at].shrink();
        }
    }

    fn is_empty_at(&self, at: usize) -> bool {
        match &self.children {
            Children::Nodes(nodes) => nodes[at].children.len() == 0,
            Children::Pages(pages) => pages[at].len() == 0,
        }
    }

    /// Joins a child with the one after it, if there is one and there is room.
    fn join(&mut self, at: usize) -> bool {
        match &mut self.children {
            Children::Pages(pages) => {
                let Some([page, next]) = pages.get_mut(at..at + 2) else { return false };
                if !page.join(next) {
                    return false;
                }
                pages.remove(at + 1);
            }
            Children::Nodes(nodes) => {
                let Some([node, next]) = nodes.get_mut(at..at + 2) else { return false };
                if node.children.len() + next.children.len() > FANOUT / 4 * 3 {
                    return false;
                }
                let next = std::mem::take(next);
                node.separators.push(self.separators[at].clone());
                node.separators.extend(next.separators);
                node.children.append(next.children);
                node.find_heads();
                node.find_mins();
                nodes.remove(at + 1);
            }
        }
        self.drop_separator(at);
        true
    }

    /// What is left of a root when entries were taken out: a root with one child is none.
    pub(crate) fn lower(&mut self) {
        while let Children::Nodes(nodes) = &mut self.children
            && nodes.len() <= 1
        {
            *self = nodes.pop().unwrap_or_default();
        }
    }
}

#[cfg(test)]
impl Node {
    /// How the parts fit, where all keys are at or above `low` and below `high`.
    pub(crate) fn check(&self, low: Option<&[u8]>, high: Option<&[u8]>) {
        let count = self.children.len();
        assert_eq!((self.heads.len(), self.separators.len()), (count.saturating_sub(1), count.saturating_sub(1)));
        assert!(count <= FANOUT);
        let mut mins = Mins::NONE;
        for at in 0..count {
            mins = mins.and(self.children.mins(at));
            let low = if at == 0 { low } else { Some(&*self.separators[at - 1]) };
            let high = self.separators.get(at).map_or(high, |separator| Some(separator));
            assert!(low.is_none() || high.is_none() || low < high);
            if let Some(separator) = self.separators.get(at) {
                assert!(separator.starts_with(self.prefix()));
                assert_eq!(self.heads[at], head(&separator[self.prefix_len..]));
            }
            match &self.children {
                Children::Nodes(nodes) => nodes[at].check(low, high),
                Children::Pages(pages) => {
                    let page = &pages[at];
                    page.check();
                    assert!(page.len() > 0);
                    assert!(low.is_none_or(|low| *low <= *page.key(0).to_vec()));
                    assert!(high.is_none_or(|high| *page.key(page.len() - 1).to_vec() < *high));
                }
            }
        }
        assert_eq!(mins, self.mins);
    }

    pub(crate) fn allocated(&self) -> u64 {
        match &self.children {
            Children::Nodes(nodes) => nodes.iter().map(Self::allocated).sum(),
            Children::Pages(pages) => pages.iter().map(Page::allocated).sum(),
        }
    }
}
