//! Which nodes are in the cluster: [`Membership`] runs the protocol of `kvasir-membership` with a socket and a clock.

mod counters;
mod driver;
mod handle;
mod log_limit;
mod reasons;
mod seal;
#[cfg(test)]
mod tests;

pub use kvasir_membership::wire::{MAGIC, SEALED_MAGIC};
pub use kvasir_membership::{
    Event, MAX_DATAGRAM, MAX_VERSION_BYTES, MemberInfo, MemberState, NodeId, Refused, leader, swim, wire,
};

pub use self::counters::MembershipCounters;
pub use self::driver::OriginStart;
pub use self::handle::{Membership, MembershipOptions};
pub use self::seal::Seal;
