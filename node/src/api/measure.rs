//! Counts each gRPC call when its answer has ended, by method and code. Sits
//! in front of all services, so it also sees what the services never do: a
//! message over the limit, an unknown method, a client that went away.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use http_body::Frame;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::codegen::{BoxFuture, Bytes};
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::listen::{Busy, Peer};
use crate::metrics::Counts;

/// The methods that have a label of their own. The rest is one label: clients
/// must not be able to make up new ones.
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

/// Puts [`Measured`] in front of a service.
#[derive(Clone)]
pub(super) struct Measure(pub(super) Counts);

impl<S> Layer<S> for Measure {
    type Service = Measured<S>;

    fn layer(&self, inner: S) -> Measured<S> {
        Measured { inner, counts: self.0.clone() }
    }
}

/// A service whose calls are counted.
#[derive(Clone)]
pub(super) struct Measured<S> {
    inner: S,
    counts: Counts,
}

impl<S> Service<Request<Body>> for Measured<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<Response<Body>, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let method = METHODS.into_iter().find(|method| *method == path).unwrap_or(OTHER);
        let busy = request.extensions().get::<Peer>().map(|peer| peer.activity.clone().begin());
        let mut call =
            Call { counts: self.counts.clone(), method, began: Instant::now(), code: Code::Cancelled, _busy: busy };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            call.note(answer.headers());
            Ok(answer.map(|inner| Body::new(MeasuredBody { inner, call })))
        })
    }
}

/// A call under way. Counted when it is dropped: that is its end, however it ends.
struct Call {
    counts: Counts,
    method: &'static str,
    began: Instant,
    /// Cancelled until the answer says otherwise.
    code: Code,
    /// While there is this, its connection is not idle.
    _busy: Option<Busy>,
}

impl Call {
    /// An error's code is in the headers, a success's in the trailers.
    fn note(&mut self, headers: &HeaderMap) {
        if let Some(status) = Status::from_header_map(headers) {
            self.code = status.code();
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.counts.request(self.method, label(self.code), self.began.elapsed());
    }
}

struct MeasuredBody {
    inner: Body,
    call: Call,
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

/// A code as gRPC's documents write it.
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
