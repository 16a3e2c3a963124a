//! Pods in YAML, and a router that acts as the API server and counts events.

use std::sync::Arc;

use axum::{
    Json, Router,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures::FutureExt as _;
use serde_json::{Value, json};

use super::*;

/// The current time of all tests.
fn now() -> Timestamp {
    "2026-11-01T00:01:00Z".parse().unwrap()
}

fn pod(name: &str, extra: &str) -> Pod {
    let yaml = format!(
        "{{metadata: {{name: {name}, namespace: shop, uid: uid-{name}, labels: {{kvasir.dev/cluster: demo}}}}}}"
    );
    let mut pod: Value = serde_yaml::from_str(&yaml).unwrap();
    let extra: Value = serde_yaml::from_str(extra).unwrap();
    json_patch::merge(&mut pod, &extra);
    serde_json::from_value(pod).unwrap()
}

const WITH: &str = "{spec: {initContainers: [{name: other}, {name: kvasir, restartPolicy: Always, env: [{name: KVASIR_CLUSTER_UID, value: u-1}]}], containers: [{name: app}]}}";
const WITHOUT: &str = "{spec: {containers: [{name: app}]}}";

fn names(sidecars: &Sidecars) -> Vec<&str> {
    sidecars.missing.iter().map(|pod| pod.name.as_str()).collect()
}

#[test]
fn pods_count_a_container_not_an_annotation() {
    let pods = [
        pod("b", WITHOUT),
        pod("with", WITH),
        pod("a", "{metadata: {annotations: {kvasir.dev/injected: 'true'}}, spec: {containers: [{name: app}]}}"),
        pod("ordinary", "{spec: {initContainers: [{name: kvasir}], containers: [{name: app}]}}"),
    ];
    let sidecars = count(&pods, "u-1", now());
    assert_eq!(names(&sidecars), ["a", "b", "ordinary"], "in order, whatever an annotation claims");
    assert_eq!(sidecars.status(), SidecarStatus { injected: 1, missing: 3, ..SidecarStatus::default() });
}

#[test]
fn count_tells_sidecars_of_an_earlier_cluster() {
    let sidecar = |env: &str| {
        format!("{{spec: {{initContainers: [{{name: kvasir, restartPolicy: Always{env}}}], containers: []}}}}")
    };
    let of = |uid: &str| {
        sidecar(&format!(
            ", env: [{{name: KVASIR_CLUSTER, value: shop/demo}}, {{name: KVASIR_CLUSTER_UID, value: {uid}}}]"
        ))
    };
    let pods = [pod("old", &of("u-0")), pod("now", &of("u-1")), pod("before-uids", &sidecar("")), pod("bare", WITHOUT)];
    let sidecars = count(&pods, "u-1", now());
    assert_eq!(sidecars.stale, ["before-uids", "old"]);
    assert_eq!(sidecars.status(), SidecarStatus { injected: 1, missing: 1, stale: 2, ..SidecarStatus::default() });
    let going =
        pod("going", &of("u-0").replace("{spec", "{metadata: {deletionTimestamp: '2026-11-01T00:00:00Z'}, spec"));
    assert_eq!(count(&[going], "u-1", now()), Sidecars::default(), "a pod that goes is no trouble");
}

#[test]
fn pods_leave_out_finished_and_declined() {
    let pods = [
        pod("succeeded", "{status: {phase: Succeeded}, spec: {containers: [{name: app}]}}"),
        pod("failed", "{status: {phase: Failed}, spec: {containers: [{name: app}]}}"),
        pod(
            "done",
            "{status: {phase: Succeeded}, spec: {initContainers: [{name: kvasir, restartPolicy: Always}], containers: []}}",
        ),
        pod("going", "{metadata: {deletionTimestamp: '2026-11-01T00:00:00Z'}, spec: {containers: [{name: app}]}}"),
        pod("declined", "{metadata: {annotations: {kvasir.dev/inject: 'false'}}, spec: {containers: [{name: app}]}}"),
    ];
    assert_eq!(count(&pods, "u-1", now()), Sidecars::default());
    let pending = pod("pending", "{status: {phase: Pending}, spec: {containers: []}}");
    assert_eq!(count(&[pending], "u-1", now()).missing.len(), 1);
}

#[test]
fn pods_belong_to_the_cluster_of_their_label() {
    assert_eq!(cluster_of(pod("a", WITH)), Some(ObjectRef::new("demo").within("shop")));
    assert_eq!(cluster_of(Pod::default()), None);
    assert_eq!(watch_config().label_selector.as_deref(), Some("kvasir.dev/cluster"));
}

/// Lists `pods` for the right selector, and refuses a second event of one name like a real API server.
fn api_server(pods: Vec<Pod>) -> (Client, Arc<Mutex<Vec<Event>>>) {
    let events = Arc::new(Mutex::new(Vec::<Event>::new()));
    let kept = events.clone();
    let list = move |uri: axum::http::Uri| async move {
        assert!(uri.query().unwrap().contains("labelSelector=kvasir.dev%2Fcluster%3Ddemo"), "{uri}");
        Json(json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods}))
    };
    let create = move |Json(event): Json<Event>| async move {
        let mut events = kept.lock();
        if events.iter().any(|other| other.metadata.name == event.metadata.name) {
            return failure(StatusCode::CONFLICT, "AlreadyExists");
        }
        events.push(event.clone());
        (StatusCode::CREATED, Json(event)).into_response()
    };
    let router = Router::new()
        .route("/api/v1/namespaces/shop/pods", get(list))
        .route("/apis/events.k8s.io/v1/namespaces/shop/events", post(create));
    (Client::new(router, "default"), events)
}

