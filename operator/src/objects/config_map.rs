//! The configuration file of the members.
//!
//! It holds what is the same for all members; a member's own name and address are in its environment.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kvasir_crds::{Access, AccessRule, ServiceAccounts};
use kvasir_formats::{defaults, duration};
use serde_json::{Map, Value, json};
use xxhash_rust::xxh3::xxh3_64;

use super::{discovery, metadata::metadata};
use crate::{
    cluster::ValidatedCluster,
    names::{self, ADMIN_PORT, CLIENT_PORT, PEER_PORT},
};

/// Key of the file in the `ConfigMap`.
pub const FILE: &str = "node.yaml";

/// How long a stopping member may hand over its last writes, in seconds.
const DRAIN_SECONDS: u32 = 20;
const DEFAULT_POLICY: &str = "noeviction";

/// Builds the `ConfigMap`.
pub fn build(cluster: &ValidatedCluster) -> ConfigMap {
    ConfigMap {
        metadata: metadata(cluster, cluster.name.clone()),
        data: Some(BTreeMap::from([(FILE.to_owned(), file(cluster))])),
        ..ConfigMap::default()
    }
}

/// A hash of the settings whose change must restart the members.
pub fn hash(cluster: &ValidatedCluster) -> String {
    format!("{:016x}", xxh3_64(lasting(cluster).to_string().as_bytes()))
}

/// All settings of the file. Running members follow changes of `voters` and `access`. `serveAlone` matters only at a start, so
/// no member is restarted when scaling changes it.
fn settings(cluster: &ValidatedCluster) -> Value {
    let mut settings = lasting(cluster);
    settings["voters"] = cluster.replicas.into();
    // Stated although it is the default, so that it also holds for members of an older release. A single member is all its voters
    // and waits for no other.
    if cluster.serve_alone.is_none() && cluster.replicas > 1 {
        settings["serveAlone"] = false.into();
    }
    if let Some(rules) = cluster.access.as_ref().and_then(|access| access.rules.as_ref()) {
        let rule = |AccessRule { subjects, prefix, verbs }: &AccessRule| {
            let prefix = prefix.as_deref().unwrap_or_default();
            json!({ "subjects": subjects, "prefix": prefix, "verbs": verbs })
        };
        settings["access"] = rules.iter().map(rule).collect();
    }
    settings
}

/// The settings that members read only at a start. The number of members is not among them, because scaling must not restart
/// members.
fn lasting(cluster: &ValidatedCluster) -> Value {
    let evict_after = cluster.evict_after.as_ref().map_or(defaults::EVICT_AFTER, |given| given.length);
    let mut settings = json!({
        "role": "member",
        "cluster": format!("{}/{}", cluster.namespace, cluster.name),
                // A node of an earlier KvCluster of this name must not join with its old data.
        "clusterUid": cluster.owner.uid,
        "clientAddress": format!("0.0.0.0:{CLIENT_PORT}"),
        "peerAddress": format!("0.0.0.0:{PEER_PORT}"),
        "adminAddress": format!("0.0.0.0:{ADMIN_PORT}"),
        "syncInterval": duration::in_seconds(cluster.sync_interval.length),
        "drainTimeout": format!("{DRAIN_SECONDS}s"),
        "maxMemoryPolicy": cluster.max_memory_policy.unwrap_or(DEFAULT_POLICY),
        "evictAfter": duration::in_seconds(evict_after),
        "logFormat": "json",
        "discovery": discovery::settings(cluster),
    });
    // Settings that the spec leaves out are not written, so that an operator with more settings restarts no member.
    if let Some(bytes) = cluster.max_memory {
        settings["maxMemory"] = bytes.to_string().into();
    }
    if let Some(timeout) = cluster.join_timeout {
        settings["joinTimeout"] = duration::in_seconds(timeout).into();
    }
    if let Some(serve_alone) = cluster.serve_alone {
        settings["serveAlone"] = serve_alone.into();
    }
    if cluster.encryption.is_some() {
        settings["encryption"] = json!({ "file": names::ENCRYPTION_FILE });
    }
    if cluster.tls.as_ref().is_some_and(|tls| tls.client) {
        settings["tls"] = json!({ "certFile": names::CERTIFICATE_FILE, "keyFile": names::KEY_FILE });
    }
    if let Some(access) = &cluster.access {
        settings["auth"] = auth(access);
        if access.client_ca_secret.is_some() {
            settings["tls"]["clientCaFile"] = names::CLIENT_CA_FILE.into();
        }
    }
    if cluster.tls.as_ref().is_some_and(|tls| tls.peers) {
        settings["peerTls"] = json!({
            "certFile": names::CERTIFICATE_FILE,
            "keyFile": names::KEY_FILE,
            "caFile": names::AUTHORITIES_FILE,
            "serverName": names::peer_domain(&cluster.name, &cluster.namespace),
        });
    }
    settings
}

