//! Traps: single cases in which a protocol of this kind goes wrong.
//!
//! Each test has a few replicas whose links it makes, cuts and tampers with by hand. The simulation found most of these
//! cases, and may need a long run to find them again. One file for each area of docs/replication.md.

#![allow(unreachable_pub)] // a test is not a library

mod net;
mod prelude;

mod ack;
mod admission;
mod attestation;
mod deletes;
mod delta;
mod founding;
mod join;
mod name;
mod partial;
mod push;
mod rejoin;
mod repair;
mod roster;
mod session;
mod watch;
