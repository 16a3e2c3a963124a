//! Finds out who is calling before a call reaches its service. Health is open to everyone; all other services need an
//! identity if the settings require one.

use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, header};
use tonic::{Extensions, Status};

use super::listen::ConnectionInfo;
use crate::auth::{Auth, Caller, Denied, Unknown};

/// The service that needs no identity.
const OPEN: &str = "/grpc.health.v1.Health/";

/// Puts the [`Caller`] into the request's extensions, or says why the client is refused.
pub(super) async fn identify(auth: &Auth, request: &mut Request<Body>) -> Result<(), Status> {
    if request.uri().path().starts_with(OPEN) {
        return Ok(());
    }
    let certificate = request.extensions().get::<ConnectionInfo>().and_then(|info| info.certificate.clone());
    let token = bearer(request.headers()).map(str::to_owned);
    let caller = auth.identify(certificate.as_deref(), token.as_deref()).await.map_err(|unknown| refused(&unknown))?;
    request.extensions_mut().insert(caller);
    Ok(())
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

/// The caller of an identified request.
pub(super) fn caller(extensions: &Extensions) -> Result<Caller, Status> {
    extensions.get().cloned().ok_or_else(|| Status::internal("the call was not identified: this is a bug"))
}

impl From<Denied> for Status {
    fn from(denied: Denied) -> Self {
        Self::permission_denied(denied.to_string())
    }
}

pub(super) fn denied(denied: Denied) -> Status {
    denied.into()
}
