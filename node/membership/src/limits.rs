//! How often this node answers datagrams. A datagram can carry any sender address, so without a limit a forged one could
//! make two nodes send to each other endlessly, or make this node send to a third party.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

/// How many addresses have a bucket of their own. All others share one.
pub(crate) const MAX_PEERS: usize = 1024;
/// Answers that one peer gets at once after a pause.
pub(crate) const PEER_BURST: u32 = 64;
/// Answers that one peer gets per probe period in the long run. A correct peer sends one probe per period, and a few for
/// other peers.
const PEER_RATE: u32 = 8;
/// Answers that all peers together get at once after a pause.
pub(crate) const TOTAL_BURST: u32 = 2048;
/// Answers that all peers together get per probe period in the long run.
const TOTAL_RATE: u32 = 256;
/// Tokens for an answer to a probe.
pub(crate) const PROBE_COST: u32 = 1;
/// Tokens for a list of members (a large datagram), and for telling a sender that it is listed as dead (a datagram to which
/// the receiver reacts by sending).
pub(crate) const LIST_COST: u32 = 8;
/// Identities that this node may take at once after a pause.
pub(crate) const RENEWAL_BURST: u32 = 16;
/// Suspicions that this node may refute at once after a pause.
pub(crate) const REFUTATION_BURST: u32 = 64;
/// Suspicions that this node may refute per probe period in the long run.
pub(crate) const REFUTATION_RATE: u32 = 4;

/// A token bucket: holds at most `burst` tokens and gains one in each interval.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    interval: Duration,
    burst: u32,
    /// When all tokens are back.
    full_at: Duration,
}

impl Bucket {
    /// A full bucket.
    pub(crate) const fn new(interval: Duration, burst: u32) -> Self {
        Self { interval, burst, full_at: Duration::ZERO }
    }

    fn would_be_full_at(&self, now: Duration, tokens: u32) -> Option<Duration> {
        let full_at = self.full_at.max(now) + self.interval * tokens;
        (full_at.saturating_sub(now) <= self.interval * self.burst).then_some(full_at)
    }

    /// Takes the tokens if there are enough.
    pub(crate) fn take(&mut self, now: Duration, tokens: u32) -> bool {
        let full_at = self.would_be_full_at(now, tokens);
        self.full_at = full_at.unwrap_or(self.full_at);
        full_at.is_some()
    }
}

/// The answers that are left for each peer and for all together.
pub(crate) struct Answers {
    new: Bucket,
    peers: BTreeMap<SocketAddr, Bucket>,
    /// For addresses without a bucket of their own.
    others: Bucket,
    total: Bucket,
}

impl Answers {
    pub(crate) fn new(probe_period: Duration) -> Self {
        let new = Bucket::new(probe_period / PEER_RATE, PEER_BURST);
        Self { new, peers: BTreeMap::new(), others: new, total: Bucket::new(probe_period / TOTAL_RATE, TOTAL_BURST) }
    }

    /// Whether this peer may be answered now at this cost.
    pub(crate) fn take(&mut self, now: Duration, peer: SocketAddr, cost: u32) -> bool {
        if self.peers.len() >= MAX_PEERS && !self.peers.contains_key(&peer) {
            self.peers.retain(|_, bucket| bucket.full_at > now);
        }
        let bucket = if self.peers.len() < MAX_PEERS || self.peers.contains_key(&peer) {
            self.peers.entry(peer).or_insert(self.new)
        } else {
            &mut self.others
        };
        // A refused request of one peer takes no tokens from the others.
        bucket.would_be_full_at(now, cost).is_some() && self.total.take(now, cost) && bucket.take(now, cost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_millis(200);

    fn peer(number: u32) -> SocketAddr {
        (number.to_be_bytes(), 7071).into()
    }

    fn granted(answers: &mut Answers, now: Duration, peer: impl Fn(u32) -> SocketAddr, asked: u32) -> u32 {
        (0..asked).filter(|at| answers.take(now, peer(*at), PROBE_COST)).count() as u32
    }

    #[test]
    fn limits_bound_what_one_peer_gets() {
        let mut answers = Answers::new(PERIOD);
        assert_eq!(granted(&mut answers, Duration::ZERO, |_| peer(1), 1000), PEER_BURST);
        assert!(answers.take(Duration::ZERO, peer(2), LIST_COST), "each peer has its own bucket");
        assert_eq!(granted(&mut answers, PERIOD * 2, |_| peer(1), 1000), PEER_RATE * 2);
        assert_eq!(granted(&mut answers, PERIOD * 1000, |_| peer(1), 1000), PEER_BURST, "never more than the burst");
    }

    #[test]
    fn limits_bound_what_all_peers_get() {
        let mut answers = Answers::new(PERIOD);
        assert_eq!(granted(&mut answers, Duration::ZERO, peer, 5000), MAX_PEERS as u32 + PEER_BURST);
        assert_eq!(answers.peers.len(), MAX_PEERS, "the rest share one bucket");
        assert_eq!(granted(&mut answers, Duration::ZERO, |at| peer(at % 1000), 5000), 2048 - 1024 - 64);
        assert!(!answers.take(Duration::ZERO, peer(1), PROBE_COST), "no token is left in the shared total");
        assert_eq!(granted(&mut answers, PERIOD, |at| peer(at % 1000), 5000), TOTAL_RATE);
        assert!(answers.take(PERIOD * 20, peer(9_999_999), LIST_COST));
        assert!(answers.peers.len() < MAX_PEERS, "peers that stopped asking are forgotten");
    }

    #[test]
    fn limits_take_no_tokens_when_refusing() {
        let mut bucket = Bucket::new(PERIOD, 2);
        assert!(bucket.take(PERIOD, 1));
        assert!(!bucket.take(PERIOD, 2) && !bucket.take(PERIOD, 2));
        assert!(bucket.take(PERIOD, 1) && !bucket.take(PERIOD, 1));
        assert!(bucket.take(PERIOD * 2, 1) && !bucket.take(PERIOD * 2, 1));
    }
}
