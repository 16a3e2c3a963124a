//! Counts each gRPC call when its answer has ended, by method and code: also calls that no service sees, such as an
//! unknown method, a message over the limit, or a client that went away.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use http_body::Frame;
use tonic::body::Body;
use tonic::codegen::Bytes;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::{Code, Status};

use super::listen::{ConnectionInfo, InUse};
use crate::metrics::CallCounts;

/// The methods with a label of their own. All other paths share one label, so that clients cannot create labels.
const METHODS: [&str; 18] = [
    "/kvasir.v1.Kv/Put",
    "/kvasir.v1.Kv/Get",
    "/kvasir.v1.Kv/Exists",
    "/kvasir.v1.Kv/Delete",
    "/kvasir.v1.Kv/List",
    "/kvasir.v1.Kv/Touch",
    "/kvasir.v1.Kv/BatchGet",
    "/kvasir.v1.Kv/BatchPut",
    "/kvasir.v1.Kv/BatchDelete",
    "/kvasir.v1.Kv/Watch",
    "/kvasir.v1.Kv/Pipe",
    "/kvasir.v1.Cluster/Events",
    "/kvasir.v1.Cluster/Members",
    "/kvasir.v1.Cluster/WhoAmI",
    "/kvasir.v1.Cluster/Leader",
    "/kvasir.v1.Cluster/Status",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
];
const OTHER: &str = "other";

/// A call in progress. It is counted when this is dropped, however the call ends.
pub(super) struct CallMetrics {
    counts: CallCounts,
    method: &'static str,
    began: Instant,
    /// Cancelled, until the answer contains another code.
    code: Code,
    /// Keeps the connection from being idle.
    _in_use: Option<InUse>,
}

impl CallMetrics {
    pub(super) fn begin(counts: CallCounts, request: &Request<Body>) -> Self {
        let path = request.uri().path();
        let method = METHODS.into_iter().find(|method| *method == path).unwrap_or(OTHER);
        let in_use = request.extensions().get::<ConnectionInfo>().map(|info| info.activity.clone().begin());
        Self { counts, method, began: Instant::now(), code: Code::Cancelled, _in_use: in_use }
    }

    /// Follows the answer to its end.
    pub(super) fn measure(mut self, answer: Response<Body>) -> Response<Body> {
        self.note(answer.headers());
        answer.map(|inner| Body::new(MeasuredBody { inner, call: self }))
    }

    /// An error's code is in the headers, a success's in the trailers.
    fn note(&mut self, headers: &HeaderMap) {
        if let Some(status) = Status::from_header_map(headers) {
            self.code = status.code();
        }
    }
}

impl Drop for CallMetrics {
    fn drop(&mut self) {
        self.counts.count(self.method, label(self.code), self.began.elapsed());
    }
}

struct MeasuredBody {
    inner: Body,
    call: CallMetrics,
}

impl http_body::Body for MeasuredBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.call.note(trailers);
                }
            }
            Poll::Ready(Some(Err(status))) => self.call.code = status.code(),
            Poll::Ready(None) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner.size_hint()
    }
}

/// A code as the gRPC specification writes it.
const fn label(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
