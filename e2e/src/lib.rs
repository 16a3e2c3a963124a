//! The harness of the tests on a real Kubernetes: a namespace for each test, the operator installed once, pods to run
//! clients in, and artifacts of failed tests.
//!
//! Knows nothing of what is tested. The tests use pod and Service addresses directly, so they run inside the cluster's
//! network, where `scripts/test e2e` starts them.

pub mod artifacts;
pub mod audit;
pub mod lab;
pub mod ledger;
pub mod trial;
pub mod wait;

pub use lab::Lab;
pub use trial::{App, Output, Trial, alone, run};
pub use wait::{until, within};
