//! The members themselves.
//!
//! A `StatefulSet` for its stable names and its careful rolling updates, not for storage: there is none. All pods start at
//! once, since none needs another to start.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetUpdateStrategy},
        core::v1::{
            Affinity, Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, EnvVarSource,
            HTTPGetAction, ObjectFieldSelector, PodAffinityTerm, PodAntiAffinity, PodSecurityContext, PodSpec,
            PodTemplateSpec, Probe, SeccompProfile, SecurityContext, TopologySpreadConstraint, Volume, VolumeMount,
            WeightedPodAffinityTerm,
        },
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};

use super::{ADMIN_PORT, CLIENT_PORT, CONTAINER, PEER_PORT, config_map, discovery, headless_service, metadata};
use crate::{
    access,
    encryption::{self, KeyFile},
    labels,
    tls::{self, NodeTls},
    validate::ValidatedCluster,
};

/// The user of the image, who owns nothing.
const USER: i64 = 65532;
/// Longer than a member may take to hand over its last writes.
const GRACE_SECONDS: i64 = 40;
/// A member that joins takes in all keys before it is ready.
const STARTUP_TRIES: i32 = 120;
/// The label of a single machine, and that of a place that can fail as a whole.
const NODE: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";
const CONFIG_VOLUME: &str = "config";
const CONFIG_PATH: &str = "/etc/kvasir";

/// Builds the `StatefulSet`.
pub fn build(cluster: &ValidatedCluster) -> StatefulSet {
    let selector = LabelSelector { match_labels: Some(labels::selector(&cluster.name)), ..LabelSelector::default() };
    StatefulSet {
        metadata: metadata(cluster, cluster.name.clone()),
        spec: Some(StatefulSetSpec {
            replicas: Some(cluster.replicas),
            service_name: Some(headless_service::name(&cluster.name)),
            pod_management_policy: Some("Parallel".to_owned()),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("RollingUpdate".to_owned()),
                ..StatefulSetUpdateStrategy::default()
            }),
            selector: selector.clone(),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels::all(&cluster.name)),
                    annotations: Some(BTreeMap::from([(labels::CONFIG_HASH.to_owned(), config_map::hash(cluster))])),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(cluster, selector)),
            },
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}

fn pod(cluster: &ValidatedCluster, selector: LabelSelector) -> PodSpec {
    let config = Volume {
        name: CONFIG_VOLUME.to_owned(),
        config_map: Some(ConfigMapVolumeSource { name: cluster.name.clone(), ..ConfigMapVolumeSource::default() }),
        ..Volume::default()
    };
    let keys = cluster.encryption.as_ref().map(KeyFile::volume);
    let certificate = cluster.tls.as_ref().map(NodeTls::volume);
    let clients = cluster.access.as_ref().and_then(access::volume);
    PodSpec {
        service_account_name: Some(cluster.name.clone()),
        automount_service_account_token: Some(true),
        // A Service named kvasir would otherwise set variables that the node takes for its own settings.
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), ..SeccompProfile::default() }),
            ..PodSecurityContext::default()
        }),
        affinity: Some(Affinity {
            pod_anti_affinity: Some(PodAntiAffinity {
                preferred_during_scheduling_ignored_during_execution: Some(vec![WeightedPodAffinityTerm {
                    weight: 100,
                    pod_affinity_term: PodAffinityTerm {
                        label_selector: Some(selector.clone()),
                        topology_key: NODE.to_owned(),
                        ..PodAffinityTerm::default()
                    },
                }]),
                ..PodAntiAffinity::default()
            }),
            ..Affinity::default()
        }),
        // A wish, not a demand: a cluster on too few machines, or on one, must still start.
        topology_spread_constraints: Some(vec![spread(ZONE, selector.clone()), spread(NODE, selector)]),
        containers: vec![container(cluster)],
        volumes: Some(
            [Some(config), discovery::secrets(cluster), keys, certificate, clients].into_iter().flatten().collect(),
        ),
        ..PodSpec::default()
    }
}

