//! The result of applying an object: what was done, or why it failed.

use k8s_openapi::api::apps::v1::StatefulSet;

use crate::{api_server::ApiError, obstacle::Failure, reconcile::notice::Notice};

/// Why an object could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// An object of that name belongs to something else.
    #[error("{kind} {name} exists and belongs to something else: delete it, or give the KvCluster another name")]
    NameTaken {
        /// Kind of the object.
        kind: String,
        /// Name of the object.
        name: String,
    },
    /// A request to the API server failed.
    #[error("cannot {verb} {kind} {name}: {source}")]
    Request {
        /// What the request was for.
        verb: &'static str,
        /// Kind of the object.
        kind: String,
        /// Name of the object.
        name: String,
        /// The error.
        source: ApiError,
    },
    /// The object is being deleted, but a finalizer holds it.
    #[error(
        "{kind} {name} is being deleted, but finalizers hold it ({finalizers}): remove them, and the object is created again"
    )]
    HeldBack {
        /// Kind of the object.
        kind: String,
        /// Name of the object.
        name: String,
        /// The finalizers.
        finalizers: String,
    },
    /// The object cannot be written as JSON.
    #[error("cannot write the {kind} as JSON: {source}")]
    Encode {
        /// Kind of the object.
        kind: String,
        /// The error.
        source: serde_json::Error,
    },
}

impl Failure for ApplyError {
    fn reason(&self) -> &'static str {
        match self {
            Self::NameTaken { .. } => "NameTaken",
            Self::Request { .. } | Self::HeldBack { .. } | Self::Encode { .. } => "ApplyFailed",
        }
    }

    fn is_passing(&self) -> bool {
        true
    }
}

/// Why objects of a cluster could not be applied: one error for each, at least one.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct ApplyErrors(pub(super) Vec<ApplyError>);

impl Failure for ApplyErrors {
    fn reason(&self) -> &'static str {
        self.0.first().map_or("ApplyFailed", Failure::reason)
    }

    fn is_passing(&self) -> bool {
        true
    }
}

/// What applying an object did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// The object was as desired; nothing was sent.
    #[default]
    Unchanged,
    /// The object did not exist.
    Created,
    /// The object existed and differed.
    Updated,
}

/// Whether an object that cannot be changed may be deleted and created again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replacement {
    /// Yes: it holds no data.
    Freely,
    /// Yes, but its pods hold the data: they stay without an owner, and the new object adopts them by their labels.
    KeepingPods,
    /// No: the new object would not adopt the pods of the old one.
    Never,
}

impl Replacement {
    pub(super) fn of_pods(desired: &StatefulSet, live: Option<&StatefulSet>) -> Self {
        let selector = |set: &StatefulSet| set.spec.as_ref().map(|spec| spec.selector.clone());
        if live.is_none_or(|live| selector(live) == selector(desired)) { Self::KeepingPods } else { Self::Never }
    }
}

/// The result for one object.
pub(super) struct Done {
    pub(super) outcome: Outcome,
    pub(super) notice: Option<Notice>,
}

impl From<Outcome> for Done {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, notice: None }
    }
}
