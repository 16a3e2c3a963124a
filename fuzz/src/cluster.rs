//! A `KvCluster` as the API server returns it, possibly older than any rule: from its JSON to all objects built from
//! it, and to the node that reads its configuration.

use std::path::Path;

use kvasir_crds::{KubernetesDiscovery, KvCluster};
use kvasir_node::config::Settings;
use kvasir_operator::cluster::validate;
use kvasir_operator::objects::{self, config_map};
use serde_json::json;

pub(crate) fn run(bytes: &[u8]) {
    let Ok(mut cluster) = serde_json::from_slice::<KvCluster>(bytes) else { return };
    cluster.metadata.uid.get_or_insert_with(|| "u".to_owned());
    // As checked by the API server.
    cluster.metadata.namespace = Some("shop".to_owned());
    let valid = match validate(&cluster, "default:1") {
        Ok(valid) => valid,
        Err(error) => {
            assert!(error.to_string().contains(": "), "no field is named: {error}");
            return;
        }
    };
    let built = objects::build(&valid);
    assert_eq!(objects::build(&valid), built);
    assert_eq!(built.stateful_set.spec.as_ref().and_then(|spec| spec.replicas), Some(cluster.spec.replicas));
    let file = &built.config_map.data.as_ref().expect("it has a file")[config_map::FILE];
    // The API server's schema has a rule for each text that is copied unchanged; without such text there is nothing to
    // refuse.
    let through = valid.discovery.dns.is_some() || valid.discovery.fixed.is_some() || valid.discovery.nats.is_some();
    if through || valid.discovery.kubernetes.as_ref().is_some_and(|it| *it != KubernetesDiscovery::default()) {
        return;
    }
    let settings = Settings::from_yaml(Path::new("node.yaml"), file)
        .unwrap_or_else(|error| panic!("the node cannot read what the operator writes: {error}\n{file}"));
    let config = Settings { name: Some("demo-0".to_owned()), ..settings }
        .validate()
        .unwrap_or_else(|error| panic!("the node refuses what the operator writes: {error}\n{file}"));
    assert_eq!(config.sync_interval, valid.sync_interval.length);
    if let Some(given) = valid.evict_after {
        assert_eq!(config.evict_after, given.length);
    }
    assert_eq!(config.max_memory, valid.max_memory);
    assert_eq!(config.voters, usize::try_from(valid.replicas).expect("at least 1"));
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let of = |spec: serde_json::Value| {
        let cluster = json!({
            "apiVersion": "kvasir.dev/v1alpha1", "kind": "KvCluster", "metadata": {"name": "demo"}, "spec": spec,
        });
        cluster.to_string().into_bytes()
    };
    vec![
        of(json!({})),
        of(json!({
            "replicas": 5, "syncInterval": "500ms", "maxMemory": "64Mi", "maxMemoryPolicy": "ttl-first", "evictAfter": "1m30s",
            "resources": {"requests": {"cpu": "50m"}, "limits": {"memory": "1.5Gi"}}, "image": "a/b:1",
        })),
        of(
            json!({"discovery": {"kubernetes": {"podLabels": {"a": "b"}}, "dns": {"domainName": "a.b"}}, "joinTimeout": "9s"}),
        ),
        of(
            json!({"discovery": {"nats": {"server": ["nats://a:4222"]}, "static": {"hosts": ["a:7071", "[fd00::1]:7071"]}}, "serveAlone": true}),
        ),
    ]
}
