//! The Kvasir node: a full replica of the cluster's map, and the gRPC API on
//! top of it.
//!
//! Data flows one way: `config` → `discovery` → `membership` → `transport` →
//! `replica` → `store` → `api`. A module imports only what is left of it or
//! below it.

pub mod admin;
pub mod api;
pub mod auth;
pub mod config;
pub mod descriptors;
pub mod dev;
pub mod discovery;
pub mod encryption;
pub mod engine;
pub mod gate;
pub mod membership;
pub mod memory;
pub mod metrics;
pub mod node;
pub mod overview;
pub mod refusals;
pub mod reload;
pub mod tls;
pub mod transport;
pub mod wall_clock;

pub use kvasir_replica::{clock, replica, session, store};
