//! Finds out who calls before a call comes to its service. Health is for
//! everyone; what else there is needs an identity, where the settings ask for
//! one.

use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::codegen::http::{HeaderMap, Request, Response, header};
use tonic::{Extensions, Status};
use tower::{Layer, Service};

use super::listen::Peer;
use crate::auth::{Auth, Caller, Denied, Unknown};

/// What needs no identity.
const OPEN: &str = "/grpc.health.v1.Health/";

/// Puts [`Identified`] in front of a service.
#[derive(Clone)]
pub(super) struct Identify(pub(super) Auth);

impl<S> Layer<S> for Identify {
    type Service = Identified<S>;

    fn layer(&self, inner: S) -> Identified<S> {
        Identified { inner, auth: self.0.clone() }
    }
}

/// A service that knows who calls.
#[derive(Clone)]
pub(super) struct Identified<S> {
    inner: S,
    auth: Auth,
}

impl<S> Service<Request<Body>> for Identified<S>
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
        // The one that was polled ready is the one to call.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        if request.uri().path().starts_with(OPEN) {
            return Box::pin(inner.call(request));
        }
        let auth = self.auth.clone();
        Box::pin(async move {
            let certificate = request.extensions().get::<Peer>().and_then(|peer| peer.certificate.clone());
            let token = bearer(request.headers()).map(str::to_owned);
            match auth.identify(certificate.as_deref(), token.as_deref()).await {
                Ok(caller) => {
                    request.extensions_mut().insert(caller);
                    inner.call(request).await
                }
                Err(unknown) => Ok(refused(&unknown).into_http()),
            }
        })
    }
}

/// The token of an `authorization: Bearer TOKEN`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn refused(unknown: &Unknown) -> Status {
    match unknown {
        Unknown::Nothing(_) | Unknown::Token => Status::unauthenticated(unknown.to_string()),
        Unknown::Unavailable(_) => Status::unavailable(unknown.to_string()),
    }
}

/// Who calls. Every call has come through [`Identified`].
pub(super) fn caller(extensions: &Extensions) -> Result<Caller, Status> {
    extensions.get().cloned().ok_or_else(|| Status::internal("nobody found out who calls: this is a bug"))
}

impl From<Denied> for Status {
    fn from(denied: Denied) -> Self {
        Self::permission_denied(denied.to_string())
    }
}

pub(super) fn denied(denied: Denied) -> Status {
    denied.into()
}
