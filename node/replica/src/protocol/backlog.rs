//! Backlogs: what a node held before a reset and has still to reissue.

use bytes::Bytes;

use super::limits::{LATE_KEYS, SCAN_STEP};
use super::map::Map;
use crate::clock::Dot;
use crate::store::Record;

/// What this node held under a seat that has ended.
#[derive(Debug)]
pub(super) struct Backlog {
    pub(super) map: Map,
    /// Of an origin that the snapshot does not list, the cluster has taken in all writes up to this timestamp.
    pub(super) floor: u64,
    /// Whether the members know the last write of each origin in it.
    pub(super) announced: bool,
    /// Whether some of its writes came too late to be reissued.
    pub(super) late: bool,
    /// The last key that was looked at.
    after: Option<Bytes>,
}

impl Backlog {
    pub(super) const fn new(map: Map) -> Self {
        Self { map, floor: 0, announced: false, late: false, after: None }
    }

    /// Sets the floor by the map of a snapshot. A map of another epoch says nothing about what was taken in.
    pub(super) fn compare(&mut self, snapshot: &Map) {
        let (mine, theirs) = (&self.map.standing, &snapshot.standing);
        self.floor = if mine.epoch == theirs.epoch { mine.collected.min(theirs.collected) } else { 0 };
    }

    /// The next records, in key order; starts again at the first one after the last.
    pub(super) fn step(&mut self) -> Vec<(Bytes, Record)> {
        let records = self.map.store.scan(self.after.as_deref()).take(SCAN_STEP);
        let step: Vec<_> = records.map(|(key, record)| (key.clone(), record.clone())).collect();
        self.after = step.last().map(|(key, _)| key.clone()).filter(|_| step.len() == SCAN_STEP);
        step
    }

    /// Whether the cluster has taken in a write of this backlog.
    pub(super) fn is_known(&self, dot: Dot, cluster: &Map) -> bool {
        match cluster.vector.get(&dot.origin) {
            Some(cover) => dot.hlc <= cover.seen && !planted!("known-writes-reissued"),
            None => dot.hlc <= self.floor,
        }
    }

    /// Whether a later delete of a write may be forgotten, so that the write must not come back. Never true of a map of
    /// another epoch, which may exist nowhere else.
    pub(super) fn is_too_late(&self, hlc: u64, cluster: &Map) -> bool {
        self.map.standing.epoch == cluster.standing.epoch
            && hlc <= cluster.standing.forgotten
            && !planted!("too-late-reissued")
    }

    /// Once the backlog is reissued: whether the cluster covers everything that its map covered. It does not if writes came too
    /// late, which are lost, or if a map of another epoch had forgotten deletes.
    pub(super) fn is_whole(&self, cluster: &Map) -> bool {
        let known = self.map.standing.epoch == cluster.standing.epoch || self.map.standing.forgotten == 0;
        (!self.late || planted!("too-late-covered")) && known
    }
}

/// The backlogs of this node, one for each ended seat.
#[derive(Debug, Default)]
pub(super) struct Backlogs {
    list: Vec<Backlog>,
    /// Keys of the first writes that came too late to be reissued.
    late_keys: Vec<Bytes>,
}

impl Backlogs {
    pub(super) const fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn push(&mut self, backlog: Backlog) {
        self.list.push(backlog);
    }

    pub(super) fn pop(&mut self) -> Option<Backlog> {
        self.list.pop()
    }

    pub(super) fn clear(&mut self) {
        self.list.clear();
    }

    /// Sets the floors by the map of a snapshot.
    pub(super) fn compare(&mut self, snapshot: &Map) {
        for backlog in &mut self.list {
            backlog.compare(snapshot);
        }
    }

    pub(super) fn note_late(&mut self, key: Bytes) {
        if self.late_keys.len() < LATE_KEYS {
            self.late_keys.push(key);
        }
    }

    pub(super) fn late_keys(&self) -> impl Iterator<Item = &[u8]> {
        self.late_keys.iter().map(|key| &key[..])
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.list.iter().flat_map(|backlog| backlog.map.store.scan(None).map(|(key, _)| &key[..]))
    }

    /// Records that are left.
    pub(super) fn len(&self) -> usize {
        self.list.iter().map(|backlog| backlog.map.store.len()).sum()
    }

    /// The accounted memory of the records, in bytes.
    pub(super) fn memory(&self) -> u64 {
        self.list.iter().map(|backlog| backlog.map.store.memory()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::map::Standing;
    use super::*;

    fn map(epoch: u64, collected: u64, forgotten: u64) -> Map {
        Map { standing: Standing { epoch: (epoch, 1), collected, forgotten, ..Standing::default() }, ..Map::default() }
    }

    /// Of an origin that the cluster has no entry for, writes up to the lower stability watermark of the two maps are known.
    #[test]
    fn known_are_covered_writes_and_those_below_the_floor() {
        let mut cluster = map(1, 8, 0);
        cluster.cover(5, 20, 20);
        let mut backlog = Backlog::new(map(1, 6, 0));
        backlog.compare(&cluster);
        let known = |hlc, origin| backlog.is_known(Dot { hlc, origin }, &cluster);
        assert!(known(20, 5) && !known(21, 5));
        assert!(known(6, 9) && !known(7, 9));
        backlog.compare(&map(2, 8, 0));
        assert!(!backlog.is_known(Dot { hlc: 1, origin: 9 }, &cluster), "another epoch says nothing");
    }

    #[test]
    fn too_late_is_what_the_cluster_may_have_forgotten() {
        let (cluster, mut backlog) = (map(1, 8, 8), Backlog::new(map(1, 6, 4)));
        assert!(backlog.is_too_late(8, &cluster) && !backlog.is_too_late(9, &cluster));
        assert!(!backlog.is_too_late(8, &map(2, 8, 8)), "a map of another epoch may exist nowhere else");
        assert!(backlog.is_whole(&cluster) && !backlog.is_whole(&map(2, 8, 8)));
        backlog.late = true;
        assert!(!backlog.is_whole(&cluster));
    }

    #[test]
    fn late_keys_are_limited() {
        let mut backlogs = Backlogs::default();
        for at in 0..=LATE_KEYS {
            backlogs.note_late(vec![at as u8].into());
        }
        assert_eq!(backlogs.late_keys().count(), LATE_KEYS);
    }
}
