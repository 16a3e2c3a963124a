//! Which refused datagrams show that a peer cannot be talked to. Other refused datagrams need not come from a peer.

use std::net::SocketAddr;

use super::Refused;
use crate::refusals::Reason;

/// The kind of refusal by which a [`Seal`](super::Seal) reports a datagram of this node itself.
pub(super) const REFLECTED: &str = "reflected";

/// For a datagram that could not be decrypted.
pub(super) fn of_kind(kind: &str) -> Option<Reason> {
    match kind {
        "plaintext" => Some(Reason::Plaintext),
        "version" => Some(Reason::Version),
        "key" => Some(Reason::Key),
        "stale" => Some(Reason::Clock),
        _ => None,
    }
}

/// For a datagram from the address `from` that the protocol refused.
pub(super) fn of_refused(refused: &Refused, from: SocketAddr) -> Option<Reason> {
    match refused {
        Refused::Encrypted => Some(Reason::Encrypted),
        Refused::Version { .. } => Some(Reason::Version),
        Refused::Cluster | Refused::OtherUid => Some(Reason::Cluster),
        Refused::Ahead { address, .. } => (*address == from).then_some(Reason::Clock),
        Refused::Foreign
        | Refused::TooLong
        | Refused::Impostor
        | Refused::Origin { .. }
        | Refused::Full
        | Refused::TooMany
        | Refused::Malformed(_) => None,
    }
}
