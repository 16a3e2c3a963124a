//! Peers that this node cannot talk to, as transport and membership meet them: address, reason, and when it last
//! happened.
//!
//! Nothing here is authenticated: any host that reaches the peer port can get itself listed. So the list is short, its
//! entries expire, and its only effect is that a node waits, and reports what it waits for.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::warn;

/// How many peers are listed. Further peers are left out until there is room.
pub const MAX_REFUSALS: usize = 256;
/// An entry expires this long after the peer was last heard. Peers announce themselves, and are dialled, every few seconds.
pub const FORGET_AFTER: Duration = Duration::from_secs(30);
/// The longest name and the longest explanation that are kept, bytes: both may contain text that the peer sent.
const MAX_NAME: usize = 128;
const MAX_WHY: usize = 512;

/// Why this node cannot talk to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The peer has another key or cookie.
    Key,
    /// The peer does not encrypt, and this node does.
    Plaintext,
    /// The peer encrypts, and this node does not, or in another way.
    Encrypted,
    /// One side does not accept the other's certificate.
    Certificate,
    /// The peer speaks another version of the protocol.
    Version,
    /// The peer's clock and this node's are too far apart.
    Clock,
    /// The peer is of another cluster.
    Cluster,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 7] =
        [Self::Key, Self::Plaintext, Self::Encrypted, Self::Certificate, Self::Version, Self::Clock, Self::Cluster];

    /// The reason as status and metrics write it.
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
    /// The peer's address. The port is 0 if the peer dialled over TCP, because the port it listens on is unknown.
    pub address: SocketAddr,
    /// The peer's name, if it is known.
    pub name: Option<String>,
    /// The reason.
    pub reason: Reason,
    /// The reason in words, with what to do about it.
    pub why: String,
}

impl Refusal {
    /// The peer's name and address, as far as they are known.
    pub fn peer(&self) -> String {
        let at = if self.address.port() == 0 { self.address.ip().to_string() } else { self.address.to_string() };
        match &self.name {
            Some(name) => format!("{name} ({at})"),
            None => at,
        }
    }
}

/// The peers that cannot be talked to and that a node waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unjoinable {
    /// Peers at addresses that discovery or membership names.
    pub named: Vec<Refusal>,
    /// Peers at other addresses.
    pub strangers: Vec<Refusal>,
}

impl Unjoinable {
    /// Both, named peers first.
    pub fn into_all(self) -> Vec<Refusal> {
        self.named.into_iter().chain(self.strangers).collect()
    }
}

#[derive(Debug)]
struct Entry {
    name: Option<String>,
    why: String,
    last: Instant,
}

/// Peers that this node cannot talk to.
#[derive(Debug, Default)]
pub struct Refusals {
    entries: Mutex<BTreeMap<(SocketAddr, Reason), Entry>>,
    /// Addresses that lead to this node itself, with the time when that was last seen.
    own: Mutex<BTreeMap<SocketAddr, Instant>>,
}

impl Refusals {
    /// Records a peer that listens at this address and cannot be talked to.
    pub fn note(&self, address: SocketAddr, name: Option<&str>, reason: Reason, why: &str) {
        self.note_at(Instant::now(), address, name, reason, why);
    }

    /// Records a peer that dialled from this address and cannot be talked to.
    pub fn note_caller(&self, ip: IpAddr, name: Option<&str>, reason: Reason, why: &str) {
        self.note_at(Instant::now(), SocketAddr::new(ip, 0), name, reason, why);
    }

    fn note_at(&self, now: Instant, address: SocketAddr, name: Option<&str>, reason: Reason, why: &str) {
        let mut entries = self.entries.lock();
        let (name, why) = (name.map(|name| cut(name, MAX_NAME)), cut(why, MAX_WHY));
        // A peer that is listed with its port is not listed again when it dials, from an unrelated port.
        let known = |(other, its): (SocketAddr, Reason), entry: &Entry| {
            other == address && its == reason
                || address.port() == 0
                    && other.ip() == address.ip()
                    && its == reason
                    && (name.is_none() || name == entry.name)
        };
        let mut again = false;
        for (key, entry) in entries.iter_mut().filter(|(key, entry)| known(**key, entry)) {
            entry.last = now;
            if key.0 == address {
                // Several peers may dial from one address.
                if name.is_some() && name != entry.name && entry.name.is_some() {
                    warn!(%address, name, reason = reason.as_str(), why, "cannot join a peer");
                }
                entry.why.clone_from(&why);
                entry.name = name.clone().or(entry.name.take());
            }
            again = true;
        }
        if again {
            return;
        }
        entries.retain(|_, entry| now.duration_since(entry.last) < FORGET_AFTER);
        if entries.len() >= MAX_REFUSALS {
            return;
        }
        let caller = (SocketAddr::new(address.ip(), 0), reason);
        if entries.get(&caller).is_some_and(|entry| entry.name.is_none() || entry.name == name) {
            entries.remove(&caller);
        }
        warn!(%address, name, reason = reason.as_str(), why, "cannot join a peer");
        entries.insert((address, reason), Entry { name, why, last: now });
    }

