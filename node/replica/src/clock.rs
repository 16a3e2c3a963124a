//! The hybrid logical clock, and dots. Knows nothing of I/O: the caller brings the wall clock.
//!
//! After Kulkarni et al., "Logical Physical Clocks" (2014), with both parts in
//! one 64-bit word: 48 bits of milliseconds since 1970 above 16 bits of
//! counter, so that timestamps compare as plain integers.

/// Bits of the counter below the milliseconds.
const COUNTER_BITS: u32 = 16;

/// The smallest timestamp at `ms` milliseconds since 1970.
pub const fn stamp_at(ms: u64) -> u64 {
    ms << COUNTER_BITS
}

/// The milliseconds since 1970 of a timestamp.
pub const fn ms_of(hlc: u64) -> u64 {
    hlc >> COUNTER_BITS
}

/// The identity of a write. The larger dot wins a key: later first, then the
/// larger origin, which is arbitrary but the same on every node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dot {
    /// The time by the origin's clock; higher with each write of the origin.
    pub hlc: u64,
    /// The process that took the write; new at each start.
    pub origin: u64,
}

/// A clock that never stands still and never goes back.
#[derive(Debug, Default)]
pub struct Clock {
    last: u64,
}

impl Clock {
    /// A new timestamp, above every timestamp issued or observed before, and not below the wall clock `now_ms`.
    pub fn tick(&mut self, now_ms: u64) -> u64 {
        if planted!("clock-goes-back") && ms_of(self.last) > now_ms {
            self.last = 0;
        }
        // A counter that overflows carries into the milliseconds: the timestamp runs ahead of the wall clock by 1 ms, and stays
        // unique.
        self.last = (self.last + 1).max(stamp_at(now_ms));
        self.last
    }

    /// Notes a timestamp of another node: later ticks are above it.
    pub fn observe(&mut self, hlc: u64) {
        if !planted!("clock-ignores-peers") {
            self.last = self.last.max(hlc);
        }
    }

    /// The largest timestamp issued or observed.
    pub const fn last(&self) -> u64 {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ticks_rise_whatever_the_wall_clock_does(steps in prop::collection::vec((any::<bool>(), 0u64..1 << 40), 1..200)) {
            let mut clock = Clock::default();
            let mut last = 0;
            for (observed, ms) in steps {
                if observed {
                    clock.observe(stamp_at(ms));
                    last = last.max(stamp_at(ms));
                } else {
                    let tick = clock.tick(ms);
                    prop_assert!(tick > last && ms_of(tick) >= ms);
                    last = tick;
                }
            }
        }
    }

    #[test]
    fn a_full_counter_carries_into_the_milliseconds() {
        let mut clock = Clock::default();
        clock.observe(stamp_at(7) | 0xffff);
        assert_eq!(clock.tick(7), stamp_at(8));
    }

    #[test]
    fn the_later_dot_wins_and_the_origin_breaks_the_tie() {
        let dot = |hlc, origin| Dot { hlc, origin };
        assert!(dot(2, 1) > dot(1, 9));
        assert!(dot(2, 9) > dot(2, 1));
    }
}
