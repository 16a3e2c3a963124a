//! The container of a node, as a member and as a sidecar: what the two have in common.
//!
//! Their differences are in [`super::stateful_set`] and in the webhook. Knows nothing of pods.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Capabilities, Container, ContainerPort, EnvVar, EnvVarSource, HTTPGetAction, ObjectFieldSelector, Probe,
        ResourceRequirements, SeccompProfile, SecurityContext,
    },
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};

use crate::{
    cluster::ValidatedCluster,
    names::{ADMIN, ADMIN_PORT, CLIENT, CLIENT_PORT, CONTAINER, PEER, PEER_PORT, PEER_UDP},
};

/// The user of the image, which owns no files.
pub const USER: i64 = 65532;
/// The node's program in the image.
const PROGRAM: &str = "/kvasir-node";

/// A node's container; requests without a limit unless the spec has resources.
pub fn node(cluster: &ValidatedCluster, default_requests: [(&str, &str); 2]) -> Container {
    Container {
        name: CONTAINER.to_owned(),
        image: Some(cluster.image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        command: Some(vec![PROGRAM.to_owned()]),
        ports: Some(vec![
            port(CLIENT, "TCP", CLIENT_PORT),
            port(PEER, "TCP", PEER_PORT),
            port(PEER_UDP, "UDP", PEER_PORT),
            port(ADMIN, "TCP", ADMIN_PORT),
        ]),
        resources: Some(cluster.resources.clone().unwrap_or_else(|| requests(default_requests))),
        security_context: Some(restricted()),
        ..Container::default()
    }
}

/// The variables that tell a node its name and address.
pub fn identity() -> [EnvVar; 2] {
    [field("KVASIR_NAME", "metadata.name"), field("KVASIR_ADVERTISE_ADDRESS", "status.podIP")]
}

/// A probe of the admin port.
pub fn probe(path: &str, period_seconds: i32, failure_threshold: i32, timeout_seconds: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(ADMIN.to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(timeout_seconds),
        failure_threshold: Some(failure_threshold),
        ..Probe::default()
    }
}

/// The seccomp profile of the `restricted` Pod Security Standard.
pub fn seccomp() -> SeccompProfile {
    SeccompProfile { type_: "RuntimeDefault".to_owned(), ..SeccompProfile::default() }
}

/// What the `restricted` Pod Security Standard requires of a container.
fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), ..Capabilities::default() }),
        seccomp_profile: Some(seccomp()),
        ..SecurityContext::default()
    }
}

fn requests(amounts: [(&str, &str); 2]) -> ResourceRequirements {
    let requests = amounts.map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())));
    ResourceRequirements { requests: Some(BTreeMap::from(requests)), ..ResourceRequirements::default() }
}

fn field(name: &str, path: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector { field_path: path.to_owned(), ..ObjectFieldSelector::default() }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}

fn port(name: &str, protocol: &str, port: i32) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        protocol: Some(protocol.to_owned()),
        container_port: port,
        ..ContainerPort::default()
    }
}