/// The settings under `auth`.
fn auth(access: &Access) -> Value {
    let Access { tokens_secret, client_ca_secret, service_accounts, rules: _ } = access;
    let mut settings = Map::new();
    let mut add = |name: &str, value: Value| _ = settings.insert(name.to_owned(), value);
    if tokens_secret.is_some() {
        add("tokensFile", json!(names::TOKENS_FILE));
    }
    if client_ca_secret.is_some() {
        add("clientCertificates", json!(true));
    }
    if let Some(ServiceAccounts { audiences, review_ttl }) = service_accounts {
        add("tokenReview", json!(true));
        if let Some(audiences) = audiences {
            add("tokenReviewAudiences", json!(audiences));
        }
        if let Some(ttl) = review_ttl {
            add("tokenReviewTtl", json!(ttl));
        }
    }
    Value::Object(settings)
}

/// The settings as YAML. Strings are quoted as in JSON, which is valid YAML, so that none is read as a number or a boolean.
fn file(cluster: &ValidatedCluster) -> String {
    let mut text = String::from("# Written by the Kvasir operator; edit the KvCluster instead.\n");
    write(&mut text, 0, &settings(cluster));
    text
}

/// Nesting depth of `discovery.kubernetes.podLabels`.
const LABELS_INDENT: usize = 3;

