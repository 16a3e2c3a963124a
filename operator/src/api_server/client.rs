//! The client of the API server: it detects dead connections within seconds, and fences the leader's writes.
//!
//! Knows nothing of the requests.

use std::{future::Future, io, time::Duration};

use http::{Request, Response};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt},
};
use tokio::time::timeout;
use tower::{BoxError, ServiceBuilder, service_fn};

use super::leader::Permit;

/// Time limit for opening a TCP connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Interval of the probes on an idle connection.
const PROBE_EVERY: Duration = Duration::from_secs(3);
/// A connection whose peer acknowledges nothing for this long is dead. Without this limit, if the peer vanished (no FIN, no
/// RST), a watch would hang until its own time limit, and a request for as long as TCP retransmits: a quarter of an hour.
const DEAD_AFTER: Duration = Duration::from_secs(9);
/// How long the API server may take to begin its answer. Webhooks may delay it by up to 30 seconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(35);

/// A client for the API server of the pod's `ServiceAccount`, or of `KUBECONFIG`.
///
/// `kube`'s default client sends no probes, and it retries requests that an overloaded server refuses inside of one call, up to
/// 15 times and for minutes. Here each caller retries by itself.
pub async fn connect() -> Result<Client, kube::Error> {
    let config = Config::infer().await.map_err(kube::Error::InferConfig)?;
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT_LIMIT));
    http.set_keepalive(Some(PROBE_EVERY));
    http.set_keepalive_interval(Some(PROBE_EVERY));
    #[cfg(target_os = "linux")]
    http.set_tcp_user_timeout(Some(DEAD_AFTER));
    let https = config.rustls_https_connector_with_connector(http)?;
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(https);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .service(service_fn(move |request: Request<Body>| answered(http.request(request))));
    Ok(Client::new(service, config.default_namespace))
}

/// The answer, if it begins in time.
async fn answered<B, E: Into<BoxError>>(
    answer: impl Future<Output = Result<Response<B>, E>>,
) -> Result<Response<B>, BoxError> {
    if let Ok(answer) = timeout(ANSWER_LIMIT, answer).await {
        return answer.map_err(Into::into);
    }
    let limit = format!("no answer within {} s", ANSWER_LIMIT.as_secs());
    Err(io::Error::new(io::ErrorKind::TimedOut, limit).into())
}

/// The same connection for the leader: a request that changes something is sent only while the permit holds.
///
/// All of the leader's writes pass here, so none can skip the check.
pub fn fenced(client: &Client, permit: Permit) -> Client {
    let inner = client.clone();
    let service = service_fn(move |request: Request<Body>| {
        let (inner, permit) = (inner.clone(), permit.clone());
        async move {
            if !request.method().is_safe() && !permit.holds() {
                let refused = "not sent: this operator does not lead (any longer)";
                return Err(BoxError::from(io::Error::new(io::ErrorKind::PermissionDenied, refused)));
            }
            inner.send(request).await.map_err(BoxError::from)
        }
    });
    Client::new(service, client.default_namespace())
}

#[cfg(test)]
mod tests {
    use axum::{Json, Router, routing::get};
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::{Api, api::PostParams};
    use serde_json::json;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn client_sends_writes_only_with_a_permit() {
        let object = || async { Json(json!({"metadata": {"name": "demo"}})) };
        let maps = "/api/v1/namespaces/shop/configmaps";
        let router = Router::new().route(&format!("{maps}/demo"), get(object)).route(maps, axum::routing::post(object));
        let permit = Permit::default();
        let client = fenced(&Client::new(router, "shop"), permit.clone());
        let api: Api<ConfigMap> = Api::default_namespaced(client);
        let create = async || api.create(&PostParams::default(), &ConfigMap::default()).await;
        api.get("demo").await.expect("reading needs no permit");
        let error = create().await.expect_err("there is no permit yet");
        assert!(crate::api_server::ApiError::from(error).to_string().contains("does not lead"));
        permit.extend(Instant::now() + Duration::from_secs(10));
        create().await.expect("the permit holds");
        tokio::time::advance(Duration::from_secs(11)).await;
        create().await.expect_err("the permit has run out");
    }

    #[tokio::test(start_paused = true)]
    async fn client_does_not_wait_for_ever_for_an_answer() {
        let never = std::future::pending::<Result<Response<()>, BoxError>>();
        let error = answered(never).await.expect_err("there is no answer");
        assert!(error.to_string().contains("no answer within 35 s"), "{error}");
    }
}
