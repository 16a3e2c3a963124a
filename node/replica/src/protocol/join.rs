//! How a node comes to hold what the cluster holds: by a snapshot from a ready peer, or by founding an epoch.

use std::collections::BTreeSet;

use kvasir_proto::peer::v1::{Seen, Standing as WireStanding, Want};

use super::link::{Link, LinkId};
use super::map::Standing;
use super::replica::Replica;
use super::settings::View;
use super::vector::{self, Cover};
use crate::clock::Dot;

impl Replica {
    /// Asks one ready peer for a snapshot, if none is on its way. A peer whose map others have just refused is not asked
    /// again at once: if two maps have not met yet, the other one may be the one that stands.
    pub(super) fn seek_sponsor(&mut self, now_ms: u64) {
        let asked = |l: &Link| {
            l.request == Some(Want::Snapshot) || l.awaiting.as_ref().is_some_and(|a| a.want == Want::Snapshot)
        };
        // A node without room for the snapshot tries again now and then.
        let full = self.full_since_ms.is_some() && !planted!("full-node-asks-at-once");
        let blocked = full || self.name_in_doubt();
        if self.ready || blocked || self.outbox.links.values().any(|l| asked(l)) {
            return;
        }
        let misled_by = self.joining.not_yet(self.settings.sync_interval_ms, now_ms);
        let (roster, sponsor) = (&self.roster, self.joining.sponsor);
        let able =
            |(_, l): &(&u64, &mut Box<Link>)| l.peer_ready && l.awaiting.is_none() && misled_by != Some(l.origin);
        // A member that is about to leave comes last.
        let rank =
            |id: LinkId, l: &Link| (!roster.is_live(l.origin) ^ planted!("leaving-sponsor-first"), id <= sponsor, id);
        let next = self.outbox.links.iter_mut().filter(able).min_by_key(|(id, l)| rank(**id, l));
        if let Some((&id, link)) = next {
            link.request = Some(Want::Snapshot);
            (self.joining.sponsor, self.joining.sponsor_origin) = (id, Some(link.origin));
            // Entries of a snapshot that broke off are dropped.
            self.clear();
        }
    }

    /// Takes the snapshot as this node's map: all of its parts have come.
    pub(super) fn finish_snapshot(&mut self, seen: &[Seen], standing: &WireStanding, now_ms: u64) {
        let held = std::mem::replace(&mut self.map.vector, seen.iter().map(vector::from_wire).collect());
        while planted!("reset-keeps-old-map")
            && let Some(backlog) = self.backlogs.pop()
        {
            for (key, record) in backlog.map.store.scan(None) {
                self.map.store.merge(key.clone(), record.clone());
            }
        }
        self.map.standing = Standing::from_wire(standing);
        // Some of what came was written while the sponsor was scanning.
        for (origin, cover) in held.into_iter().filter(|_| !planted!("written-during-snapshot-covered")) {
            self.note_write(Dot { hlc: cover.wrote(), origin });
        }
        for s in seen {
            self.clock.observe(s.hlc);
        }
        self.clock.observe(standing.collected);
        self.backlogs.compare(&self.map);
        self.become_ready(now_ms);
    }

    /// While this node waits to found an epoch: how many voters it reaches, itself included, and of how many it needs a majority
    /// (0: the number is not set). `None` if this node or a linked peer is ready.
    pub fn founders(&self) -> Option<(usize, usize)> {
        let waits = !self.ready && !self.outbox.links.values().any(|l| l.peer_ready);
        let wanted = if self.settings.may_found { self.settings.voters } else { 0 };
        waits.then(|| (self.reached_voters(), wanted))
    }

