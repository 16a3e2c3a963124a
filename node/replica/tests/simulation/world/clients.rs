//! What the plan's operations do: clients that write and read, and what befalls
//! the cluster.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvasir_replica::clock::Dot;
use kvasir_replica::replica::{Coverage, REMEMBER_ENDED_MS};

use super::{DRAIN_MS, World};
use crate::check::Acked;
use crate::plan::Op;

/// A client that sends its token along.
#[derive(Default)]
pub struct Session {
    token: BTreeMap<u64, (u64, (u64, u64))>,
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
                let vector = node.replica.vector().clone();
                let before = node.replica.store().get(&key_of(key)).map(|r| r.dot);
                if let Some(dot) = node.replica.delete(key_of(key), now) {
                    self.history.deleted(key_of(key), dot, vector, before);
                    self.waiting.push((place, dot.origin, dot, 1));
                    self.absorb(place);
                }
            }
            Op::SessionPut { session, node, key } => {
                if let Some(dot) = self.put(node, key, None)
                    && let Some(node) = &self.nodes[node]
                {
                    let founding = node.replica.founding();
                    let session = &mut self.sessions[session];
                    session.token.insert(dot.origin, (dot.hlc, founding));
                    let last = session.last.entry(key).or_default();
                    *last = dot.max(*last);
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

    fn read(&mut self, session: usize, place: usize, key: u8) {
        let Some(node) = self.nodes[place].as_ref().filter(|n| n.replica.is_ready()) else { return };
        let name = node.name.clone();
        let asked: Vec<Coverage> = self.sessions[session]
            .token
            .iter()
            .map(|(&origin, &(hlc, founding))| node.replica.coverage(Dot { hlc, origin }, founding))
            .collect();
        if asked.contains(&Coverage::Lost) {
            self.sessions[session] = Session::default();
            return;
        }
        if asked.contains(&Coverage::Behind) {
            return;
        }
        let now = self.now_ms.saturating_add_signed(node.skew_ms);
        let record = node.replica.store().get(&key_of(key)).map(|r| r.dot);
        let founding = node.replica.founding();
        let last = self.sessions[session].last.get(&key).copied();
        if let Some(last) = last {
            let fine = record >= Some(last) || self.history.ended(&key_of(key), last, now + 8_000);
            assert!(fine, "a session saw {last:?} of key {key}, and {record:?} at {name}");
        }
        if let Some(dot) = record {
            let session = &mut self.sessions[session];
            let token = session.token.entry(dot.origin).or_default();
            *token = (dot.hlc, founding).max(*token);
            let last = session.last.entry(key).or_default();
            *last = dot.max(*last);
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
