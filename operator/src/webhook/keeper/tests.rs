//! Against a router that acts as the API server: one Secret and one configuration, with versions and conflicts.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use parking_lot::Mutex;
use serde_json::Value;

use super::*;
use crate::certs::{
    Stored,
    secret::{empty, read},
};

const SECRET: &str = "kvasir-webhook-cert";
const CONFIGURATION: &str = "kvasir-sidecar";
const NOW: i64 = 1_793_491_200;

#[derive(Default)]
struct Objects {
    secret: Option<Secret>,
    configuration: Option<Value>,
    writes: usize,
    /// What another operator does just before the next write.
    rival: Option<Secret>,
}

type Shared = Arc<Mutex<Objects>>;

fn failure(code: StatusCode, reason: &str) -> Response {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason, "reason": reason, "code": code.as_u16()});
    (code, Json(body)).into_response()
}

impl Objects {
    fn store(&mut self, mut secret: Secret) -> Response {
        self.writes += 1;
        secret.metadata.resource_version = Some(self.writes.to_string());
        self.secret = Some(secret.clone());
        Json(secret).into_response()
    }

    fn rival_goes_first(&mut self) {
        if let Some(rival) = self.rival.take() {
            self.store(rival);
        }
    }
}

async fn read_secret(State(objects): State<Shared>) -> Response {
    let secret = objects.lock().secret.clone();
    secret.map_or_else(|| failure(StatusCode::NOT_FOUND, "NotFound"), |secret| Json(secret).into_response())
}

async fn create_secret(State(objects): State<Shared>, Json(secret): Json<Secret>) -> Response {
    let mut objects = objects.lock();
    objects.rival_goes_first();
    if objects.secret.is_some() { failure(StatusCode::CONFLICT, "AlreadyExists") } else { objects.store(secret) }
}

async fn replace_secret(State(objects): State<Shared>, Json(secret): Json<Secret>) -> Response {
    let mut objects = objects.lock();
    objects.rival_goes_first();
    let current = objects.secret.as_ref().and_then(|secret| secret.metadata.resource_version.clone());
    assert!(secret.metadata.resource_version.is_some(), "a replacement must say which version it replaces");
    if current == secret.metadata.resource_version {
        objects.store(secret)
    } else {
        failure(StatusCode::CONFLICT, "Conflict")
    }
}

async fn read_configuration(State(objects): State<Shared>) -> Response {
    let configuration = objects.lock().configuration.clone();
    configuration.map_or_else(|| failure(StatusCode::NOT_FOUND, "NotFound"), |found| Json(found).into_response())
}

async fn patch_configuration(State(objects): State<Shared>, body: String) -> Response {
    let mut objects = objects.lock();
    objects.writes += 1;
    let patch: json_patch::Patch = serde_json::from_str(&body).unwrap();
    let configuration = objects.configuration.as_mut().unwrap();
    match json_patch::patch(configuration, &patch) {
        Ok(()) => Json(configuration.clone()).into_response(),
        Err(error) => failure(StatusCode::UNPROCESSABLE_ENTITY, &error.to_string()),
    }
}

fn api_server() -> (Client, Shared) {
    let objects = Shared::default();
    let secrets = "/api/v1/namespaces/kvasir-system/secrets";
    let configurations = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
    let router = Router::new()
        .route(secrets, post(create_secret))
        .route(&format!("{secrets}/{SECRET}"), get(read_secret).put(replace_secret))
        .route(&format!("{configurations}/{CONFIGURATION}"), get(read_configuration).patch(patch_configuration))
        .with_state(objects.clone());
    (Client::new(router, "default"), objects)
}

fn names() -> Vec<String> {
    vec!["kvasir-webhook.kvasir-system.svc".into()]
}

fn secrets(client: &Client) -> Api<Secret> {
    Api::namespaced(client.clone(), "kvasir-system")
}

fn configurations(client: &Client) -> Api<MutatingWebhookConfiguration> {
    Api::all(client.clone())
}

async fn stored(client: &Client, now: i64) -> Result<Stored, SecretError> {
    secret::stored(&secrets(client), empty(SECRET), Purpose::Webhook, &names(), now).await
}

fn secret_of(stored: &Stored) -> Secret {
    Secret { data: Some(secret::data(stored)), ..empty(SECRET) }
}

fn made() -> Stored {
    certs::renew(None, Purpose::Webhook, &names(), NOW).unwrap().unwrap().0
}

/// Like the chart's, but with two webhooks, so that their order matters.
fn configuration() -> Value {
    let webhook = |name: &str| {
        json!({
            "name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "clientConfig": {"service": {"name": "kvasir-webhook", "namespace": "kvasir-system", "path": "/mutate-pods"}},
        })
    };
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": CONFIGURATION}, "webhooks": [webhook("one.kvasir.dev"), webhook("two.kvasir.dev")],
    })
}