fn write(text: &mut String, indent: usize, settings: &Value) {
    for (key, value) in settings.as_object().into_iter().flatten() {
        text.push_str(&"  ".repeat(indent));
        // Names of settings are plain words; labels may contain anything.
        if indent < LABELS_INDENT {
            text.push_str(key);
        } else {
            text.push_str(&Value::from(key.as_str()).to_string());
        }
        text.push(':');
        if value.as_object().is_some_and(|map| !map.is_empty()) {
            text.push('\n');
            write(text, indent + 1, value);
        } else {
            text.push(' ');
            text.push_str(&value.to_string());
            text.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use kvasir_node::config::EncryptionConfig;

    use super::*;
    use crate::cluster::validate::tests::valid;

    #[test]
    fn config_file_has_all_settings() {
        let cluster =
            valid("{replicas: 5, syncInterval: 500ms, maxMemory: 64Mi, maxMemoryPolicy: ttl-first, evictAfter: 1m}");
        let file = build(&cluster).data.unwrap().remove(FILE).unwrap();
        let read: Value = serde_yaml::from_str(&file).unwrap();
        assert_eq!(read, settings(&cluster));
        assert_eq!(read["syncInterval"], "500ms");
        assert_eq!(read["maxMemory"], "67108864");
        assert_eq!((&read["maxMemoryPolicy"], &read["evictAfter"]), (&json!("ttl-first"), &json!("60s")));
        assert_eq!(read["voters"], 5);
        assert_eq!((&read["cluster"], &read["clusterUid"]), (&"shop/demo".into(), &"u-1".into()));
        assert_eq!(read["discovery"]["kubernetes"]["podLabels"]["kvasir.dev/member-of"], "demo");
        assert_eq!((&read["joinTimeout"], &read["serveAlone"]), (&Value::Null, &false.into()));
        let derived: Value = serde_yaml::from_str(&build(&valid("{}")).data.unwrap()[FILE]).unwrap();
        assert_eq!(derived["maxMemory"], Value::Null, "the node sees what its container may take");
        assert_eq!(read["encryption"], Value::Null);
        let cluster = valid(
            "{joinTimeout: 1500ms, serveAlone: false, discovery: {nats: {server: [a, b]}, dns: {}, kubernetes: {podLabels: {'on': 'off', 'a.b/c': '1'}}}}",
        );
        let file = build(&cluster).data.unwrap().remove(FILE).unwrap();
        let read: Value = serde_yaml::from_str(&file).unwrap();
        assert_eq!(read, settings(&cluster));
        assert_eq!((&read["joinTimeout"], &read["serveAlone"]), (&"1500ms".into(), &false.into()));
    }

    #[test]
    fn config_file_is_read_by_the_node() {
        for spec in [
            "{}",
            "{encryption: {generate: true}, tls: {operator: {}}}",
            "{encryption: {secretRef: {name: s, key: k}}}",
            "{tls: {operator: {}, peers: true}}",
            "{tls: {operator: {}, peers: true, client: false}}",
        ] {
            let cluster = valid(spec);
            let file = build(&cluster).data.unwrap().remove(FILE).unwrap();
            let read: kvasir_node::config::Settings = serde_yaml::from_str(&file).unwrap();
            let config = read.validate().unwrap();
            let keys = cluster.encryption.map(|_| EncryptionConfig::File("/etc/kvasir-encryption/peers.yaml".into()));
            assert_eq!(config.encryption, keys, "{spec}");
            let (client, peers) = cluster.tls.map_or((false, false), |tls| (tls.client, tls.peers));
            assert_eq!((config.tls.is_some(), config.peer_tls.is_some()), (client, peers), "{spec}");
            if let Some(peer) = config.peer_tls {
                assert_eq!(peer.server_name, "demo-peers.shop.svc");
            }
        }
    }

    #[test]
    fn config_file_has_access_rules() {
        let config = |spec: &str| {
            let file = build(&valid(spec)).data.unwrap().remove(FILE).unwrap();
            serde_yaml::from_str::<kvasir_node::config::Settings>(&file).unwrap().validate().unwrap()
        };
        let all = config(
            "{tls: {operator: {}}, access: {tokensSecret: {name: s, key: t}, clientCaSecret: {name: s, key: ca},
              serviceAccounts: {audiences: [kvasir], reviewTtl: 30s},
              rules: [{subjects: ['token:a', '*'], prefix: \"it's: [\\\"\", verbs: [read, watch]}, {subjects: ['cert:b'], verbs: [admin]}]}}",
        );
        let auth = all.auth.unwrap();
        assert_eq!(auth.tokens_file, Some("/etc/kvasir-access/tokens.yaml".into()));
        assert!(auth.client_certificates && all.tls.unwrap().client_ca_file == Some(names::CLIENT_CA_FILE.into()));
        let review = auth.token_review.unwrap();
        assert_eq!((review.audiences, review.ttl.as_secs()), (vec!["kvasir".to_owned()], 30));
        let rules = all.access.unwrap();
        assert_eq!((rules.len(), rules[0].prefix.as_str(), rules[1].prefix.as_str()), (2, "it's: [\"", ""));
        assert_eq!(rules[0].subjects, ["token:a", "*"]);
        let known = config("{access: {serviceAccounts: {}}}");
        assert!(known.access.is_none(), "all authenticated clients may do everything");
        assert_eq!(
            config("{access: {serviceAccounts: {}, rules: []}}").access,
            Some(Vec::new()),
            "no client may do anything"
        );
        let hash_of = |rules: &str| hash(&valid(&format!("{{access: {{serviceAccounts: {{}}, rules: {rules}}}}}")));
        assert_eq!(
            hash_of("[]"),
            hash_of("[{subjects: ['*'], verbs: [read]}]"),
            "a change of rules restarts no member"
        );
        assert_ne!(hash_of("[]"), hash(&valid("{}")));
    }

    #[test]
    fn config_hash_ignores_the_number_of_members() {
        let hash_of = |spec| hash(&valid(spec));
        assert_eq!(hash_of("{replicas: 3}"), hash_of("{replicas: 5}"));
        assert_eq!(hash_of("{syncInterval: 1s}"), hash_of("{syncInterval: 1000ms}"));
        assert_ne!(hash_of("{syncInterval: 1s}"), hash_of("{syncInterval: 2s}"));
        assert_ne!(hash_of("{}"), hash_of("{maxMemory: 64Mi}"));
        assert_eq!(hash_of("{}"), hash_of("{discovery: {kubernetes: {}}}"));
        for other in ["{discovery: {dns: {}}}", "{joinTimeout: 1s}", "{serveAlone: false}"] {
            assert_ne!(hash_of("{}"), hash_of(other), "{other}");
        }
        assert_ne!(hash_of("{}"), hash_of("{maxMemoryPolicy: ttl-first}"));
        assert_ne!(hash_of("{}"), hash_of("{evictAfter: 1m}"));
        let serves_alone = |spec| settings(&valid(spec))["serveAlone"].clone();
        assert_eq!(serves_alone("{replicas: 2}"), false);
        assert_eq!(serves_alone("{replicas: 1}"), Value::Null);
        assert_eq!(serves_alone("{replicas: 3, serveAlone: true}"), true);
        assert_eq!(hash_of("{replicas: 1}"), hash_of("{replicas: 3}"), "scaling restarts nothing");
        let file_of = |spec| build(&valid(spec)).data;
        assert_ne!(file_of("{replicas: 3}"), file_of("{replicas: 5}"), "running members follow the file");
    }
}