fn failure(code: StatusCode, reason: &str) -> Response {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason, "reason": reason, "code": code.as_u16()});
    (code, Json(body)).into_response()
}

#[tokio::test]
async fn pods_are_warned_once_despite_restarts() {
    let owned = "{metadata: {ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: r, uid: r}]}, spec: {containers: []}}";
    let host = "{spec: {hostNetwork: true, containers: []}}";
    let (client, events) =
        api_server(vec![pod("with", WITH), pod("bare", WITHOUT), pod("host", host), pod("owned", owned)]);
    let sidecars = Watched::default().sidecars(&client, "shop", "demo", "u-1", now()).await.unwrap();
    assert_eq!(names(&sidecars), ["bare", "host", "owned"]);

    let warned = Warned::default();
    warned.warn(&client, "shop", "demo", &sidecars).await.unwrap();
    warned.warn(&client, "shop", "demo", &sidecars).await.unwrap();
    Warned::default().warn(&client, "shop", "demo", &sidecars).await.unwrap();

    let events = events.lock();
    assert_eq!(events.len(), 3, "{events:?}");
    let note = |name: &str| {
        let of = |event: &&Event| event.regarding.as_ref().unwrap().name.as_deref() == Some(name);
        let event = events.iter().find(of).unwrap();
        assert_eq!((event.type_.as_deref(), event.reason.as_deref()), (Some("Warning"), Some("SidecarMissing")));
        assert_eq!(event.regarding.as_ref().unwrap().uid, Some(format!("uid-{name}")));
        event.note.clone().unwrap()
    };
    assert!(note("owned").contains("kubectl delete pod -n shop owned"));
    assert!(note("bare").contains("delete it and create it again"));
    assert!(note("host").contains("drop hostNetwork"));
    assert!(
        ["owned", "bare", "host"].iter().all(|name| note(name).len() <= 1024),
        "the API server refuses longer notes"
    );
}

#[tokio::test]
async fn pods_warned_are_forgotten_when_gone() {
    let (client, _) = api_server(vec![]);
    let missing = |name: &str| Missing { name: name.into(), uid: name.into(), ..Missing::default() };
    let both = Sidecars { missing: vec![missing("a"), missing("b")], ..Sidecars::default() };
    let one = Sidecars { missing: vec![missing("b")], ..Sidecars::default() };
    let key = ObjectRef::new("demo").within("shop");
    let warned = Warned::default();
    warned.warn(&client, "shop", "demo", &both).await.unwrap();
    assert!(warned.unwarned(&key, &both).is_empty());
    assert!(warned.unwarned(&key, &one).is_empty());
    assert_eq!(warned.unwarned(&key, &both), [&missing("a")], "a was gone in between");
    warned.warn(&client, "shop", "demo", &Sidecars::default()).await.unwrap();
    assert!(warned.0.lock().is_empty());
}

#[tokio::test]
async fn pods_event_is_retried() {
    let refuse = || async { failure(StatusCode::FORBIDDEN, "Forbidden") };
    let router = Router::new().route("/apis/events.k8s.io/v1/namespaces/shop/events", post(refuse));
    let client = Client::new(router, "default");
    let sidecars = count(&[pod("a", WITHOUT)], "u-1", now());
    let warned = Warned::default();
    let error = warned.warn(&client, "shop", "demo", &sidecars).await.expect_err("forbidden");
    assert!(error.to_string().contains("shop/a, check that the operator may create events"), "{error}");
    assert_eq!(warned.unwarned(&ObjectRef::new("demo").within("shop"), &sidecars).len(), 1);
}

/// A pod whose sidecar has this state.
fn with_sidecar(name: &str, state: &str) -> Pod {
    let restarts = if state.contains("restartCount") { "" } else { "restartCount: 0, " };
    let container = format!("{{name: kvasir, image: i, imageID: '', ready: false, {restarts}{state}}}");
    pod(
        name,
        &format!(
            "{{metadata: {{creationTimestamp: '2026-11-01T00:00:00Z'}}, spec: {{nodeName: node1, containers: [], \
             initContainers: [{{name: kvasir, restartPolicy: Always, env: [{{name: KVASIR_CLUSTER_UID, value: u-1}}]}}]}}, \
             status: {{initContainerStatuses: [{container}]}}}}"
        ),
    )
}

