//! The harness of the tests on a real Kubernetes: a namespace for each test, the operator installed once, pods to speak
//! from, and what is left behind when a test fails.
//!
//! Knows nothing of what is tested. The tests reach pod and Service addresses directly, so they run inside the cluster's
//! network: `scripts/test e2e` sees to that.

pub mod artifacts;
pub mod audit;
pub mod lab;
pub mod ledger;
pub mod trial;
pub mod wait;

pub use lab::Lab;
pub use trial::{App, Output, Trial, alone, run};
pub use wait::{until, within};
