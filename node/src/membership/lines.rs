//! Which log lines are written: a peer that sends thousands of datagrams, or a
//! sender that says it is thousands of peers, must not fill the log.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

/// How many lines of a kind about a peer may follow each other closely, and for how long further ones are only counted.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    at_once: u32,
    quiet: Duration,
}

/// Of what happened to a member: a node that is restarted a few times is worth each line.
pub(super) const EVENTS: Pace = Pace { at_once: 4, quiet: Duration::from_secs(10) };
/// Of what lasts until a person does something about it.
pub(super) const REFUSALS: Pace = Pace { at_once: 1, quiet: Duration::from_mins(5) };

/// For how many kinds and peers. Of further peers all share one place for each kind.
const MAX_PLACES: usize = 256;
/// The address that stands for those.
const OTHERS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

/// What was written lately, by kind and peer.
#[derive(Default)]
pub(super) struct Lines {
    places: HashMap<(&'static str, SocketAddr), Place>,
}

struct Place {
    since: Duration,
    quiet: Duration,
    written: u32,
    unsaid: u64,
}

impl Lines {
    /// Whether to write a line of this kind about this peer now. If so, how many went unsaid before.
    pub(super) fn may(&mut self, now: Duration, kind: &'static str, peer: SocketAddr, pace: Pace) -> Option<u64> {
        let Pace { at_once, quiet } = pace;
        let mut key = (kind, peer);
        if !self.places.contains_key(&key) && self.places.len() >= MAX_PLACES {
            self.places.retain(|_, place| now.saturating_sub(place.since) < place.quiet);
            if self.places.len() >= MAX_PLACES {
                key = (kind, OTHERS);
            }
        }
        let seen = self.places.entry(key).or_insert(Place { since: now, quiet, written: 0, unsaid: 0 });
        if now.saturating_sub(seen.since) >= quiet {
            (seen.since, seen.written) = (now, 0);
        }
        if seen.written < at_once {
            seen.written += 1;
            return Some(std::mem::take(&mut seen.unsaid));
        }
        seen.unsaid += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Pace = Pace { at_once: 1, quiet: Duration::from_secs(10) };
    const TWO: Pace = Pace { at_once: 2, ..ONE };

    fn peer(number: u32) -> SocketAddr {
        (number.to_be_bytes(), 1).into()
    }

    #[test]
    fn lines_repeat_with_a_count() {
        let mut lines = Lines::default();
        let at = Duration::from_secs;
        assert_eq!(lines.may(at(0), "a", peer(1), ONE), Some(0));
        assert!((0..1000).all(|_| lines.may(at(9), "a", peer(1), ONE).is_none()));
        assert_eq!(lines.may(at(9), "b", peer(1), ONE), Some(0), "another kind");
        assert_eq!(lines.may(at(9), "a", peer(2), ONE), Some(0), "another peer");
        assert_eq!(lines.may(at(10), "a", peer(1), TWO), Some(1000));
        assert_eq!((lines.may(at(10), "a", peer(1), TWO), lines.may(at(10), "a", peer(1), TWO)), (Some(0), None));
    }

    #[test]
    fn lines_of_many_peers_are_bounded() {
        let mut lines = Lines::default();
        let mut written = |at: u64| {
            let at = Duration::from_secs(at);
            (0..10_000).filter(|number| lines.may(at, "a", peer(*number), ONE).is_some()).count()
        };
        assert_eq!(written(0), MAX_PLACES + 1);
        assert_eq!(written(5), 0);
        assert!(written(30) <= MAX_PLACES + 1);
        assert!(lines.places.len() <= MAX_PLACES + 1);
    }
}
