//! From pods in YAML, through the injection and the patch that the API server applies, to the resulting pods.

use serde_json::{Value, json};

use super::*;
use crate::cluster::validate::tests::valid;

fn sidecar() -> ValidatedCluster {
    valid("{image: 'kvasir.dev/kvasir:0.1.0', syncInterval: 500ms}")
}

fn pod(yaml: &str) -> Value {
    serde_yaml::from_str(yaml).expect("the test's own YAML")
}

/// Injects, and checks that the patch leads to the same pod and that a second injection changes nothing.
fn injected(before: &Value) -> Value {
    let after = inject(before, &sidecar()).expect("injected");
    let patch = json_patch::diff(before, &after);
    let mut patched = before.clone();
    json_patch::patch(&mut patched, &patch).expect("the patch applies");
    assert_eq!(patched, after, "the patch must lead to the pod that the builder made");
    assert_eq!(inject(&after, &sidecar()).expect("injected again"), after, "a second injection must change nothing");
    after
}

fn names(pod: &Value, kind: &str) -> Vec<String> {
    list(&pod["spec"], kind).map(|container| container["name"].as_str().unwrap().to_owned()).collect()
}

fn value<'a>(container: &'a Value, name: &str) -> Option<&'a str> {
    list(container, "env").find(|variable| variable["name"] == name).and_then(|variable| variable["value"].as_str())
}

const PLAIN: &str = "
apiVersion: v1
kind: Pod
metadata:
  generateName: app-
  labels: {kvasir.dev/cluster: demo}
spec:
  containers:
  - {name: app, image: 'app:1'}
";

#[test]
fn sidecar_is_a_native_sidecar() {
    let after = injected(&pod(PLAIN));
    let expected = json!([{
        "name": "kvasir",
        "image": "kvasir.dev/kvasir:0.1.0",
        "imagePullPolicy": "IfNotPresent",
        "command": ["/kvasir-node"],
        "restartPolicy": "Always",
        "env": [
            {"name": "KVASIR_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
            {"name": "KVASIR_ADVERTISE_ADDRESS", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}},
            {"name": "KVASIR_ROLE", "value": "sidecar"},
            {"name": "KVASIR_CLUSTER", "value": "shop/demo"},
            {"name": "KVASIR_CLUSTER_UID", "value": "u-1"},
            {"name": "KVASIR_SERVE_ALONE", "value": "false"},
            {"name": "KVASIR_CLIENT_ADDRESS", "value": "127.0.0.1:7070"},
            {"name": "KVASIR_PEER_ADDRESS", "value": "0.0.0.0:7071"},
            {"name": "KVASIR_ADMIN_ADDRESS", "value": "0.0.0.0:7072"},
            {"name": "KVASIR_DISCOVERY_DNS_DOMAIN_NAME", "value": "demo-peers.shop.svc"},
            {"name": "KVASIR_DISCOVERY_DNS_PORT", "value": "7071"},
            {"name": "KVASIR_DRAIN_TIMEOUT", "value": "10s"},
            {"name": "KVASIR_LOG_FORMAT", "value": "json"},
            {"name": "KVASIR_SYNC_INTERVAL", "value": "500ms"},
        ],
        "ports": [
            {"name": "client", "containerPort": 7070, "protocol": "TCP"},
            {"name": "peer", "containerPort": 7071, "protocol": "TCP"},
            {"name": "peer-udp", "containerPort": 7071, "protocol": "UDP"},
            {"name": "admin", "containerPort": 7072, "protocol": "TCP"},
        ],
        "startupProbe": {"httpGet": {"path": "/readyz", "port": "admin"}, "periodSeconds": 1, "failureThreshold": 600, "timeoutSeconds": 3},
        "livenessProbe": {"httpGet": {"path": "/livez", "port": "admin"}, "periodSeconds": 10, "failureThreshold": 3, "timeoutSeconds": 3},
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
        },
    }]);
    assert_eq!(after["spec"]["initContainers"], expected);
    assert_eq!(
        after["spec"]["containers"][0]["env"],
        json!([{"name": "KVASIR_ADDRESS", "value": "http://127.0.0.1:7070"}])
    );
    assert_eq!(after["metadata"]["annotations"], json!({"kvasir.dev/injected": "true"}));
}

#[test]
fn sidecar_comes_before_other_init_containers() {
    let after = injected(&pod("
metadata: {name: app, labels: {kvasir.dev/cluster: demo}, annotations: {a: b}}
spec:
  initContainers:
  - {name: migrate, image: 'app:1', env: [{name: MODE, value: up}]}
  - {name: proxy, image: 'proxy:1', restartPolicy: Always}
  containers:
  - {name: app, image: 'app:1', env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}, {name: URL, value: $(KVASIR_ADDRESS)}]}
  - {name: other, image: 'other:1'}
"));
    assert_eq!(names(&after, "initContainers"), ["kvasir", "migrate", "proxy"]);
    assert_eq!(names(&after, "containers"), ["app", "other"]);
    for kind in ["initContainers", "containers"] {
        for container in list(&after["spec"], kind).filter(|container| !is_sidecar(container)) {
            assert_eq!(container["env"][0], json!({"name": "KVASIR_ADDRESS", "value": ADDRESS}), "{container}");
        }
    }
    assert_eq!(value(&after["spec"]["initContainers"][1], "MODE"), Some("up"));
    assert_eq!(after["metadata"]["annotations"]["a"], "b");
}

