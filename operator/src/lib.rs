//! The Kvasir operator: turns each `KvCluster` into the pods that serve it, and reports how they are.
//!
//! The layout is the pipeline. [`reconcile`] is the controller: it fetches a `KvCluster` and its objects, validates it
//! ([`cluster`]), builds what it asks for ([`objects`]), applies that and writes the status. Only [`reconcile`] and [`webhook`]
//! use the API server; [`cluster`] and [`objects`] are functions of data. [`webhook`] injects sidecars into application pods,
//! built from the same validated cluster and the same container as members.
//!
//! Modules import each other only along the arrows of the figure in `docs/architecture.md`.

pub mod api_server;
pub mod certs;
pub mod cluster;
#[cfg(test)]
mod fake;
pub mod metrics;
pub mod names;
pub mod objects;
pub mod obstacle;
pub mod pod_status;
pub mod reconcile;
pub mod server;
pub mod webhook;
