//! Against a router that acts as the API server: Secrets and cert-manager's Certificates.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use kube::api::ObjectMeta;
use parking_lot::Mutex;

use super::*;
use crate::{certs::Stored, cluster::validate::tests::valid};

const SECRETS: &str = "/api/v1/namespaces/shop/secrets";
const CERTIFICATES: &str = "/apis/cert-manager.io/v1/namespaces/shop/certificates";
const OPERATOR: &str = "{tls: {operator: {}, peers: true}}";
const SECRET: &str = "{tls: {secretRef: {name: mine}, peers: true}}";
const ISSUER: &str = "{tls: {issuerRef: {name: acme, kind: ClusterIssuer}}}";

#[derive(Default)]
struct Objects {
    secrets: BTreeMap<String, Secret>,
    certificates: BTreeMap<String, Value>,
    writes: usize,
}

type Shared = Arc<Mutex<Objects>>;

fn failure(code: StatusCode, reason: &str) -> Response {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason, "reason": reason, "code": code.as_u16()});
    (code, Json(body)).into_response()
}

fn or_not_found(found: Option<impl serde::Serialize>) -> Response {
    found.map_or_else(|| failure(StatusCode::NOT_FOUND, "NotFound"), |found| Json(found).into_response())
}

async fn read_secret(State(objects): State<Shared>, Path(name): Path<String>) -> Response {
    or_not_found(objects.lock().secrets.get(&name))
}

async fn write_secret(State(objects): State<Shared>, Json(secret): Json<Secret>) -> Response {
    let mut objects = objects.lock();
    objects.writes += 1;
    objects.secrets.insert(secret.name_any(), secret.clone());
    Json(secret).into_response()
}

async fn read_certificate(State(objects): State<Shared>, Path(name): Path<String>) -> Response {
    or_not_found(objects.lock().certificates.get(&name))
}

async fn apply_certificate(State(objects): State<Shared>, Path(name): Path<String>, body: String) -> Response {
    let certificate: Value = serde_json::from_str(&body).unwrap();
    let mut objects = objects.lock();
    objects.writes += 1;
    objects.certificates.insert(name, certificate.clone());
    Json(certificate).into_response()
}

fn api_server() -> (Client, Shared) {
    let shared = Shared::default();
    let router = Router::new()
        .route(SECRETS, post(write_secret))
        .route(&format!("{SECRETS}/{{name}}"), get(read_secret).put(write_secret))
        .route(&format!("{CERTIFICATES}/{{name}}"), get(read_certificate).patch(apply_certificate))
        .with_state(shared.clone());
    (Client::new(router, "default"), shared)
}

async fn keep_of(client: &Client, spec: &str) -> Result<(), TlsError> {
    ensure(client, &Metrics::default(), &valid(spec)).await
}

async fn trouble(client: &Client, spec: &str) -> (&'static str, String) {
    let error = keep_of(client, spec).await.expect_err("trouble");
    (error.reason(), error.to_string())
}

/// Certificates of a user's authority for these names.
fn issued(names: &[String], now: i64) -> Stored {
    certs::renew(None, Purpose::Nodes, names, now).unwrap().unwrap().0
}

fn named(name: &str, stored: &Stored) -> Secret {
    let mut secret = secret::empty(name);
    secret.data = Some(secret::data(stored));
    secret
}

fn now() -> i64 {
    Timestamp::now().as_second()
}

#[tokio::test]
async fn tls_operator_issues_once_with_all_names() {
    let (client, objects) = api_server();
    keep_of(&client, OPERATOR).await.unwrap();
    keep_of(&client, OPERATOR).await.unwrap();
    let objects = objects.lock();
    assert_eq!(objects.writes, 1);
    let made = &objects.secrets["demo-tls"];
    assert_eq!(made.metadata.owner_references.as_deref(), Some(&[valid(OPERATOR).owner][..]));
    let leaf = certs::leaf(&secret::read(made).unwrap().certificate).unwrap();
    assert_eq!(leaf.names, dns_names("demo", "shop"));
}

#[tokio::test]
async fn tls_renewal_keeps_the_old_authority() {
    let (client, objects) = api_server();
    let cluster = valid(OPERATOR);
    let old = issued(&dns_names("demo", "shop"), now() - 250 * 24 * 60 * 60);
    let mut secret = named("demo-tls", &old);
    secret.metadata.owner_references = Some(vec![cluster.owner.clone()]);
    objects.lock().secrets.insert("demo-tls".to_owned(), secret);
    keep_of(&client, OPERATOR).await.unwrap();
    let new = secret::read(&objects.lock().secrets["demo-tls"]).unwrap();
    assert!(new.authorities.ends_with(&old.authorities) && new.authorities.len() > old.authorities.len());
    assert_ne!(new.certificate, old.certificate);
}