fn spread(topology_key: &str, selector: LabelSelector) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        label_selector: Some(selector),
        max_skew: 1,
        topology_key: topology_key.to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        ..TopologySpreadConstraint::default()
    }
}

fn container(cluster: &ValidatedCluster) -> Container {
    let config = VolumeMount {
        name: CONFIG_VOLUME.to_owned(),
        mount_path: CONFIG_PATH.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    };
    let keys = cluster.encryption.as_ref().map(|_| encryption::mount());
    let certificate = cluster.tls.as_ref().map(|_| tls::mount());
    let clients = cluster.access.as_ref().and_then(access::mount);
    Container {
        name: CONTAINER.to_owned(),
        image: Some(cluster.image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        command: Some(vec![
            "/kvasir-node".to_owned(),
            "--config".to_owned(),
            format!("{CONFIG_PATH}/{}", config_map::FILE),
        ]),
        env: Some(vec![field("KVASIR_NAME", "metadata.name"), field("KVASIR_ADVERTISE_ADDRESS", "status.podIP")]),
        ports: Some(vec![
            port("client", "TCP", CLIENT_PORT),
            port("peer", "TCP", PEER_PORT),
            port("peer-udp", "UDP", PEER_PORT),
            port("admin", "TCP", ADMIN_PORT),
        ]),
        resources: Some(cluster.resources.clone()),
        startup_probe: Some(probe("/readyz", 1, STARTUP_TRIES)),
        readiness_probe: Some(probe("/readyz", 1, 3)),
        liveness_probe: Some(probe("/livez", 5, 3)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), ..Capabilities::default() }),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), ..SeccompProfile::default() }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(
            [Some(config), discovery::secrets_mount(cluster), keys, certificate, clients]
                .into_iter()
                .flatten()
                .collect(),
        ),
        ..Container::default()
    }
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

