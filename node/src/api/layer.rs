//! The layer in front of all services. For each call it finds out who is calling, explains a refused oversized message,
//! and counts the call when its answer has ended.

use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

use super::call_metrics::CallMetrics;
use super::identify::identify;
use super::oversize::{Fields, Oversize};
use crate::auth::Auth;
use crate::metrics::CallCounts;

/// Puts a [`CallService`] in front of a service.
#[derive(Clone)]
pub(super) struct CallLayer {
    pub(super) counts: CallCounts,
    pub(super) oversize: Oversize,
    pub(super) auth: Auth,
}

impl<S> Layer<S> for CallLayer {
    type Service = CallService<S>;

    fn layer(&self, inner: S) -> CallService<S> {
        CallService { inner, layer: self.clone() }
    }
}

#[derive(Clone)]
pub(super) struct CallService<S> {
    inner: S,
    layer: CallLayer,
}

impl<S> Service<Request<Body>> for CallService<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<Response<Body>, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let CallLayer { counts, oversize, auth } = self.layer.clone();
        let call = CallMetrics::begin(counts, &request);
        let fields = Fields::of(request.uri().path());
        // The service that was polled ready is the one to call.
        let next = self.inner.clone();
        let mut ready = std::mem::replace(&mut self.inner, next);
        Box::pin(async move {
            let answer = match identify(&auth, &mut request).await {
                Ok(()) => oversize.explain(fields, ready.call(request).await?),
                Err(status) => status.into_http(),
            };
            Ok(call.measure(answer))
        })
    }
}
