//! The `KvCluster` resource: its Rust types, and the rules that the API server checks before it stores a `KvCluster`.
//!
//! Plain data: this crate knows nothing of clients, controllers or the data plane. [`yaml`] writes the `CustomResourceDefinition`
//! of the Helm chart.

mod access;
mod discovery;
mod security;
pub mod spec;
mod status;

pub use access::{Access, AccessRule, ServiceAccounts};
pub use discovery::{Discovery, DnsDiscovery, KubernetesDiscovery, NatsDiscovery, SecretKey, StaticDiscovery};
pub use security::{CertificateRef, Encryption, IssuerRef, KeyFileRef, OperatorAuthority, Tls};
pub use spec::{EMPTY_NODE_BYTES, KvCluster, KvClusterSpec, LEAST_MEMORY_LIMIT, MAX_NAME, MAX_REPLICAS, Resources};
pub use status::{DataStatus, EncryptionStatus, KvClusterStatus, LostData, MemberStatus, SidecarStatus, condition};

use kube::CustomResourceExt;

/// With this annotation Helm keeps the definition when the release is uninstalled, and with it every `KvCluster`.
const KEEP: (&str, &str) = ("helm.sh/resource-policy", "keep");

/// The `CustomResourceDefinition` of the chart, with a comment on how to generate it.
///
/// # Errors
///
/// If the definition cannot be written as YAML.
pub fn yaml() -> Result<String, serde_yaml::SerializeError> {
    let mut crd = KvCluster::crd();
    crd.metadata.annotations.get_or_insert_default().insert(KEEP.0.to_owned(), KEEP.1.to_owned());
    Ok(format!("# Generated from crds/src by `make crds`; do not edit.\n{}", serde_yaml::to_string(&crd)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crd_in_the_chart_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/kvasir/templates/crd.yaml");
        let stored = std::fs::read_to_string(path).unwrap_or_default();
        assert!(stored == yaml().unwrap(), "charts/kvasir/templates/crd.yaml is out of date: run `make crds`");
    }

    #[test]
    fn crd_yaml_matches_the_types() {
        let mut read: serde_json::Value = serde_yaml::from_str(&yaml().unwrap()).unwrap();
        let annotations = read["metadata"].as_object_mut().unwrap().remove("annotations").unwrap();
        assert_eq!(annotations, serde_json::json!({ "helm.sh/resource-policy": "keep" }));
        assert_eq!(read, serde_json::to_value(KvCluster::crd()).unwrap());
    }

    #[test]
    fn crd_memory_rules_match_the_constants() {
        let yaml = yaml().unwrap();
        for bytes in [EMPTY_NODE_BYTES, LEAST_MEMORY_LIMIT] {
            let quantity = format!("quantity('{}Mi')", bytes >> 20);
            assert!(bytes.trailing_zeros() >= 20 && yaml.contains(&quantity), "no rule has {quantity}");
        }
    }

    #[test]
    fn crd_contains_no_helm_template() {
        assert!(!yaml().unwrap().contains("{{"));
    }

    #[test]
    fn crd_describes_every_field() {
        fn walk(path: &str, schema: &serde_json::Value, bare: &mut Vec<String>) {
            for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                let path = format!("{path}.{name}");
                if field["description"].as_str().unwrap_or_default().is_empty() {
                    bare.push(path.clone());
                }
                walk(&path, field, bare);
            }
        }
        let crd = serde_json::to_value(KvCluster::crd()).unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let mut bare = Vec::new();
        walk("spec", &schema["properties"]["spec"], &mut bare);
        walk("status", &schema["properties"]["status"], &mut bare);
        assert!(bare.is_empty(), "no description: {bare:?}");
    }

    #[test]
    fn crd_rules_have_messages() {
        fn walk(schema: &serde_json::Value, rules: &mut usize) {
            for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
                assert!(rule["message"].is_string(), "{rule}");
                *rules += 1;
            }
            for field in schema["properties"].as_object().into_iter().flat_map(|fields| fields.values()) {
                walk(field, rules);
            }
        }
        let crd = serde_json::to_value(KvCluster::crd()).unwrap();
        let mut rules = 0;
        walk(&crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], &mut rules);
        assert!(rules >= 8, "only {rules} rules reached the definition");
    }
}
