//! How members are told to find each other: that part of their configuration file, and the Secrets that it names.
//!
//! What the spec leaves out and only the operator knows is filled in here; the rest has the node's own default.

use k8s_openapi::api::core::v1::{
    KeyToPath, ProjectedVolumeSource, SecretProjection, Volume, VolumeMount, VolumeProjection,
};
use kvasir_crds::{Discovery, DnsDiscovery, KubernetesDiscovery, NatsDiscovery, SecretKey, StaticDiscovery};
use serde_json::{Map, Value, json};

use super::headless_service;
use crate::{labels, validate::ValidatedCluster};

const SECRETS_VOLUME: &str = "nats";
const SECRETS_PATH: &str = "/etc/kvasir-nats";

/// The settings under `discovery`.
pub(super) fn settings(cluster: &ValidatedCluster) -> Value {
    let Discovery { kubernetes, nats, dns, fixed } = &cluster.discovery;
    let mut settings = Map::new();
    let mut add = |name: &str, value: Option<Value>| _ = value.map(|value| settings.insert(name.to_owned(), value));
    add("kubernetes", kubernetes.as_ref().map(|given| of_kubernetes(cluster, given)));
    add("nats", nats.as_ref().map(|given| of_nats(cluster, given)));
    add("dns", dns.as_ref().map(|given| of_dns(cluster, given)));
    add("static", fixed.as_ref().map(|StaticDiscovery { hosts }| json!({ "hosts": hosts })));
    Value::Object(settings)
}

fn of_kubernetes(cluster: &ValidatedCluster, given: &KubernetesDiscovery) -> Value {
    let KubernetesDiscovery { namespace, discovery_port_name, port_name, pod_labels } = given;
    json!({
        "namespace": namespace.as_ref().unwrap_or(&cluster.namespace),
        "discoveryPortName": discovery_port_name.as_deref().unwrap_or("peer"),
        "portName": port_name.as_deref().unwrap_or("client"),
        "podLabels": pod_labels.clone().unwrap_or_else(|| labels::selector(&cluster.name)),
    })
}

fn of_nats(cluster: &ValidatedCluster, given: &NatsDiscovery) -> Value {
    let NatsDiscovery {
        server,
        subject,
        timeout,
        max_join_attempts,
        reconnect_wait,
        discovery_port,
        host,
        user,
        password_secret,
        token_secret,
        credentials_secret,
        ca_secret,
    } = given;
    let file = |secret: &Option<SecretKey>, name: &str| secret.as_ref().map(|_| format!("{SECRETS_PATH}/{name}"));
    without_nulls(json!({
        "server": server,
        "subject": subject.clone().unwrap_or_else(|| default_subject(cluster)),
        "timeout": timeout,
        "maxJoinAttempts": max_join_attempts,
        "reconnectWait": reconnect_wait,
        "discoveryPort": discovery_port,
        "host": host,
        "user": user,
        "passwordFile": file(password_secret, PASSWORD),
        "tokenFile": file(token_secret, TOKEN),
        "credentialsFile": file(credentials_secret, CREDENTIALS),
        "caFile": file(ca_secret, CA),
    }))
}

fn of_dns(cluster: &ValidatedCluster, given: &DnsDiscovery) -> Value {
    let DnsDiscovery { domain_name, ipv6, port, server } = given;
    let own = || format!("{}.{}.svc", headless_service::name(&cluster.name), cluster.namespace);
    without_nulls(json!({
        "domainName": domain_name.clone().unwrap_or_else(own),
        "ipv6": ipv6,
        "port": port,
        "server": server,
    }))
}

/// The node's file takes a setting that is left out for its default, and a null for a mistake.
fn without_nulls(mut settings: Value) -> Value {
    if let Value::Object(settings) = &mut settings {
        settings.retain(|_, value| !value.is_null());
    }
    settings
}

const PASSWORD: &str = "password";
const TOKEN: &str = "token";
const CREDENTIALS: &str = "credentials";
const CA: &str = "ca.crt";

/// The Secrets that the settings name, as one volume; nothing if they name none.
pub(super) fn secrets(cluster: &ValidatedCluster) -> Option<Volume> {
    let NatsDiscovery { password_secret, token_secret, credentials_secret, ca_secret, .. } =
        cluster.discovery.nats.as_ref()?;
    let given =
        [(password_secret, PASSWORD), (token_secret, TOKEN), (credentials_secret, CREDENTIALS), (ca_secret, CA)];
    let sources: Vec<_> = given.into_iter().filter_map(|(key, file)| Some(projection(key.as_ref()?, file))).collect();
    (!sources.is_empty()).then(|| Volume {
        name: SECRETS_VOLUME.to_owned(),
        projected: Some(ProjectedVolumeSource { sources: Some(sources), ..ProjectedVolumeSource::default() }),
        ..Volume::default()
    })
}

