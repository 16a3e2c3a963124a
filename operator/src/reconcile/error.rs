//! Why a cluster could not be reconciled.

use std::time::Duration;

use super::{
    apply::ApplyErrors,
    fetch::FetchError,
    secrets::{access::AccessError, encryption::KeysError, tls::TlsError},
};
use crate::{api_server::ApiError, webhook::pods::PodsError};

/// Longest duration of one reconcile. Reconciles of one cluster never overlap, so a reconcile that hangs would block all later
/// ones.
pub(super) const RECONCILE_LIMIT: Duration = Duration::from_mins(2);

/// Why a cluster could not be reconciled.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// An object could not be read.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// Objects could not be applied.
    #[error(transparent)]
    Apply(#[from] ApplyErrors),
    /// The encryption keys could not be checked or generated.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The nodes' certificate could not be checked, issued or requested.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// What members need to authenticate clients could not be checked.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// Events on application pods could not be written.
    #[error(transparent)]
    Pods(#[from] PodsError),
    /// The status could not be written.
    #[error("cannot write the status: {0}")]
    Status(#[source] ApiError),
    /// An event could not be written.
    #[error("cannot write an event, check that the operator may create events: {0}")]
    Event(#[source] ApiError),
    /// The reconcile took too long.
    #[error("reconciling took more than {} s and was aborted: check that the API server answers", RECONCILE_LIMIT.as_secs())]
    TooLong,
}
