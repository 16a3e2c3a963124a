//! The examples for nodes without Kubernetes, each run as far as this machine allows.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output};

use kvasir_testing::authority::Authority;

use crate::dns_server::{DnsServer, Zone};
use crate::harness::{Node, command, meshed};
use crate::mounted::Mounted;
use crate::nats_server::NatsServer;

fn example(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples")).join(path)
}

fn text(path: &str) -> String {
    std::fs::read_to_string(example(path)).unwrap()
}

/// The settings in force, as the node prints them; it must accept the whole file.
fn printed(command: &mut Command) -> serde_json::Value {
    let Output { status, stdout, stderr } = command.arg("--print-config").output().unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    serde_yaml::from_str(&String::from_utf8(stdout).unwrap()).unwrap()
}

/// `--print-config` merges file, environment and flags.
#[test]
fn settings_in_force_are_printed_without_secrets() {
    let mut command = command();
    command
        .args(["--config", example("node.yaml").to_str().unwrap(), "--sync-interval", "2s"])
        .env("KVASIR_CLUSTER", "of-the-environment")
        .env("KVASIR_DISCOVERY_NATS_SERVER", "nats://10.0.0.9:4222")
        .env("KVASIR_DISCOVERY_NATS_TOKEN", "hush");
    let Output { stdout, .. } = command.arg("--print-config").output().unwrap();
    let text = String::from_utf8(stdout).unwrap();
    assert!(text.contains("# discovery.nats.token is set, but not shown") && !text.contains("hush"), "{text}");
    let config: serde_json::Value = serde_yaml::from_str(&text).unwrap();
    assert_eq!(config["cluster"], "of-the-environment");
    assert_eq!((&config["syncInterval"], &config["joinTimeout"]), (&"2s".into(), &"10s".into()));
    assert_eq!(config["discovery"]["nats"]["reconnectWait"], "2s");
    // The help does not show it either.
    let Output { stdout, .. } = command.arg("--help").output().unwrap();
    let text = String::from_utf8(stdout).unwrap();
    assert!(text.contains("KVASIR_DISCOVERY_NATS_TOKEN") && !text.contains("hush"), "{text}");
}

#[test]
fn the_compose_file_s_environment_is_accepted() {
    let file: serde_json::Value = serde_yaml::from_str(&text("compose/compose.yaml")).unwrap();
    let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&file), ["name", "services"]);
    let (name, service) = file["services"].as_object().unwrap().iter().next().unwrap();
    let known = ["deploy", "environment", "image", "ports", "read_only", "restart", "stop_grace_period"];
    let mut given = keys(service);
    given.sort();
    assert_eq!(given, known);
    assert_eq!(service["image"], concat!("kvasir.dev/kvasir:", env!("CARGO_PKG_VERSION")));
    let limits = serde_json::json!({ "limits": { "memory": "512M" } });
    assert_eq!(service["deploy"], serde_json::json!({ "replicas": 3, "resources": limits }));
    // Compose accepts only text as the value of a variable.
    let environment: BTreeMap<String, String> = serde_json::from_value(service["environment"].clone()).unwrap();
    let config = printed(command().envs(&environment));
    for variable in environment.keys() {
        let help = String::from_utf8(command().arg("--help").output().unwrap().stdout).unwrap();
        assert!(help.contains(&format!("[env: {variable}=")), "{variable} is no setting");
    }
    assert_eq!(&config["discovery"]["dns"]["domainName"], name, "the service's name is where its containers are");
    assert_ne!(config["advertiseAddress"], "0.0.0.0");
}

#[test]
fn the_systemd_unit_starts_what_there_is() {
    let unit = text("systemd/kvasir-node.service");
    let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap();
    let words: Vec<_> = value("ExecStart").split(' ').collect();
    assert_eq!(words[..2], ["/usr/local/bin/kvasir-node", "--config"]);
    let config = printed(command().arg("--config").arg(example("node.yaml")).args(&words[3..]));
    let drain: u64 = config["drainTimeout"].as_str().unwrap().trim_end_matches('s').parse().unwrap();
    assert!(value("TimeoutStopSec").parse::<u64>().unwrap() > drain);
    // The exit code for invalid settings.
    assert_eq!(value("RestartPreventExitStatus"), "2");
    let sections: Vec<_> = unit.lines().filter(|line| line.starts_with('[')).collect();
    assert_eq!(sections, ["[Unit]", "[Service]", "[Install]"]);
    let settings = unit.lines().filter(|line| !line.is_empty() && !line.starts_with(['#', '[']));
    for line in settings {
        assert!(line.split_once('=').is_some_and(|(key, _)| key.chars().all(char::is_alphanumeric)), "{line}");
    }
}