#[test]
fn sidecar_keeps_an_existing_address() {
    let after = injected(&pod("
metadata: {labels: {kvasir.dev/cluster: demo}}
spec:
  containers:
  - {name: app, image: 'app:1', env: [{name: X, value: why}, {name: KVASIR_ADDRESS, value: 'http://elsewhere:1'}]}
  - {name: second, image: 'app:1', env: []}
"));
    let env = &after["spec"]["containers"][0]["env"];
    assert_eq!(*env, json!([{"name": "X", "value": "why"}, {"name": "KVASIR_ADDRESS", "value": "http://elsewhere:1"}]));
    assert_eq!(value(&after["spec"]["containers"][1], "KVASIR_ADDRESS"), Some(ADDRESS));
}

#[test]
fn sidecar_keeps_unknown_fields() {
    let before = pod("
metadata: {labels: {kvasir.dev/cluster: demo}, fromTheFuture: {a: 1}}
spec:
  initContainers: [{name: first, image: 'a:1', fromTheFuture: [1, 2]}]
  containers: [{name: app, image: 'app:1', fromTheFuture: true}]
  ephemeralContainers: [{name: debug, image: 'busybox:1'}]
  fromTheFuture: {deep: {er: [null]}}
");
    let mut after = injected(&before);
    // Without what was injected the pod must be as before.
    after["spec"]["initContainers"].as_array_mut().unwrap().remove(0);
    for kind in ["initContainers", "containers"] {
        after["spec"][kind][0].as_object_mut().unwrap().remove("env");
    }
    after["metadata"].as_object_mut().unwrap().remove("annotations");
    assert_eq!(after, before);
}

#[test]
fn sidecar_lets_a_job_complete() {
    let after = injected(&pod("
metadata:
  labels: {kvasir.dev/cluster: demo, batch.kubernetes.io/job-name: load}
  ownerReferences: [{apiVersion: batch/v1, kind: Job, name: load, uid: u, controller: true}]
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 5
  containers: [{name: load, image: 'app:1'}]
"));
    assert_eq!(after["spec"]["restartPolicy"], "Never");
    assert_eq!(
        names(&after, "containers"),
        ["load"],
        "a sidecar among the containers would keep the Job from completing"
    );
    assert_eq!(value(&after["spec"]["initContainers"][0], "KVASIR_DRAIN_TIMEOUT"), Some("3s"));
}

#[test]
fn sidecar_drains_within_the_grace_period() {
    for (grace, drain) in [(0, "1s"), (1, "1s"), (3, "1s"), (4, "2s"), (12, "10s"), (600, "10s")] {
        let mut before = pod(PLAIN);
        before["spec"]["terminationGracePeriodSeconds"] = json!(grace);
        let after = injected(&before);
        assert_eq!(value(&after["spec"]["initContainers"][0], "KVASIR_DRAIN_TIMEOUT"), Some(drain), "of {grace} s");
    }
}

#[test]
fn sidecar_address_reaches_containers_added_later() {
    let mut between = injected(&pod(PLAIN));
    between["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "late", "image": "late:1"}));
    // The API server's own plugins change the sidecar too; a second injection keeps that.
    between["spec"]["initContainers"][0]["volumeMounts"] = json!([{"name": "token", "mountPath": "/token"}]);
    let after = injected(&between);
    assert_eq!(names(&after, "initContainers"), ["kvasir"]);
    assert_eq!(value(&after["spec"]["containers"][1], "KVASIR_ADDRESS"), Some(ADDRESS));
    assert_eq!(after["spec"]["initContainers"], between["spec"]["initContainers"]);
}

#[test]
fn sidecar_has_the_settings_of_the_cluster() {
    let cluster = valid(
        "{image: 'own:2', maxMemory: 0.5Gi, maxMemoryPolicy: ttl-first, evictAfter: 1m, syncInterval: 2s, resources: {limits: {memory: 1Gi}}}",
    );
    let after = inject(&pod(PLAIN), &cluster).unwrap();
    let container = &after["spec"]["initContainers"][0];
    assert_eq!(container["image"], "own:2");
    assert_eq!(container["resources"], json!({"limits": {"memory": "1Gi"}}));
    assert_eq!(value(container, "KVASIR_MAX_MEMORY"), Some("536870912"), "in a form that the node reads");
    assert_eq!(value(container, "KVASIR_MAX_MEMORY_POLICY"), Some("ttl-first"));
    assert_eq!(value(container, "KVASIR_EVICT_AFTER"), Some("1m"));
    assert_eq!(value(container, "KVASIR_SYNC_INTERVAL"), Some("2s"));
}

#[test]
fn sidecar_alone_mounts_the_encryption_keys() {
    let sidecar = valid("{encryption: {generate: true}}");
    let mut before = pod(PLAIN);
    before["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    for before in [pod(PLAIN), before] {
        let after = inject(&before, &sidecar).unwrap();
        assert_eq!(inject(&after, &sidecar).unwrap(), after, "a second injection must change nothing");
        let volumes: Vec<_> = list(&after["spec"], "volumes").collect();
        assert_eq!(volumes.len(), list(&before["spec"], "volumes").count() + 1);
        assert_eq!(volumes.last().unwrap()["secret"]["secretName"], "demo-encryption");
        let container = &after["spec"]["initContainers"][0];
        assert_eq!(value(container, "KVASIR_ENCRYPTION_FILE"), Some("/etc/kvasir-encryption/peers.yaml"));
        assert_eq!(
            container["volumeMounts"],
            json!([{"name": "kvasir-encryption", "mountPath": "/etc/kvasir-encryption", "readOnly": true}])
        );
        assert!(after["spec"]["containers"][0].get("volumeMounts").is_none());
    }
    let mut taken = pod(PLAIN);
    taken["spec"]["volumes"] = json!([{"name": "kvasir-encryption", "emptyDir": {}}]);
    assert_eq!(inject(&taken, &sidecar).unwrap_err(), Refusal::VolumeTaken("kvasir-encryption".to_owned()));
    injected(&taken);
    assert!(injected(&pod(PLAIN))["spec"].get("volumes").is_none(), "without encryption nothing is mounted");
}

#[test]
fn sidecar_has_a_certificate_for_peers_only() {
    let after = inject(&pod(PLAIN), &valid("{tls: {operator: {}, peers: true}}")).unwrap();
    let container = &after["spec"]["initContainers"][0];
    assert_eq!(value(container, "KVASIR_PEER_TLS_CERT_FILE"), Some("/etc/kvasir-tls/tls.crt"));
    assert_eq!(value(container, "KVASIR_PEER_TLS_KEY_FILE"), Some("/etc/kvasir-tls/tls.key"));
    assert_eq!(value(container, "KVASIR_PEER_TLS_CA_FILE"), Some("/etc/kvasir-tls/ca.crt"));
    assert_eq!(value(container, "KVASIR_PEER_TLS_SERVER_NAME"), Some("demo-peers.shop.svc"));
    assert_eq!(value(container, "KVASIR_TLS_CERT_FILE"), None, "its clients are on loopback");
    assert_eq!(after["spec"]["volumes"][0]["secret"]["secretName"], "demo-tls");
    assert_eq!(container["volumeMounts"][0]["mountPath"], "/etc/kvasir-tls");
    let plain = inject(&pod(PLAIN), &valid("{tls: {operator: {}}}")).unwrap();
    assert!(!plain.to_string().contains("tls"), "{plain}");
}

#[test]
fn sidecar_refusals_say_what_to_do() {
    let refused = |yaml: &str| inject(&pod(yaml), &sidecar()).expect_err("refused");
    let host = refused("{metadata: {}, spec: {hostNetwork: true, containers: [{name: app}]}}");
    assert_eq!(host, Refusal::HostNetwork);
    assert!(host.to_string().contains("drop hostNetwork"), "{host}");
    assert_eq!(refused("{metadata: {}, spec: {containers: [{name: kvasir}]}}"), Refusal::NameTaken);
    let ordinary = "{metadata: {}, spec: {initContainers: [{name: kvasir}], containers: [{name: app}]}}";
    assert_eq!(refused(ordinary), Refusal::NameTaken);
    let member = "{metadata: {labels: {kvasir.dev/member-of: demo}}, spec: {containers: [{name: app}]}}";
    assert_eq!(refused(member), Refusal::Member);
    assert_eq!(refused("{metadata: {}, spec: {}}"), Refusal::NoContainers);
    for refusal in
        [Refusal::HostNetwork, Refusal::NameTaken, Refusal::VolumeTaken(files::TLS.to_owned()), Refusal::Member]
    {
        assert!(refusal.to_string().len() <= 256, "the API server cuts longer warnings: {refusal}");
    }
}

#[test]
fn sidecar_is_declined_by_annotation() {
    assert_eq!(wanted(&pod(PLAIN)), Some("demo"));
    assert_eq!(wanted(&pod("{metadata: {name: app}}")), None);
    let annotated = |value: &str| {
        let mut pod = pod(PLAIN);
        pod["metadata"]["annotations"] = json!({"kvasir.dev/inject": value});
        wanted(&pod).map(str::to_owned)
    };
    assert_eq!(annotated("false"), None);
    assert_eq!(annotated("true").as_deref(), Some("demo"));
}

#[test]
fn sidecar_warns_of_port_clashes() {
    let mut before = pod(PLAIN);
    assert!(port_warnings(&injected(&before)).is_empty(), "the sidecar's own ports are no clash");
    before["spec"]["containers"][0]["ports"] = json!([{"containerPort": 8080}, {"containerPort": 7071}]);
    let warnings = port_warnings(&before);
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("\"app\"") && warnings[0].contains("7071"), "{warnings:?}");
}
