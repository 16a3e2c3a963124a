//! Kvasir's operator: it makes of each `KvCluster` the pods that serve it, and says how they are.
//!
//! [`controller`] is the loop: fetch, [`validate`], build ([`resources`]), [`apply`], [`status`]. Only the outer steps
//! talk to the API server; what lies between is plain functions of data. [`encryption`], [`tls`] and [`access`] see to keys,
//! certificates and what tells clients apart before anything is applied. [`webhook`] gives application pods their sidecar
//! and knows nothing of the loop. [`server`] is the operator's own health and metrics.

pub mod access;
pub mod apply;
pub mod certs;
pub mod controller;
pub mod encryption;
pub mod events;
pub mod fetch;
pub mod labels;
pub mod memory;
pub mod metrics;
pub mod notice;
pub mod poll;
pub mod quantity;
pub mod resources;
mod secret_folder;
pub mod server;
pub mod status;
pub mod tls;
pub mod validate;
pub mod webhook;
