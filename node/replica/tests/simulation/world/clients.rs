//! What the plan's operations do: clients that write and read, and faults.

use std::collections::BTreeMap;

use super::{DRAIN_MS, Node, SESSIONS, World};
use crate::check::{self, Acked};
use crate::plan::Op;
use crate::prelude::*;

/// A client with a session.
#[derive(Default)]
pub struct Client {
    token: Bytes,
    /// The last write of each key that the client saw.
    last: BTreeMap<u8, Seen>,
    /// All writes that the client saw, with their holders at that moment.
    saw: Vec<Acked>,
}

struct Seen {
    dot: Dot,
    /// The holders when the token last listed the write.
    held: Acked,
    /// Whether the token still lists the write.
    listed: bool,
}

/// The writes that a token lists: the last one that was seen of each origin.
fn listed(token: &[u8]) -> impl Iterator<Item = Dot> {
    let number = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().expect("8 bytes"));
    let entries = token.get(29..).unwrap_or_default().chunks(16);
    entries.map(move |entry| Dot { origin: number(&entry[..8]), hlc: number(&entry[8..]) })
}

fn key_of(key: u8) -> Bytes {
    Bytes::from(vec![b'a' + key])
}

impl World<'_> {
    pub(super) fn act(&mut self, op: &Op) {
        match *op {
            Op::Put { node, key, ttl_ms, ack } => {
                if let Some(dot) = self.put(node, key, ttl_ms)
                    && !matches!(ack, Need::Count(0))
                {
                    self.waiting.push((node, dot.origin, dot, ack));
                }
            }
            Op::Delete { node, key } => self.delete(node, key),
            Op::SessionPut { session, node, key } => self.session_put(session, node, key),
            Op::Read { session, node, key } => {
                self.read(if self.forgets_seats() { session + SESSIONS } else { session }, node, key);
            }
            Op::Reconnect(a, b) => self.disconnect(a, b),
            Op::Block(a, b) if a != b => {
                self.trace(|| format!("node {b} hears nothing from node {a}"));
                self.blocked.insert((a, b));
            }
            Op::Block(..) => {}
            Op::Split(side) => self.split(side),
            Op::Unblock => {
                self.trace(|| "all nodes hear each other".into());
                self.blocked.clear();
            }
            Op::Crash(node) => {
                if self.nodes[node].is_some() && self.live().count() > 1 {
                    self.trace(|| format!("node {node} crashes"));
                    self.history.crashed = true;
                    self.remove(node);
                }
            }
            Op::Start(node) => {
                if self.nodes[node].is_none() {
                    self.start(node);
                }
            }
            Op::Leave(node) => {
                let by = self.now_ms + DRAIN_MS;
                let several = self.live().count() > 1;
                if let Some(node) = self.nodes[node].as_mut().filter(|_| several) {
                    node.leaves_by.get_or_insert(by);
                    node.replica.drain();
                }
            }
            Op::Jump(node, by) => {
                if let Some(node) = &mut self.nodes[node] {
                    node.skew_ms = (node.skew_ms + by).clamp(-self.plan.skew_ms, self.plan.skew_ms);
                    let (name, skew) = (node.name.clone(), node.skew_ms);
                    self.trace(|| format!("the clock of {name} is {skew} ms off"));
                }
            }
            Op::Scale(voters) => {
                self.trace(|| format!("there are to be {voters} voters"));
                self.voters = voters;
            }
            Op::Configure(node) => self.configure(node),
        }
    }

    fn split(&mut self, side: u32) {
        self.trace(|| format!("partition {side:b}"));
        for a in 0..self.nodes.len() {
            for b in 0..self.nodes.len() {
                if (side >> a & 1) != (side >> b & 1) {
                    self.blocked.insert((a, b));
                }
            }
        }
    }

    fn delete(&mut self, place: usize, key: u8) {
        let Some(node) = self.nodes[place].as_mut().filter(|n| n.replica.serves()) else { return };
        let now = self.now_ms.saturating_add_signed(node.skew_ms);
        let before = node.replica.store().get(&key_of(key)).map(|r| r.dot);
        if let Some(dot) = node.replica.delete(key_of(key), now) {
            let ready = self.live().filter(|n| n.replica.is_ready());
            let covered = ready.map(|n| (n.origin, n.replica.vector().clone())).collect();
            self.history.deleted(key_of(key), dot, covered, before);
            self.waiting.push((place, dot.origin, dot, Need::Count(1)));
            self.absorb(place);
        }
    }

    fn session_put(&mut self, session: usize, node: usize, key: u8) {
        if let Some(seen) = self.resume(session, node)
            && let Some(dot) = self.put(node, key, None)
        {
            self.remember(session, node, seen, key, dot);
            if self.forgets_seats()
                && let Some(seen) = self.resume(session + SESSIONS, node)
            {
                self.remember(session + SESSIONS, node, seen, key, dot);
            }
        }
    }

    /// Whether there is meant to be a node at the place.
    pub(super) const fn is_wanted(&self, place: usize) -> bool {
        (place < self.voters || place >= self.plan.voters) && !self.is_twin(place)
    }

    /// A voter reads its configuration.
    pub(super) fn configure(&mut self, place: usize) {
        let voters = self.voters;
        let is_voter = place < self.plan.voters || self.is_twin(place);
        if let Some(node) = self.nodes[place].as_mut().filter(|_| is_voter) {
            node.replica.set_voters(voters);
            node.voters = voters;
        }
    }

    /// Whether a seat may be retired before a session ends: then no node knows that writes of that seat were lost. Such
    /// sessions only write, because a read must not change what they write; a second session follows each and reads in
    /// its place.
    const fn forgets_seats(&self) -> bool {
        self.plan.remember_ended_ms < REMEMBER_ENDED_MS || self.plan.ended_seats < MAX_ENDED
    }

    fn put(&mut self, place: usize, key: u8, ttl_ms: Option<u64>) -> Option<Dot> {
        let node = self.nodes[place].as_mut().filter(|n| n.replica.serves() && n.leaves_by.is_none())?;
        let now = self.now_ms.saturating_add_signed(node.skew_ms);
        let value = Bytes::from(format!("{:08}", self.history.len()));
        let dot = node.replica.put(key_of(key), value, ttl_ms.map(|t| now + t), now).ok();
        self.absorb(place);
        dot
    }

    /// The ready nodes that cover a write.
    fn holders(&self, dot: Dot) -> Vec<u64> {
        let covers = |n: &&Node| check::covers(n.replica.vector(), dot);
        self.live().filter(|n| n.replica.is_ready()).filter(covers).map(|n| n.origin).collect()
    }

    /// Uses a session at a node: returns what the session saw if the node covers that.
    fn resume(&mut self, session: usize, place: usize) -> Option<Session> {
        let node = self.nodes[place].as_ref().filter(|n| n.replica.serves())?;
        let seen = Session::decode(&self.sessions[session].token).expect("a node made it");
        match seen.coverage(&node.replica) {
            Coverage::Covered => Some(seen),
            Coverage::Behind => None,
            Coverage::Lost => {
                // A node may know nothing of another epoch or of a retired seat, and a node that holds the write may rejoin
                // too late.
                let is_certain = seen.founding() == node.replica.founding()
                    && self.plan.remember_evicted_ms == REMEMBER_EVICTED_MS
                    && !self.forgets_seats();
                let client = std::mem::take(&mut self.sessions[session]);
                // A replaced process runs on, and no other one knows of its writes.
                let replaced = |origin: u64| self.plan.twin.is_some() && node.has_ended(origin);
                let lost = client.saw.iter().any(|saw| !self.history.has_holder_except(saw, replaced));
                assert!(lost || !is_certain, "{} reports a loss of a write that is held: {seen:?}", node.name);
                None
            }
        }
    }

    fn remember(&mut self, session: usize, place: usize, mut seen: Session, key: u8, dot: Dot) {
        let Some(node) = &self.nodes[place] else { return };
        seen.saw(dot);
        seen.shorten(&node.replica).expect("there are few origins");
        let mut client = std::mem::take(&mut self.sessions[session]);
        let held = |dot| Acked { dot, holders: self.holders(dot), at: self.history.now() };
        client.token = seen.encode();
        client.saw.push(held(dot));
        if client.last.get(&key).is_none_or(|last| last.dot < dot) {
            client.last.insert(key, Seen { dot, held: held(dot), listed: true });
        }
        for last in client.last.values_mut().filter(|last| last.listed) {
            last.held = held(last.dot);
            last.listed = listed(&client.token).any(|dot| dot.origin == last.dot.origin && dot >= last.dot);
        }
        self.sessions[session] = client;
    }

    fn read(&mut self, session: usize, place: usize, key: u8) {
        let Some(seen) = self.resume(session, place) else { return };
        let Some(node) = &self.nodes[place] else { return };
        let now = self.now_ms.saturating_add_signed(node.skew_ms);
        let record = node.replica.store().get(&key_of(key)).map(|r| r.dot);
        if let Some(&Seen { dot: last, ref held, listed }) = self.sessions[session].last.get(&key) {
            // All seats that took part held it, and none is left. A node that was evicted before does not know what it lacks.
            let mut is_lost = (!listed || self.forgets_seats()) && !self.history.has_holder(held);
            // Or its origin was evicted so long ago that no node knows of it.
            is_lost |= self.forgets_seats() && node.replica.seats().all(|(origin, _)| origin != last.origin);
            let has_ended = self.history.has_ended(&key_of(key), last, now + self.plan.apart_ms());
            assert!(
                is_lost || has_ended || record >= Some(last),
                "a session saw {last:?} of key {key}, and then {record:?} at {}",
                node.name
            );
        }
        if let Some(dot) = record {
            self.remember(session, place, seen, key, dot);
        }
    }

    /// A node that neither covers a session nor has a reason to wait.
    pub(super) fn session_behind(&self) -> Option<String> {
        self.live().find_map(|node| {
            // An evicted node may rejoin with what only it has.
            let awaited = node.replica.seats().any(|(_, seat)| seat.state == SeatState::Evicted);
            let tokens = self.sessions.iter().map(|session| Session::decode(&session.token).expect("a node made it"));
            let behind = |seen: &Session| seen.coverage(&node.replica) == Coverage::Behind;
            let lives = |dot: Dot| self.live().any(|n| n.origin == dot.origin);
            let lacks = |dot: Dot| node.replica.coverage(dot, node.replica.founding()) == Coverage::Behind;
            let waits = |seen: &Session| {
                // A node that still runs is no reason to wait.
                !listed(&seen.encode()).any(|dot| lives(dot) && lacks(dot))
                    && (awaited || check::waits_for_gone(self, node))
            };
            tokens.filter(behind).find(|seen| !waits(seen)).map(|seen| format!("{} is behind {seen:?}", node.name))
        })
    }

    /// All sessions read all keys at all nodes.
    pub(super) fn read_all(&mut self) {
        for session in 0..self.sessions.len() {
            for place in 0..self.nodes.len() {
                (0..self.plan.keys).for_each(|key| self.read(session, place, key));
            }
        }
    }

    pub(super) fn settle_acks(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        for (place, origin, dot, ack) in waiting {
            let Some(node) = self.nodes[place].as_ref().filter(|n| n.origin == origin) else { continue };
            if self.history.has_lost_map(origin) {
                continue;
            }
            let said = node.replica.holders(dot.hlc);
            if !ack.met(&said) {
                self.waiting.push((place, origin, dot, ack));
                continue;
            }
            let covers = |n: &&Node| check::covers(n.replica.vector(), dot);
            let ready = || self.live().filter(|n| n.replica.is_ready());
            let holders = self.holders(dot);
            let voters = ready().filter(covers).filter(|n| n.replica.id().voter).count();
            let member = |n: &&Node| node.replica.seats().any(|(o, s)| o == n.origin && s.state == SeatState::Member);
            let is_true = match ack {
                Need::Count(peers) => holders.len() > peers,
                Need::Majority => voters >= said.majority,
                Need::All => ready().filter(member).all(|n| covers(&n)),
            };
            assert!(is_true, "{dot:?} was acknowledged, {ack:?}: {said:?}, but its holders are {holders:?}");
            self.history.acked.push(Acked { dot, holders, at: self.history.now() });
        }
    }
}
