//! Kvasir client.
