//! What the plan's operations do: clients that write and read, and what befalls
//! the cluster.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvasir_replica::clock::Dot;
use kvasir_replica::replica::{Coverage, REMEMBER_ENDED_MS};
use kvasir_replica::session::Session;

use super::{DRAIN_MS, World};
use crate::check::Acked;
use crate::plan::Op;

/// A client that sends its token along.
#[derive(Default)]
pub struct Client {
    token: Bytes,
    last: BTreeMap<u8, Dot>,
}

fn key_of(key: u8) -> Bytes {
    Bytes::from(vec![b'a' + key])
}

impl World<'_> {
    pub(super) fn act(&mut self, op: &Op) {
        match *op {
            Op::Put { node, key, ttl_ms, ack } => {
                let Some(dot) = self.put(node, key, ttl_ms) else { return };
                let origin = dot.origin;
                if ack > 0 {
                    self.waiting.push((node, origin, dot, ack));
                }
            }
            Op::Delete { node: place, key } => {
                let Some(node) = self.nodes[place].as_mut().filter(|n| n.replica.is_ready()) else { return };
                let now = self.now_ms.saturating_add_signed(node.skew_ms);
                let before = node.replica.store().get(&key_of(key)).map(|r| r.dot);
                if let Some(dot) = node.replica.delete(key_of(key), now) {
                    let ready = self.live().filter(|n| n.replica.is_ready());
                    let covered = ready.map(|n| (n.origin, n.replica.vector().clone())).collect();
                    self.history.deleted(key_of(key), dot, covered, before);
                    self.waiting.push((place, dot.origin, dot, 1));
                    self.absorb(place);
                }
            }
            Op::SessionPut { session, node, key } => {
                if let Some(seen) = self.enter(session, node)
                    && let Some(dot) = self.put(node, key, None)
                {
                    self.leave_with(session, node, seen, key, dot);
                }
            }
            // That its node's writes were lost may be forgotten.
            Op::Read { .. } if self.plan.remember_ended_ms < REMEMBER_ENDED_MS => {}
            Op::Read { session, node, key } => self.read(session, node, key),
            Op::Reset(a, b) => self.disconnect(a, b),
            Op::Block(a, b) if a != b => {
                self.say(|| format!("nothing gets from {a} to {b}"));
                self.blocked.insert((a, b));
            }
            Op::Split(side) => {
                self.say(|| format!("partition {side:b}"));
                for a in 0..self.nodes.len() {
                    for b in 0..self.nodes.len() {
                        if (side >> a & 1) != (side >> b & 1) {
                            self.blocked.insert((a, b));
                        }
                    }
                }
            }
            Op::Mend => {
                self.say(|| "the network mends".into());
                self.blocked.clear();
            }
            Op::Crash(node) => {
                if self.nodes[node].is_some() && self.live().count() > 1 {
                    self.say(|| format!("node {node} crashes"));
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
                    node.skew_ms = (node.skew_ms + by).clamp(-3_500, 3_500);
                    let (name, skew) = (node.name.clone(), node.skew_ms);
                    self.say(|| format!("the clock of {name} is now {skew} ms off"));
                }
            }
            Op::Block(..) | Op::Nothing => {}
        }
    }

    fn put(&mut self, place: usize, key: u8, ttl_ms: Option<u64>) -> Option<Dot> {
        let node = self.nodes[place].as_mut().filter(|n| n.replica.is_ready() && n.leaves_by.is_none())?;
        let now = self.now_ms.saturating_add_signed(node.skew_ms);
        let value = Bytes::from(format!("{:08}", self.history.len()));
        let dot = node.replica.put(key_of(key), value, ttl_ms.map(|t| now + t), now).ok();
        self.absorb(place);
        dot
    }

    /// What a session saw, if the node holds it.
    fn enter(&mut self, session: usize, place: usize) -> Option<Session> {
        let node = self.nodes[place].as_ref().filter(|n| n.replica.is_ready())?;
        let seen = Session::decode(&self.sessions[session].token).expect("it is a node's own");
        match seen.coverage(&node.replica) {
            Coverage::Covered => Some(seen),
            Coverage::Behind => None,
            Coverage::Lost => {
                self.sessions[session] = Client::default();
                None
            }
        }
    }

    fn leave_with(&mut self, session: usize, place: usize, mut seen: Session, key: u8, dot: Dot) {
        let Some(node) = &self.nodes[place] else { return };
        seen.saw(dot);
        seen.shorten(&node.replica).expect("there are few origins");
        let client = &mut self.sessions[session];
        client.token = seen.encode();
        let last = client.last.entry(key).or_default();
        *last = dot.max(*last);
    }

    fn read(&mut self, session: usize, place: usize, key: u8) {
        let Some(seen) = self.enter(session, place) else { return };
        let Some(node) = &self.nodes[place] else { return };
        let now = self.now_ms.saturating_add_signed(node.skew_ms);
        let record = node.replica.store().get(&key_of(key)).map(|r| r.dot);
        let last = self.sessions[session].last.get(&key).copied();
        if let Some(last) = last {
            let fine = record >= Some(last) || self.history.ended(&key_of(key), last, now + 8_000);
            assert!(fine, "a session saw {last:?} of key {key}, and {record:?} at {}", node.name);
        }
        if let Some(dot) = record {
            self.leave_with(session, place, seen, key, dot);
        }
    }

    pub(super) fn settle_acks(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        for (place, origin, dot, ack) in waiting {
            let Some(node) = self.nodes[place].as_ref().filter(|n| n.origin == origin) else { continue };
            if self.history.was_interrupted(origin, dot) {
                continue;
            }
            if node.replica.holders(dot.hlc).peers < ack {
                self.waiting.push((place, origin, dot, ack));
                continue;
            }
            // Whoever covers it now is a holder.
            let holders: Vec<u64> = self
                .live()
                .filter(|n| {
                    n.replica.vector().get(&dot.origin).is_some_and(|c| c.seen >= dot.hlc) && n.replica.is_ready()
                })
                .map(|n| n.origin)
                .collect();
            assert!(holders.len() > ack, "{dot:?} was acknowledged by {ack} peers but only {holders:?} hold it");
            self.history.acked.push(Acked { dot, holders, at: self.history.now() });
        }
    }
}
