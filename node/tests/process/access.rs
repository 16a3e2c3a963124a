//! Who clients are and what they may do: every call is authorized, however it arrives.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use kvasir_client::Credentials;
use kvasir_proto::v1::cluster_client::ClusterClient;
use kvasir_proto::v1::kv_client::KvClient;
use kvasir_proto::v1::{self, pipe_request::Operation, pipe_response::Result as Answer};
use kvasir_testing::authority::Authority;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tonic::metadata::MetadataValue;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::harness::{Node, eventually};
use crate::mounted::Mounted;
use crate::tls;

const APP: &str = "app-token-0123456789";
const OPS: &str = "ops-token-0123456789";
const TOKENS: &str = "app: app-token-0123456789\nops: ops-token-0123456789\n";
const RULES: &str = "
access:
- {subjects: ['token:app'], prefix: app/, verbs: [read, write]}
- {subjects: ['token:app'], prefix: app/tmp/, verbs: [delete, watch]}
- {subjects: ['token:ops'], verbs: [admin, watch, read, write, delete]}
";

type Sender = Box<dyn FnMut(Request<()>) -> Result<Request<()>, Status> + Send + Sync>;

fn sender(token: &str) -> Sender {
    let token: Option<MetadataValue<_>> = (!token.is_empty()).then(|| format!("Bearer {token}").parse().unwrap());
    Box::new(move |mut request| {
        if let Some(token) = token.clone() {
            request.metadata_mut().insert("authorization", token);
        }
        Ok(request)
    })
}

fn kv(node: &Node, token: &str) -> KvClient<InterceptedService<Channel, Sender>> {
    KvClient::with_interceptor(node.channel(), sender(token))
}

fn cluster(node: &Node, token: &str) -> ClusterClient<InterceptedService<Channel, Sender>> {
    ClusterClient::with_interceptor(node.channel(), sender(token))
}

fn put(key: &str) -> v1::PutRequest {
    v1::PutRequest { key: key.to_owned(), value: "v".into(), ..v1::PutRequest::default() }
}

fn get(key: &str) -> v1::GetRequest {
    v1::GetRequest { key: key.to_owned(), ..v1::GetRequest::default() }
}

fn delete(key: &str) -> v1::DeleteRequest {
    v1::DeleteRequest { key: key.to_owned(), ..v1::DeleteRequest::default() }
}

async fn asking(tokens: &str, rules: &str) -> (Node, Mounted) {
    let files = Mounted::new(&[("tokens.yaml", tokens), ("node.yaml", rules)]);
    let node =
        Node::new("n").with("auth-tokens-file", files.text("tokens.yaml")).with("config", files.text("node.yaml"));
    (node.started().await, files)
}

#[track_caller]
fn denied<T: std::fmt::Debug>(result: Result<T, Status>, verb: &str, what: &str) {
    let status = result.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    let refusal = status.message();
    assert!(refusal.contains(&format!("token:app may not {verb}")) && refusal.contains(what), "{refusal}");
}

