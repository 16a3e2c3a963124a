//! Many operations on one stream, answered in any order. What is in flight is
//! bounded: beyond it the client's requests are not read, and what it has sent
//! waits in its own stream window.

use futures::stream::{BoxStream, StreamExt as _};
use kvasir_proto::v1::{PipeRequest, PipeResponse, pipe_request::Operation, pipe_response::Result as Answer};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::calls::Calls;
use super::deadline::Deadline;
use super::status::failure;

/// Operations of one pipe that are carried out at a time.
pub const PIPE_IN_FLIGHT: usize = 256;

/// The answers to what comes in. No more is read once `stop` is cancelled.
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
    // The stream's own deadline, if it has one, ends the whole stream.
    let none = Deadline::NONE;
    let result = match request.operation {
        Some(Operation::Put(put)) => calls.put(put, none).await.map(Answer::Put),
        Some(Operation::Get(get)) => calls.get(get, none).await.map(Answer::Get),
        Some(Operation::Exists(exists)) => calls.exists(exists, none).await.map(Answer::Exists),
        Some(Operation::Delete(delete)) => calls.delete(delete, none).await.map(Answer::Delete),
        Some(Operation::Touch(touch)) => calls.touch(touch, none).await.map(Answer::Touch),
        None => Err(Status::invalid_argument(
            "operation: absent, or one that this node's release does not know: give put, get, exists, delete or touch",
        )),
    };
    PipeResponse { id: request.id, result: Some(result.unwrap_or_else(|status| Answer::Failure(failure(&status)))) }
}
