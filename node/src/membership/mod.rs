//! Who is in the cluster. The protocol is `kvasir-membership`; [`driver`]
//! gives it a socket and a clock.

pub mod driver;
mod lines;

pub use driver::{Counters, Life, Membership, Options, Seal, start};
pub use kvasir_membership::wire::{MAGIC, SEALED_MAGIC};
pub use kvasir_membership::{
    Event, MAX_DATAGRAM, MAX_VERSION_BYTES, MemberInfo, MemberState, NodeId, Refused, leader, swim, wire,
};
