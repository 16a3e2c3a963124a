//! What membership counts.

use std::sync::atomic::AtomicU64;

use super::Refused;

/// Counts since the start.
#[derive(Debug, Default)]
pub struct MembershipCounters {
    /// Datagrams received, including refused ones.
    pub datagrams_in: AtomicU64,
    /// Datagrams sent.
    pub datagrams_out: AtomicU64,
    /// Bytes received.
    pub bytes_in: AtomicU64,
    /// Bytes sent.
    pub bytes_out: AtomicU64,
    /// Datagrams refused.
    pub refused: AtomicU64,
    /// Datagrams refused, by [kind](Refused::KINDS).
    pub refused_by: [AtomicU64; Refused::KINDS.len()],
    /// When the last datagram came from a cluster with this cluster's name and another UID, in milliseconds since 1970; 0 if
    /// there was none.
    pub other_uid_ms: AtomicU64,
    /// Datagrams that the operating system did not send.
    pub send_errors: AtomicU64,
    /// Members that joined.
    pub joined: AtomicU64,
    /// Members that left and said so.
    pub left: AtomicU64,
    /// Members that failed.
    pub failed: AtomicU64,
    /// How often this node was declared dead while it was alive, and took a new identity.
    pub renewed: AtomicU64,
    /// Errors of the protocol that should be impossible.
    pub faults: AtomicU64,
}
