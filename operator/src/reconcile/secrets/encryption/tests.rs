//! Against a router that acts as the API server with one Secret.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use parking_lot::Mutex;
use serde_json::json;

use super::*;
use crate::cluster::validate::tests::valid;

const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const GENERATE: &str = "{encryption: {generate: true}}";

type Shared = Arc<Mutex<Option<Secret>>>;

fn failure(code: StatusCode, reason: &str) -> Response {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason, "reason": reason, "code": code.as_u16()});
    (code, Json(body)).into_response()
}

/// Allows to read and create Secrets and refuses all else, like the operator's role.
fn api_server() -> (Client, Shared) {
    let read = |State(secret): State<Shared>| async move {
        let secret = secret.lock().clone();
        secret.map_or_else(|| failure(StatusCode::NOT_FOUND, "NotFound"), |secret| Json(secret).into_response())
    };
    let create = |State(stored): State<Shared>, Json(secret): Json<Secret>| async move {
        let mut stored = stored.lock();
        if stored.is_some() {
            return failure(StatusCode::CONFLICT, "AlreadyExists");
        }
        Json(stored.insert(secret).clone()).into_response()
    };
    let shared = Shared::default();
    let secrets = "/api/v1/namespaces/shop/secrets";
    let router = Router::new()
        .route(secrets, post(create))
        .route(&format!("{secrets}/{{name}}"), get(read))
        .with_state(shared.clone());
    (Client::new(router, "default"), shared)
}

fn secret(key: &str, text: &str) -> Secret {
    Secret { data: Some([(key.to_owned(), ByteString(text.into()))].into()), ..Secret::default() }
}

fn file_in(secret: &Secret) -> Vec<u8> {
    secret.data.as_ref().unwrap()["peers.yaml"].0.clone()
}

async fn keep_of(client: &Client, spec: &str, began: bool) -> Result<(), KeysError> {
    ensure(client, &Metrics::default(), &valid(spec), began).await
}

#[tokio::test]
async fn keys_are_made_once_and_left_alone() {
    let (client, stored) = api_server();
    keep_of(&client, GENERATE, false).await.unwrap();
    let made = stored.lock().clone().unwrap();
    assert_eq!(made.metadata.name.as_deref(), Some("demo-encryption"));
    assert_eq!(made.metadata.owner_references.as_deref(), Some(&[valid(GENERATE).owner][..]));
    let ring = Keyring::parse(&file_in(&made)).expect("the node reads what the operator makes");
    assert_eq!(ring.keys.len(), 1);
    for began in [false, true] {
        keep_of(&client, GENERATE, began).await.unwrap();
    }
    assert_eq!(stored.lock().as_ref(), Some(&made));

    let (client, other) = api_server();
    keep_of(&client, GENERATE, false).await.unwrap();
    let other = Keyring::parse(&file_in(other.lock().as_ref().unwrap())).unwrap();
    assert!(other.keys != ring.keys && other.cookie != ring.cookie, "each cluster has its own");
}

#[tokio::test]
async fn keys_are_not_replaced_under_running_members() {
    let (client, stored) = api_server();
    let error = keep_of(&client, GENERATE, true).await.unwrap_err();
    assert_eq!((error.reason(), error.is_passing()), ("EncryptionSecretMissing", false));
    assert!(error.to_string().contains("restore it"), "{error}");
    assert_eq!(*stored.lock(), None);
}

#[tokio::test]
async fn keys_of_a_named_secret_are_waited_for() {
    let (client, stored) = api_server();
    let spec = "{encryption: {secretRef: {name: mine, key: k}}}";
    let error = keep_of(&client, spec, false).await.unwrap_err();
    assert_eq!((error.reason(), error.is_passing()), ("EncryptionSecretMissing", false));
    assert!(error.to_string().contains("no Secret mine"), "{error}");
    assert_eq!(*stored.lock(), None, "the operator makes none of its own");
    *stored.lock() = Some(secret("other", "text"));
    let error = keep_of(&client, spec, false).await.unwrap_err();
    assert_eq!(error.reason(), "EncryptionSecretMalformed");
    assert!(error.to_string().contains("has no key k"), "{error}");
    *stored.lock() = Some(secret("k", &format!("cookie: demo\nkeys: [{KEY}]")));
    keep_of(&client, spec, false).await.unwrap();
    keep_of(&Client::new(Router::new(), "default"), "{}", false).await.expect("nothing is asked without encryption");
}

#[tokio::test]
async fn keys_api_errors_are_retried() {
    let no = get(|| async { failure(StatusCode::FORBIDDEN, "Forbidden") });
    let client = Client::new(Router::new().route("/api/v1/namespaces/shop/secrets/demo-encryption", no), "default");
    let error = keep_of(&client, GENERATE, false).await.unwrap_err();
    assert_eq!((error.reason(), error.is_passing()), ("EncryptionSecretFailed", true));
}

#[test]
fn keys_of_an_earlier_cluster_are_not_used() {
    let cluster = valid(GENERATE);
    let file = cluster.encryption.clone().unwrap();
    let mut theirs = generate(&cluster, &file).unwrap();
    check(&theirs, &file, &cluster.owner).unwrap();
    theirs.metadata.owner_references.as_mut().unwrap()[0].uid = "u-0".to_owned();
    assert_eq!(check(&theirs, &file, &cluster.owner).unwrap_err().reason(), "NameTaken");
    // A Secret that a person created again has no owner; one that the spec names may have any.
    theirs.metadata.owner_references.as_mut().unwrap()[0].controller = None;
    check(&theirs, &file, &cluster.owner).unwrap();
    let named = KeyFile { generate: false, ..file };
    theirs.metadata.owner_references.as_mut().unwrap()[0].controller = Some(true);
    check(&theirs, &named, &cluster.owner).unwrap();
}

#[test]
fn keys_error_names_the_file_not_its_content() {
    let cluster = valid(GENERATE);
    let file = cluster.encryption.clone().unwrap();
    for text in ["hush", "cookie: demo\nkeys: [hush]"] {
        let error = check(&secret("peers.yaml", text), &file, &cluster.owner).unwrap_err();
        assert_eq!((error.reason(), error.is_passing()), ("EncryptionSecretMalformed", false));
        let message = error.to_string();
        assert!(message.contains("peers.yaml in Secret demo-encryption cannot be used"), "{message}");
        assert!(!message.contains("hush"), "{message}");
    }
}
