//! Peers that this node cannot talk to, as transport and membership come across them: where, since when it was last so,
//! and why. Nothing here is authenticated: whoever reaches the peer port may be listed, so the list is short, forgets,
//! and nothing follows from it but that a node waits, and says for whom.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::warn;

/// Peers that are listed at most. Further ones are left out until there is room.
pub const MAX_REFUSALS: usize = 256;
/// A peer that was not heard again for this long is forgotten. Peers announce themselves, and are dialled, every few seconds.
pub const FORGET_AFTER: Duration = Duration::from_secs(30);
/// The longest name and the longest reason that are kept, bytes: a peer says both of itself.
const MAX_NAME: usize = 128;
const MAX_WHY: usize = 512;

/// What keeps a peer from being talked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// It has another key or cookie.
    Key,
    /// It does not encrypt, and this node does.
    Plaintext,
    /// It encrypts, and this node does not, or in another way.
    Encrypted,
    /// One side does not accept the other's certificate.
    Certificate,
    /// It speaks another version of the protocol.
    Version,
    /// Its clock and this node's are too far apart.
    Clock,
    /// It is of another cluster.
    Cluster,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Key, Self::Plaintext, Self::Encrypted, Self::Certificate, Self::Version, Self::Clock, Self::Cluster];

    /// Its name in status and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Plaintext => "plaintext",
            Self::Encrypted => "encrypted",
            Self::Certificate => "certificate",
            Self::Version => "version",
            Self::Clock => "clock",
            Self::Cluster => "cluster",
        }
    }
}

/// A peer that this node cannot talk to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Where it is. Of one that came by itself, over TCP, the port is not known: 0.
    pub address: SocketAddr,
    /// Its name, if it is known.
    pub name: Option<String>,
    /// What is the matter.
    pub reason: Reason,
    /// The same in words, with what to do.
    pub why: String,
}

impl Refusal {
    /// Its name and its address, as far as they are known.
    pub fn whom(&self) -> String {
        let at = if self.address.port() == 0 { self.address.ip().to_string() } else { self.address.to_string() };
        match &self.name {
            Some(name) => format!("{name} ({at})"),
            None => at,
        }
    }
}

/// Of the peers that cannot be talked to, those that count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unjoinable {
    /// At addresses that discovery or membership names.
    pub named: Vec<Refusal>,
    /// At others.
    pub strangers: Vec<Refusal>,
}

impl Unjoinable {
    /// All of them.
    pub fn into_all(self) -> Vec<Refusal> {
        self.named.into_iter().chain(self.strangers).collect()
    }
}

#[derive(Debug)]
struct Heard {
    name: Option<String>,
    why: String,
    last: Instant,
}

/// Peers that this node cannot talk to.
#[derive(Debug, Default)]
pub struct Refusals {
    heard: Mutex<BTreeMap<(SocketAddr, Reason), Heard>>,
    /// Addresses that lead to this node itself, and when that was last seen.
    own: Mutex<BTreeMap<SocketAddr, Instant>>,
}

impl Refusals {
    /// A peer that listens at this address cannot be talked to.
    pub fn note(&self, address: SocketAddr, name: Option<&str>, reason: Reason, why: &str) {
        self.note_at(Instant::now(), address, name, reason, why);
    }

    /// The same of a peer that came from this address by itself.
    pub fn note_caller(&self, ip: IpAddr, name: Option<&str>, reason: Reason, why: &str) {
        self.note_at(Instant::now(), SocketAddr::new(ip, 0), name, reason, why);
    }

    fn note_at(&self, now: Instant, address: SocketAddr, name: Option<&str>, reason: Reason, why: &str) {
        let mut heard = self.heard.lock();
        let (name, why) = (name.map(|name| cut(name, MAX_NAME)), cut(why, MAX_WHY));
        // One that is known by its whole address, and calls from a port that says nothing, is listed once.
        let known = |(other, its): (SocketAddr, Reason), of: &Heard| {
            other == address && its == reason
                || address.port() == 0
                    && other.ip() == address.ip()
                    && its == reason
                    && (name.is_none() || name == of.name)
        };
        let mut again = false;
        for (key, of) in heard.iter_mut().filter(|(key, of)| known(**key, of)) {
            of.last = now;
            if key.0 == address {
                // Several may call from one address.
                if name.is_some() && name != of.name && of.name.is_some() {
                    warn!(%address, name, reason = reason.as_str(), why, "cannot join a peer");
                }
                of.why.clone_from(&why);
                of.name = name.clone().or(of.name.take());
            }
            again = true;
        }
        if again {
            return;
        }
        heard.retain(|_, of| now.duration_since(of.last) < FORGET_AFTER);
        if heard.len() >= MAX_REFUSALS {
            return;
        }
        let caller = (SocketAddr::new(address.ip(), 0), reason);
        if heard.get(&caller).is_some_and(|of| of.name.is_none() || of.name == name) {
            heard.remove(&caller);
        }
        warn!(%address, name, reason = reason.as_str(), why, "cannot join a peer");
        heard.insert((address, reason), Heard { name, why, last: now });
    }

    /// A link to the peer is up: whatever kept it from being talked to is over.
    pub fn joined(&self, address: Option<SocketAddr>, name: &str) {
        self.heard.lock().retain(|(at, _), of| Some(*at) != address && of.name.as_deref() != Some(name));
    }

    /// What was sent to this address came back to this node: it is its own.
    pub fn is_own(&self, address: SocketAddr) {
        self.own_at(Instant::now(), address);
    }

    fn own_at(&self, now: Instant, address: SocketAddr) {
        let mut own = self.own.lock();
        own.retain(|_, last| now.duration_since(*last) < FORGET_AFTER);
        if own.len() < MAX_REFUSALS || own.contains_key(&address) {
            own.insert(address, now);
        }
    }