#[tokio::test]
async fn keeper_creates_a_missing_secret_once() {
    let (client, objects) = api_server();
    let first = stored(&client, NOW).await.unwrap();
    let again = stored(&client, NOW + 60).await.unwrap();
    assert_eq!(first, again);
    assert_eq!(objects.lock().writes, 1);
}

#[tokio::test]
async fn keeper_fills_the_empty_secret_of_the_chart() {
    let (client, objects) = api_server();
    let mut empty = Secret { type_: Some("Opaque".into()), ..Secret::default() };
    empty.metadata.labels = Some([("app.kubernetes.io/managed-by".to_owned(), "Helm".to_owned())].into());
    objects.lock().store(empty);
    let filled = stored(&client, NOW).await.unwrap();
    let objects = objects.lock();
    let secret = objects.secret.as_ref().unwrap();
    assert_eq!(read(secret), Some(filled));
    assert_eq!(secret.metadata.labels.as_ref().unwrap()["app.kubernetes.io/managed-by"], "Helm");
}

#[tokio::test]
async fn keeper_uses_what_the_winner_of_a_race_wrote() {
    let rival = made();
    // Both find no Secret and create it.
    let (client, objects) = api_server();
    objects.lock().rival = Some(secret_of(&rival));
    assert_eq!(stored(&client, NOW).await.unwrap(), rival);
    assert_eq!(objects.lock().writes, 1, "the rival's");
    // Both find an expired certificate and replace it.
    let (client, objects) = api_server();
    let old = certs::renew(None, Purpose::Webhook, &names(), NOW - 3 * certs::AUTHORITY_LIFE).unwrap().unwrap().0;
    objects.lock().store(secret_of(&old));
    objects.lock().rival = Some(secret_of(&rival));
    assert_eq!(stored(&client, NOW).await.unwrap(), rival);
    assert_eq!(objects.lock().writes, 2, "the old one and the rival's");
}

#[tokio::test]
async fn keeper_writes_the_bundle_only_if_it_differs() {
    let (client, objects) = api_server();
    let authorities = made().authorities;
    objects.lock().configuration = Some(configuration());
    publish(&configurations(&client), CONFIGURATION, &authorities).await.unwrap();
    publish(&configurations(&client), CONFIGURATION, &authorities).await.unwrap();
    assert_eq!(objects.lock().writes, 1);
    let bundle = json!(ByteString(authorities.clone().into_bytes()));
    let mut expected = configuration();
    for index in 0..2 {
        expected["webhooks"][index]["clientConfig"]["caBundle"] = bundle.clone();
    }
    assert_eq!(objects.lock().configuration.as_ref(), Some(&expected), "and nothing else is touched");
    // One of them is removed.
    objects.lock().configuration.as_mut().unwrap()["webhooks"][1]["clientConfig"]["caBundle"] = json!("");
    publish(&configurations(&client), CONFIGURATION, &authorities).await.unwrap();
    assert_eq!(objects.lock().configuration.as_ref(), Some(&expected));
    assert_eq!(objects.lock().writes, 2);
}

#[test]
fn keeper_patch_tests_the_webhooks_name() {
    let webhooks: Vec<MutatingWebhook> = serde_json::from_value(configuration()["webhooks"].clone()).unwrap();
    let patch = bundle_patch(&webhooks[..1], "authorities").unwrap();
    let mut moved = configuration();
    moved["webhooks"].as_array_mut().unwrap().swap(0, 1);
    json_patch::patch(&mut moved, &patch).expect_err("the first webhook has another name now");
}

#[tokio::test]
async fn keeper_serves_before_the_configuration_exists() {
    let (client, objects) = api_server();
    let settings = Settings {
        enabled: true,
        listen: "127.0.0.1:0".parse().unwrap(),
        namespace: "kvasir-system".into(),
        service: "kvasir-webhook".into(),
        secret: SECRET.into(),
        configuration: CONFIGURATION.into(),
    };
    let (slot, monitor) = (CertificateSlot::default(), Monitor::default());
    let check = || check_with(&settings, &client, &slot, &monitor);
    let error = check().await.expect_err("no configuration").to_string();
    assert!(error.contains(CONFIGURATION) && error.contains("check that it exists"), "{error}");
    assert!(monitor.serving());
    objects.lock().configuration = Some(configuration());
    check().await.unwrap();
    assert!(objects.lock().configuration.as_ref().unwrap()["webhooks"][0]["clientConfig"]["caBundle"].is_string());
}

async fn check_with(
    settings: &Settings,
    client: &Client,
    slot: &CertificateSlot,
    monitor: &Monitor,
) -> Result<(), KeepError> {
    check(settings, &secrets(client), &configurations(client), slot, monitor).await
}
