//! What Kvasir stands on: the clock, the store, and the replication protocol
//! over them, as plain state machines. A crate of its own, so that nothing in
//! it can come to know of sockets, threads or the wall clock.

#[macro_use]
mod planted;

pub mod clock;
pub mod replica;
pub mod session;
pub mod store;
