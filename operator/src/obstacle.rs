//! What keeps a spec from being carried out, in the form that conditions and events show.
//!
//! Knows nothing of the steps that fail.

use std::error::Error;

/// An error that a `KvCluster`'s conditions and events report.
pub trait Failure: Error {
    /// One word for conditions and events.
    fn reason(&self) -> &'static str;

    /// Whether a retry may succeed although no person changed anything.
    fn is_passing(&self) -> bool;
}

/// Something that keeps the spec from being carried out, or that a person should fix although it does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// One word.
    pub reason: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

impl Obstacle {
    /// The obstacle that a failure is.
    pub fn of(failure: &impl Failure) -> Self {
        Self { reason: failure.reason(), message: failure.to_string() }
    }

    /// Adds another message; the reason stays that of the first.
    #[must_use]
    pub fn and(self, other: &Self) -> Self {
        Self { message: format!("{}; {}", self.message, other.message), ..self }
    }
}