#[tokio::test]
async fn tls_leaves_secrets_of_others_alone() {
    let (client, objects) = api_server();
    let theirs = Secret {
        metadata: ObjectMeta { name: Some("demo-tls".to_owned()), ..ObjectMeta::default() },
        ..Secret::default()
    };
    objects.lock().secrets.insert("demo-tls".to_owned(), theirs.clone());
    assert_eq!(trouble(&client, OPERATOR).await.0, "NameTaken");
    assert_eq!(objects.lock().secrets["demo-tls"], theirs);
}

#[tokio::test]
async fn tls_secret_of_a_user_is_checked() {
    let (client, objects) = api_server();
    let put = |secret: Secret| _ = objects.lock().secrets.insert("mine".to_owned(), secret);
    assert_eq!(trouble(&client, SECRET).await.0, "TlsSecretMissing");
    let good = issued(&dns_names("demo", "shop"), now());
    put(named("mine", &good));
    keep_of(&client, SECRET).await.unwrap();
    let other = issued(&dns_names("demo", "shop"), now());
    let short = |name: &str| {
        let mut secret = named("mine", &good);
        secret.data.as_mut().unwrap().remove(name);
        secret
    };
    for (wrong, why) in [
        (short("tls.crt"), "it has no tls.crt"),
        (short("tls.key"), "it has no tls.key"),
        (short("ca.crt"), "it has no ca.crt"),
        (named("mine", &Stored { key: other.key.clone(), ..good.clone() }), "not a certificate with its key"),
        (named("mine", &Stored { key: "hush".to_owned(), ..good.clone() }), "not a certificate with its key"),
        (named("mine", &Stored { authorities: "none".to_owned(), ..good.clone() }), "no certificate of an authority"),
        (named("mine", &issued(&["a.example".to_owned()], now())), "does not have the name demo-peers.shop.svc"),
        (named("mine", &issued(&dns_names("demo", "shop"), now() - 100 * 24 * 60 * 60)), "has expired"),
    ] {
        put(wrong);
        let (reason, message) = trouble(&client, SECRET).await;
        assert_eq!(reason, "TlsSecretMalformed", "{message}");
        assert!(message.contains(why) && !message.contains("hush"), "{why}: {message}");
    }
    // For clients alone the Secret needs no authority, and may have other names.
    let clients = Stored { authorities: String::new(), ..issued(&["kv.example".to_owned()], now()) };
    put(named("mine", &clients));
    keep_of(&client, "{tls: {secretRef: {name: mine}}}").await.unwrap();
    assert_eq!(objects.lock().writes, 0, "Secrets of users are not written");
}

#[tokio::test]
async fn cert_manager_is_asked_once_and_waited_for() {
    let (client, objects) = api_server();
    assert_eq!(trouble(&client, ISSUER).await.0, "CertificatePending");
    assert_eq!(trouble(&client, ISSUER).await.0, "CertificatePending");
    let asked = objects.lock().certificates["demo-issued-tls"].clone();
    assert_eq!(objects.lock().writes, 1, "{asked}");
    assert_eq!(
        asked["spec"]["issuerRef"],
        json!({"name": "acme", "kind": "ClusterIssuer", "group": "cert-manager.io"})
    );
    assert_eq!(asked["spec"]["dnsNames"], json!(dns_names("demo", "shop")));
    assert_eq!(asked["metadata"]["ownerReferences"][0]["uid"], "u-1");
    let secret = named("demo-issued-tls", &issued(&dns_names("demo", "shop"), now()));
    objects.lock().secrets.insert("demo-issued-tls".to_owned(), secret);
    keep_of(&client, ISSUER).await.unwrap();
    // Another client changes the request.
    objects.lock().certificates.get_mut("demo-issued-tls").unwrap()["spec"]["dnsNames"] = json!(["eve"]);
    keep_of(&client, ISSUER).await.unwrap();
    assert_eq!(objects.lock().certificates["demo-issued-tls"], asked);
}

#[tokio::test]
async fn without_cert_manager_the_message_says_so() {
    let client = Client::new(Router::new(), "default");
    let error = keep_of(&client, ISSUER).await.expect_err("no such kind");
    assert!(error.is_passing() && error.to_string().contains("cert-manager is installed"), "{error}");
    keep_of(&client, "{}").await.expect("nothing is asked without TLS");
}
