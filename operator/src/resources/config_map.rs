//! The configuration file of the members.
//!
//! Holds what is the same for all of them; a member's own name and address reach it by its environment.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kvasir_crds::AccessRule;
use kvasir_formats::duration;
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use super::{ADMIN_PORT, CLIENT_PORT, PEER_PORT, discovery, metadata};
use crate::{access, encryption, tls, validate::ValidatedCluster};

/// Key of the file in the `ConfigMap`.
pub const FILE: &str = "node.yaml";

/// Seconds for which a stopping member hands over its last writes.
const DRAIN_SECONDS: u32 = 20;

/// Builds the `ConfigMap`.
pub fn build(cluster: &ValidatedCluster) -> ConfigMap {
    ConfigMap {
        metadata: metadata(cluster, cluster.name.clone()),
        data: Some(BTreeMap::from([(FILE.to_owned(), file(cluster))])),
        ..ConfigMap::default()
    }
}

/// A hash of all that a change of which has to restart the members.
pub fn hash(cluster: &ValidatedCluster) -> String {
    format!("{:016x}", xxh3_64(lasting(cluster).to_string().as_bytes()))
}

/// What is in the file. Members take a change of `voters` and `access` from it while they run; `serveAlone` matters at a
/// start only, and a change of it that comes with scaling restarts nothing.
fn settings(cluster: &ValidatedCluster) -> Value {
    let mut settings = lasting(cluster);
    settings["voters"] = cluster.replicas.into();
    // Said, though it is the default, so that it also holds for members of an older release. One member alone is all its
    // voters, and waits for nobody.
    if cluster.serve_alone.is_none() && cluster.replicas > 1 {
        settings["serveAlone"] = false.into();
    }
    if let Some(rules) = cluster.access.as_ref().and_then(|access| access.rules.as_ref()) {
        let rule = |AccessRule { subjects, prefix, verbs }: &AccessRule| json!({ "subjects": subjects, "prefix": prefix.as_deref().unwrap_or_default(), "verbs": verbs });
        settings["access"] = rules.iter().map(rule).collect();
    }
    settings
}

/// The settings that are read at a start only. The number of members is none of them: scaling must restart nothing.
fn lasting(cluster: &ValidatedCluster) -> Value {
    let mut settings = json!({
        "role": "member",
        "cluster": format!("{}/{}", cluster.namespace, cluster.name),
        // What remains of an earlier KvCluster of this name must not bring its data along.
        "clusterUid": cluster.owner.uid,
        "clientAddress": format!("0.0.0.0:{CLIENT_PORT}"),
        "peerAddress": format!("0.0.0.0:{PEER_PORT}"),
        "adminAddress": format!("0.0.0.0:{ADMIN_PORT}"),
        "syncInterval": duration::in_seconds(cluster.sync_interval),
        "drainTimeout": format!("{DRAIN_SECONDS}s"),
        "maxMemoryPolicy": cluster.max_memory_policy,
        "evictAfter": duration::in_seconds(cluster.evict_after),
        "logFormat": "json",
        "discovery": discovery::settings(cluster),
    });
    // What is not given is not written, so that an operator that knows of more settings restarts nobody.
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
        settings["encryption"] = json!({ "file": encryption::FILE });
    }
    if cluster.tls.as_ref().is_some_and(|tls| tls.client) {
        settings["tls"] = json!({ "certFile": tls::CERTIFICATE_FILE, "keyFile": tls::KEY_FILE });
    }
    if let Some(access) = &cluster.access {
        settings["auth"] = access::settings(access);
        if access.client_ca_secret.is_some() {
            settings["tls"]["clientCaFile"] = access::CLIENT_CA_FILE.into();
        }
    }
    if cluster.tls.as_ref().is_some_and(|tls| tls.peers) {
        settings["peerTls"] = json!({
            "certFile": tls::CERTIFICATE_FILE,
            "keyFile": tls::KEY_FILE,
            "caFile": tls::AUTHORITIES_FILE,
            "serverName": tls::peer_name(&cluster.name, &cluster.namespace),
        });
    }
    settings
}

/// The settings as YAML. Strings are quoted the way JSON does it, which YAML reads too, so that none is ever taken for a
/// number or a truth value.
fn file(cluster: &ValidatedCluster) -> String {
    let mut text = String::from("# Written by the Kvasir operator; edit the KvCluster instead.\n");
    write(&mut text, 0, &settings(cluster));
    text
}

/// How deep `discovery.kubernetes.podLabels` is.
const LABELS_INDENT: usize = 3;

fn write(text: &mut String, indent: usize, settings: &Value) {
    for (key, value) in settings.as_object().into_iter().flatten() {
        text.push_str(&"  ".repeat(indent));
        // Settings are plain words; a label is whatever somebody made of it.
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
    use crate::validate::tests::valid;

    #[test]
    fn the_file_says_what_the_settings_say() {
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
    fn the_node_reads_the_file() {
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
    fn the_node_reads_who_may_do_what() {
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
        assert!(auth.client_certificates && all.tls.unwrap().client_ca_file == Some(access::CLIENT_CA_FILE.into()));
        let review = auth.token_review.unwrap();
        assert_eq!((review.audiences, review.ttl.as_secs()), (vec!["kvasir".to_owned()], 30));
        let rules = all.access.unwrap();
        assert_eq!((rules.len(), rules[0].prefix.as_str(), rules[1].prefix.as_str()), (2, "it's: [\"", ""));
        assert_eq!(rules[0].subjects, ["token:a", "*"]);
        let known = config("{access: {serviceAccounts: {}}}");
        assert!(known.access.is_none(), "whoever is known may do everything");
        assert_eq!(
            config("{access: {serviceAccounts: {}, rules: []}}").access,
            Some(Vec::new()),
            "nobody may do anything"
        );
        let hash_of = |rules: &str| hash(&valid(&format!("{{access: {{serviceAccounts: {{}}, rules: {rules}}}}}")));
        assert_eq!(hash_of("[]"), hash_of("[{subjects: ['*'], verbs: [read]}]"), "a change of rules restarts nobody");
        assert_ne!(hash_of("[]"), hash(&valid("{}")));
    }

    #[test]
    fn the_hash_changes_with_the_file_and_not_with_the_number_of_members() {
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
        assert_ne!(file_of("{replicas: 3}"), file_of("{replicas: 5}"), "the members must hear of it");
    }
}