#[tokio::test]
async fn only_health_needs_no_token() {
    let (node, _files) = asking(TOKENS, "").await;
    for token in ["", "wrong-token-0123456789", "app-token-012345678", &"t".repeat(20_000)[..8000]] {
        let calls = [
            kv(&node, token).put(put("k")).await.map(drop),
            kv(&node, token).get(get("k")).await.map(drop),
            kv(&node, token).list(v1::ListRequest::default()).await.map(drop),
            kv(&node, token).watch(v1::WatchRequest::default()).await.map(drop),
            kv(&node, token).pipe(tokio_stream::iter([])).await.map(drop),
            cluster(&node, token).members(v1::MembersRequest {}).await.map(drop),
            cluster(&node, token).status(v1::StatusRequest {}).await.map(drop),
            cluster(&node, token).events(v1::EventsRequest {}).await.map(drop),
        ];
        for call in calls {
            let status = call.unwrap_err();
            assert_eq!(status.code(), Code::Unauthenticated, "{token:.20}: {status}");
        }
    }
    let refusal = kv(&node, "").get(get("k")).await.unwrap_err();
    assert!(refusal.message().contains("send `authorization: Bearer TOKEN`"), "{refusal}");
    let mut reflection =
        tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient::new(node.channel());
    let asked = reflection.server_reflection_info(tokio_stream::iter([])).await.unwrap_err();
    assert_eq!(asked.code(), Code::Unauthenticated);
    let health = HealthCheckRequest { service: String::new() };
    HealthClient::new(node.channel()).check(health).await.expect("health needs no token");
    // Without rules, an authenticated client may do everything.
    kv(&node, APP).put(put("k")).await.unwrap();
    cluster(&node, APP).status(v1::StatusRequest {}).await.unwrap();
    let counted = node.metrics().await.value("kvasir_access_denied_total{reason=\"unauthenticated\"}").unwrap();
    assert!(counted >= 34.0, "{counted}");
    let log = node.log();
    assert!(!log.contains("app-token") && !log.contains("wrong-token"), "{log}");
    // The SDK reads the token from a file.
    let own = Mounted::new(&[("token", APP)]);
    let client = kvasir_client::Client::builder(node.client.to_string())
        .credentials(Credentials::default().token_file(own.path("token")))
        .build()
        .unwrap();
    assert!(client.exists("k").await.unwrap());
}

#[tokio::test]
async fn each_call_is_held_to_the_rules_by_verb_and_prefix() {
    let (node, _files) = asking(TOKENS, RULES).await;
    let mut app = kv(&node, APP);
    app.put(put("app/k")).await.unwrap();
    app.get(get("app/k")).await.unwrap();
    kv(&node, OPS).put(put("other/k")).await.unwrap();

    denied(app.put(put("other/k")).await, "write", "\"other/k\"");
    denied(app.put(put("app")).await, "write", "\"app\"");
    denied(app.get(get("other/k")).await, "read", "\"other/k\"");
    let exists = v1::ExistsRequest { key: "other/k".to_owned(), ..v1::ExistsRequest::default() };
    denied(app.exists(exists).await, "read", "\"other/k\"");
    denied(app.delete(delete("app/k")).await, "delete", "\"app/k\"");
    app.delete(delete("app/tmp/k")).await.unwrap();
    let touch = |key: &str| v1::TouchRequest { key: key.to_owned(), ..v1::TouchRequest::default() };
    denied(app.touch(touch("other/k")).await, "write", "\"other/k\"");
    app.touch(touch("app/k")).await.unwrap();

    let list = |prefix: &str| v1::ListRequest { prefix: prefix.to_owned(), ..v1::ListRequest::default() };
    for prefix in ["", "app", "other/"] {
        denied(app.list(list(prefix)).await, "read", &format!("the prefix {prefix:?}"));
    }
    app.list(list("app/sub")).await.unwrap();
    let watch = |prefix: &str| v1::WatchRequest { prefix: prefix.to_owned(), ..v1::WatchRequest::default() };
    for prefix in ["", "app/", "other/"] {
        denied(app.watch(watch(prefix)).await, "watch", &format!("the prefix {prefix:?}"));
    }
    app.watch(watch("app/tmp/")).await.unwrap();

    // One key without the right refuses the whole batch.
    let puts = v1::BatchPutRequest { puts: vec![put("app/b"), put("other/b")], ..v1::BatchPutRequest::default() };
    denied(app.batch_put(puts).await, "write", "puts[1]");
    assert_eq!(app.get(get("app/b")).await.unwrap_err().code(), Code::NotFound);
    let keys = vec!["app/k".to_owned(), "other/k".to_owned()];
    let gets = v1::BatchGetRequest { keys: keys.clone(), ..v1::BatchGetRequest::default() };
    denied(app.batch_get(gets).await, "read", "keys[1]");
    let deletes = v1::BatchDeleteRequest { keys, ..v1::BatchDeleteRequest::default() };
    denied(app.batch_delete(deletes).await, "delete", "keys[0]");

    // In a pipe each operation is authorized.
    let operations = [
        Operation::Put(put("app/p")),
        Operation::Put(put("other/p")),
        Operation::Get(get("other/k")),
        Operation::Delete(delete("app/p")),
        Operation::Touch(touch("other/k")),
        Operation::Exists(v1::ExistsRequest { key: "other/k".to_owned(), ..v1::ExistsRequest::default() }),
    ];
    let requests = (0..).zip(operations).map(|(id, operation)| v1::PipeRequest { id, operation: Some(operation) });
    let requests: Vec<_> = requests.collect();
    let mut answers: Vec<_> =
        app.pipe(tokio_stream::iter(requests)).await.unwrap().into_inner().map(Result::unwrap).collect().await;
    answers.sort_by_key(|answer| answer.id);
    assert!(matches!(answers[0].result, Some(Answer::Put(_))), "{answers:?}");
    for answer in &answers[1..] {
        let Some(Answer::Failure(failure)) = &answer.result else { panic!("{answer:?}") };
        assert_eq!(failure.code, i32::from(Code::PermissionDenied), "{answer:?}");
    }
    assert_eq!(answers.len(), 6);

    cluster(&node, APP).members(v1::MembersRequest {}).await.expect("every authenticated client may list members");
    denied(cluster(&node, APP).status(v1::StatusRequest {}).await, "admin", "this cluster");
    denied(cluster(&node, APP).events(v1::EventsRequest {}).await, "admin", "this cluster");
    cluster(&node, OPS).status(v1::StatusRequest {}).await.unwrap();
    let page = node.metrics().await;
    for verb in ["read", "write", "delete", "watch", "admin"] {
        let series = format!("kvasir_access_denied_total{{reason=\"{verb}\"}}");
        assert!(page.value(&series).unwrap() >= 2.0, "{series} in {}", page.0);
    }
}

