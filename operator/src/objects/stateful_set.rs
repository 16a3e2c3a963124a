//! The members.
//!
//! A `StatefulSet` for stable names and ordered rolling updates, not for storage: there is none. All pods start at once, since no
//! member needs another one to start.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetUpdateStrategy},
        core::v1::{
            Affinity, ConfigMapVolumeSource, Container, PodAffinityTerm, PodAntiAffinity, PodSecurityContext, PodSpec,
            PodTemplateSpec, TopologySpreadConstraint, Volume, WeightedPodAffinityTerm,
        },
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};

use super::{
    config_map,
    container::{self, USER, probe},
    discovery,
    files::{self, Files, mount},
    metadata::metadata,
};
use crate::{cluster::ValidatedCluster, names};

/// Longer than a member may take to hand over its last writes.
const GRACE_SECONDS: i64 = 40;
/// A member that joins receives all keys before it is ready.
const STARTUP_TRIES: i32 = 120;
const PROBE_TIMEOUT_SECONDS: i32 = 2;
/// What a member requests if the spec has no resources.
const REQUESTS: [(&str, &str); 2] = [("cpu", "50m"), ("memory", "64Mi")];
/// The label of one Kubernetes node, and that of a zone, which can fail as a whole.
const NODE: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";
const CONFIG_VOLUME: &str = "config";
const CONFIG_PATH: &str = "/etc/kvasir";

/// Builds the `StatefulSet`.
pub fn build(cluster: &ValidatedCluster) -> StatefulSet {
    let selector = LabelSelector { match_labels: Some(names::selector(&cluster.name)), ..LabelSelector::default() };
    StatefulSet {
        metadata: metadata(cluster, cluster.name.clone()),
        spec: Some(StatefulSetSpec {
            replicas: Some(cluster.replicas),
            service_name: Some(names::headless_service(&cluster.name)),
            pod_management_policy: Some("Parallel".to_owned()),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("RollingUpdate".to_owned()),
                ..StatefulSetUpdateStrategy::default()
            }),
            selector: selector.clone(),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(names::labels(&cluster.name)),
                    annotations: Some(BTreeMap::from([(names::CONFIG_HASH.to_owned(), config_map::hash(cluster))])),
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
    let (volumes, mounts): (Vec<_>, Vec<_>) = files(cluster).map(|files| (files.volume, files.mount)).unzip();
    let mut container = container(cluster);
    container.volume_mounts.get_or_insert_default().extend(mounts);
    PodSpec {
        service_account_name: Some(cluster.name.clone()),
        automount_service_account_token: Some(true),
        // A Service named kvasir would otherwise set variables that the node would read as settings.
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            seccomp_profile: Some(container::seccomp()),
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
        // Preferred, not required: a cluster on too few machines, or on one, must still start.
        topology_spread_constraints: Some(vec![spread(ZONE, selector.clone()), spread(NODE, selector)]),
        containers: vec![container],
        volumes: Some([config].into_iter().chain(volumes).collect()),
        ..PodSpec::default()
    }
}

/// The Secrets that members need.
fn files(cluster: &ValidatedCluster) -> impl Iterator<Item = Files> {
    let files = [
        discovery::files(cluster),
        cluster.encryption.as_ref().map(files::encryption),
        cluster.tls.as_ref().map(files::tls),
        cluster.access.as_ref().and_then(files::access),
    ];
    files.into_iter().flatten()
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
    let mut container = container::node(cluster, REQUESTS);
    let config = ["--config".to_owned(), format!("{CONFIG_PATH}/{}", config_map::FILE)];
    container.command.get_or_insert_default().extend(config);
    Container {
        env: Some(container::identity().into()),
        startup_probe: Some(probe("/readyz", 1, STARTUP_TRIES, PROBE_TIMEOUT_SECONDS)),
        readiness_probe: Some(probe("/readyz", 1, 3, PROBE_TIMEOUT_SECONDS)),
        liveness_probe: Some(probe("/livez", 5, 3, PROBE_TIMEOUT_SECONDS)),
        volume_mounts: Some(vec![mount(CONFIG_VOLUME, CONFIG_PATH)]),
        ..container
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Capabilities;

    use super::*;
    use crate::cluster::validate::tests::valid;

    fn pod_of(spec: &str) -> PodSpec {
        build(&valid(spec)).spec.unwrap().template.spec.unwrap()
    }

    #[test]
    fn members_meet_the_restricted_standard() {
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

    /// Whether a volume of this name is in the pod and mounted in the member's container.
    fn has(pod: &PodSpec, name: &str) -> bool {
        let volume = pod.volumes.iter().flatten().any(|volume| volume.name == name);
        let mount = pod.containers[0].volume_mounts.iter().flatten().any(|mount| mount.name == name);
        assert_eq!(volume, mount, "{name}");
        volume
    }

    #[test]
    fn members_mount_what_the_spec_asks_for() {
        let pod = pod_of("{encryption: {generate: true}}");
        assert!(has(&pod, files::ENCRYPTION));
        let text = serde_json::to_string(&pod).unwrap();
        assert_eq!(text.matches("demo-encryption").count(), 1, "{text}");
        assert!(has(&pod_of("{tls: {operator: {}}}"), files::TLS));
        assert!(has(&pod_of("{access: {tokensSecret: {name: s, key: k}}}"), files::ACCESS));
        let without = pod_of("{}");
        assert!([files::ENCRYPTION, files::TLS, files::ACCESS].iter().all(|name| !has(&without, name)));
    }

    #[test]
    fn members_get_secrets_only_as_mounted_files() {
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
    fn members_restart_on_settings_not_on_scaling() {
        let template = |spec| build(&valid(spec)).spec.unwrap().template;
        assert_eq!(template("{replicas: 3}"), template("{replicas: 5}"));
        assert_ne!(template("{}"), template("{syncInterval: 2s}"));
        assert_ne!(template("{}"), template("{image: 'a/b:2'}"));
        assert_ne!(template("{}"), template("{resources: {requests: {cpu: 1}}}"));
    }

    #[test]
    fn members_prefer_separate_zones_and_machines() {
        let pod = pod_of("{}");
        let spread = pod.topology_spread_constraints.unwrap();
        let keys: Vec<_> = spread.iter().map(|one| one.topology_key.as_str()).collect();
        assert_eq!(keys, ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]);
        for one in spread {
            assert_eq!((one.max_skew, one.when_unsatisfiable.as_str()), (1, "ScheduleAnyway"));
            assert_eq!(one.label_selector.unwrap().match_labels, Some(names::selector("demo")));
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
