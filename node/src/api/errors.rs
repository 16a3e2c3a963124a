//! The engine's errors as gRPC statuses.

use kvasir_proto::v1::Failure;
use tonic::Status;

use crate::engine::{Phase, ReadError, SessionError, WatchError, WriteError};

pub(super) fn not_served(error: ReadError) -> Status {
    match error {
        ReadError::NotReady(phase) => unavailable(phase),
    }
}

pub(super) fn refused(error: WriteError) -> Status {
    match error {
        WriteError::NotReady(phase) => unavailable(phase),
        WriteError::Full(full) => Status::resource_exhausted(full.to_string()),
    }
}

/// A node that is behind a session is unavailable to it, like a node that is not ready: another node may serve.
pub(super) fn of_session(error: SessionError) -> Status {
    match error {
        SessionError::Behind => Status::unavailable(error.to_string()),
        SessionError::Lost => Status::data_loss(error.to_string()),
        SessionError::TooWide => Status::failed_precondition(error.to_string()),
        SessionError::Read(error) => not_served(error),
    }
}

pub(super) fn of_watch(error: WatchError) -> Status {
    match error {
        WatchError::Read(error) => not_served(error),
        WatchError::TooMany => Status::resource_exhausted(error.to_string()),
    }
}

/// A status as part of an answer.
pub(super) fn failure(status: &Status) -> Failure {
    Failure { code: status.code().into(), message: status.message().to_owned() }
}

fn unavailable(phase: Phase) -> Status {
    Status::unavailable(match phase {
        Phase::Joining => "the node is joining: it looks for its peers; try again, or ask another node",
        Phase::Syncing => "the node is syncing: it receives what its peers hold; try again, or ask another node",
        Phase::Ready => "the node has just become ready; try again",
        Phase::Draining => "the node is draining: it is shutting down; ask another node",
    })
}
