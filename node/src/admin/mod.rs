//! The HTTP admin port: metrics, probes and status. Only reads the overview.

mod scrape;
mod status;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::TcpListener;

pub use self::scrape::Scrape;
pub use self::status::Status;
use crate::config::Role;
use crate::engine::Phase;
use crate::metrics::{CONTENT_TYPE, Metrics};
use crate::overview::Overview;

/// A node that cannot read its own engine within this time is not alive.
const LIVE_WITHIN: Duration = Duration::from_secs(2);

/// What the admin port needs.
#[derive(Clone)]
pub struct Admin {
    /// What the node knows of itself and of the others.
    pub overview: Overview,
    /// The node's metrics.
    pub metrics: Arc<Metrics>,
}

impl Admin {
    /// Serves until `stop`.
    pub async fn serve(
        self,
        listener: TcpListener,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> std::io::Result<()> {
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
            .route("/status", get(status))
            .with_state(self);
        axum::serve(listener, router).with_graceful_shutdown(stop).await
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    match admin.metrics.render() {
        Ok(page) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], page).into_response(),
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("the metrics do not render: {error}\n")).into_response()
        }
    }
}

/// Live if the process answers and its engine is not stuck. Independent of readiness: a restart does not make a node
/// ready sooner.
async fn livez(State(admin): State<Admin>) -> Response {
    // On a blocking thread, because the engine's lock may be stuck.
    let read = tokio::task::spawn_blocking(move || admin.overview.stats());
    match tokio::time::timeout(LIVE_WITHIN, read).await {
        Ok(Ok(_)) => "live\n".into_response(),
        Ok(Err(error)) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("the engine is broken: {error}\n")).into_response()
        }
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, format!("the engine is stuck for more than {LIVE_WITHIN:?}\n"))
            .into_response(),
    }
}

async fn readyz(State(admin): State<Admin>) -> Response {
    match admin.overview.phase() {
        // The data of a stale sidecar is no longer replicated. Stale members stay ready: two clusters of one name that
        // find each other, through one NATS server, must not remove each other's endpoints.
        Phase::Ready if admin.overview.me().id.role == Role::Sidecar && admin.overview.is_stale() => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("stale: {}\n", admin.overview.reason())).into_response()
        }
        Phase::Ready => "ready\n".into_response(),
        phase => {
            let mut why = format!("{}: {}\n", phase.as_str(), admin.overview.reason());
            let unjoinable = admin.overview.unjoinable();
            let refused = unjoinable.iter().map(|refusal| format!("cannot join {}: {}", refusal.peer(), refusal.why));
            for line in refused.chain(admin.overview.waits_for()) {
                why.push_str(&line);
                why.push('\n');
            }
            (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
        }
    }
}

async fn status(State(admin): State<Admin>) -> Json<Status> {
    Json(Status::of(&admin.overview))
}
