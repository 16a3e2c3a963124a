//! From a pod's YAML to an address, and the watch against an API server in this process.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;

use super::{super::start, *};

fn pod(yaml: &str) -> Pod {
    serde_yaml::from_str(yaml).unwrap()
}

fn member(name: &str, ip: &str) -> Pod {
    pod(&format!(
        "{{metadata: {{name: {name}}}, status: {{phase: Running, podIP: {ip}}}, \
         spec: {{containers: [{{name: kvasir, ports: [{{name: peer, containerPort: 7071}}]}}]}}}}"
    ))
}

#[test]
fn pod_that_is_not_ready_is_a_peer_at_its_named_port() {
    let pod = pod(r#"
metadata: {name: demo-0}
spec:
  containers:
  - name: other
    ports: [{containerPort: 80}]
  - name: kvasir
    ports:
    - {name: client, containerPort: 7070}
    - {name: peer-udp, containerPort: 9, protocol: UDP}
    - {name: peer, containerPort: 7171}
status:
  phase: Pending
  podIP: 10.42.0.7
  podIPs: [{ip: 10.42.0.7}, {ip: "fd00::7"}]
  conditions: [{type: Ready, status: "False"}]
"#);
    assert_eq!(peer(&pod, "peer"), PodPeer::At("10.42.0.7:7171".parse().unwrap()));
    assert_eq!(peer(&pod, "client"), PodPeer::At("10.42.0.7:7070".parse().unwrap()));
    assert_eq!(peer(&pod, "gossip"), PodPeer::WithoutPort);
}

#[test]
fn pod_address_is_the_primary_one() {
    assert_eq!(peer(&member("a", "'fd00::7'"), "peer"), PodPeer::At("[fd00::7]:7071".parse().unwrap()));
}

#[test]
fn pod_ports_include_native_sidecars() {
    let with = |policy: &str| {
        pod(&format!(
            "{{metadata: {{name: app}}, status: {{podIP: 10.0.0.1}}, spec: {{containers: [{{name: app}}], \
             initContainers: [{{name: kvasir{policy}, ports: [{{name: peer, containerPort: 7071}}]}}]}}}}"
        ))
    };
    assert_eq!(peer(&with(", restartPolicy: Always"), "peer"), PodPeer::At("10.0.0.1:7071".parse().unwrap()));
    assert_eq!(peer(&with(""), "peer"), PodPeer::WithoutPort);
}

#[test]
fn pod_that_ended_or_has_no_address_is_no_peer() {
    let running = member("a", "10.0.0.1");
    for phase in ["Succeeded", "Failed"] {
        let mut ended = running.clone();
        ended.status.as_mut().unwrap().phase = Some(phase.to_owned());
        assert_eq!(peer(&ended, "peer"), PodPeer::Unavailable);
    }
    let terminating =
        pod("{metadata: {name: a, deletionTimestamp: '2026-11-01T00:00:00Z'}, status: {podIP: 10.0.0.1}, \
         spec: {containers: [{name: kvasir, ports: [{name: peer, containerPort: 7071}]}]}}");
    assert_eq!(peer(&terminating, "peer"), PodPeer::Unavailable);
    assert_eq!(peer(&pod("{metadata: {name: a}, spec: {containers: []}}"), "peer"), PodPeer::Unavailable);
}

#[test]
fn pods_of_a_new_list_count_once_it_is_complete() {
    use watcher::Event;
    let mut pods = Pods::new("peer".to_owned());
    let at = |addresses: &[&str]| addresses.iter().map(|it| it.parse().unwrap()).collect::<BTreeSet<SocketAddr>>();
    assert!(!pods.apply(Event::Init));
    assert!(!pods.apply(Event::InitApply(member("a", "10.0.0.1"))));
    assert!(pods.apply(Event::InitDone));
    assert!(pods.apply(Event::Apply(member("b", "10.0.0.2"))));
    assert_eq!(pods.addresses(), at(&["10.0.0.1:7071", "10.0.0.2:7071"]));
    assert!(pods.apply(Event::Apply(member("b", "10.0.0.3"))));
    assert!(pods.apply(Event::Delete(member("a", "10.0.0.1"))));
    assert_eq!(pods.addresses(), at(&["10.0.0.3:7071"]));
    assert!(!pods.apply(Event::Init));
    assert_eq!(pods.addresses(), at(&["10.0.0.3:7071"]));
    assert!(!pods.apply(Event::InitApply(member("c", "10.0.0.4"))));
    assert!(pods.apply(Event::InitDone));
    assert_eq!(pods.addresses(), at(&["10.0.0.4:7071"]));
}

#[test]
fn error_on_a_missing_right_names_the_rule() {
    let forbidden =
        kube::core::Status { code: 403, message: "pods is forbidden".to_owned(), ..kube::core::Status::default() };
    let error = watcher::Error::InitialListFailed(kube::Error::Api(Box::new(forbidden)));
    let text = explain_watch(&error, "ns");
    for part in ["namespace ns", "pods is forbidden", "apiGroups: [\"\"], resources: [pods], verbs: [get, list, watch]"]
    {
        assert!(text.contains(part), "{text}");
    }
}

/// An API server that gives these answers in order, and records the requests.
async fn api_server(answers: Vec<(u16, String)>) -> (kube::Config, Arc<Mutex<Vec<String>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&asked);
    let answers = Arc::new(Mutex::new(VecDeque::from(answers)));
    let answer = move |uri: axum::http::Uri| {
        noted.lock().push(uri.to_string());
        let next = answers.lock().pop_front();
        async move {
            match next {
                Some((code, body)) => (axum::http::StatusCode::from_u16(code).unwrap(), body),
                None => std::future::pending().await,
            }
        }
    };
    let app = axum::Router::new().fallback(answer);
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let mut config = kube::Config::new(url.parse().unwrap());
    config.default_namespace = "own".to_owned();
    (config, asked)
}

