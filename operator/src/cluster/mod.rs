//! What a `KvCluster` asks for, checked and with its defaults filled in.
//!
//! Pure: the only input is the `KvCluster` as the API server stores it. Members and sidecars are built from the same
//! [`ValidatedCluster`]. Knows nothing of the objects that are built from it.

pub mod access;
pub mod encryption;
pub mod tls;
pub mod validate;

pub use validate::{Invalid, Period, ValidatedCluster, validate};
