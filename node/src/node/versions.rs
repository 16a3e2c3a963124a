//! The versions of the peer protocols.

use crate::membership;
use crate::transport;

/// The versions of the peer protocols that a node speaks. Not a setting: only tests of version mismatches change them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtocolVersions {
    /// The version on links.
    pub links: u8,
    /// The version in membership datagrams.
    pub datagrams: u8,
}

impl Default for ProtocolVersions {
    fn default() -> Self {
        Self { links: transport::frame::VERSION, datagrams: membership::wire::VERSION }
    }
}