/// Three nodes by one of the examples, on loopback addresses instead of the example's.
async fn runs(path: &str, flags: &[(&'static str, String)]) {
    let mut nodes: Vec<_> = (0..3).map(|n| Node::new(&format!("node-{n}"))).collect();
    nodes = nodes
        .into_iter()
        .map(|node| {
            let node = node.with("config", example(path).to_str().unwrap());
            flags.iter().fold(node, |node, (flag, value)| node.with(flag, value.clone()))
        })
        .collect();
    started(nodes).await;
}

async fn started(mut nodes: Vec<Node>) -> Vec<Node> {
    nodes.iter_mut().for_each(Node::start);
    for node in &mut nodes {
        node.ready().await;
    }
    meshed(&nodes).await;
    nodes
}

#[tokio::test]
async fn the_static_example_runs() {
    let nodes: Vec<_> = (0..3).map(|n| Node::new(&format!("node-{n}"))).collect();
    let hosts = nodes.iter().map(|node| node.peer.to_string()).collect::<Vec<_>>().join(",");
    let with = |node: Node| {
        node.with("config", example("nodes/static.yaml").to_str().unwrap()).with("discovery-static-hosts", &*hosts)
    };
    started(nodes.into_iter().map(with).collect()).await;
}

#[tokio::test]
async fn the_secure_example_runs() {
    let ca = Authority::new("ca");
    let issued = ca.issue("node", &["127.0.0.1"], 2098);
    let files = Mounted::new(&[
        ("peers.yaml", "cookie: demo\nkeys: [AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=]\n"),
        ("tokens.yaml", "app: app-token-0123456789\n"),
        ("tls.crt", &issued.certificate),
        ("tls.key", &issued.key),
        ("ca.crt", &ca.pem),
        ("token", "app-token-0123456789\n"),
    ]);
    let config = files.path("node.yaml");
    std::fs::write(&config, text("nodes/secure.yaml").replace("/run/secrets/kvasir", &files.text(""))).unwrap();
    let nodes: Vec<_> = (0..3).map(|n| Node::new(&format!("node-{n}"))).collect();
    let hosts = nodes.iter().map(|node| node.peer.to_string()).collect::<Vec<_>>().join(",");
    let with = |node: Node| node.with("config", config.to_str().unwrap()).with("discovery-static-hosts", hosts.clone());
    let nodes = started(nodes.into_iter().map(with).collect()).await;
    let credentials = crate::tls::trusting(&files).token_file(files.path("token"));
    let client = crate::tls::client(&nodes[0], credentials);
    client.put("app/k", "v", kvasir_client::PutOptions::default()).await.unwrap();
    client.get("other/k").await.unwrap_err();
}

#[tokio::test]
async fn the_nats_example_runs() {
    let server = NatsServer::started(&["--user", "kvasir", "--pass", "hush"]);
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    std::fs::write(&password, "hush\n").unwrap();
    let password = password.to_str().unwrap().to_owned();
    let flags = [("discovery-nats-server", server.url()), ("discovery-nats-password-file", password)];
    runs("nodes/nats.yaml", &flags).await;
}

#[tokio::test]
async fn the_dns_example_runs() {
    let server = DnsServer::start().await;
    let nodes: Vec<_> = (0..3).map(|n| Node::new(&format!("node-{n}"))).collect();
    let name = |node: &Node| format!("{}.node.consul.", node.name);
    server.set(Zone {
        addresses: nodes.iter().map(|node| (name(node), vec![node.peer.ip()])).collect(),
        services: [(
            "_kvasir._tcp.service.consul.".to_owned(),
            nodes.iter().map(|node| (name(node), node.peer.port())).collect(),
        )]
        .into(),
    });
    let with = |node: Node| {
        node.with("config", example("nodes/dns.yaml").to_str().unwrap())
            .with("discovery-dns-server", server.address.to_string())
    };
    started(nodes.into_iter().map(with).collect()).await;
}

/// Needs pods to discover; the e2e tests run it.
#[test]
fn the_kubernetes_example_is_taken() {
    let config = printed(command().arg("--config").arg(example("nodes/kubernetes.yaml")));
    assert_eq!(config["discovery"]["kubernetes"]["podLabels"]["app"], "my-kvasir");
}
