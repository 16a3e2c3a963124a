//! The operator's own health and metrics, over HTTP.
//!
//! Knows nothing of what is measured. A closure says why the operator is not ready.

use std::{net::SocketAddr, sync::Arc};

use axum::{Router, http::StatusCode, http::header::CONTENT_TYPE, response::IntoResponse, routing::get};
use prometheus_client::{encoding::text::encode, registry::Registry};

/// Content type of the metrics.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Why health and metrics could not be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve health and metrics on {address}, choose another with --listen: {source}")]
pub struct ServerError {
    address: SocketAddr,
    source: std::io::Error,
}

/// Serves `/livez`, `/readyz` and `/metrics` until `shutdown` resolves.
pub async fn run(
    address: SocketAddr,
    registry: Registry,
    not_ready: impl Fn() -> Option<String> + Send + Sync + 'static,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServerError> {
    let failed = |source| ServerError { address, source };
    let listener = tokio::net::TcpListener::bind(address).await.map_err(failed)?;
    tracing::info!(%address, "serving health and metrics");
    axum::serve(listener, router(registry, not_ready)).with_graceful_shutdown(shutdown).await.map_err(failed)
}

fn router(registry: Registry, not_ready: impl Fn() -> Option<String> + Send + Sync + 'static) -> Router {
    let registry = Arc::new(registry);
    let not_ready = Arc::new(not_ready);
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route(
            "/readyz",
            get(move || {
                let answer = match not_ready() {
                    None => (StatusCode::OK, "ok\n".to_owned()),
                    Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
                };
                async move { answer }
            }),
        )
        .route(
            "/metrics",
            get(move || {
                let mut text = String::new();
                let outcome = encode(&mut text, &registry);
                async move {
                    match outcome {
                        Ok(()) => ([(CONTENT_TYPE, OPENMETRICS)], text).into_response(),
                        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
                    }
                }
            }),
        )
}
