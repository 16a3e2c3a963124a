//! The sidecar itself: from a pod as its creator wrote it to the same pod with a Kvasir node in it.
//!
//! Pure, and on plain JSON rather than on typed pods: a pod may carry fields newer than this program, and a typed copy
//! would lose them. Knows nothing of the API server, of HTTP, or of where the settings come from.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Capabilities, Container, ContainerPort, EnvVar, EnvVarSource, HTTPGetAction, ObjectFieldSelector, Pod, Probe,
        ResourceRequirements, SeccompProfile, SecurityContext, Volume,
    },
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};
use kvasir_crds::{KvClusterSpec, Resources};
use kvasir_formats::{defaults, quantity};
use serde_json::{Value, json};

use super::{CLUSTER_LABEL, INJECT_ANNOTATION, INJECTED_ANNOTATION, SIDECAR_NAME};
use crate::{
    encryption::{self, KeyFile},
    tls::{self, NodeTls},
};

/// Where the application finds its node; also the name of the variable that tells it.
const ADDRESS_VARIABLE: &str = "KVASIR_ADDRESS";
const ADDRESS: &str = "http://127.0.0.1:7070";
/// How a sidecar knows which of the `KvCluster`s of a name it belongs to, one made after the other was deleted.
pub(super) const CLUSTER_UID_VARIABLE: &str = "KVASIR_CLUSTER_UID";
/// Label of the members' own pods, which are nodes already.
const MEMBER_LABEL: &str = "kvasir.dev/member-of";
/// The user of the image.
const USER: i64 = 65532;

const CLIENT_PORT: i32 = defaults::CLIENT_PORT as i32;
const PEER_PORT: i32 = defaults::PEER_PORT as i32;
const ADMIN_PORT: i32 = defaults::ADMIN_PORT as i32;

/// What Kubernetes gives a pod that asks for nothing.
const DEFAULT_GRACE_SECONDS: i64 = 30;
/// How long a sidecar may try to hand over its last writes, if the pod has that long.
const LONGEST_DRAIN_SECONDS: i64 = 10;
/// Kept back from the pod's grace period, so that draining ends before the kill.
const GRACE_RESERVE_SECONDS: i64 = 2;

/// What a sidecar is made of; everything that comes from the `KvCluster`.
#[derive(Clone, Debug, PartialEq)]
pub struct Sidecar {
    /// Namespace of the `KvCluster` and of the pod.
    pub namespace: String,
    /// Name of the `KvCluster`.
    pub cluster: String,
    /// Its UID, which no later `KvCluster` of that name has.
    pub cluster_uid: String,
    /// The node's image.
    pub image: String,
    /// Requests and limits; modest requests if none are given.
    pub resources: Option<ResourceRequirements>,
    /// How often nodes compare notes, as the `KvCluster` says it.
    pub sync_interval: String,
    /// The most memory that entries may take, in bytes.
    pub max_memory: Option<String>,
    /// What a sidecar without room does with a write, as the `KvCluster` says it.
    pub max_memory_policy: Option<String>,
    /// After how long out of reach a node is given up on, as the `KvCluster` says it.
    pub evict_after: Option<String>,
    /// Where the keys are that nodes encrypt with, if they do.
    pub encryption: Option<KeyFile>,
    /// The certificate by which nodes know each other, if they do so by one.
    pub peer_tls: Option<NodeTls>,
}

/// Why a pod that asks for a sidecar does not get one; each says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// All of the host's pods would share the sidecar's ports.
    #[error(
        "on the host's network the ports of such pods would clash: drop hostNetwork, or annotate the pod \
         {INJECT_ANNOTATION}: \"false\""
    )]
    HostNetwork,
    /// A container that is not the sidecar has its name.
    #[error("the name of container \"{SIDECAR_NAME}\" is the sidecar's: rename the container")]
    NameTaken,
    /// A volume that is not the sidecar's has its name.
    #[error("the name of volume \"{0}\" is the sidecar's: rename the volume")]
    VolumeTaken(&'static str),
    /// The pod is a member of a cluster.
    #[error("this pod is a member of a KvCluster: take the label {CLUSTER_LABEL} off it")]
    Member,
    /// The pod has no list of containers; the API server will say so too.
    #[error("the pod has no containers")]
    NoContainers,
}