fn settings() -> KubernetesConfig {
    KubernetesConfig {
        namespace: None,
        discovery_port_name: "peer".to_owned(),
        port_name: "client".to_owned(),
        pod_labels: BTreeMap::from([("kvasir.dev/member-of".to_owned(), "demo".to_owned())]),
    }
}

#[test]
fn retry_pauses_grow_to_a_few_seconds() {
    let pauses: Vec<_> = (0..6).map(|failures| pause(failures).as_millis()).collect();
    assert_eq!(pauses, [500, 1000, 2000, 4000, 4000, 4000]);
    assert_eq!(pause(u32::MAX), Duration::from_secs(4), "after any number of failures");
}

/// The API server accepts connections but does not answer, as it may while it shuts down.
#[tokio::test]
async fn list_that_hangs_is_requested_again() {
    let (config, asked) = api_server(Vec::new()).await;
    let list_within = Duration::from_millis(100);
    let provider = Kubernetes { given: Some(config), list_within, ..Kubernetes::new(settings()) };
    let mut view = start(vec![Box::new(provider)]);
    let asked_again = async {
        while asked.lock().len() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        view.wait_for(|view| view.providers[0].failures >= 2).await.unwrap().clone()
    };
    let failed = tokio::time::timeout(Duration::from_mins(1), asked_again).await.expect("it waits for the answer");
    let error = failed.providers[0].error.clone().unwrap();
    assert!(error.contains("cannot list the pods of namespace own: no complete answer within 100ms"), "{error}");
    assert!(!failed.answered());
}

#[tokio::test]
async fn watch_recovers_from_missing_rights_and_lost_links() {
    let list = |pods: &[Pod]| {
        let items: Vec<_> = pods.iter().map(|pod| serde_json::to_value(pod).unwrap()).collect();
        let list = serde_json::json!({"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "5"}, "items": items});
        (200, list.to_string())
    };
    let event = |kind: &str, pod: &Pod| {
        let mut object = serde_json::to_value(pod).unwrap();
        object["metadata"]["resourceVersion"] = "6".into();
        serde_json::json!({"type": kind, "object": object}).to_string() + "\n"
    };
    let (a, b, c) = (member("a", "10.0.0.1"), member("b", "10.0.0.2"), member("c", "10.0.0.3"));
    let forbidden = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"pods is forbidden","reason":"Forbidden","code":403}"#;
    let (config, asked) = api_server(vec![
        (403, forbidden.to_owned()),
        list(&[a.clone(), b.clone()]),
        (200, event("DELETED", &a) + &event("ADDED", &c)),
        // The watch resumes where it ended, and the API server answers that this version is too old.
        (200, r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old","reason":"Expired","code":410}}"#.to_owned() + "\n"),
        list(std::slice::from_ref(&c)),
    ])
    .await;
    let provider = Kubernetes { given: Some(config), ..Kubernetes::new(settings()) };
    let mut view = start(vec![Box::new(provider)]);
    let mut seen = Vec::new();
    let until_relisted = async {
        loop {
            view.changed().await.unwrap();
            let now = Arc::clone(&view.borrow_and_update());
            let ips: Vec<_> = now.addresses.keys().map(|it| it.ip().to_string()).collect();
            seen.push((ips.join(" "), now.providers[0].error.clone()));
            if seen.last() == Some(&("10.0.0.3".to_owned(), None)) {
                return;
            }
        }
    };
    let ended = tokio::time::timeout(Duration::from_mins(2), until_relisted).await;
    assert!(ended.is_ok(), "{seen:#?} {:#?}", asked.lock());

    let (ips, error) = &seen[0];
    assert_eq!(ips, "");
    assert!(error.as_ref().unwrap().contains("verbs: [get, list, watch]"), "{error:?}");
    assert!(seen.contains(&("10.0.0.1 10.0.0.2".to_owned(), None)), "{seen:#?}");
    assert!(seen.contains(&("10.0.0.2 10.0.0.3".to_owned(), None)), "{seen:#?}");
    let broken = seen.iter().skip(1).find(|(_, error)| error.is_some()).expect("the lost watch is reported");
    assert_eq!(broken.0, "10.0.0.2 10.0.0.3", "the findings stay");
    assert_eq!(seen.last().unwrap(), &("10.0.0.3".to_owned(), None));
    assert!(asked.lock()[0].starts_with("/api/v1/namespaces/own/pods?"), "{:?}", asked.lock());
    assert!(asked.lock()[0].contains("labelSelector=kvasir.dev%2Fmember-of%3Ddemo"), "{:?}", asked.lock());
}