    /// Removes the entries of a peer, because a link to it is up.
    pub fn joined(&self, address: Option<SocketAddr>, name: &str) {
        self.entries.lock().retain(|(at, _), entry| Some(*at) != address && entry.name.as_deref() != Some(name));
    }

    /// Records that this address leads to this node itself.
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

    /// Addresses that lead to this node itself, besides the one that it announces.
    pub fn own(&self) -> Vec<SocketAddr> {
        let now = Instant::now();
        self.own
            .lock()
            .iter()
            .filter(|(_, last)| now.duration_since(**last) < FORGET_AFTER)
            .map(|(at, _)| *at)
            .collect()
    }

    /// The peers that cannot be talked to and that this node waits for. Left out are:
    ///
    /// - linked peers, because a datagram may have been changed on its way;
    /// - nodes of another cluster at addresses that are not `named`: addresses are reused, and a cluster that dials every
    ///   node it finds must not prevent this cluster from being founded.
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
        for ((address, reason), entry) in &*self.entries.lock() {
            if now.duration_since(entry.last) >= FORGET_AFTER || linked(address) {
                continue;
            }
            let refusal =
                || Refusal { address: *address, name: entry.name.clone(), reason: *reason, why: entry.why.clone() };
            if named(address) {
                all.named.push(refusal());
            } else if *reason != Reason::Cluster {
                all.strangers.push(refusal());
            }
        }
        all
    }
}

/// The beginning of a text, at most `limit` bytes.
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

    /// The addresses of the listed peers, named and strangers.
    fn listed(refusals: &Refusals, now: Instant) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
        let all = refusals.unjoinable_at(now, |address| *address == at(1), |address| *address == at(9));
        let addresses = |all: Vec<Refusal>| all.into_iter().map(|refusal| refusal.address).collect();
        (addresses(all.named), addresses(all.strangers))
    }

    #[test]
    fn refusals_expire_unless_heard_again() {
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
        refusals.note_at(now, at(9), None, Reason::Key, "a linked peer's datagram was changed");
        assert_eq!(listed(&refusals, now), (vec![at(1)], vec![at(2)]));
        refusals.joined(Some(at(1)), "n1");
        refusals.joined(None, "n2");
        assert_eq!(listed(&refusals, now), (Vec::new(), Vec::new()));
    }

    #[test]
    fn refusals_by_cluster_count_only_if_named() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        refusals.note_at(now, at(1), None, Reason::Cluster, "c");
        refusals.note_at(now, at(2), None, Reason::Cluster, "c");
        assert_eq!(listed(&refusals, now), (vec![at(1)], Vec::new()));
    }

    #[test]
    fn refusals_list_a_peer_once() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        refusals.note_at(now, caller(1), None, Reason::Key, "k");
        refusals.note_at(now, at(1), None, Reason::Key, "k");
        refusals.note_at(now, caller(1), None, Reason::Key, "k");
        assert_eq!(listed(&refusals, now), (vec![at(1)], Vec::new()));
        // Peers with different names at one address are listed separately.
        refusals.note_at(now, caller(2), Some("a"), Reason::Clock, "c");
        refusals.note_at(now, at(2), Some("b"), Reason::Clock, "c");
        let all = refusals.unjoinable_at(now, |_| true, |_| false).into_all();
        assert_eq!(all[0].peer(), "10.0.0.1:7071");
        assert!(all.iter().any(|entry| entry.peer() == "b (10.0.0.2:7071)"), "{all:?}");
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
        assert!(
            all.iter()
                .all(|entry| entry.why.len() <= MAX_WHY && entry.name.as_ref().is_some_and(|n| n.len() <= MAX_NAME))
        );
        // Expired entries make room.
        refusals.note_at(now + FORGET_AFTER, at(1), None, Reason::Key, "k");
        assert_eq!(listed(&refusals, now + FORGET_AFTER), (vec![at(1)], Vec::new()));
    }
}