/// The cluster whose sidecar this pod asks for; nothing if it asks for none, or declines by annotation.
pub fn wanted(pod: &Value) -> Option<&str> {
    let declined = pod["metadata"]["annotations"][INJECT_ANNOTATION].as_str() == Some("false");
    let cluster = pod["metadata"]["labels"][CLUSTER_LABEL].as_str();
    cluster.filter(|_| !declined)
}

/// What to tell a pod's creator who means to use one of the sidecar's ports in another container.
pub fn port_warnings(pod: &Value) -> Vec<String> {
    let containers = list(&pod["spec"], "containers").chain(list(&pod["spec"], "initContainers"));
    let mut warnings = Vec::new();
    for container in containers.filter(|container| container["name"] != SIDECAR_NAME) {
        for port in list(container, "ports") {
            if let Some(number @ (7070..=7072)) = port["containerPort"].as_i64() {
                let name = container["name"].as_str().unwrap_or_default();
                warnings.push(format!(
                    "container \"{name}\" names port {number}, which the kvasir sidecar uses: move it to another port"
                ));
            }
        }
    }
    warnings
}

/// The pod with its sidecar. Injecting twice is injecting once; what another webhook added in between is caught up on.
pub fn inject(pod: &Value, sidecar: &Sidecar) -> Result<Value, Refusal> {
    if pod["metadata"]["labels"].get(MEMBER_LABEL).is_some() {
        return Err(Refusal::Member);
    }
    if pod["spec"]["hostNetwork"] == true {
        return Err(Refusal::HostNetwork);
    }
    if list(&pod["spec"], "containers").next().is_none() {
        return Err(Refusal::NoContainers);
    }
    let present = list(&pod["spec"], "initContainers").any(is_sidecar);
    let same_name = |container: &Value| container["name"] == SIDECAR_NAME && !is_sidecar(container);
    if list(&pod["spec"], "containers").any(|container| container["name"] == SIDECAR_NAME)
        || list(&pod["spec"], "initContainers").any(same_name)
    {
        return Err(Refusal::NameTaken);
    }

    let mut pod = pod.clone();
    let grace = pod["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(DEFAULT_GRACE_SECONDS);
    for kind in ["initContainers", "containers"] {
        for container in pod["spec"][kind].as_array_mut().into_iter().flatten() {
            if !is_sidecar(container) {
                tell_address(container);
            }
        }
    }
    if !present {
        for (name, volume) in sidecar.volumes() {
            if list(&pod["spec"], "volumes").any(|volume| volume["name"] == name) {
                return Err(Refusal::VolumeTaken(name));
            }
            let volume = serde_json::to_value(volume)
                .expect("a volume is made of strings, truth values and lists and maps of such");
            match &mut pod["spec"]["volumes"] {
                Value::Array(others) => others.push(volume),
                absent => *absent = json!([volume]),
            }
        }
        let container = serde_json::to_value(sidecar.container(grace))
            .expect("a container is made of strings, numbers and maps with string keys");
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

impl Sidecar {
    /// The sidecar of a cluster in `namespace`; `default_image` is used unless the cluster names its own.
    ///
    /// It gets the members' resources: it holds what they hold.
    pub fn of(namespace: &str, cluster: &str, uid: &str, spec: &KvClusterSpec, default_image: &str) -> Self {
        let resources = spec.resources.as_ref().map(|Resources { requests, limits }| ResourceRequirements {
            requests: requests.clone(),
            limits: limits.clone(),
            claims: None,
        });
        // In plain bytes, as the members get it: a node does not read every form of a quantity, such as 1.5Gi. What is no
        // quantity at all goes through as it is, and the node says so.
        let max_memory = spec
            .max_memory
            .as_ref()
            .map(|text| quantity::units(text).map_or_else(|| text.clone(), |bytes| bytes.to_string()));
        Self {
            namespace: namespace.to_owned(),
            cluster: cluster.to_owned(),
            cluster_uid: uid.to_owned(),
            image: spec.image.clone().unwrap_or_else(|| default_image.to_owned()),
            resources,
            sync_interval: spec.sync_interval.clone(),
            max_memory,
            max_memory_policy: spec.max_memory_policy.clone(),
            evict_after: spec.evict_after.clone(),
            encryption: spec.encryption.as_ref().and_then(|given| KeyFile::of(cluster, given)),
            // Its own clients are in its pod, on loopback.
            peer_tls: spec.tls.as_ref().and_then(|given| NodeTls::of(cluster, given)).filter(|tls| tls.peers),
        }
    }

    /// The volumes that it needs, each with its name.
    fn volumes(&self) -> impl Iterator<Item = (&'static str, Volume)> {
        let keys = self.encryption.as_ref().map(|file| (encryption::VOLUME, file.volume()));
        let certificate = self.peer_tls.as_ref().map(|tls| (tls::VOLUME, tls.volume()));
        keys.into_iter().chain(certificate)
    }

    /// The container, for a pod with this grace period.
    ///
    /// A native sidecar gets its signal when the application has ended, and only what is left of the pod's grace
    /// period: it is told to drain for less than the whole of it.
    fn container(&self, grace_seconds: i64) -> Container {
        let Self {
            namespace,
            cluster,
            cluster_uid,
            image,
            resources,
            sync_interval,
            max_memory,
            max_memory_policy,
            evict_after,
            encryption,
            peer_tls,
        } = self;
        let drain = (grace_seconds - GRACE_RESERVE_SECONDS).clamp(1, LONGEST_DRAIN_SECONDS);
        let mut env = vec![
            field("KVASIR_NAME", "metadata.name"),
            field("KVASIR_ADVERTISE_ADDRESS", "status.podIP"),
            variable("KVASIR_ROLE", "sidecar"),
            variable("KVASIR_CLUSTER", format!("{namespace}/{cluster}")),
            variable(CLUSTER_UID_VARIABLE, cluster_uid),
            variable("KVASIR_SERVE_ALONE", "false"),
            // Only the pod's own containers may use it; nobody else could tell whose store this is.
            variable("KVASIR_CLIENT_ADDRESS", format!("127.0.0.1:{CLIENT_PORT}")),
            variable("KVASIR_PEER_ADDRESS", format!("0.0.0.0:{PEER_PORT}")),
            variable("KVASIR_ADMIN_ADDRESS", format!("0.0.0.0:{ADMIN_PORT}")),
            variable("KVASIR_DISCOVERY_DNS_DOMAIN_NAME", format!("{cluster}-peers.{namespace}.svc")),
            variable("KVASIR_DISCOVERY_DNS_PORT", PEER_PORT.to_string()),
            variable("KVASIR_DRAIN_TIMEOUT", format!("{drain}s")),
            variable("KVASIR_LOG_FORMAT", "json"),
            variable("KVASIR_SYNC_INTERVAL", sync_interval),
        ];
        env.extend(max_memory.iter().map(|value| variable("KVASIR_MAX_MEMORY", value)));
        env.extend(max_memory_policy.iter().map(|value| variable("KVASIR_MAX_MEMORY_POLICY", value)));
        env.extend(evict_after.iter().map(|value| variable("KVASIR_EVICT_AFTER", value)));
        env.extend(encryption.iter().map(|_| variable("KVASIR_ENCRYPTION_FILE", encryption::FILE)));
        if peer_tls.is_some() {
            env.extend([
                variable("KVASIR_PEER_TLS_CERT_FILE", tls::CERTIFICATE_FILE),
                variable("KVASIR_PEER_TLS_KEY_FILE", tls::KEY_FILE),
                variable("KVASIR_PEER_TLS_CA_FILE", tls::AUTHORITIES_FILE),
                variable("KVASIR_PEER_TLS_SERVER_NAME", tls::peer_name(cluster, namespace)),
            ]);
        }
        let mounts = [encryption.as_ref().map(|_| encryption::mount()), peer_tls.as_ref().map(|_| tls::mount())];
        let mounts: Vec<_> = mounts.into_iter().flatten().collect();
        Container {
            name: SIDECAR_NAME.into(),
            image: Some(image.clone()),
            image_pull_policy: Some("IfNotPresent".into()),
            command: Some(vec!["/kvasir-node".into()]),
            restart_policy: Some("Always".into()),
            env: Some(env),
            ports: Some(vec![
                port("client", CLIENT_PORT, "TCP"),
                port("peer", PEER_PORT, "TCP"),
                port("peer-udp", PEER_PORT, "UDP"),
                port("admin", ADMIN_PORT, "TCP"),
            ]),
            // The containers after this one start when this succeeds: once the node holds what its peers hold. Ten
            // minutes, since a node that waits for members to appear gains nothing from being started again.
            startup_probe: Some(Probe { period_seconds: Some(1), failure_threshold: Some(600), ..probe("/readyz") }),
            liveness_probe: Some(Probe { period_seconds: Some(10), failure_threshold: Some(3), ..probe("/livez") }),
            // No readiness probe: it would count towards the pod's, and whether the application can serve without its
            // store is for the application to say.
            resources: Some(resources.clone().unwrap_or_else(modest)),
            volume_mounts: (!mounts.is_empty()).then_some(mounts),
            security_context: Some(restricted()),
            ..Container::default()
        }
    }
}

/// The UID of the `KvCluster` that the sidecar of a pod belongs to; none if the pod has no sidecar, empty if its sidecar
/// was made before there were any.
pub(super) fn cluster_uid(pod: &Pod) -> Option<&str> {
    let containers = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let sidecar = containers
        .filter(|container| container.name == SIDECAR_NAME)
        .find(|container| container.restart_policy.as_deref() == Some("Always"))?;
    let mut variables = sidecar.env.iter().flatten();
    let uid = variables.find(|variable| variable.name == CLUSTER_UID_VARIABLE);
    Some(uid.and_then(|variable| variable.value.as_deref()).unwrap_or_default())
}

/// Whether this init container is the sidecar.
fn is_sidecar(container: &Value) -> bool {
    container["name"] == SIDECAR_NAME && container["restartPolicy"] == "Always"
}

fn list<'a>(of: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    of[key].as_array().into_iter().flatten()
}

/// Puts the variable first, so that the container's own variables may refer to it; one that is there already stays.
fn tell_address(container: &mut Value) {
    if list(container, "env").any(|variable| variable["name"] == ADDRESS_VARIABLE) {
        return;
    }
    let variable = json!({"name": ADDRESS_VARIABLE, "value": ADDRESS});
    match &mut container["env"] {
        Value::Array(others) => others.insert(0, variable),
        absent => *absent = json!([variable]),
    }
}

fn variable(name: &str, value: impl Into<String>) -> EnvVar {
    EnvVar { name: name.into(), value: Some(value.into()), ..EnvVar::default() }
}

fn field(name: &str, path: &str) -> EnvVar {
    let field_ref = ObjectFieldSelector { api_version: Some("v1".into()), field_path: path.into() };
    let source = EnvVarSource { field_ref: Some(field_ref), ..EnvVarSource::default() };
    EnvVar { name: name.into(), value_from: Some(source), ..EnvVar::default() }
}

fn port(name: &str, number: i32, protocol: &str) -> ContainerPort {
    ContainerPort {
        name: Some(name.into()),
        container_port: number,
        protocol: Some(protocol.into()),
        ..ContainerPort::default()
    }
}

fn probe(path: &str) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.into()),
            port: IntOrString::String("admin".into()),
            ..HTTPGetAction::default()
        }),
        timeout_seconds: Some(3),
        ..Probe::default()
    }
}

fn modest() -> ResourceRequirements {
    let requests = [("cpu", "10m"), ("memory", "32Mi")];
    let requests = requests.map(|(name, amount)| (name.to_owned(), Quantity(amount.into())));
    ResourceRequirements { requests: Some(BTreeMap::from(requests)), ..ResourceRequirements::default() }
}

/// What the `restricted` Pod Security Standard asks of a container, whatever the pod's own settings are.
fn restricted() -> SecurityContext {
    SecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(USER),
        run_as_group: Some(USER),
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), localhost_profile: None }),
        ..SecurityContext::default()
    }
}

#[cfg(test)]
#[path = "sidecar_tests.rs"]
mod tests;
