//! Says of a message that is too large to be read at all which field is over
//! which limit, as of one that was read. The decoder alone would only say that
//! the message is too large.

use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::codegen::http::{Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};

use crate::config::Limits;

/// Puts [`Oversized`] in front of a service.
#[derive(Clone, Copy)]
pub(super) struct Oversize {
    pub(super) limits: Limits,
    /// The largest message that is read.
    pub(super) max_message: usize,
}

impl<S> Layer<S> for Oversize {
    type Service = Oversized<S>;

    fn layer(&self, inner: S) -> Oversized<S> {
        Oversized { inner, about: *self }
    }
}

/// A service whose refusals of oversized messages are explained.
#[derive(Clone)]
pub(super) struct Oversized<S> {
    inner: S,
    about: Oversize,
}

impl<S> Service<Request<Body>> for Oversized<S>
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
        let (about, fields) = (self.about, Fields::of(request.uri().path()));
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            // No method of ours answers OUT_OF_RANGE: it is the decoder's.
            let refused = Status::from_header_map(answer.headers()).is_some_and(|s| s.code() == Code::OutOfRange);
            Ok(match fields {
                Some(fields) if refused => Status::invalid_argument(about.told(fields)).into_http(),
                _ => answer,
            })
        })
    }
}

/// What of a method's message has a limit.
#[derive(Clone, Copy)]
enum Fields {
    Key,
    KeyAndValue,
    Prefix,
}

impl Fields {
    fn of(path: &str) -> Option<Self> {
        match path.strip_prefix("/kvasir.v1.Kv/")? {
            "Put" => Some(Self::KeyAndValue),
            "Get" | "Exists" | "Delete" => Some(Self::Key),
            "List" => Some(Self::Prefix),
            _ => None,
        }
    }
}

impl Oversize {
    fn told(&self, fields: Fields) -> String {
        let Self { limits: Limits { max_key_bytes, max_value_bytes, .. }, max_message } = self;
        match fields {
            Fields::Key => format!("key: more than {max_message} bytes, at most {max_key_bytes} (maxKeyBytes)"),
            Fields::Prefix => format!("prefix: more than {max_message} bytes, at most {max_key_bytes} (maxKeyBytes)"),
            Fields::KeyAndValue => format!(
                "key and value: more than {max_message} bytes together, at most {max_key_bytes} (maxKeyBytes) and \
                 {max_value_bytes} (maxValueBytes)"
            ),
        }
    }
}
