//! The data plane's state machines: the clock, the store, and the replication protocol over them. They are a crate of
//! their own so that nothing in them can use sockets, threads or the wall clock.

#[macro_use]
mod planted;

pub mod clock;
pub mod protocol;
pub mod session;
pub mod store;
