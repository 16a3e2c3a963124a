//! Kvasir operator.
