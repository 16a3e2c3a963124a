//! Entries in key order.

use crate::body::Place;
use crate::node::{Children, Node};
use crate::origins::Origins;
use crate::page::Page;
use crate::record::{Dot, Entry, Value};

/// A tree is less high than this: each level but the root has had half of the children that a node can have.
const HEIGHT: usize = if cfg!(test) { 24 } else { 10 };

/// Entries from some key on; see [`Store::scan`](crate::Store::scan).
#[derive(Clone, Debug)]
pub struct Scan<'a> {
    origins: &'a Origins,
    /// The nodes on the way to the page, and which of their children come next.
    path: [Option<(&'a Node, usize)>; HEIGHT],
    height: usize,
    page: Option<&'a Page>,
    at: usize,
}

impl<'a> Scan<'a> {
    /// Entries whose keys are at or after `first`; without the key `first` itself, if `after`.
    pub(crate) fn new(root: &'a Node, origins: &'a Origins, first: &[u8], after: bool) -> Self {
        let mut scan = Self { origins, path: [None; HEIGHT], height: 0, page: None, at: 0 };
        let page = scan.descend(root, |node| node.locate(first));
        if let Some(page) = page {
            scan.at = page.position(first);
            scan.at += usize::from(after && scan.at < page.len() && page.key(scan.at) == *first);
        }
        scan.page = page;
        scan
    }

    fn descend(&mut self, mut node: &'a Node, child: impl Fn(&Node) -> usize) -> Option<&'a Page> {
        loop {
            let at = child(node);
            self.path[self.height] = Some((node, at + 1));
            self.height += 1;
            match &node.children {
                Children::Pages(pages) => return pages.get(at),
                Children::Nodes(nodes) => node = &nodes[at],
            }
        }
    }

    fn next_page(&mut self) -> Option<&'a Page> {
        while self.height > 0 {
            let (node, at) = self.path[self.height - 1].as_mut()?;
            let next = *at;
            *at += 1;
            match &node.children {
                Children::Pages(pages) if next < pages.len() => return pages.get(next),
                Children::Nodes(nodes) if next < nodes.len() => return self.descend(&nodes[next], |_| 0),
                _ => self.height -= 1,
            }
        }
        None
    }
}

impl<'a> Iterator for Scan<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        loop {
            let page = self.page?;
            if self.at < page.len() {
                self.at += 1;
                return Some(entry(page, self.at - 1, self.origins));
            }
            self.at = 0;
            self.page = self.next_page();
        }
    }
}

/// An entry of a page as it is handed out.
pub(crate) fn entry<'a>(page: &'a Page, at: usize, origins: &Origins) -> Entry<'a> {
    let (key, body, bytes) = page.entry(at);
    let value = match body.place {
        Place::Gone => None,
        Place::Here(place) => Some(Value::Inline(&bytes[place])),
        Place::Long(index) => Some(Value::Shared(page.long(index))),
    };
    let dot = Dot { hlc: body.hlc, origin: origins.get(body.origin) };
    Entry { key, dot, value, expires_ms: body.expires_ms, first: body.first }
}
