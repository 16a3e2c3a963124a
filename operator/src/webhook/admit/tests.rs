//! Reviews as the API server sends them, with a router that acts as the API server for the webhook's own reads.

use axum::routing::get;
use http_body_util::BodyExt;
use serde_json::json;

use super::*;

/// A review of a pod's creation in namespace `shop`, as the API server writes it.
fn review(pod: &Value) -> Value {
    json!({
        "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "0c9a8d74", "name": "", "namespace": "shop", "operation": "CREATE", "dryRun": false,
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "requestKind": {"group": "", "version": "v1", "kind": "Pod"},
            "requestResource": {"group": "", "version": "v1", "resource": "pods"},
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
            "object": pod, "oldObject": null,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        },
    })
}

/// A pod of a Deployment: no name and no namespace yet.
fn pod(cluster: &str) -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"generateName": "app-6d4-", "creationTimestamp": null, "labels": {"kvasir.dev/cluster": cluster}},
        "spec": {"containers": [{"name": "app", "image": "app:1", "resources": {}, "unknown": [1]}]},
        "status": {},
    })
}

fn cluster(name: &str, deleted: bool) -> Value {
    let deleted = deleted.then_some("2026-11-01T00:00:00Z");
    json!({
        "apiVersion": "kvasir.dev/v1alpha1", "kind": "KvCluster",
        "metadata": {"name": name, "namespace": "shop", "uid": "u-7", "deletionTimestamp": deleted},
        "spec": {"replicas": 3, "syncInterval": "1s"},
    })
}

fn status(code: StatusCode, reason: &str) -> Response {
    let code_number = code.as_u16();
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason, "reason": reason, "code": code_number});
    (code, Json(body)).into_response()
}

/// Has `demo` and `going` in `shop`, fails for `broken`, and has nothing else.
fn api_server() -> Client {
    let path = "/apis/kvasir.dev/v1alpha1/namespaces/{namespace}/kvclusters/{name}";
    let answer = |axum::extract::Path((namespace, name)): axum::extract::Path<(String, String)>| async move {
        match (namespace.as_str(), name.as_str()) {
            ("shop", "demo") => Json(cluster("demo", false)).into_response(),
            ("shop", "going") => Json(cluster("going", true)).into_response(),
            ("shop", "broken") => status(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
            _ => status(StatusCode::NOT_FOUND, "NotFound"),
        }
    };
    Client::new(Router::new().route(path, get(answer)), "default")
}

/// Calls the webhook through its router, without a socket.
async fn ask(body: impl Into<Body>) -> (StatusCode, Vec<u8>, Monitor) {
    let monitor = Monitor::default();
    let router = router(api_server(), "default:1".into(), monitor.clone());
    let request = Request::post(PATH).header("content-type", "application/json").body(body.into()).unwrap();
    let service = hyper_util::service::TowerToHyperService::new(router);
    let response = hyper::service::Service::call(&service, request).await.unwrap();
    let (parts, body) = response.into_parts();
    (parts.status, body.collect().await.unwrap().to_bytes().to_vec(), monitor)
}

async fn ask_of(review: &Value) -> (Value, Monitor) {
    let (status, body, monitor) = ask(review.to_string()).await;
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    let answer: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(answer["kind"], "AdmissionReview");
    assert_eq!(answer["response"]["uid"], "0c9a8d74");
    assert_eq!(answer["response"]["allowed"], true, "the webhook never refuses a pod: {answer}");
    (answer["response"].clone(), monitor)
}

/// The pod after the API server applied this answer.
fn patched(pod: &Value, response: &Value) -> Value {
    assert_eq!(response["patchType"], "JSONPatch");
    // Go also accepts a list of numbers as bytes.
    let bytes: Vec<u8> = serde_json::from_value(response["patch"].clone()).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&bytes).unwrap();
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &patch).unwrap();
    pod
}

fn warning(response: &Value) -> &str {
    assert!(response.get("patch").is_none(), "{response}");
    assert_eq!(response["warnings"].as_array().map(Vec::len), Some(1), "{response}");
    let warning = response["warnings"][0].as_str().unwrap();
    assert!(warning.len() <= 256, "the API server cuts longer warnings: {warning}");
    warning
}

#[tokio::test]
async fn admit_uses_the_namespace_of_the_request() {
    let pod = pod("demo");
    let (response, monitor) = ask_of(&review(&pod)).await;
    let after = patched(&pod, &response);
    let sidecar = &after["spec"]["initContainers"][0];
    assert_eq!(sidecar["name"], "kvasir");
    assert_eq!(sidecar["image"], "default:1");
    let cluster = sidecar["env"].as_array().unwrap().iter().find(|env| env["name"] == "KVASIR_CLUSTER").unwrap();
    assert_eq!(cluster["value"], "shop/demo");
    let uid = sidecar["env"].as_array().unwrap().iter().find(|env| env["name"] == "KVASIR_CLUSTER_UID").unwrap();
    assert_eq!(uid["value"], "u-7");
    assert_eq!(after["spec"]["containers"][0]["unknown"], json!([1]));
    assert!(response.get("warnings").is_none());
    assert_eq!(monitor.answered(Answer::Injected), 1);

    // A second call after another webhook's changes has nothing left to do.
    let (again, monitor) = ask_of(&review(&after)).await;
    assert!(again.get("patch").is_none() && again.get("warnings").is_none(), "{again}");
    assert_eq!(monitor.answered(Answer::Unchanged), 1);
}

