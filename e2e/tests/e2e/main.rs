//! The whole product on a real Kubernetes: what a person is promised, tried as a person would.
//!
//! Each test has a namespace and a cluster of its own. A few run at a time, and one that changes the operator or measures time runs alone
//! (`make test-e2e`).

mod access;
mod cert_manager;
mod cluster;
mod data;
mod discovery;
mod failures;
mod founding;
mod operator;
mod security;
mod sidecar;
mod status;
