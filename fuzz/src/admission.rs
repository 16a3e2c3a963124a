//! The sidecar webhook: requests of the API server, or of any other client that reaches the port.

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::routing::get;
use http_body_util::BodyExt as _;
use hyper::StatusCode;
use hyper_util::service::TowerToHyperService;
use kube::Client;
use kvasir_operator::webhook::{Monitor, admit};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

thread_local! {
    static RUNTIME: Runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime for one thread");
    static WEBHOOK: Router = RUNTIME.with(|runtime| {
        let _entered = runtime.enter();
        admit::router(api_server(), "default:1".to_owned(), Monitor::default())
    });
}

/// A reader that finds the cluster `demo` in every namespace.
fn api_server() -> Client {
    let path = "/apis/kvasir.dev/v1alpha1/namespaces/{namespace}/kvclusters/{name}";
    let answer = |axum::extract::Path((namespace, name)): axum::extract::Path<(String, String)>| async move {
        if name == "demo" {
            return (
                StatusCode::OK,
                axum::Json(json!({
                    "apiVersion": "kvasir.dev/v1alpha1", "kind": "KvCluster",
                    "metadata": {"name": name, "namespace": namespace}, "spec": {"replicas": 3},
                })),
            );
        }
        let status =
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404});
        (StatusCode::NOT_FOUND, axum::Json(status))
    };
    Client::new(Router::new().route(path, get(answer)), "default")
}

fn ask(body: Vec<u8>) -> (StatusCode, Vec<u8>) {
    let service = TowerToHyperService::new(WEBHOOK.with(Router::clone));
    let request = Request::post(admit::PATH).body(Body::from(body)).expect("a request");
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let response = hyper::service::Service::call(&service, request).await.expect("a router always answers");
            let status = response.status();
            (status, response.into_body().collect().await.expect("a body in memory").to_bytes().to_vec())
        })
    })
}

fn review(pod: &Value) -> Value {
    json!({
        "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "0c9a8d74", "name": "", "namespace": "shop", "operation": "CREATE", "dryRun": false,
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "userInfo": {"username": "alice"},
            "object": pod, "oldObject": null, "options": null,
        },
    })
}

/// The pod with an answer's patch applied; none if the answer has no patch.
fn patched(pod: &Value, answer: &Value) -> Option<Value> {
    let patch = answer["response"].get("patch")?;
    let bytes: Vec<u8> = serde_json::from_value(patch.clone()).expect("bytes");
    let patch: json_patch::Patch = serde_json::from_slice(&bytes).expect("a patch");
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &patch).expect("the patch fits the pod that was sent");
    Some(pod)
}

pub(crate) fn run(bytes: &[u8]) {
    let sent = serde_json::from_slice::<Value>(bytes);
    let (body, pod) = match &sent {
        // A review, or something similar.
        Ok(review) if review.get("request").is_some() => (bytes.to_vec(), Some(review["request"]["object"].clone())),
        Ok(pod) => (review(pod).to_string().into_bytes(), Some(pod.clone())),
        // It may still be a review: the webhook skips fields that it does not use, whatever their bytes.
        Err(_) => (bytes.to_vec(), None),
    };
    let (status, answer) = ask(body);
    if status != StatusCode::OK {
        let reason = String::from_utf8_lossy(&answer);
        // A namespace with a slash, which the API server never sends, leads to no KvCluster.
        let nowhere = status == StatusCode::INTERNAL_SERVER_ERROR && reason.starts_with("cannot read KvCluster");
        assert!(status == StatusCode::BAD_REQUEST || nowhere, "{status}: {reason}");
        assert!(!reason.is_empty(), "a refusal without a reason");
        return;
    }
    let answer: Value = serde_json::from_slice(&answer).expect("an answer is JSON");
    assert_eq!(answer["response"]["allowed"], true, "the webhook never refuses a pod: {answer}");
    for warning in answer["response"]["warnings"].as_array().into_iter().flatten() {
        assert!(warning.as_str().is_some_and(|text| !text.is_empty()), "{warning}");
    }
    let Some(after) = pod.and_then(|pod| patched(&pod, &answer)) else { return };
    let sidecars = after["spec"]["initContainers"].as_array().into_iter().flatten();
    assert_eq!(sidecars.filter(|it| it["name"] == "kvasir" && it["restartPolicy"] == "Always").count(), 1, "{after}");
    let (status, again) = ask(review(&after).to_string().into_bytes());
    assert_eq!(status, StatusCode::OK, "the webhook does not accept its own output: {after}");
    let again: Value = serde_json::from_slice(&again).expect("an answer is JSON");
    assert_eq!(patched(&after, &again), None, "a second review patches the pod again: {again}");
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let pod = json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"generateName": "app-", "labels": {"kvasir.dev/cluster": "demo"}, "annotations": {"a": "b"}},
        "spec": {
            "containers": [{"name": "app", "image": "app:1", "env": [{"name": "A", "value": "b"}], "ports": [{"containerPort": 7070}]}],
            "initContainers": [{"name": "first", "image": "x"}], "terminationGracePeriodSeconds": 5,
        },
    });
    let small =
        json!({"metadata": {"labels": {"kvasir.dev/cluster": "demo"}}, "spec": {"containers": [{"name": "app"}]}});
    let other = json!({"metadata": {"labels": {"kvasir.dev/cluster": "other"}}, "spec": {"containers": [{"name": "app"}], "hostNetwork": true}});
    [review(&pod), pod, review(&small), small, other].map(|json| json.to_string().into_bytes()).into()
}
