//! Kvasir crds.
