//! How members find each other: that part of their configuration file, and the Secrets that it names.
//!
//! Fills in the values that the spec leaves out and only the operator knows. Everything else is left to the node's defaults.

use kvasir_crds::{Discovery, DnsDiscovery, KubernetesDiscovery, NatsDiscovery, SecretKey, StaticDiscovery};
use serde_json::{Map, Value, json};

use super::files::{self, Files};
use crate::{
    cluster::ValidatedCluster,
    names::{self, CLIENT, PEER},
};

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
        "discoveryPortName": discovery_port_name.as_deref().unwrap_or(PEER),
        "portName": port_name.as_deref().unwrap_or(CLIENT),
        "podLabels": pod_labels.clone().unwrap_or_else(|| names::selector(&cluster.name)),
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
    let own = || names::peer_domain(&cluster.name, &cluster.namespace);
    without_nulls(json!({
        "domainName": domain_name.clone().unwrap_or_else(own),
        "ipv6": ipv6,
        "port": port,
        "server": server,
    }))
}

/// The node's file must not contain null: a setting without a value is left out.
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

/// The Secrets that the settings name; `None` if they name none.
pub(super) fn files(cluster: &ValidatedCluster) -> Option<Files> {
    let NatsDiscovery { password_secret, token_secret, credentials_secret, ca_secret, .. } =
        cluster.discovery.nats.as_ref()?;
    let given =
        [(password_secret, PASSWORD), (token_secret, TOKEN), (credentials_secret, CREDENTIALS), (ca_secret, CA)];
    let keys = given.into_iter().filter_map(|(key, file)| Some((key.as_ref()?, file)));
    files::projected(SECRETS_VOLUME, SECRETS_PATH, keys)
}

/// The subject contains the UID. Otherwise the members of two `KvCluster`s of one name that share a NATS server would find each
/// other, such as a deleted one and its successor, or two in different Kubernetes clusters.
fn default_subject(cluster: &ValidatedCluster) -> String {
    format!("kvasir.{}.{}.{}", cluster.namespace, cluster.name, cluster.owner.uid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::validate::tests::valid;

    fn settings_of(discovery: &str) -> Value {
        settings(&valid(&format!("{{discovery: {discovery}}}")))
    }

    #[test]
    fn discovery_fills_in_the_operators_values() {
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
    fn discovery_passes_on_what_is_given() {
        let kubernetes = r#"{"namespace":"n","discoveryPortName":"d","portName":"p","podLabels":{"a":"b"}}"#;
        let nats = r#"{"server":["a","b"],"subject":"s","timeout":"1s","maxJoinAttempts":2,"reconnectWait":"3s","discoveryPort":4,"host":"h"}"#;
        let dns = r#"{"domainName":"d","ipv6":true,"port":5,"server":["10.0.0.53:53"]}"#;
        let all =
            format!(r#"{{"kubernetes":{kubernetes},"nats":{nats},"dns":{dns},"static":{{"hosts":["a:1","b:2"]}}}}"#);
        assert_eq!(settings_of(&all), serde_json::from_str::<Value>(&all).unwrap());
    }

    #[test]
    fn discovery_secrets_are_files() {
        let cluster = valid(
            "{discovery: {nats: {server: [a], user: u, passwordSecret: {name: s, key: pw}, caSecret: {name: t, key: tls.crt}}}}",
        );
        let nats = &settings(&cluster)["nats"];
        assert_eq!(nats["user"], "u");
        assert_eq!(nats["passwordFile"], "/etc/kvasir-nats/password");
        assert_eq!(nats["caFile"], "/etc/kvasir-nats/ca.crt");
        assert!(nats.get("password").is_none() && nats.get("tokenFile").is_none());
        let files = files(&cluster).unwrap();
        let sources = files.volume.projected.unwrap().sources.unwrap();
        let found: Vec<_> = sources
            .into_iter()
            .map(|source| {
                let secret = source.secret.unwrap();
                let item = secret.items.unwrap().remove(0);
                (secret.name, item.key, item.path)
            })
            .collect();
        let wanted = [("s", "pw", "password"), ("t", "tls.crt", "ca.crt")];
        assert_eq!(found, wanted.map(|(name, key, path)| (name.to_owned(), key.to_owned(), path.to_owned())));
        assert_eq!(files.mount.mount_path, "/etc/kvasir-nats");
        let without = valid("{discovery: {nats: {server: [a]}}}");
        assert!(super::files(&without).is_none());
    }
}