#[tokio::test]
async fn admit_answers_a_dry_run_alike() {
    let mut dry = review(&pod("demo"));
    dry["request"]["dryRun"] = json!(true);
    assert_eq!(ask_of(&dry).await.0, ask_of(&review(&pod("demo"))).await.0);
}

#[tokio::test]
async fn pods_that_it_has_nothing_to_do_with_are_left_alone() {
    let mut unlabelled = pod("demo");
    unlabelled["metadata"].as_object_mut().unwrap().remove("labels");
    let mut declined = pod("demo");
    declined["metadata"]["annotations"] = json!({"kvasir.dev/inject": "false"});
    let mut update = review(&pod("demo"));
    update["request"]["operation"] = json!("UPDATE");
    let mut binding = review(&pod("demo"));
    binding["request"]["subResource"] = json!("binding");
    for review in [review(&unlabelled), review(&declined), update, binding] {
        let (response, monitor) = ask_of(&review).await;
        assert!(response.get("patch").is_none() && response.get("warnings").is_none(), "{response}");
        assert_eq!(monitor.answered(Answer::Unchanged), 1);
    }
}

#[tokio::test]
async fn admit_warns_if_there_is_no_cluster() {
    let (absent, monitor) = ask_of(&review(&pod("nowhere"))).await;
    assert!(warning(&absent).contains("no KvCluster nowhere in namespace shop: create it"), "{absent}");
    assert_eq!(monitor.answered(Answer::Warned), 1);
    let (going, _) = ask_of(&review(&pod("going"))).await;
    assert!(warning(&going).contains("being deleted"), "{going}");
    let (elsewhere, _) = ask_of(&{
        let mut review = review(&pod("demo"));
        review["request"]["namespace"] = json!("other");
        review
    })
    .await;
    assert!(warning(&elsewhere).contains("namespace other"), "{elsewhere}");
    for label in ["", "../secrets/x", "Demo", "a/b", "demo?x=1"] {
        let (response, _) = ask_of(&review(&pod(label))).await;
        assert!(warning(&response).contains("must name a KvCluster"), "{label}: {response}");
    }
    let mut host = pod("demo");
    host["spec"]["hostNetwork"] = json!(true);
    let (response, _) = ask_of(&review(&host)).await;
    assert!(warning(&response).contains("drop hostNetwork"), "{response}");
}

#[tokio::test]
async fn admit_injects_despite_a_port_clash() {
    let mut clash = pod("demo");
    clash["spec"]["containers"][0]["ports"] = json!([{"containerPort": 7070}]);
    let (response, _) = ask_of(&review(&clash)).await;
    assert_eq!(patched(&clash, &response)["spec"]["initContainers"][0]["name"], "kvasir");
    assert!(response["warnings"][0].as_str().unwrap().contains("7070"), "{response}");
}

#[tokio::test]
async fn admit_fails_if_the_cluster_cannot_be_read() {
    let (status, body, monitor) = ask(review(&pod("broken")).to_string()).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(String::from_utf8(body).unwrap().contains("cannot read KvCluster shop/broken"));
    assert_eq!(monitor.answered(Answer::Failed), 1);
}

#[tokio::test]
async fn admit_refuses_what_is_not_a_review() {
    let mut without_object = review(&pod("demo"));
    without_object["request"].as_object_mut().unwrap().remove("object");
    let mut without_namespace = review(&pod("demo"));
    without_namespace["request"].as_object_mut().unwrap().remove("namespace");
    let without_request = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1"});
    let bodies = ["", "{", "[]", "{\"kind\":\"Pod\"}"].map(str::to_owned);
    let reviews = [without_object, without_namespace, without_request].map(|review| review.to_string());
    for body in bodies.into_iter().chain(reviews) {
        let (status, answer, _) = ask(body.clone()).await;
        let answer = String::from_utf8(answer).unwrap();
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}: {answer}");
        assert!(answer.contains("AdmissionReview of admission.k8s.io/v1"), "{body}: {answer}");
    }
}

#[tokio::test]
async fn admit_limits_the_size_of_a_review() {
    let padded = |bytes: usize| {
        let mut pod = pod("demo");
        pod["metadata"]["annotations"] = json!({"pad": ""});
        let rest = review(&pod).to_string().len();
        pod["metadata"]["annotations"]["pad"] = json!("x".repeat(bytes - rest));
        review(&pod).to_string()
    };
    let (status, _, _) = ask(padded(LARGEST_REVIEW)).await;
    assert_eq!(status, StatusCode::OK);
    let (status, answer, _) = ask(padded(LARGEST_REVIEW + 1)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(String::from_utf8(answer).unwrap().contains("at most 3145728 bytes"));
}
