//! The sidecar: from a pod as its creator wrote it to the same pod with a Kvasir node in it.
//!
//! Pure, and on plain JSON rather than typed pods: a pod may have fields that are newer than this program, and a typed copy would
//! lose them. The node's container is [`crate::objects::container`], as for members. Knows nothing of the API server or of HTTP.

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod, SecurityContext};
use serde_json::{Value, json};

use crate::{
    cluster::{ValidatedCluster, tls::NodeTls},
    names::{
        self, ADMIN_PORT, CLIENT_PORT, CLUSTER_LABEL, CONTAINER, INJECT_ANNOTATION, INJECTED_ANNOTATION, MEMBER_OF,
        PEER_PORT,
    },
    objects::{
        container::{self, USER, probe},
        files::{self, Files},
    },
};

/// Variable with the address at which the application reaches its node.
const ADDRESS_VARIABLE: &str = "KVASIR_ADDRESS";
const ADDRESS: &str = "http://127.0.0.1:7070";
/// Variable with the UID of the `KvCluster`, which distinguishes it from an earlier one of the same name.
pub(super) const CLUSTER_UID_VARIABLE: &str = "KVASIR_CLUSTER_UID";

/// What Kubernetes gives a pod that sets no grace period.
const DEFAULT_GRACE_SECONDS: i64 = 30;
/// How long a sidecar may hand over its last writes, if the pod has that long.
const LONGEST_DRAIN_SECONDS: i64 = 10;
/// Reserved from the pod's grace period, so that draining ends before the kill.
const GRACE_RESERVE_SECONDS: i64 = 2;
const PROBE_TIMEOUT_SECONDS: i32 = 3;
/// The application starts once the sidecar holds what its peers hold. Ten minutes, because restarting a node that waits for
/// members gains nothing.
const STARTUP_TRIES: i32 = 600;
/// What a sidecar requests if the spec has no resources.
const REQUESTS: [(&str, &str); 2] = [("cpu", "10m"), ("memory", "32Mi")];

/// Why a pod that asks for a sidecar does not get one, with what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// All pods on the host's network would share the sidecar's ports.
    #[error(
        "the ports of sidecars would clash on the host's network: drop hostNetwork, or annotate the pod \
         {INJECT_ANNOTATION}: \"false\""
    )]
    HostNetwork,
    /// Another container has the sidecar's name.
    #[error("container \"{CONTAINER}\" has the name of the sidecar: rename the container")]
    NameTaken,
    /// Another volume has the name of one of the sidecar's volumes.
    #[error("volume \"{0}\" has the name of a volume of the sidecar: rename the volume")]
    VolumeTaken(String),
    /// The pod is a member of a cluster.
    #[error("this pod is a member of a KvCluster: remove its label {CLUSTER_LABEL}")]
    Member,
    /// The pod has no containers; the API server will refuse it.
    #[error("the pod has no containers")]
    NoContainers,
}

/// The cluster whose sidecar this pod asks for; `None` if it asks for none, or declines by annotation.
pub fn wanted(pod: &Value) -> Option<&str> {
    let declined = pod["metadata"]["annotations"][INJECT_ANNOTATION].as_str() == Some("false");
    let cluster = pod["metadata"]["labels"][CLUSTER_LABEL].as_str();
    cluster.filter(|_| !declined)
}

/// Warnings for the pod's creator about other containers that declare one of the sidecar's ports.
pub fn port_warnings(pod: &Value) -> Vec<String> {
    let containers = list(&pod["spec"], "containers").chain(list(&pod["spec"], "initContainers"));
    let mut warnings = Vec::new();
    for container in containers.filter(|container| container["name"] != CONTAINER) {
        for port in list(container, "ports") {
            if let Some(number @ (7070..=7072)) = port["containerPort"].as_i64() {
                let name = container["name"].as_str().unwrap_or_default();
                warnings.push(format!(
                    "container \"{name}\" declares port {number}, which the kvasir sidecar uses: use another port"
                ));
            }
        }
    }
    warnings
}

