//! The timers that foca sets.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
    time::Duration,
};

use foca::Timer;

use crate::{NodeId, wire::MAX_KNOWN};

/// With this many timers set, no more are set to forget the dead. Bounds what forged deaths make this node keep.
pub(super) const MAX_TIMERS: usize = 4 * MAX_KNOWN;

/// Timers by due time; those due at the same time fire in the order in which they were set.
#[derive(Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<Due>>,
    /// How many were ever set.
    set: u64,
}

impl Timers {
    pub(super) fn set(&mut self, at: Duration, timer: Timer<NodeId>) {
        // There is one such timer for each death. A dead node without one is forgotten when its room is needed.
        if matches!(timer, Timer::RemoveDown(_)) && self.heap.len() >= MAX_TIMERS {
            return;
        }
        self.set += 1;
        self.heap.push(Reverse(Due { at, number: self.set, timer }));
    }

    /// When the next timer is due.
    pub(super) fn next(&self) -> Option<Duration> {
        self.heap.peek().map(|Reverse(due)| due.at)
    }

    /// Takes a timer that is due, with its due time.
    pub(super) fn pop_due(&mut self, now: Duration) -> Option<(Duration, Timer<NodeId>)> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(due)| (due.at, due.timer))
    }

    pub(super) fn clear(&mut self) {
        self.heap.clear();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }
}

struct Due {
    at: Duration,
    number: u64,
    timer: Timer<NodeId>,
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_fire_in_order_of_time_then_of_setting() {
        let mut timers = Timers::default();
        let at = Duration::from_secs;
        timers.set(at(2), Timer::ProbeRandomMember(0));
        timers.set(at(1), Timer::ProbeRandomMember(1));
        timers.set(at(1), Timer::ProbeRandomMember(2));
        assert_eq!(timers.next(), Some(at(1)));
        assert_eq!(timers.pop_due(Duration::ZERO), None);
        assert_eq!(timers.pop_due(at(1)), Some((at(1), Timer::ProbeRandomMember(1))));
        assert_eq!(timers.pop_due(at(1)), Some((at(1), Timer::ProbeRandomMember(2))));
        assert_eq!(timers.pop_due(at(1)), None);
        assert_eq!(timers.pop_due(at(9)), Some((at(2), Timer::ProbeRandomMember(0))));
        assert_eq!(timers.next(), None);
    }
}