#[tokio::test]
async fn tokens_and_rules_change_without_a_restart() {
    let (node, files) = asking(TOKENS, RULES).await;
    let next = "later-token-0123456789";
    files.put(&[("tokens.yaml", &format!("app: {next}\n")), ("node.yaml", RULES)]);
    eventually("the new token is accepted", async || kv(&node, next).put(put("app/k")).await.map(drop)).await;
    assert_eq!(kv(&node, APP).get(get("app/k")).await.unwrap_err().code(), Code::Unauthenticated);
    let rules = "access:\n- {subjects: ['*'], prefix: other/, verbs: [write]}\n";
    files.put(&[("tokens.yaml", &format!("app: {next}\n")), ("node.yaml", rules)]);
    eventually("the new rules hold", async || kv(&node, next).put(put("other/k")).await.map(drop)).await;
    denied(kv(&node, next).put(put("app/k")).await, "write", "app/k");
    // Invalid rules change nothing.
    let broken = "access:\n- {subjects: ['app'], verbs: [write]}\n";
    files.put(&[("tokens.yaml", &format!("app: {next}\n")), ("node.yaml", broken)]);
    eventually("they are refusal of", async || {
        let status = node.status().await;
        let error = status["reloads"]["access"]["error"].as_str().unwrap_or_default().to_owned();
        if error.contains("rule 0: subjects") { Ok(()) } else { Err(status) }
    })
    .await;
    kv(&node, next).put(put("other/k")).await.unwrap();
    denied(kv(&node, next).put(put("app/k")).await, "write", "app/k");
}

