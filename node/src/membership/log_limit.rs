//! Limits log lines: a peer that sends thousands of datagrams, or a sender that pretends to be thousands of peers, must not
//! fill the log.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

/// How many lines of one kind about one peer are logged in a window. Further lines are only counted.
#[derive(Clone, Copy)]
pub(super) struct Rate {
    burst: u32,
    window: Duration,
}

/// For events of members. A node that restarts a few times gets a line each time.
pub(super) const EVENTS: Rate = Rate { burst: 4, window: Duration::from_secs(10) };
/// For conditions that last until an administrator changes something.
pub(super) const REFUSALS: Rate = Rate { burst: 1, window: Duration::from_mins(5) };

/// How many pairs of kind and peer are tracked. All further peers are tracked together, by kind.
const MAX_TRACKED: usize = 256;
/// Stands for the further peers.
const OTHERS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// The lines of the current windows, by kind and peer.
#[derive(Default)]
pub(super) struct LogLimit {
    tracked: HashMap<(&'static str, SocketAddr), Tracked>,
}

struct Tracked {
    since: Duration,
    window: Duration,
    logged: u32,
    omitted: u64,
}

impl LogLimit {
    /// Whether to log a line of this kind about this peer now; if so, returns how many such lines were omitted before.
    pub(super) fn permit(&mut self, now: Duration, kind: &'static str, peer: SocketAddr, rate: Rate) -> Option<u64> {
        let Rate { burst, window } = rate;
        let mut key = (kind, peer);
        if !self.tracked.contains_key(&key) && self.tracked.len() >= MAX_TRACKED {
            self.tracked.retain(|_, tracked| now.saturating_sub(tracked.since) < tracked.window);
            if self.tracked.len() >= MAX_TRACKED {
                key = (kind, OTHERS);
            }
        }
        let tracked = self.tracked.entry(key).or_insert(Tracked { since: now, window, logged: 0, omitted: 0 });
        if now.saturating_sub(tracked.since) >= window {
            (tracked.since, tracked.logged) = (now, 0);
        }
        if tracked.logged < burst {
            tracked.logged += 1;
            return Some(std::mem::take(&mut tracked.omitted));
        }
        tracked.omitted += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Rate = Rate { burst: 1, window: Duration::from_secs(10) };
    const TWO: Rate = Rate { burst: 2, ..ONE };

    fn peer(number: u32) -> SocketAddr {
        (number.to_be_bytes(), 1).into()
    }

    #[test]
    fn log_limit_counts_omitted_lines() {
        let mut limit = LogLimit::default();
        let at = Duration::from_secs;
        assert_eq!(limit.permit(at(0), "a", peer(1), ONE), Some(0));
        assert!((0..1000).all(|_| limit.permit(at(9), "a", peer(1), ONE).is_none()));
        assert_eq!(limit.permit(at(9), "b", peer(1), ONE), Some(0), "another kind");
        assert_eq!(limit.permit(at(9), "a", peer(2), ONE), Some(0), "another peer");
        assert_eq!(limit.permit(at(10), "a", peer(1), TWO), Some(1000));
        assert_eq!((limit.permit(at(10), "a", peer(1), TWO), limit.permit(at(10), "a", peer(1), TWO)), (Some(0), None));
    }

    #[test]
    fn log_limit_bounds_its_memory() {
        let mut limit = LogLimit::default();
        let mut written = |at: u64| {
            let at = Duration::from_secs(at);
            (0..10_000).filter(|number| limit.permit(at, "a", peer(*number), ONE).is_some()).count()
        };
        assert_eq!(written(0), MAX_TRACKED + 1);
        assert_eq!(written(5), 0);
        assert!(written(30) <= MAX_TRACKED + 1);
        assert!(limit.tracked.len() <= MAX_TRACKED + 1);
    }
}
