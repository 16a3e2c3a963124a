//! What tests of several crates share. No program depends on this crate, and it depends on none of theirs.
//!
//! - [`authority`] issues certificates (feature `authority`);
//! - [`node`] is a stand-in for a node, and [`service`] for the Kubernetes Service in front of it (feature `node`).

#[cfg(feature = "authority")]
pub mod authority;
#[cfg(feature = "node")]
pub mod node;
#[cfg(feature = "node")]
pub mod service;