#[test]
fn sidecars_that_do_not_run_are_named() {
    let pods = [
        with_sidecar("pull", "state: {waiting: {reason: ImagePullBackOff, message: no such image}}"),
        with_sidecar("stuck", "state: {running: {startedAt: '2026-11-01T00:00:10Z'}}, started: false"),
        with_sidecar("late", "state: {running: {startedAt: '2026-11-01T00:00:50Z'}}, started: false"),
        with_sidecar("well", "state: {running: {startedAt: '2026-11-01T00:00:10Z'}}, started: true"),
        with_sidecar("mount", "state: {waiting: {reason: PodInitializing}}"),
        with_sidecar(
            "crash",
            "state: {waiting: {reason: CrashLoopBackOff}}, restartCount: 4, lastState: {terminated: {exitCode: 2, message: bad key}}",
        ),
    ];
    let sidecars = count(&pods, "u-1", now());
    let named: Vec<_> = sidecars.failing.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(named, ["crash", "mount", "pull", "stuck"]);
    let why = |name: &str| sidecars.failing.iter().find(|one| one.name == name).unwrap().why.clone();
    assert!(
        why("crash").contains("4 times, last with exit code 2") && why("crash").contains("bad key"),
        "{sidecars:?}"
    );
    assert_eq!(why("pull"), "ImagePullBackOff: no such image");
    assert!(why("stuck").contains("2026-11-01T00:00:10Z") && why("mount").contains("PodInitializing"), "{sidecars:?}");
    let status = sidecars.status();
    assert_eq!((status.injected, status.failing), (6, 4));
}

#[test]
fn pods_have_the_time_of_a_kill() {
    let killed = |name: &str, at: &str| {
        let end = format!("{{exitCode: 137, reason: OOMKilled, finishedAt: '{at}'}}");
        with_sidecar(name, &format!("state: {{running: {{}}}}, started: true, lastState: {{terminated: {end}}}"))
    };
    let pods = [killed("a", "2026-11-01T00:00:20Z"), killed("b", "2026-11-01T00:00:30Z"), pod("with", WITH)];
    let sidecars = count(&pods, "u-1", now());
    let names: Vec<_> = sidecars.killed.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["b", "a"], "the latest first");
    assert_eq!(sidecars.status().oom_killed_at.unwrap().0, "2026-11-01T00:00:30Z".parse().unwrap());
    assert_eq!(sidecars.status().failing, 0, "they run again");
}

#[test]
fn pods_count_the_same_when_reduced() {
    let owned = "{metadata: {ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: r, uid: r}], \
                 labels: {app: x}}, spec: {containers: [{name: app, image: large}]}}";
    let mut pods = vec![
        pod("with", WITH),
        pod("bare", WITHOUT),
        pod("owned", owned),
        pod("host", "{spec: {hostNetwork: true, containers: []}}"),
        pod("declined", "{metadata: {annotations: {kvasir.dev/inject: 'false'}}, spec: {containers: []}}"),
        pod("done", "{status: {phase: Succeeded}, spec: {containers: []}}"),
        with_sidecar("pull", "state: {waiting: {reason: ImagePullBackOff, message: no such image}}"),
    ];
    let whole = count(&pods, "u-1", now());
    pods.iter_mut().for_each(cut);
    assert_eq!(count(&pods, "u-1", now()), whole);
    let left = serde_json::to_value(&pods[2]).unwrap().to_string();
    assert!(!left.contains("large") && !left.contains("\"app\""), "{left}");
}

#[tokio::test]
async fn pods_of_a_broken_watch_are_not_used() {
    let (client, _) = api_server(vec![pod("now", WITHOUT)]);
    let (tell, events) = futures::channel::mpsc::unbounded();
    let (watched, changes) = follow(events);
    let mut changes = Box::pin(changes);
    let mut step = |event: watcher::Result<watcher::Event<Pod>>| {
        tell.unbounded_send(event).unwrap();
        while changes.next().now_or_never().flatten().is_some() {}
    };
    let seen = async || {
        let sidecars = watched.sidecars(&client, "shop", "demo", "u-1", now()).await.unwrap();
        names(&sidecars).join(" ")
    };
    assert_eq!(seen().await, "now", "the API server is asked before the first list");
    step(Ok(watcher::Event::Init));
    step(Ok(watcher::Event::InitApply(pod("then", WITHOUT))));
    assert_eq!(seen().await, "now", "the list may have more");
    step(Ok(watcher::Event::InitDone));
    assert_eq!(seen().await, "then");
    step(Err(watcher::Error::NoResourceVersion));
    assert_eq!(seen().await, "now", "the last report of the watch may be old");
    step(Ok(watcher::Event::Apply(pod("later", WITHOUT))));
    assert_eq!(seen().await, "later then");
    step(Ok(watcher::Event::Init));
    assert_eq!(seen().await, "now", "it begins again");
}