    /// Addresses that lead to this node itself, beside the one that it tells its peers.
    pub fn own(&self) -> Vec<SocketAddr> {
        let now = Instant::now();
        self.own
            .lock()
            .iter()
            .filter(|(_, last)| now.duration_since(**last) < FORGET_AFTER)
            .map(|(at, _)| *at)
            .collect()
    }

    /// The peers that cannot be talked to, of those that count. One that is linked all the same does not: a datagram may
    /// have been changed on its way. Nor does a node of another cluster, unless its address is one that is `named`:
    /// addresses are used again, and a cluster that dials all it finds must not keep this one from being founded.
    pub fn unjoinable(&self, named: impl Fn(&SocketAddr) -> bool, linked: impl Fn(&SocketAddr) -> bool) -> Unjoinable {
        self.unjoinable_at(Instant::now(), named, linked)
    }

    fn unjoinable_at(
        &self,
        now: Instant,
        named: impl Fn(&SocketAddr) -> bool,
        linked: impl Fn(&SocketAddr) -> bool,
    ) -> Unjoinable {
        let mut all = Unjoinable::default();
        for ((address, reason), of) in &*self.heard.lock() {
            if now.duration_since(of.last) >= FORGET_AFTER || linked(address) {
                continue;
            }
            let refusal = || Refusal { address: *address, name: of.name.clone(), reason: *reason, why: of.why.clone() };
            if named(address) {
                all.named.push(refusal());
            } else if *reason != Reason::Cluster {
                all.strangers.push(refusal());
            }
        }
        all
    }
}

/// The beginning of a text, of so many bytes at most.
fn cut(text: &str, limit: usize) -> String {
    text[..text.floor_char_boundary(limit)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last: u8) -> SocketAddr {
        ([10, 0, 0, last], 7071).into()
    }

    fn caller(last: u8) -> SocketAddr {
        ([10, 0, 0, last], 0).into()
    }

    /// Where the peers that count are, named ones first.
    fn listed(refusals: &Refusals, now: Instant) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
        let all = refusals.unjoinable_at(now, |address| *address == at(1), |address| *address == at(9));
        let addresses = |of: Vec<Refusal>| of.into_iter().map(|refusal| refusal.address).collect();
        (addresses(all.named), addresses(all.strangers))
    }

    #[test]
    fn refusals_count_until_not_heard_again() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        refusals.note_at(start, at(1), None, Reason::Key, "k");
        refusals.note_at(start, at(2), None, Reason::Key, "k");
        let later = start + FORGET_AFTER / 2;
        refusals.note_at(later, at(1), Some("n"), Reason::Key, "k");
        assert_eq!(listed(&refusals, later), (vec![at(1)], vec![at(2)]));
        assert_eq!(listed(&refusals, start + FORGET_AFTER), (vec![at(1)], Vec::new()));
        assert_eq!(listed(&refusals, later + FORGET_AFTER), (Vec::new(), Vec::new()));
    }

    #[test]
    fn refusals_end_with_a_link() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        refusals.note_at(now, at(1), None, Reason::Key, "k");
        refusals.note_at(now, at(2), Some("n2"), Reason::Clock, "c");
        refusals.note_at(now, at(9), None, Reason::Key, "a linked peer's datagram was spoilt");
        assert_eq!(listed(&refusals, now), (vec![at(1)], vec![at(2)]));
        refusals.joined(Some(at(1)), "n1");
        refusals.joined(None, "n2");
        assert_eq!(listed(&refusals, now), (Vec::new(), Vec::new()));
    }

    #[test]
    fn another_cluster_counts_only_where_a_peer_was_named() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        refusals.note_at(now, at(1), None, Reason::Cluster, "c");
        refusals.note_at(now, at(2), None, Reason::Cluster, "c");
        assert_eq!(listed(&refusals, now), (vec![at(1)], Vec::new()));
    }

    #[test]
    fn a_peer_is_listed_once_however_it_is_met() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        refusals.note_at(now, caller(1), None, Reason::Key, "k");
        refusals.note_at(now, at(1), None, Reason::Key, "k");
        refusals.note_at(now, caller(1), None, Reason::Key, "k");
        assert_eq!(listed(&refusals, now), (vec![at(1)], Vec::new()));
        // Two that share an address are two if their names say so.
        refusals.note_at(now, caller(2), Some("a"), Reason::Clock, "c");
        refusals.note_at(now, at(2), Some("b"), Reason::Clock, "c");
        let all = refusals.unjoinable_at(now, |_| true, |_| false).into_all();
        assert_eq!(all[0].whom(), "10.0.0.1:7071");
        assert!(all.iter().any(|of| of.whom() == "b (10.0.0.2:7071)"), "{all:?}");
    }

    #[test]
    fn refusals_are_bounded() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        let long = "ä".repeat(1000);
        for n in 0..1000_u16 {
            let address = SocketAddr::from(([10, 1, (n >> 8) as u8, n as u8], 7071));
            refusals.note_at(now, address, Some(&long), Reason::Version, &long);
            refusals.own_at(now, address);
        }
        let all = refusals.unjoinable_at(now, |_| true, |_| false).into_all();
        assert_eq!((all.len(), refusals.own().len()), (MAX_REFUSALS, MAX_REFUSALS));
        assert!(all.iter().all(|of| of.why.len() <= MAX_WHY && of.name.as_ref().is_some_and(|n| n.len() <= MAX_NAME)));
        // What is no longer heard makes room.
        refusals.note_at(now + FORGET_AFTER, at(1), None, Reason::Key, "k");
        assert_eq!(listed(&refusals, now + FORGET_AFTER), (vec![at(1)], Vec::new()));
    }
}