/// The pod with its sidecar. A second injection changes nothing but containers that another webhook added in between.
pub fn inject(pod: &Value, cluster: &ValidatedCluster) -> Result<Value, Refusal> {
    if pod["metadata"]["labels"].get(MEMBER_OF).is_some() {
        return Err(Refusal::Member);
    }
    if pod["spec"]["hostNetwork"] == true {
        return Err(Refusal::HostNetwork);
    }
    if list(&pod["spec"], "containers").next().is_none() {
        return Err(Refusal::NoContainers);
    }
    let present = list(&pod["spec"], "initContainers").any(is_sidecar);
    let same_name = |container: &Value| container["name"] == CONTAINER && !is_sidecar(container);
    if list(&pod["spec"], "containers").any(|container| container["name"] == CONTAINER)
        || list(&pod["spec"], "initContainers").any(same_name)
    {
        return Err(Refusal::NameTaken);
    }

    let mut pod = pod.clone();
    let grace = pod["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(DEFAULT_GRACE_SECONDS);
    for kind in ["initContainers", "containers"] {
        for container in pod["spec"][kind].as_array_mut().into_iter().flatten() {
            if !is_sidecar(container) {
                set_address(container);
            }
        }
    }
    if !present {
        for Files { volume, .. } in files(cluster) {
            let name = volume.name.clone();
            if list(&pod["spec"], "volumes").any(|volume| volume["name"] == name.as_str()) {
                return Err(Refusal::VolumeTaken(name));
            }
            let volume = serde_json::to_value(volume).expect("a volume has string keys only");
            match &mut pod["spec"]["volumes"] {
                Value::Array(others) => others.push(volume),
                absent => *absent = json!([volume]),
            }
        }
        let container = serde_json::to_value(container(cluster, grace)).expect("a container has string keys only");
        match &mut pod["spec"]["initContainers"] {
            Value::Array(others) => others.insert(0, container),
            absent => *absent = json!([container]),
        }
    }
    let annotations = &mut pod["metadata"]["annotations"];
    if annotations.is_null() {
        *annotations = json!({});
    }
    annotations[INJECTED_ANNOTATION] = json!("true");
    Ok(pod)
}

/// The Secrets that the sidecar needs. It needs no certificate for clients, which are in its own pod.
fn files(cluster: &ValidatedCluster) -> impl Iterator<Item = Files> {
    let encryption = cluster.encryption.as_ref().map(files::encryption);
    encryption.into_iter().chain(peer_tls(cluster).map(files::tls))
}

fn peer_tls(cluster: &ValidatedCluster) -> Option<&NodeTls> {
    cluster.tls.as_ref().filter(|tls| tls.peers)
}

/// The container, for a pod with this grace period.
///
/// A native sidecar gets its signal when the application has ended, and only what is left of the pod's grace period: it drains
/// for less than the whole of it.
fn container(cluster: &ValidatedCluster, grace_seconds: i64) -> Container {
    let drain = (grace_seconds - GRACE_RESERVE_SECONDS).clamp(1, LONGEST_DRAIN_SECONDS);
    let mounts: Vec<_> = files(cluster).map(|files| files.mount).collect();
    let node = container::node(cluster, REQUESTS);
    Container {
        restart_policy: Some("Always".into()),
        env: Some(environment(cluster, drain)),
        startup_probe: Some(probe("/readyz", 1, STARTUP_TRIES, PROBE_TIMEOUT_SECONDS)),
        liveness_probe: Some(probe("/livez", 10, 3, PROBE_TIMEOUT_SECONDS)),
        // No readiness probe: it would count towards the pod's readiness, and whether the application can serve without its store
        // is up to the application.
        volume_mounts: (!mounts.is_empty()).then_some(mounts),
        // The pod's own security context is the application's.
        security_context: node.security_context.map(|restricted| SecurityContext {
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            ..restricted
        }),
        ..node
    }
}

fn environment(cluster: &ValidatedCluster, drain_seconds: i64) -> Vec<EnvVar> {
    let ValidatedCluster { name, namespace, .. } = cluster;
    let mut env = Vec::from(container::identity().map(with_api_version));
    env.extend([
        variable("KVASIR_ROLE", "sidecar"),
        variable("KVASIR_CLUSTER", format!("{namespace}/{name}")),
        variable(CLUSTER_UID_VARIABLE, &cluster.owner.uid),
        variable("KVASIR_SERVE_ALONE", "false"),
        // Loopback: only the pod's own containers may use the store.
        variable("KVASIR_CLIENT_ADDRESS", format!("127.0.0.1:{CLIENT_PORT}")),
        variable("KVASIR_PEER_ADDRESS", format!("0.0.0.0:{PEER_PORT}")),
        variable("KVASIR_ADMIN_ADDRESS", format!("0.0.0.0:{ADMIN_PORT}")),
        variable("KVASIR_DISCOVERY_DNS_DOMAIN_NAME", names::peer_domain(name, namespace)),
        variable("KVASIR_DISCOVERY_DNS_PORT", PEER_PORT.to_string()),
        variable("KVASIR_DRAIN_TIMEOUT", format!("{drain_seconds}s")),
        variable("KVASIR_LOG_FORMAT", "json"),
        variable("KVASIR_SYNC_INTERVAL", &cluster.sync_interval.text),
    ]);
    // In bytes: a node does not read every form of a quantity, such as 1.5Gi.
    env.extend(cluster.max_memory.map(|bytes| variable("KVASIR_MAX_MEMORY", bytes.to_string())));
    env.extend(cluster.max_memory_policy.map(|policy| variable("KVASIR_MAX_MEMORY_POLICY", policy)));
    env.extend(cluster.evict_after.iter().map(|period| variable("KVASIR_EVICT_AFTER", &period.text)));
    env.extend(cluster.encryption.iter().map(|_| variable("KVASIR_ENCRYPTION_FILE", names::ENCRYPTION_FILE)));
    if peer_tls(cluster).is_some() {
        env.extend([
            variable("KVASIR_PEER_TLS_CERT_FILE", names::CERTIFICATE_FILE),
            variable("KVASIR_PEER_TLS_KEY_FILE", names::KEY_FILE),
            variable("KVASIR_PEER_TLS_CA_FILE", names::AUTHORITIES_FILE),
            variable("KVASIR_PEER_TLS_SERVER_NAME", names::peer_domain(name, namespace)),
        ]);
    }
    env
}

fn variable(name: &str, value: impl Into<String>) -> EnvVar {
    EnvVar { name: name.into(), value: Some(value.into()), ..EnvVar::default() }
}

/// States the default of the API server, so that a second injection finds what the first one wrote.
fn with_api_version(mut variable: EnvVar) -> EnvVar {
    if let Some(field) = variable.value_from.as_mut().and_then(|source| source.field_ref.as_mut()) {
        field.api_version = Some("v1".to_owned());
    }
    variable
}

/// The UID of the `KvCluster` that the sidecar of a pod belongs to; `None` if the pod has no sidecar, empty if its sidecar is
/// older than the variable.
pub(super) fn cluster_uid(pod: &Pod) -> Option<&str> {
    let containers = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let sidecar = containers
        .filter(|container| container.name == CONTAINER)
        .find(|container| container.restart_policy.as_deref() == Some("Always"))?;
    let mut variables = sidecar.env.iter().flatten();
    let uid = variables.find(|variable| variable.name == CLUSTER_UID_VARIABLE);
    Some(uid.and_then(|variable| variable.value.as_deref()).unwrap_or_default())
}

/// Whether this init container is the sidecar.
fn is_sidecar(container: &Value) -> bool {
    container["name"] == CONTAINER && container["restartPolicy"] == "Always"
}

fn list<'a>(of: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    of[key].as_array().into_iter().flatten()
}

/// Puts the variable first, so that the container's own variables can refer to it; an existing variable stays.
fn set_address(container: &mut Value) {
    if list(container, "env").any(|variable| variable["name"] == ADDRESS_VARIABLE) {
        return;
    }
    let variable = json!({"name": ADDRESS_VARIABLE, "value": ADDRESS});
    match &mut container["env"] {
        Value::Array(others) => others.insert(0, variable),
        absent => *absent = json!([variable]),
    }
}

#[cfg(test)]
mod tests;