#[tokio::test]
async fn a_certificate_says_who_a_client_is() {
    let ca = Authority::new("ca");
    let files = tls::secret(&ca.pem, &ca.issue("node", &["127.0.0.1"], 2098));
    let rules = "access:\n- {subjects: ['cert:app'], prefix: app/, verbs: [read, write]}\n\
                 - {subjects: ['cert:app.default.svc'], prefix: svc/, verbs: [write]}\n";
    let config = Mounted::new(&[("node.yaml", rules)]);
    let node = tls::with_tls(Node::new("n"), &files)
        .with("tls-client-ca-file", files.text("ca.crt"))
        .with("auth-client-certificates", "true")
        .with("config", config.text("node.yaml"))
        .started()
        .await;
    let own = tls::secret(&ca.pem, &ca.issue("app", &["app.default.svc"], 2098));
    let client = tls::client(&node, tls::trusting(&own).certificate(own.path("tls.crt"), own.path("tls.key")));
    let options = kvasir_client::PutOptions::default;
    client.put("app/k", "v", options()).await.unwrap();
    client.put("svc/k", "v", options()).await.unwrap();
    let refusal = client.put("other/k", "v", options()).await.unwrap_err().to_string();
    assert!(refusal.contains("cert:app may not write the key \"other/k\""), "{refusal}");
    // A client without a certificate gets a TLS connection, but no identity.
    let refusal = tls::client(&node, tls::trusting(&own)).get("app/k").await.unwrap_err().to_string();
    assert!(refusal.contains("present a client certificate"), "{refusal}");
}

/// An API server that knows one token and counts the reviews of it.
async fn api_server(known: &'static str) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            // The body comes last and ends with two braces.
            while !String::from_utf8_lossy(&request).trim_end().ends_with("}}") {
                let mut part = [0; 4096];
                match stream.read(&mut part).await {
                    Ok(0) | Err(_) => break,
                    Ok(n) => request.extend_from_slice(&part[..n]),
                }
            }
            let text = String::from_utf8_lossy(&request);
            assert!(text.starts_with("POST /apis/authentication.k8s.io/v1/tokenreviews"), "{text}");
            count.fetch_add(1, Ordering::Relaxed);
            let user = r#""user":{"username":"system:serviceaccount:ns:app","groups":["system:serviceaccounts:ns"]}"#;
            let status = if text.contains(&format!("\"{known}\"")) {
                format!(r#"{{"authenticated":true,"audiences":["kvasir"],{user}}}"#)
            } else {
                r#"{"error":"no"}"#.to_owned()
            };
            let body = format!(
                r#"{{"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","metadata":{{}},"spec":{{}},"status":{status}}}"#
            );
            let head = "HTTP/1.1 201 Created\r\ncontent-type: application/json\r\nconnection: close\r\n";
            let answer = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (address, asked)
}

#[tokio::test]
async fn access_token_reviews_are_cached() {
    let (address, asked) = api_server("head.body.known").await;
    let kubeconfig = format!(
        "{{apiVersion: v1, kind: Config, current-context: c, users: [{{name: u, user: {{}}}}], \
         clusters: [{{name: c, cluster: {{server: 'http://{address}'}}}}], \
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]}}"
    );
    let rules = "access:\n- {subjects: ['serviceaccount:ns/app'], prefix: app/, verbs: [read, write]}\n\
                 - {subjects: ['group:system:serviceaccounts:ns'], prefix: ns/, verbs: [write]}\n";
    let files = Mounted::new(&[("kubeconfig", &kubeconfig), ("node.yaml", rules)]);
    let node = Node::new("n")
        .env("KUBECONFIG", files.text("kubeconfig"))
        .with("auth-token-review", "true")
        .with("auth-token-review-audiences", "kvasir")
        .with("config", files.text("node.yaml"))
        .started()
        .await;
    for key in ["app/k", "ns/k", "app/l"] {
        kv(&node, "head.body.known").put(put(key)).await.unwrap();
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1, "its answer is kept");
    let refusal = kv(&node, "head.body.known").put(put("other/k")).await.unwrap_err();
    assert!(refusal.message().contains("serviceaccount:ns/app may not write"), "{refusal}");
    for _ in 0..3 {
        assert_eq!(kv(&node, "head.body.other").get(get("app/k")).await.unwrap_err().code(), Code::Unauthenticated);
        assert_eq!(kv(&node, "no-such-form").get(get("app/k")).await.unwrap_err().code(), Code::Unauthenticated);
    }
    assert_eq!(
        asked.load(Ordering::Relaxed),
        2,
        "a refusal is cached too, and a text without the form of a token is not sent to Kubernetes"
    );
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert!(!node.log().contains("head.body"), "{}", node.log());
}
