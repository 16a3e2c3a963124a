//! How long a small cluster may wait between two probes.

use std::time::Duration;

/// A node with `n` others probes each in turn: the longest wait between two probes of one member is `2n - 1` periods
/// (first of one round, last of the next). With four others that is this many periods. With fewer others the node may
/// probe more rarely and still probe each as often as with four.
const TURNS: u32 = 7;
/// The longest wait counts as at least this many periods, so that with one other a turn takes no longer than with two.
const FEWEST_TURNS: u32 = 3;

/// Decides whether the next probe waits longer than a probe period.
pub(super) struct Pacing {
    period: Duration,
    /// Whether a probe was answered since the last turn began.
    answered: bool,
    /// Whether the current turn was extended already.
    extended: bool,
}

impl Pacing {
    pub(super) const fn new(period: Duration) -> Self {
        Self { period, answered: false, extended: false }
    }

    pub(super) fn probe_answered(&mut self) {
        self.answered = true;
    }

    /// The next probe is due: how much longer it waits, or none if it is sent now. Only a turn whose probe was answered
    /// is extended.
    pub(super) fn extend(&mut self, others: usize) -> Option<Duration> {
        let extra = if self.answered && !self.extended { self.extra(others) } else { Duration::ZERO };
        self.extended = extra > Duration::ZERO;
        if self.extended {
            return Some(extra);
        }
        self.answered = false;
        None
    }

    fn extra(&self, others: usize) -> Duration {
        let others = u32::try_from(others).unwrap_or(u32::MAX);
        let longest_wait = others.saturating_mul(2).saturating_sub(1).max(FEWEST_TURNS);
        (self.period * TURNS / longest_wait).saturating_sub(self.period)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pacing_extends_only_answered_turns() {
        let mut pacing = Pacing::new(Duration::from_millis(300));
        assert_eq!(pacing.extend(1), None);
        pacing.probe_answered();
        assert_eq!(pacing.extend(1), Some(Duration::from_millis(400)));
        assert_eq!(pacing.extend(1), None, "a turn is extended once");
        assert_eq!(pacing.extend(1), None, "the next probe was not answered");
        for (others, extra_ms) in [(2, 400), (3, 120), (4, 0), (100, 0)] {
            pacing.probe_answered();
            let extra = pacing.extend(others).unwrap_or_default();
            assert_eq!(extra, Duration::from_millis(extra_ms), "{others} others");
            pacing.extend(others);
        }
    }
}
