//! When this node announces itself, and to which of the addresses from discovery.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

/// How many addresses one round of announcements goes to.
const ROUND_SIZE: usize = 32;
/// The least time between two rounds.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// Rounds of announcements to addresses that no member has.
pub(super) struct Announcements {
    period: Duration,
    /// Sorted, without this node's own.
    addresses: Vec<SocketAddr>,
    /// The index in `addresses` at which the next round begins.
    first: usize,
    last_round: Option<Duration>,
    next_round: Duration,
}

impl Announcements {
    pub(super) const fn new(period: Duration) -> Self {
        Self { period, addresses: Vec::new(), first: 0, last_round: None, next_round: Duration::ZERO }
    }

    /// Returns whether these differ from the addresses so far.
    pub(super) fn set_addresses(&mut self, addresses: BTreeSet<SocketAddr>) -> bool {
        let differ = !addresses.iter().eq(&self.addresses);
        if differ {
            self.addresses = addresses.into_iter().collect();
        }
        differ
    }

    /// When the next round is due.
    pub(super) const fn next_round(&self) -> Duration {
        self.next_round
    }

    /// Moves the next round to now, or to as soon as [`MIN_INTERVAL`] allows.
    pub(super) fn hasten(&mut self, now: Duration) {
        let earliest = self.last_round.map_or(now, |last| now.max(last + MIN_INTERVAL));
        self.next_round = self.next_round.min(earliest);
    }

    /// Begins a round: returns the addresses to announce to.
    pub(super) fn begin(&mut self, now: Duration, is_member: impl Fn(SocketAddr) -> bool) -> Vec<SocketAddr> {
        self.last_round = Some(now);
        self.next_round = now + self.period;
        let (before, after) = self.addresses.split_at(self.first.min(self.addresses.len()));
        let others = after.iter().chain(before).copied().filter(|address| !is_member(*address));
        let targets: Vec<_> = others.take(ROUND_SIZE).collect();
        self.first = if targets.len() < ROUND_SIZE {
            0
        } else {
            targets.last().and_then(|last| self.addresses.iter().position(|it| it == last)).map_or(0, |at| at + 1)
        };
        targets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcements_reach_all_addresses_in_turn() {
        let addresses: BTreeSet<_> = (1..=80_u8).map(|last| SocketAddr::from(([10, 0, 0, last], 7071))).collect();
        let mut announcements = Announcements::new(Duration::from_secs(2));
        assert!(announcements.set_addresses(addresses.clone()));
        assert!(!announcements.set_addresses(addresses.clone()));
        let member = *addresses.first().unwrap();
        let mut reached = BTreeSet::new();
        for round in 0..3 {
            let targets = announcements.begin(Duration::from_secs(2 * round), |address| address == member);
            assert_eq!(targets.len(), ROUND_SIZE);
            reached.extend(targets);
        }
        assert_eq!(reached.len(), 79, "all but the member");
    }

    #[test]
    fn announcements_hastened_keep_an_interval() {
        let mut announcements = Announcements::new(Duration::from_secs(2));
        let ms = Duration::from_millis;
        announcements.begin(ms(10), |_| false);
        assert_eq!(announcements.next_round(), ms(2010));
        announcements.hasten(ms(20));
        assert_eq!(announcements.next_round(), ms(110));
        announcements.hasten(ms(500));
        assert_eq!(announcements.next_round(), ms(110), "never later");
    }
}
