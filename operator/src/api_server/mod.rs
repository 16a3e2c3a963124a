//! The connection to the API server: the client, its errors, watches, and which of several operators may write.
//!
//! Knows nothing of clusters.

pub mod client;
pub mod error;
pub mod leader;
pub mod retry;
pub mod watches;

pub use error::ApiError;
