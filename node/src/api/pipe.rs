//! Many operations on one stream, answered in any order. The number of operations in flight is bounded: beyond it the
//! node stops reading, and further requests wait in the stream's flow-control window.

use futures::stream::{BoxStream, StreamExt as _};
use kvasir_proto::v1::{PipeRequest, PipeResponse, pipe_request::Operation, pipe_response::Result as Answer};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::calls::Calls;
use super::deadline::Deadline;
use super::errors::failure;

/// How many operations of one pipe are in flight at a time.
pub const PIPE_IN_FLIGHT: usize = 256;

/// Answers requests until the client ends the stream or `stop` is cancelled.
pub(super) fn pipe(
    calls: Calls,
    requests: Streaming<PipeRequest>,
    stop: CancellationToken,
) -> BoxStream<'static, Result<PipeResponse, Status>> {
    requests
        .take_until(stop.cancelled_owned())
        .map(move |request| {
            let calls = calls.clone();
            async move { Ok(answer(&calls, request?).await) }
        })
        .buffer_unordered(PIPE_IN_FLIGHT)
        .boxed()
}

pub(super) async fn answer(calls: &Calls, request: PipeRequest) -> PipeResponse {
    // A deadline of the stream ends the whole stream, not single operations.
    let none = Deadline::NONE;
    let result = match request.operation {
        Some(Operation::Put(put)) => calls.put(put, none).await.map(Answer::Put),
        Some(Operation::Get(get)) => calls.get(get, none).await.map(Answer::Get),
        Some(Operation::Exists(exists)) => calls.exists(exists, none).await.map(Answer::Exists),
        Some(Operation::Delete(delete)) => calls.delete(delete, none).await.map(Answer::Delete),
        Some(Operation::Touch(touch)) => calls.touch(touch, none).await.map(Answer::Touch),
        None => Err(Status::invalid_argument(
            "operation: absent, or unknown to this node's release: give put, get, exists, delete or touch",
        )),
    };
    PipeResponse { id: request.id, result: Some(result.unwrap_or_else(|status| Answer::Failure(failure(&status)))) }
}
