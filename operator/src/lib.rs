//! Kvasir's operator: it makes of each `KvCluster` the pods that serve it, and says how they are.
//!
//! [`controller`] is the loop: fetch, [`validate`], build ([`resources`]), [`apply`], [`status`]. Only the outer steps
//! talk to the API server; what lies between is plain functions of data. [`encryption`], [`tls`] and [`access`] see to keys,
//! certificates and what tells clients apart before anything is applied. [`leader`] says which of several operators runs the
//! loop, [`watches`] what it hears of the API server, [`client`] how it reaches it. [`webhook`] gives application pods their
//! sidecar and knows nothing of the loop. [`server`] is the operator's own health and metrics.

pub mod access;
pub mod api_error;
pub mod apply;
pub mod certs;
pub mod client;
pub mod controller;
pub mod encryption;
pub mod events;
#[cfg(test)]
mod fake;
pub mod fetch;
pub mod labels;
pub mod leader;
pub mod memory;
pub mod metrics;
pub mod notice;
pub mod poll;
pub mod resources;
pub mod retry;
mod secret_folder;
pub mod server;
pub mod status;
pub mod tls;
pub mod validate;
pub mod watches;
pub mod webhook;
