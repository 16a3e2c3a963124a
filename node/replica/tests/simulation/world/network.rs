//! The network: connections that carry messages, and datagrams, with what happens to both on their way.

use std::cmp::Reverse;

use rand::RngExt as _;

use super::{MAX_CLOCK_SKEW_MS, World};
use crate::prelude::*;

/// Something on its way from one place to another.
pub(super) struct Packet<T> {
    pub(super) due_ms: u64,
    number: u64,
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) content: T,
}

/// A message, and the connection that it was sent on: no other one delivers it.
pub(super) type OnLink = (u64, Message);

impl<T> Packet<T> {
    const fn key(&self) -> (Reverse<u64>, Reverse<u64>) {
        (Reverse(self.due_ms), Reverse(self.number))
    }
}
impl<T> PartialEq for Packet<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}
impl<T> Eq for Packet<T> {}
impl<T> PartialOrd for Packet<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Packet<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

pub(super) fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl World<'_> {
    pub(super) fn disconnect(&mut self, a: usize, b: usize) {
        if self.connections.remove(&pair(a, b)).is_some() {
            for (x, y) in [(a, b), (b, a)] {
                if let Some(node) = &mut self.nodes[x]
                    && let Some((link, _)) = node.links.remove(&y)
                {
                    node.replica.link_down(link);
                }
            }
        }
    }

    /// Connects every pair of nodes that can talk.
    pub(super) fn connect_all(&mut self) {
        for a in 0..self.nodes.len() {
            for b in a + 1..self.nodes.len() {
                if !self.connections.contains_key(&(a, b)) {
                    self.connect(a, b);
                }
            }
        }
    }

    /// Whether two nodes run and hear each other.
    pub(super) fn can_talk(&self, a: usize, b: usize) -> bool {
        let cut = self.blocked.contains(&(a, b)) || self.blocked.contains(&(b, a));
        !cut && self.nodes[a].is_some() && self.nodes[b].is_some() && !self.are_apart(a, b)
    }

    /// Whether two nodes have different keys.
    pub fn are_apart(&self, a: usize, b: usize) -> bool {
        !self.healed && a != b && self.plan.apart.is_some_and(|apart| apart == a || apart == b)
    }

    /// The nodes that a node hears of and cannot talk to.
    pub fn apart_from(&self, a: usize) -> impl Iterator<Item = usize> {
        let there = move |b: &usize| self.nodes[*b].is_some() && !self.blocked.contains(&(*b, a));
        (0..self.nodes.len()).filter(move |b| self.are_apart(a, *b)).filter(there)
    }

    /// Connects two nodes that are not connected, and returns the connection's number. `None` if they cannot talk.
    pub(super) fn connect(&mut self, a: usize, b: usize) -> Option<u64> {
        if !self.can_talk(a, b) {
            return None;
        }
        let [Some(x), Some(y)] = self.nodes.get_disjoint_mut([a, b]).expect("a is not b") else { return None };
        // As the transport does at the handshake.
        if x.skew_ms.abs_diff(y.skew_ms) > MAX_CLOCK_SKEW_MS {
            return None;
        }
        let (from_x, from_y) = (x.replica.id(), y.replica.id());
        x.links.insert(b, (x.replica.link_up(from_y), self.now_ms));
        y.links.insert(a, (y.replica.link_up(from_x), self.now_ms));
        let connection = self.next_connection;
        self.connections.insert(pair(a, b), connection);
        self.next_connection += 1;
        Some(connection)
    }

    pub(super) fn send(&mut self, from: usize, to: usize, message: &Message) {
        let connection = self.connections[&pair(from, to)];
        for due_ms in self.arrivals(from, to, self.now_ms).into_iter().flatten() {
            self.sent += 1;
            let content = (connection, message.clone());
            self.network.push(Packet { due_ms, number: self.sent, from, to, content });
        }
    }

    pub(super) fn send_datagram(&mut self, from: usize, to: usize, at_ms: u64, datagram: &[u8]) {
        if self.are_apart(from, to) {
            return; // it arrives, and cannot be decrypted
        }
        for due_ms in self.arrivals(from, to, at_ms).into_iter().flatten() {
            self.sent += 1;
            self.datagrams.push(Packet { due_ms, number: self.sent, from, to, content: datagram.to_vec() });
        }
    }

    /// When each copy of a packet that is sent at `at_ms` arrives; `None` if it is lost.
    fn arrivals(&mut self, from: usize, to: usize, at_ms: u64) -> [Option<u64>; 2] {
        let (loss, duplicate, delay) = if self.healed {
            (0.0, 0.0, 3)
        } else {
            let slow = pair(from, to) == pair(self.plan.slow.0, self.plan.slow.1);
            (self.plan.loss, self.plan.duplicate, self.plan.delay_ms * if slow { 10 } else { 1 })
        };
        let copies = if duplicate > 0.0 && self.rng.random_bool(duplicate) { 2 } else { 1 };
        let mut arrivals = [None; 2];
        for arrival in &mut arrivals[..copies] {
            if self.blocked.contains(&(from, to)) || loss > 0.0 && self.rng.random_bool(loss) {
                continue;
            }
            *arrival = Some(at_ms + self.rng.random_range(1..=delay));
        }
        arrivals
    }

    /// Delivers the messages that are due.
    pub(super) fn deliver(&mut self) {
        while self.network.peek().is_some_and(|p| p.due_ms <= self.now_ms) {
            let Some(Packet { from, to, content: (connection, message), .. }) = self.network.pop() else { break };
            if self.connections.get(&pair(from, to)) != Some(&connection) {
                continue;
            }
            let Some(node) = &mut self.nodes[to] else { continue };
            let Some(link) = node.links.get_mut(&from) else { continue };
            link.1 = self.now_ms;
            let link = link.0;
            if self.trace && std::env::var_os("MESSAGES").is_some() {
                println!("{:>9} ms    {from} -> {to}: {:?}", self.now_ms - super::BEGIN_MS, message.kind);
            }
            if !self.receive(to, link, message) {
                self.trace(|| format!("node {to} refuses node {from} for its clock"));
                self.disconnect(from, to);
            }
        }
    }

    /// Gives a message to a node, which may refuse the sender for its clock.
    pub(super) fn receive(&mut self, to: usize, link: LinkId, message: Message) -> bool {
        let Some(node) = &mut self.nodes[to] else { return false };
        let now = self.now_ms.saturating_add_signed(node.skew_ms);
        let received = node.replica.receive(link, message, now);
        self.absorb(to);
        match received {
            Ok(()) => true,
            Err(Violation::ClockAhead { .. }) if self.plan.skew_ms.unsigned_abs() > MAX_CLOCK_SKEW_MS => false,
            Err(violation) => panic!("no message is malformed, and no clock is far off: {violation}"),
        }
    }
}
