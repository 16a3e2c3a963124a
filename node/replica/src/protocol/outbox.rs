//! What goes to peers: the links, and the log of own writes from which pushes are cut.

use std::collections::BTreeMap;

use kvasir_proto::peer::v1::Want;

use super::link::{Link, LinkId};
use super::log::Log;

/// The links of a node, and what it pushes over them.
#[derive(Debug)]
pub(super) struct Outbox {
    /// Boxed: each is taken out while it is worked on.
    pub(super) links: BTreeMap<LinkId, Box<Link>>,
    pub(super) log: Log,
    next_link: LinkId,
    /// The link that had the last digest.
    digested: LinkId,
}

impl Outbox {
    pub(super) fn new(log_entries: usize, log_bytes: usize) -> Self {
        Self { links: BTreeMap::new(), log: Log::new(log_entries, log_bytes), next_link: 1, digested: 0 }
    }

    /// Adds a link and drops older ones to the same process.
    pub(super) fn open(&mut self, origin: u64, first: Want) -> LinkId {
        self.links.retain(|_, l| l.origin != origin);
        let id = self.next_link;
        self.next_link += 1;
        let mut link = Box::new(Link::new(origin));
        link.request = Some(first);
        self.links.insert(id, link);
        id
    }

    /// Drops all links and the log: the node takes another origin.
    pub(super) fn reset(&mut self) {
        self.links.clear();
        self.log.reset();
    }

    /// Origins of the processes that are linked.
    pub(super) fn origins(&self) -> impl Iterator<Item = u64> {
        self.links.values().map(|l| l.origin)
    }

    pub(super) fn is_linked(&self, origin: u64) -> bool {
        self.origins().any(|linked| linked == origin)
    }

    /// Sends the roster, which has changed, to all peers.
    pub(super) fn announce_roster(&mut self) {
        for link in self.links.values_mut() {
            link.roster_due = true;
        }
    }

    /// The link whose turn it is to get a digest.
    pub(super) fn next_for_digest(&mut self) -> Option<&mut Link> {
        let next = self.links.range(self.digested + 1..).next().or_else(|| self.links.first_key_value());
        self.digested = *next?.0;
        self.links.get_mut(&self.digested).map(AsMut::as_mut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_link_replaces_the_older_one() {
        let mut outbox = Outbox::new(9, 9);
        let first = outbox.open(7, Want::Hello);
        let second = outbox.open(7, Want::Hello);
        assert_ne!(first, second);
        assert_eq!(outbox.origins().collect::<Vec<_>>(), [7]);
        assert!(!outbox.links.contains_key(&first));
    }

    #[test]
    fn a_link_id_is_not_reused_after_a_reset() {
        let mut outbox = Outbox::new(9, 9);
        let first = outbox.open(7, Want::Hello);
        outbox.reset();
        assert!(!outbox.is_linked(7));
        assert!(outbox.open(7, Want::Hello) > first);
    }

    #[test]
    fn digests_go_to_each_link_in_turn() {
        let mut outbox = Outbox::new(9, 9);
        assert!(outbox.next_for_digest().is_none());
        for origin in [5, 6, 7] {
            outbox.open(origin, Want::Hello);
        }
        let mut next = || outbox.next_for_digest().map(|l| l.origin);
        assert_eq!([next(), next(), next(), next()], [Some(5), Some(6), Some(7), Some(5)]);
    }
}
