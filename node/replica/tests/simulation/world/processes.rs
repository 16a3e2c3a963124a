//! Processes: how they start and end, and what a replica did by itself.

use std::collections::BTreeMap;

use rand::RngExt as _;

use super::network::pair;
use super::{DRAIN_MS, MAX_CLOCK_SKEW_MS, Node, SILENCE_MS, SYNC_INTERVAL_MS, World};
use crate::check::{self, Checked, Write};
use crate::prelude::*;

impl World<'_> {
    pub(super) fn start(&mut self, place: usize) {
        let origin = self.next_origin;
        self.next_origin += 1;
        let skew_ms = self.rng.random_range(-400..400);
        let wall = self.now_ms.saturating_add_signed(skew_ms);
        let settings = self.settings(place, origin, wall);
        let name = settings.name.clone();
        let mut replica = Replica::new(settings, wall);
        replica.watch(true);
        self.trace(|| format!("{name} starts as origin {origin}"));
        self.nodes[place] = Some(Node {
            replica,
            origin,
            name,
            voters: self.voters,
            skew_ms,
            links: BTreeMap::new(),
            leaves_by: None,
            member: None,
            held: BTreeMap::new(),
            checked: None,
        });
        if self.plan.membership {
            self.join(place);
        }
    }

    fn settings(&mut self, place: usize, origin: u64, started_ms: u64) -> Settings {
        let twin = self.plan.twin.filter(|_| self.is_twin(place));
        let voter = place < self.plan.voters || twin.is_some();
        // A sidecar's pod has a new name each time.
        let name = match twin {
            Some(twin) => format!("n{}", twin.of),
            None if voter => format!("n{place}"),
            None => format!("s{place}-{origin}"),
        };
        let room = self.plan.room.filter(|room| place == room.node && (!self.healed || room.stays));
        Settings {
            origin,
            name,
            voter,
            started_ms,
            // Sidecars have no such setting.
            voters: if voter { self.voters } else { 0 },
            evict_after_ms: self.plan.evict_after_ms,
            sync_interval_ms: SYNC_INTERVAL_MS,
            max_clock_skew_ms: MAX_CLOCK_SKEW_MS,
            max_memory: room.map(|room| room.entries * Store::cost_of(1, 8)),
            evict_ending: room.is_some_and(|room| room.evict_ending),
            may_found: voter,
            serve_alone: voter && self.plan.serve_alone,
            join_timeout_ms: 10_000,
            // Small, so that cursors fall behind the log and deltas have many parts.
            bounds: Bounds {
                log_entries: self.rng.random_range(2..40),
                log_bytes: LOG_MAX_BYTES,
                message_entries: self.rng.random_range(1..6),
                scan_step: self.rng.random_range(1..8),
                remember_ended_ms: self.plan.remember_ended_ms,
                remember_evicted_ms: self.plan.remember_evicted_ms,
                ended_seats: self.plan.ended_seats,
                kept_deletes: self.plan.kept_deletes,
            },
        }
    }

    pub(super) fn remove(&mut self, place: usize) {
        if let Some(node) = self.nodes[place].take() {
            self.history.lost_map(node.origin);
            self.history.too_late |= node.replica.counters().too_late > 0;
        }
        for other in 0..self.nodes.len() {
            self.disconnect(place, other);
        }
    }

    pub(super) fn tick(&mut self, place: usize) {
        let view = self.view(place);
        let Some(node) = &mut self.nodes[place] else { return };
        let now = self.now_ms.saturating_add_signed(node.skew_ms);
        let waited = !node.replica.is_ready();
        node.replica.tick(view, now);
        // By the clock alone a node becomes ready only if it founds.
        if waited && node.replica.is_ready() {
            let name = node.name.clone();
            self.trace(|| format!("{name} founds"));
            check::founding(self, place);
        }
    }

    /// Sends what a node has to send, at most a few messages on each link, as to a socket that drains.
    pub(super) fn send_all(&mut self, place: usize) {
        let Some(node) = &mut self.nodes[place] else { return };
        let now = self.now_ms.saturating_add_signed(node.skew_ms);
        let due: Vec<_> = node.replica.due().collect();
        let links: Vec<_> = node.links.iter().map(|(&to, &(link, heard))| (to, link, heard)).collect();
        for (to, link, heard) in links {
            if self.now_ms - heard > SILENCE_MS {
                self.disconnect(place, to);
                continue;
            }
            if !due.contains(&link) {
                continue;
            }
            for _ in 0..6 {
                let Some(node) = &mut self.nodes[place] else { break };
                let Some(message) = node.replica.poll_send(link, now) else { break };
                self.send(place, to, &message);
            }
        }
    }

    /// Records what a replica did by itself.
    pub(super) fn absorb(&mut self, place: usize) {
        let Some(node) = &mut self.nodes[place] else { return };
        let changes = node.replica.take_changes();
        if !changes.is_empty() {
            node.checked = None;
        }
        if node.replica.origin() != node.origin {
            self.absorb_reset(place);
        }
        let was_replaced = changes.iter().any(|change| matches!(change, Change::Reset));
        let mut last = None;
        for change in changes {
            match change {
                Change::Wrote(key, record) => last = self.absorb_write(place, key, record),
                Change::Reissued(old, new) => {
                    assert_eq!(last, Some(new), "a reissue is reported after its write");
                    self.absorb_reissue(place, old, new);
                }
                Change::Evicted(seat) => {
                    let name = self.nodes[place].as_ref().map(|node| node.name.clone());
                    self.trace(|| format!("{} evicts {seat:?}", name.unwrap_or_default()));
                }
                Change::Reset => {
                    if let Some(node) = &mut self.nodes[place] {
                        node.held.clear();
                    }
                }
                Change::Expired(..) => {}
            }
        }
        // A map that replaces another one is not reported write by write.
        if let Some(node) = self.nodes[place].as_mut().filter(|_| was_replaced) {
            node.held = node.map();
        }
    }

    /// The replica has reset, and has a new origin.
    fn absorb_reset(&mut self, place: usize) {
        let Some(node) = &mut self.nodes[place] else { return };
        let origin = node.replica.origin();
        let before = std::mem::replace(&mut node.origin, origin);
        node.held.clear();
        self.history.lost_map(before);
        let founding = node.checked.as_ref().map(Checked::founding);
        let (name, why) = (node.name.clone(), node.replica.ended_because());
        // Its seat may have been ended by nodes of another epoch.
        let met = self.live().any(|n| n.replica.is_ready() && Some(n.replica.founding()) != founding);
        self.epochs_met |= why == Stranger::Foreign || met;
        self.trace(|| format!("{name} resets, and is origin {origin} now: {why:?}"));
        for other in 0..self.nodes.len() {
            self.disconnect(place, other);
        }
        self.rejoin(place);
    }

    fn absorb_write(&mut self, place: usize, key: Bytes, record: Record) -> Option<Dot> {
        let (node, dot) = (self.nodes[place].as_mut()?, record.dot);
        if let Some(before) = node.held.insert(key.clone(), dot) {
            assert!(before < dot, "{} went back from {before:?} to {dot:?}", node.name);
        }
        if dot.origin == node.origin && self.history.get(dot).is_none() {
            let name = node.name.clone();
            let write = Write { key, value: record.value, expires_ms: record.expires_ms, root: dot };
            self.trace(|| format!("{name} writes {dot:?} {write:?}"));
            self.history.add(dot, write);
        }
        Some(dot)
    }

    fn absorb_reissue(&mut self, place: usize, old: Dot, new: Dot) {
        self.trace(|| format!("  which reissues {old:?}"));
        self.history.reissued(old, new);
        let Some(node) = &self.nodes[place] else { return };
        let later = self.history.later(new, &node.replica);
        let is_right = later.is_none() || !self.remembers_deletes();
        assert!(is_right, "{} reissues {old:?} as {new:?}, and had covered {later:?}", node.name);
    }

    /// A process that lost its name drains, and then exits.
    pub(super) fn dismiss(&mut self, place: usize) {
        let by = self.now_ms + DRAIN_MS;
        if let Some(node) = self.nodes[place].as_mut().filter(|n| n.replica.is_dismissed() && !n.leaves()) {
            node.leaves_by = Some(by);
            node.replica.drain();
            let name = node.name.clone();
            self.trace(|| format!("{name} at place {place} has lost its name"));
        }
    }

    /// Whether the place is that of a second process with one name.
    pub const fn is_twin(&self, place: usize) -> bool {
        self.plan.twin.is_some() && place + 1 == self.nodes.len()
    }

    /// Whether another process has the name of the place.
    pub(super) fn is_taken(&self, place: usize) -> bool {
        let twin = self.plan.twin.filter(|twin| twin.of == place);
        twin.is_some() && self.twins().any(|node| node.replica.refused().is_none())
    }

    /// Starts a process under the name of the twins if none has it any more, as a `StatefulSet` would.
    pub(super) fn replace_twin(&mut self) {
        let Some(twin) = self.plan.twin else { return };
        let mut places = [twin.of, self.nodes.len() - 1].into_iter();
        if self.is_wanted(twin.of)
            && !self.is_taken(twin.of)
            && let Some(place) = places.find(|place| self.nodes[*place].is_none())
        {
            self.start(place);
            self.configure(place);
        }
    }

    /// Which of the two processes with one name are running.
    pub fn twins(&self) -> impl Iterator<Item = &Node> {
        let name = self.plan.twin.map(|twin| format!("n{}", twin.of));
        self.live().filter(move |node| name.as_ref() == Some(&node.name))
    }

    /// Ends the processes that have drained, or whose `drainTimeout` is over.
    pub(super) fn finish_leaving(&mut self) {
        for place in 0..self.nodes.len() {
            let Some(node) = &self.nodes[place] else { continue };
            let Some(by) = node.leaves_by else { continue };
            let is_covered = node.replica.uncovered() == (0, 0) && !node.links.is_empty();
            if is_covered || self.now_ms >= by {
                self.finish(place, is_covered);
            }
        }
    }

    fn finish(&mut self, place: usize, is_covered: bool) {
        let Some(node) = &mut self.nodes[place] else { return };
        // It may have rejoined too late.
        let too_late = node.replica.counters().too_late > 0;
        self.history.crashed |= !is_covered || too_late;
        self.history.too_late |= too_late;
        let now = self.now_ms.saturating_add_signed(node.skew_ms);
        node.replica.leave(now);
        let name = node.name.clone();
        let links: Vec<_> = node.links.iter().map(|(&to, &(link, _))| (to, link)).collect();
        self.trace(|| format!("{name} exits"));
        for (to, link) in links {
            if let Some(message) = self.nodes[place].as_mut().and_then(|n| n.replica.poll_send(link, now)) {
                self.send(place, to, &message);
            }
        }
        self.say_goodbye(place);
        self.history.lost_map(self.nodes[place].take().map_or(0, |node| node.origin));
        self.flush(place);
        self.remove(place);
        if self.healed {
            self.replace_twin();
        }
    }

    /// Connections are closed, not cut: part of what is on its way arrives.
    fn flush(&mut self, place: usize) {
        let mut rest: Vec<_> = std::mem::take(&mut self.network).into_sorted_vec();
        while let Some(packet) = rest.pop() {
            let is_current = self.connections.get(&pair(packet.from, packet.to)) == Some(&packet.content.0);
            if packet.from == place && is_current && self.rng.random_bool(0.5) {
                if let Some(node) = &mut self.nodes[packet.to]
                    && let Some(&(link, _)) = node.links.get(&place)
                {
                    self.receive(packet.to, link, packet.content.1);
                }
            } else if packet.from != place {
                self.network.push(packet);
            }
        }
    }
}
