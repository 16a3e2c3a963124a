//! The whole product on a real Kubernetes, used as its users do.
//!
//! Each test has its own namespace and cluster. A few run at a time; a test that changes the operator or measures time
//! runs alone (`make test-e2e`).

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