fn probe(path: &str, period_seconds: i32, failure_threshold: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("admin".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(2),
        failure_threshold: Some(failure_threshold),
        ..Probe::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::tests::valid;

    fn pod_of(spec: &str) -> PodSpec {
        build(&valid(spec)).spec.unwrap().template.spec.unwrap()
    }

    #[test]
    fn pods_pass_the_restricted_standard() {
        let pod = pod_of("{}");
        let context = pod.security_context.unwrap();
        assert_eq!((context.run_as_non_root, context.run_as_user), (Some(true), Some(65532)));
        assert_eq!(context.seccomp_profile.unwrap().type_, "RuntimeDefault");
        assert_eq!((pod.host_network, pod.host_pid, pod.host_ipc), (None, None, None));
        for volume in pod.volumes.unwrap() {
            assert!(volume.host_path.is_none() && volume.config_map.is_some(), "{volume:?}");
        }
        for container in pod.containers {
            let context = container.security_context.unwrap();
            assert_eq!(context.allow_privilege_escalation, Some(false));
            assert_eq!(context.read_only_root_filesystem, Some(true));
            assert_eq!(context.capabilities.unwrap(), Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None });
            assert_eq!(context.privileged, None);
            assert!(container.ports.unwrap().iter().all(|port| port.host_port.is_none()));
        }
    }

    #[test]
    fn keys_reach_the_members_as_a_file_and_in_no_other_way() {
        let named = |pod: &PodSpec| pod.volumes.iter().flatten().any(|volume| volume.name == encryption::VOLUME);
        let mounted =
            |pod: &PodSpec| pod.containers[0].volume_mounts.iter().flatten().any(|of| *of == encryption::mount());
        let pod = pod_of("{encryption: {generate: true}}");
        assert!(named(&pod) && mounted(&pod));
        let text = serde_json::to_string(&pod).unwrap();
        assert_eq!(text.matches("demo-encryption").count(), 1, "{text}");
        let without = pod_of("{}");
        assert!(!named(&without) && !mounted(&without));
    }

    #[test]
    fn certificates_reach_the_members_as_files() {
        let pod = pod_of("{tls: {operator: {}}}");
        assert!(pod.volumes.iter().flatten().any(|volume| volume.name == tls::VOLUME));
        assert!(pod.containers[0].volume_mounts.iter().flatten().any(|mount| *mount == tls::mount()));
        let pod = pod_of("{access: {tokensSecret: {name: s, key: k}}}");
        assert!(pod.volumes.iter().flatten().any(|volume| volume.name == access::VOLUME));
        assert!(pod.containers[0].volume_mounts.iter().flatten().any(|mount| mount.name == access::VOLUME));
        assert!(!serde_json::to_string(&pod_of("{}")).unwrap().contains(tls::VOLUME));
    }

    #[test]
    fn secrets_reach_the_members_as_mounted_files_and_in_no_other_way() {
        let secrets = ["of-peers", "of-nodes", "of-tokens", "of-clients"];
        let spec = "{encryption: {secretRef: {name: of-peers}}, tls: {secretRef: {name: of-nodes}}, \
                    access: {tokensSecret: {name: of-tokens, key: k}, clientCaSecret: {name: of-clients, key: k}}}";
        let mut pod = pod_of(spec);
        let volumes = serde_json::to_string(&pod.volumes.take()).unwrap();
        let rest = serde_json::to_string(&pod).unwrap();
        let config = serde_json::to_string(&config_map::build(&valid(spec))).unwrap();
        for secret in secrets {
            assert_eq!(volumes.matches(secret).count(), 1, "{secret}: {volumes}");
            assert!(!rest.contains(secret) && !config.contains(secret), "{secret}: {rest} {config}");
        }
        assert!(!rest.contains("secretKeyRef") && !rest.contains("secretRef"), "{rest}");
    }

    #[test]
    fn scaling_leaves_the_pods_alone_and_a_setting_does_not() {
        let template = |spec| build(&valid(spec)).spec.unwrap().template;
        assert_eq!(template("{replicas: 3}"), template("{replicas: 5}"));
        assert_ne!(template("{}"), template("{syncInterval: 2s}"));
        assert_ne!(template("{}"), template("{image: 'a/b:2'}"));
        assert_ne!(template("{}"), template("{resources: {requests: {cpu: 1}}}"));
    }

    #[test]
    fn members_spread_where_they_can_and_start_where_they_cannot() {
        let pod = pod_of("{}");
        let spread = pod.topology_spread_constraints.unwrap();
        let keys: Vec<_> = spread.iter().map(|one| one.topology_key.as_str()).collect();
        assert_eq!(keys, ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]);
        for one in spread {
            assert_eq!((one.max_skew, one.when_unsatisfiable.as_str()), (1, "ScheduleAnyway"));
            assert_eq!(one.label_selector.unwrap().match_labels, Some(labels::selector("demo")));
        }
        let apart = pod.affinity.unwrap().pod_anti_affinity.unwrap();
        assert_eq!(apart.required_during_scheduling_ignored_during_execution, None);
        assert_eq!(apart.preferred_during_scheduling_ignored_during_execution.unwrap().len(), 1);
    }

    #[test]
    fn members_start_together_and_stop_slowly() {
        let spec = build(&valid("{replicas: 5}")).spec.unwrap();
        assert_eq!((spec.replicas, spec.pod_management_policy.as_deref()), (Some(5), Some("Parallel")));
        assert_eq!(spec.service_name.as_deref(), Some("demo-peers"));
        let pod = spec.template.spec.unwrap();
        assert!(pod.termination_grace_period_seconds.unwrap() > 20);
        let startup = pod.containers[0].startup_probe.clone().unwrap();
        assert_eq!(startup.http_get.unwrap().path.as_deref(), Some("/readyz"));
    }
}
