//! The history of all writes, as a naive model sees it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::prelude::*;

#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    pub key: Bytes,
    pub value: Option<Bytes>,
    pub expires_ms: Option<u64>,
    /// The client's write whose content this write has: an earlier write if this one is a reissue.
    pub root: Dot,
}

/// A write, and the processes that covered it at some moment.
#[derive(Debug)]
pub struct Acked {
    pub dot: Dot,
    pub holders: Vec<u64>,
    pub at: u64,
}

/// A client's delete.
pub struct Delete {
    pub key: Bytes,
    pub dot: Dot,
    /// What each ready process had covered, the deleting one included.
    pub covered: Vec<(u64, Vector)>,
    /// The write that the deleting process held.
    pub before: Option<Dot>,
    pub at: u64,
}

#[derive(Default)]
pub struct History {
    pub writes: HashMap<Dot, Write>,
    pub by_key: BTreeMap<Bytes, BTreeSet<Dot>>,
    pub deletes: Vec<Delete>,
    pub acked: Vec<Acked>,
    /// The causally stable writes of each epoch.
    stable: HashSet<((u64, u64), Dot)>,
    /// Processes that lost their map, and when they last did.
    lost_map: HashMap<u64, u64>,
    /// A clock that counts events.
    events: u64,
    /// Whether the memory of any node was lost.
    pub crashed: bool,
    /// Whether a process that is gone had rejoined too late to reissue all of its backlog.
    pub too_late: bool,
}

impl History {
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    pub const fn now(&self) -> u64 {
        self.events
    }

    pub fn get(&self, dot: Dot) -> Option<&Write> {
        self.writes.get(&dot)
    }

    pub fn add(&mut self, dot: Dot, write: Write) {
        self.events += 1;
        self.by_key.entry(write.key.clone()).or_default().insert(dot);
        assert!(self.writes.insert(dot, write).is_none(), "{dot:?} was used twice");
    }

    pub fn reissued(&mut self, old: Dot, new: Dot) {
        let root = self.writes[&old].root;
        if let Some(write) = self.writes.get_mut(&new) {
            write.root = root;
        }
    }

    /// A write that is later than the reissue `new` of the same key, and that the reissuing replica already covered or
    /// that was causally stable in its epoch.
    pub fn later(&self, new: Dot, replica: &Replica) -> Option<Dot> {
        let Write { key, root, .. } = &self.writes[&new];
        let is_covered = |dot: &&Dot| covers(replica.vector(), **dot) || self.is_stable(replica, **dot);
        let later = self.by_key[key].range(root..).filter(|dot| **dot != new && self.writes[*dot].root > *root);
        later.copied().find(|dot| is_covered(&dot))
    }

    /// Records what is causally stable, as far as a replica knows.
    pub fn add_stable(&mut self, replica: &Replica) {
        let stable = Dot { hlc: replica.collected(), origin: u64::MAX };
        for dot in self.by_key.values().flat_map(|dots| dots.range(..=stable)) {
            if covers(replica.vector(), *dot) {
                self.stable.insert((replica.founding(), *dot));
            }
        }
    }

    pub fn is_stable(&self, replica: &Replica, dot: Dot) -> bool {
        self.stable.contains(&(replica.founding(), dot))
    }

    pub fn deleted(&mut self, key: Bytes, dot: Dot, covered: Vec<(u64, Vector)>, before: Option<Dot>) {
        let at = self.events;
        self.deletes.push(Delete { key, dot, covered, before, at });
    }

    /// A process is gone, or has reset.
    pub fn lost_map(&mut self, origin: u64) {
        self.events += 1;
        self.lost_map.insert(origin, self.events);
    }

    /// Whether a process lost its map at any time.
    pub fn has_lost_map(&self, origin: u64) -> bool {
        self.lost_map.contains_key(&origin)
    }

    /// Whether a process has kept its map since that moment.
    pub fn kept_map_since(&self, origin: u64, at: u64) -> bool {
        self.lost_map.get(&origin).is_none_or(|last| *last <= at)
    }

    /// Whether one of the holders has held the write ever since.
    pub fn has_holder(&self, acked: &Acked) -> bool {
        self.has_holder_except(acked, |_| false)
    }

    pub fn has_holder_except(&self, acked: &Acked, except: impl Fn(u64) -> bool) -> bool {
        acked.holders.iter().any(|origin| self.kept_map_since(*origin, acked.at) && !except(*origin))
    }

    /// Whether a key may have no value at `now_ms` although the write was seen: the write or a later one of its key was a
    /// delete, or has ended.
    pub fn has_ended(&self, key: &Bytes, dot: Dot, now_ms: u64) -> bool {
        self.by_key.get(key).into_iter().flat_map(|dots| dots.range(dot..)).any(|d| {
            let write = &self.writes[d];
            write.value.is_none() || write.expires_ms.is_some_and(|end| end <= now_ms)
        })
    }
}

/// Whether a vector covers a write.
pub fn covers(vector: &Vector, dot: Dot) -> bool {
    vector.get(&dot.origin).is_some_and(|cover| cover.seen >= dot.hlc)
}
