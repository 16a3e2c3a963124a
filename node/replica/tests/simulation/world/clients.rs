//! What the plan's operations do: clients that write and read, and what befalls
//! the cluster.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvasir_proto::peer::v1::SeatState;
use kvasir_replica::clock::Dot;
use kvasir_replica::replica::{Coverage, MAX_ENDED, Need, REMEMBER_ENDED_MS, REMEMBER_EVICTED_MS};
use kvasir_replica::session::Session;

use super::{DRAIN_MS, Node, SESSIONS, World};
use crate::check::Acked;
use crate::plan::Op;

/// A client that sends its token along.
#[derive(Default)]
pub struct Client {
    token: Bytes,
    /// Of each key, the last write that it saw.
    last: BTreeMap<u8, Seen>,
    /// All writes that it saw, and who held each then.
    saw: Vec<Acked>,
}

struct Seen {
    dot: Dot,
    /// Who held it when the token named it for the last time.
    held: Acked,
    /// Whether the token names it still.
    named: bool,
}

/// The writes that a token names: the last that was seen of each origin.
fn named(token: &[u8]) -> impl Iterator<Item = Dot> {
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
                let Some(dot) = self.put(node, key, ttl_ms) else { return };
                let origin = dot.origin;
                if !matches!(ack, Need::Count(0)) {
                    self.waiting.push((node, origin, dot, ack));
                }
            }
            Op::Delete { node: place, key } => {
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
            Op::SessionPut { session, node, key } => {
                if let Some(seen) = self.enter(session, node)
                    && let Some(dot) = self.put(node, key, None)
                {
                    self.leave_with(session, node, seen, key, dot);
                    if self.forgets()
                        && let Some(seen) = self.enter(session + SESSIONS, node)
                    {
                        self.leave_with(session + SESSIONS, node, seen, key, dot);
                    }
                }
            }
            Op::Read { session, node, key } => {
                self.read(if self.forgets() { session + SESSIONS } else { session }, node, key);
            }
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
                    node.skew_ms = (node.skew_ms + by).clamp(-self.plan.skew_ms, self.plan.skew_ms);
                    let (name, skew) = (node.name.clone(), node.skew_ms);
                    self.say(|| format!("the clock of {name} is now {skew} ms off"));
                }
            }
            Op::Scale(voters) => {
                self.say(|| format!("{voters} voters are wanted"));
                self.wanted = voters;
            }
            Op::Look(node) => self.look(node),
            Op::Block(..) | Op::Nothing => {}
        }
    }

    /// Whether the cluster as it is meant to be has a node at the place.
    pub(super) const fn is_wanted(&self, place: usize) -> bool {
        (place < self.wanted || place >= self.plan.voters) && !self.is_twin(place)
    }

    /// A voter looks at its configuration.
    pub(super) fn look(&mut self, place: usize) {
        let voters = self.wanted;
        if let Some(node) = self.nodes[place].as_mut().filter(|_| place < self.plan.voters) {
            node.replica.set_voters(voters);
            node.voters = voters;
        }
    }

    /// Whether it may be forgotten, before a session comes to an end, that the writes of a node were lost.
    const fn forgets(&self) -> bool {
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

    /// Those who cover a write now.
    fn holders(&self, dot: Dot) -> Vec<u64> {
        let covers = |n: &&Node| n.replica.vector().get(&dot.origin).is_some_and(|c| c.seen >= dot.hlc);
        self.live().filter(|n| n.replica.is_ready()).filter(covers).map(|n| n.origin).collect()
    }

    /// What a session saw, if the node holds it.
    fn enter(&mut self, session: usize, place: usize) -> Option<Session> {
        let node = self.nodes[place].as_ref().filter(|n| n.replica.serves())?;
        let seen = Session::decode(&self.sessions[session].token).expect("it is a node's own");
        match seen.coverage(&node.replica) {
            Coverage::Covered => Some(seen),
            Coverage::Behind => None,
            Coverage::Lost => {
                // Of another founding, or of a seat that it forgot early, a node may know nothing, and who is there may
                // come too late.
                let judged = seen.founding() == node.replica.founding()
                    && self.plan.remember_evicted_ms == REMEMBER_EVICTED_MS
                    && !self.forgets();
                let client = std::mem::take(&mut self.sessions[session]);
                // A process whose seat was taken lives on, and nobody else knows.
                let replaced = |origin: u64| self.plan.twin.is_some() && node.has_ended(origin);
                let lost = client.saw.iter().any(|saw| !self.history.has_holder_but(saw, replaced));
                assert!(lost || !judged, "{} says that something was lost of what is held: {seen:?}", node.name);
                None
            }
        }
    }

    fn leave_with(&mut self, session: usize, place: usize, mut seen: Session, key: u8, dot: Dot) {
        let Some(node) = &self.nodes[place] else { return };
        seen.saw(dot);
        seen.shorten(&node.replica).expect("there are few origins");
        let mut client = std::mem::take(&mut self.sessions[session]);
        let held = |dot| Acked { dot, holders: self.holders(dot), at: self.history.now() };
        client.token = seen.encode();
        client.saw.push(held(dot));
        if client.last.get(&key).is_none_or(|last| last.dot < dot) {
            client.last.insert(key, Seen { dot, held: held(dot), named: true });
        }
        for last in client.last.values_mut().filter(|last| last.named) {
            last.held = held(last.dot);
            last.named = named(&client.token).any(|dot| dot.origin == last.dot.origin && dot >= last.dot);
        }
        self.sessions[session] = client;
    }

    fn read(&mut self, session: usize, place: usize, key: u8) {
        let Some(seen) = self.enter(session, place) else { return };
        let Some(node) = &self.nodes[place] else { return };
        let now = self.now_ms.saturating_add_signed(node.skew_ms);
        let record = node.replica.store().get(&key_of(key)).map(|r| r.dot);
        if let Some(&Seen { dot: last, ref held, named }) = self.sessions[session].last.get(&key) {
            // All who took part held it, and none is left: who was given up on before does not know what it lacks.
            let mut lost = (!named || self.forgets()) && !self.history.has_holder(held);
            // Or it was given up on so long ago that nobody knows of it any more.
            lost |= self.forgets() && node.replica.seats().all(|(origin, _)| origin != last.origin);
            let fine =
                lost || record >= Some(last) || self.history.ended(&key_of(key), last, now + self.plan.apart_ms());
            assert!(fine, "a session saw {last:?} of key {key}, and {record:?} at {}", node.name);
        }
        if let Some(dot) = record {
            self.leave_with(session, place, seen, key, dot);
        }
    }

    /// A node at which a session waits for what it saw.
    pub(super) fn holds_up(&self) -> Option<String> {
        self.live().find_map(|node| {
            // One that is gone may yet bring what only it has.
            let awaited = node.replica.seats().any(|(_, seat)| seat.state == SeatState::Evicted);
            let tokens = self.sessions.iter().map(|session| Session::decode(&session.token).expect("a node made it"));
            let behind = |seen: &Session| seen.coverage(&node.replica) == Coverage::Behind;
            let lives = |dot: Dot| self.live().any(|n| n.origin == dot.origin);
            let lacks = |dot: Dot| node.replica.coverage(dot, node.replica.founding()) == Coverage::Behind;
            let waits = |seen: &Session| {
                // It does not wait for one that is there.
                !named(&seen.encode()).any(|dot| lives(dot) && lacks(dot))
                    && (awaited || crate::check::waits(self, node))
            };
            tokens.filter(behind).find(|seen| !waits(seen)).map(|seen| format!("{} holds up {seen:?}", node.name))
        })
    }

    /// All sessions read all keys everywhere.
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
            if self.history.was_interrupted(origin, dot) {
                continue;
            }
            let said = node.replica.holders(dot.hlc);
            if !ack.met(&said) {
                self.waiting.push((place, origin, dot, ack));
                continue;
            }
            let covers = |n: &&Node| n.replica.vector().get(&dot.origin).is_some_and(|c| c.seen >= dot.hlc);
            let ready = || self.live().filter(|n| n.replica.is_ready());
            let holders = self.holders(dot);
            let voters = ready().filter(covers).filter(|n| n.replica.id().voter).count();
            let member = |n: &&Node| node.replica.seats().any(|(o, s)| o == n.origin && s.state == SeatState::Member);
            let true_of_it = match ack {
                Need::Count(peers) => holders.len() > peers,
                Need::Majority => voters >= said.majority,
                Need::All => ready().filter(member).all(|n| covers(&n)),
            };
            assert!(true_of_it, "{dot:?} was acknowledged, {ack:?}: {said:?}, but those who hold it are {holders:?}");
            self.history.acked.push(Acked { dot, holders, at: self.history.now() });
        }
    }
}