fn projection(SecretKey { name, key }: &SecretKey, file: &str) -> VolumeProjection {
    let item = KeyToPath { key: key.clone(), path: file.to_owned(), mode: None };
    VolumeProjection {
        secret: Some(SecretProjection { name: name.clone(), items: Some(vec![item]), optional: None }),
        ..VolumeProjection::default()
    }
}

/// Where that volume is, if there is one.
pub(super) fn secrets_mount(cluster: &ValidatedCluster) -> Option<VolumeMount> {
    secrets(cluster).map(|volume| VolumeMount {
        name: volume.name,
        mount_path: SECRETS_PATH.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    })
}

/// With the UID, so that the members of two `KvCluster`s of one name that share a server do not look for each other: one that
/// was deleted and one made after it, or two in different Kubernetes.
fn default_subject(cluster: &ValidatedCluster) -> String {
    format!("kvasir.{}.{}.{}", cluster.namespace, cluster.name, cluster.owner.uid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::tests::valid;

    fn settings_of(discovery: &str) -> Value {
        settings(&valid(&format!("{{discovery: {discovery}}}")))
    }

    #[test]
    fn what_only_the_operator_knows_is_filled_in() {
        assert_eq!(
            settings_of("{kubernetes: {}, nats: {server: ['nats://nats:4222']}, dns: {}, static: {hosts: ['a:1']}}"),
            json!({
                "kubernetes": {
                    "namespace": "shop",
                    "discoveryPortName": "peer",
                    "portName": "client",
                    "podLabels": { "kvasir.dev/member-of": "demo" },
                },
                "nats": { "server": ["nats://nats:4222"], "subject": "kvasir.shop.demo.u-1" },
                "dns": { "domainName": "demo-peers.shop.svc" },
                "static": { "hosts": ["a:1"] },
            })
        );
    }

    #[test]
    fn what_is_given_is_passed_on_under_the_same_names() {
        let kubernetes = r#"{"namespace":"n","discoveryPortName":"d","portName":"p","podLabels":{"a":"b"}}"#;
        let nats = r#"{"server":["a","b"],"subject":"s","timeout":"1s","maxJoinAttempts":2,"reconnectWait":"3s","discoveryPort":4,"host":"h"}"#;
        let dns = r#"{"domainName":"d","ipv6":true,"port":5,"server":["10.0.0.53:53"]}"#;
        let all =
            format!(r#"{{"kubernetes":{kubernetes},"nats":{nats},"dns":{dns},"static":{{"hosts":["a:1","b:2"]}}}}"#);
        assert_eq!(settings_of(&all), serde_json::from_str::<Value>(&all).unwrap());
    }

    #[test]
    fn secrets_are_mounted_and_named_as_files() {
        let cluster = valid(
            "{discovery: {nats: {server: [a], user: u, passwordSecret: {name: s, key: pw}, caSecret: {name: t, key: tls.crt}}}}",
        );
        let nats = &settings(&cluster)["nats"];
        assert_eq!(nats["user"], "u");
        assert_eq!(nats["passwordFile"], "/etc/kvasir-nats/password");
        assert_eq!(nats["caFile"], "/etc/kvasir-nats/ca.crt");
        assert!(nats.get("password").is_none() && nats.get("tokenFile").is_none());
        let sources = secrets(&cluster).unwrap().projected.unwrap().sources.unwrap();
        let files: Vec<_> = sources
            .into_iter()
            .map(|source| {
                let secret = source.secret.unwrap();
                let item = secret.items.unwrap().remove(0);
                (secret.name, item.key, item.path)
            })
            .collect();
        let wanted = [("s", "pw", "password"), ("t", "tls.crt", "ca.crt")];
        assert_eq!(files, wanted.map(|(name, key, path)| (name.to_owned(), key.to_owned(), path.to_owned())));
        assert_eq!(secrets_mount(&cluster).unwrap().mount_path, "/etc/kvasir-nats");
        let without = valid("{discovery: {nats: {server: [a]}}}");
        assert!(secrets(&without).is_none() && secrets_mount(&without).is_none());
    }
}