    /// Whether this node may found an epoch with the peers that it is linked to. A peer that it cannot talk to, or does not
    /// reach, may hold a map; a second map next to it would be empty.
    fn may_found(&self, view: View, waited: bool) -> bool {
        let complete = view.answered && view.unlinked == 0;
        let waited = waited && !planted!("silent-address-stops-founding");
        let mut links = self.outbox.links.values();
        let all_new = links.all(|l| l.synced && (!l.peer_ready || planted!("newcomer-founds-despite-ready")));
        // This node waits for the others only for a while: an address that discovery names may belong to a machine that is
        // gone for good.
        if !self.settings.may_found
            || !all_new
            || planted!("joining-nodes-deadlock") && !self.outbox.links.is_empty()
            || !(complete || waited)
            || view.refused > 0 && !planted!("founded-despite-refused-peer")
        {
            return false;
        }
        let group = self.reached_voters();
        match self.settings.voters {
            0 if view.strangers > 0 && !planted!("unnamed-peer-overlooked") => false,
            0 if complete => true,
            0 => {
                let named =
                    if planted!("minority-of-named-founds") { group } else { group.saturating_add(view.unlinked) };
                // One of two nodes does not found alone.
                let least = if planted!("founded-before-discovery") { 0 } else { 2 };
                group > named.max(least) / 2
            }
            // A majority of the voters is empty and linked, so a refused peer elsewhere is not one of them.
            voters => group > voters / 2 || planted!("minority-founds"),
        }
    }

    /// Voters that this node reaches, itself included. They are counted by name: the link to a process that has ended may still
    /// be up next to the link to its successor.
    fn reached_voters(&self) -> usize {
        let voters = self.outbox.links.values().filter_map(|l| self.roster.get(l.origin)).filter(|seat| seat.voter);
        let names = voters.map(|seat| &seat.name).chain([&self.settings.name]);
        if planted!("restart-counts-twice") {
            return names.count();
        }
        names.collect::<BTreeSet<_>>().len()
    }

    /// If this node need not wait for others any longer, it founds an epoch, or resumes the map that it held before a reset.
    pub(super) fn found_if_due(&mut self, view: View, now_ms: u64) {
        let waited = now_ms.saturating_sub(self.joining.started_ms) >= self.settings.join_timeout_ms;
        let alone = self.settings.serve_alone && waited && !self.outbox.links.values().any(|l| l.peer_ready);
        let view = if view.unlinked == usize::MAX && planted!("unknown-means-none") {
            View { answered: false, ..View::ALONE }
        } else {
            view
        };
        let name_in_doubt = || self.name_in_doubt() && !planted!("founded-under-anothers-name");
        if !alone && !self.may_found(view, waited) || name_in_doubt() {
            return;
        }
        self.joining.sponsor_origin = None;
        // Entries of a snapshot whose sponsor died are dropped: if the map lives on elsewhere, no node could tell later
        // which of these keys were deleted there.
        if planted!("old-map-taken-up-silently") {
            self.map.clear();
        } else if !planted!("partial-snapshot-kept") {
            self.clear();
        }
        if let Some(backlog) = self.backlogs.pop() {
            // There is no cluster to rejoin: the old map is as good as any.
            self.map = backlog.map;
        } else {
            self.map.standing.epoch = (self.clock.tick(now_ms), self.settings.origin);
        }
        self.become_ready(now_ms);
    }

    fn become_ready(&mut self, now_ms: u64) {
        self.ready = true;
        // Of two processes that were admitted under one name, the later one stands.
        let began = self.roster.iter().filter(|(_, seat)| seat.name == self.settings.name).map(|(_, seat)| seat.began);
        began.for_each(|began| self.clock.observe(began));
        // This seat has written nothing yet, and will write above every timestamp that it has seen.
        let seen = self.clock.tick(now_ms);
        self.map.vector.insert(self.settings.origin, Cover { seen, last: 0, beyond: 0 });
        for link in self.outbox.links.values_mut() {
            link.greet();
        }
        self.roster.admit(self.settings.origin, self.joining.sponsor_origin.unwrap_or(0), seen);
        if self.backlogs.is_empty() {
            self.roster.returned(self.settings.origin, seen);
        }
        self.claim_name(seen);
        self.cover_admitted();
        self.outbox.announce_roster();
    }
}
