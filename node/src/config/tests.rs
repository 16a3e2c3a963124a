//! From a file and a command line to a validated [`Config`].

use std::path::Path;

use clap::Parser;

use super::validate::checked_name;
use super::*;

fn file(yaml: &str) -> Result<Settings, ConfigError> {
    Settings::from_yaml(Path::new("node.yaml"), yaml)
}

fn flags(words: &[&str]) -> Settings {
    Cli::try_parse_from([&["kvasir-node"], words].concat()).unwrap().settings
}

fn config(yaml: &str) -> Result<Config, ConfigError> {
    flags(&["--name", "n"]).over(file(yaml)?).validate()
}

#[track_caller]
fn refused(yaml: &str, parts: &[&str]) {
    let message = config(yaml).unwrap_err().to_string();
    for part in parts {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

#[test]
fn defaults_are_a_lone_member_on_loopback() {
    let config = config("").unwrap();
    assert_eq!(config.role, Role::Member);
    assert_eq!(config.cluster, "default");
    assert_eq!(config.advertise, IpAddr::from([127, 0, 0, 1]));
    assert_eq!(config.client_address, "127.0.0.1:7070".parse().unwrap());
    assert_eq!(config.peer_address, "127.0.0.1:7071".parse().unwrap());
    assert_eq!(config.admin_address, "127.0.0.1:7072".parse().unwrap());
    assert_eq!(config.sync_interval, Duration::from_secs(1));
    assert_eq!(config.join_timeout, Duration::from_secs(10));
    assert_eq!(config.drain_timeout, Duration::from_secs(10));
    assert!(!config.serve_alone);
    assert_eq!(config.max_memory, None);
    assert_eq!(config.limits.max_key_bytes, 1024);
    assert_eq!(config.limits.max_value_bytes, 1_048_576);
    assert_eq!(config.limits.max_ttl, Duration::from_hours(87_600));
    assert_eq!(config.max_clock_skew, Duration::from_secs(10));
    assert_eq!((config.voters, config.evict_after), (0, Duration::from_mins(5)));
    assert!(!config.evict_ending, "nothing is deleted by default");
    assert_eq!(config.swim, SwimConfig::LAN);
    assert_eq!(config.discovery, DiscoveryConfig::default());
    assert_eq!(config.log, LogConfig { level: "info".to_owned(), format: LogFormat::Text });
}

#[test]
fn file_with_all_settings_is_read() {
    let config = config(
        r#"
name: overridden-by-the-flag
role: sidecar
cluster: ns/demo
advertiseAddress: 10.1.2.3
clientAddress: 127.0.0.1:1
peerAddress: "[::]:2"
adminAddress: 0.0.0.0:3
syncInterval: 1m30s
joinTimeout: 0s
drainTimeout: 5s
maxMemory: 256Mi
maxMemoryPolicy: ttl-first
voters: 3
evictAfter: 90s
swim: {probePeriod: 1s, suspicion: 5s, gossipFanout: 5, transmissions: 20}
maxKeyBytes: 10
maxValueBytes: 20
maxTtl: 1h
maxClockSkew: 500ms
logLevel: info,kvasir_node=debug
logFormat: json
discovery:
  kubernetes:
    podLabels: {kvasir.dev/member-of: demo}
  nats:
    server: nats://10.0.0.9:4222
    user: kvasir
    password: hush
  dns:
    domainName: demo-peers.ns.svc
    ipv6: true
  static:
    hosts: ["a:1", "[fd00::1]:2"]
"#,
    )
    .unwrap();
    assert_eq!(config.name, "n");
    assert_eq!(config.role, Role::Sidecar);
    assert_eq!(config.sync_interval, Duration::from_secs(90));
    assert_eq!(config.max_memory, Some(256 << 20));
    assert!(config.evict_ending);
    assert_eq!((config.voters, config.evict_after), (3, Duration::from_secs(90)));
    assert_eq!((config.swim.probe_period, config.swim.suspicion), (Duration::from_secs(1), Duration::from_secs(5)));
    assert_eq!((config.swim.gossip_fanout.get(), config.swim.transmissions.get()), (5, 20));
    assert_eq!(config.swim.probe_timeout, SwimConfig::LAN.probe_timeout);
    assert!(!config.serve_alone, "by default a sidecar waits for the cluster");
    let kubernetes = config.discovery.kubernetes.unwrap();
    assert_eq!(kubernetes.discovery_port_name, "peer");
    assert_eq!(kubernetes.port_name, "client");
    assert_eq!(kubernetes.pod_labels["kvasir.dev/member-of"], "demo");
    assert_eq!(
        config.discovery.dns.unwrap(),
        DnsConfig { domain_name: "demo-peers.ns.svc".to_owned(), ipv6: true, port: Some(7071), server: Vec::new() }
    );
    let nats = config.discovery.nats.unwrap();
    assert_eq!((nats.server, nats.subject.as_str()), (vec!["nats://10.0.0.9:4222".to_owned()], "kvasir.ns/demo"));
    assert_eq!((nats.timeout, nats.max_join_attempts), (Duration::from_secs(5), 5));
    assert_eq!((nats.reconnect_wait, nats.host, nats.discovery_port), (Duration::from_secs(2), None, None));
    let password = SecretSource::Text("hush".parse().unwrap());
    assert_eq!(nats.login, Some(NatsLogin::User { user: "kvasir".to_owned(), password }));
    let hosts = config.discovery.static_hosts.unwrap().hosts;
    assert_eq!(hosts.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a:1", "[fd00::1]:2"]);
}

#[test]
fn flag_wins_over_the_file_setting_by_setting() {
    let file = file("cluster: file\nsyncInterval: 2s\ndiscovery: {dns: {domainName: file, port: 9}}").unwrap();
    let merged = flags(&["--name", "n", "--cluster", "flag", "--discovery-dns-domain-name", "flag"]).over(file);
    let config = merged.validate().unwrap();
    assert_eq!(config.cluster, "flag");
    assert_eq!(config.sync_interval, Duration::from_secs(2));
    let dns = config.discovery.dns.unwrap();
    assert_eq!((dns.domain_name.as_str(), dns.port), ("flag", Some(9)));
}

#[test]
fn advertise_address_of_any_is_one_of_this_machine() {
    for everywhere in ["0.0.0.0:7071", "'[::]:7071'"] {
        let config = config(&format!("peerAddress: {everywhere}")).unwrap();
        // The address depends on the machine. A socket can bind it, so it is an address of this machine.
        assert!(!config.advertise.is_unspecified());
        std::net::UdpSocket::bind((config.advertise, 0)).unwrap();
    }
    assert_eq!(config("peerAddress: 127.0.0.9:7071").unwrap().advertise, IpAddr::from([127, 0, 0, 9]));
}

#[test]
fn flags_can_set_everything() {
    let config = flags(&[
        "--name=n",
        "--role=sidecar",
        "--serve-alone",
        "--max-memory=1G",
        "--max-memory-policy=noeviction",
        "--voters=5",
        "--evict-after=1m",
        "--swim-suspicion=3s",
        "--discovery-kubernetes-pod-labels=a=b,c=d",
        "--discovery-kubernetes-namespace=ns",
        "--discovery-static-hosts=a:1,b:2",
        "--discovery-nats-server=nats://a:1,tls://b:2",
        "--discovery-nats-subject=demo.peers",
        "--discovery-nats-timeout=1s",
        "--discovery-nats-max-join-attempts=2",
        "--discovery-nats-reconnect-wait=3s",
        "--discovery-nats-host=me",
        "--discovery-nats-discovery-port=4",
        "--discovery-nats-token-file=/t",
        "--discovery-nats-ca-file=/ca",
    ])
    .validate()
    .unwrap();
    assert!(config.serve_alone);
    assert_eq!(config.max_memory, Some(1_000_000_000));
    assert_eq!((config.evict_ending, config.voters, config.evict_after), (false, 5, Duration::from_mins(1)));
    assert_eq!(config.swim, SwimConfig { suspicion: Duration::from_secs(3), ..SwimConfig::LAN });
    let kubernetes = config.discovery.kubernetes.unwrap();
    assert_eq!(kubernetes.namespace.as_deref(), Some("ns"));
    assert_eq!(kubernetes.pod_labels.len(), 2);
    assert_eq!(config.discovery.static_hosts.unwrap().hosts.len(), 2);
    assert_eq!(config.discovery.dns, None);
    assert_eq!(
        config.discovery.nats.unwrap(),
        NatsConfig {
            server: vec!["nats://a:1".to_owned(), "tls://b:2".to_owned()],
            subject: "demo.peers".to_owned(),
            timeout: Duration::from_secs(1),
            max_join_attempts: 2,
            reconnect_wait: Duration::from_secs(3),
            discovery_port: Some(4),
            host: Some("me".to_owned()),
            login: Some(NatsLogin::Token(SecretSource::File("/t".into()))),
            ca_file: Some("/ca".into()),
        }
    );
}

/// Environment variables belong to the process, so the test runs itself again in a process of its own.
#[test]
fn environment_wins_over_file_and_flag_over_both() {
    const INNER: &str = "KVASIR_TEST_INNER";
    if std::env::var_os(INNER).is_some() {
        let file = || file("cluster: file\nrole: member\nserveAlone: true\nmaxTtl: 1h").unwrap();
        let config = flags(&[]).over(file()).validate().unwrap();
        assert_eq!((config.name.as_str(), config.cluster.as_str()), ("env-name", "env"));
        assert_eq!(config.role, Role::Sidecar);
        assert!(!config.serve_alone);
        assert_eq!(config.limits.max_ttl, Duration::from_hours(1));
        assert_eq!(config.discovery.dns.unwrap().domain_name, "env.svc");
        assert_eq!(flags(&["--cluster", "flag"]).over(file()).validate().unwrap().cluster, "flag");
        return;
    }
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "config::tests::environment_wins_over_file_and_flag_over_both"])
        .envs([
            (INNER, "1"),
            ("KVASIR_NAME", "env-name"),
            ("KVASIR_CLUSTER", "env"),
            ("KVASIR_ROLE", "sidecar"),
            ("KVASIR_SERVE_ALONE", "false"),
            ("KVASIR_DISCOVERY_DNS_DOMAIN_NAME", "env.svc"),
        ])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&status.stdout);
    assert!(status.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn file_errors_name_the_path_of_the_setting() {
    refused("syncIntervall: 1s", &["node.yaml: syncIntervall", "did you mean `syncInterval`?"]);
    refused("discovery: {dns: {domianName: x}}", &["discovery.dns.domianName", "did you mean `domainName`?"]);
    refused("colour: red", &["colour", "unknown field"]);
    refused("discovery: {dns: {port: 70000}}", &["discovery.dns.port", "70000"]);
    refused("syncInterval: 1 second", &["syncInterval", "\"1 second\"", "500ms, 1s or 1m30s"]);
    refused("syncInterval: 5", &["syncInterval", "5 lacks a unit"]);
    refused("maxMemory: lots", &["maxMemory", "\"lots\"", "256Mi"]);
    refused("maxMemory: 99999999999Ti", &["maxMemory", "99999999999Ti"]);
    refused("role: king", &["role", "king", "sidecar"]);
    refused("peerAddress: here", &["peerAddress"]);
    refused("discovery: {static: {hosts: [\"a:1\", \"fd00::1:7071\"]}}", &["discovery.static.hosts[1]", "[fd00::1]"]);
    refused("- a\n- b", &["node.yaml"]);
    refused("a: [", &["node.yaml is not valid YAML"]);
}

#[test]
fn invalid_settings_are_named_with_their_range() {
    refused("syncInterval: 1ms", &["syncInterval", "10ms"]);
    refused("maxKeyBytes: 0", &["maxKeyBytes", "65536"]);
    refused("maxValueBytes: 1000000000", &["maxValueBytes"]);
    refused("maxTtl: 0s", &["maxTtl"]);
    refused("voters: 1025", &["voters", "1025", "between 0 and 1024"]);
    refused("voters: -1", &["voters"]);
    refused("evictAfter: 10ms", &["evictAfter", "1s"]);
    refused("maxMemoryPolicy: lru", &["maxMemoryPolicy", "lru", "ttl-first"]);
    refused("swim: {probePeriod: 1ms}", &["swim.probePeriod", "10ms"]);
    refused("swim: {probeTimeout: 150ms}", &["swim.probeTimeout", "at most half of swim.probePeriod"]);
    refused("swim: {suspicion: 100ms}", &["swim.suspicion", "at least swim.probePeriod"]);
    refused("swim: {gossipFanout: 0}", &["swim.gossipFanout", "between 1 and 64"]);
    refused("swim: {transmissions: 256}", &["swim.transmissions", "between 1 and 255"]);
    refused("maxClockSkew: 2h", &["maxClockSkew"]);
    refused("cluster: ''", &["cluster", "empty"]);
    refused("cluster: a b", &["cluster", "no spaces"]);
    refused("clusterUid: a b", &["clusterUid", "no spaces"]);
    refused(&format!("clusterUid: {}", "u".repeat(65)), &["clusterUid", "65 bytes: give at most 64"]);
    refused("advertiseAddress: 0.0.0.0", &["advertiseAddress"]);
    refused("clientAddress: 127.0.0.1:7071", &["clientAddress", "peerAddress"]);
    refused("logLevel: 'kvasir=loud'", &["logLevel", "loud"]);
    refused("discovery: {kubernetes: {}}", &["discovery.kubernetes.podLabels"]);
    refused("discovery: {dns: {}}", &["discovery.dns.domainName"]);
    refused("discovery: {dns: {domainName: x, port: 0}}", &["discovery.dns.port"]);
    refused("discovery: {dns: {domainName: _peer._tcp.x, port: 7071}}", &["discovery.dns.port", "SRV", "leave it out"]);
    refused("discovery: {static: {hosts: []}}", &["discovery.static.hosts"]);
    let many: Vec<_> = (0..300).map(|n| format!("h{n}:1")).collect();
    refused(&format!("discovery: {{static: {{hosts: [{}]}}}}", many.join(",")), &["discovery.static.hosts", "256"]);
    let long = "x".repeat(MAX_NAME_BYTES + 1);
    let message = flags(&["--name", &long]).validate().unwrap_err().to_string();
    assert!(message.starts_with("name: has 64 bytes"), "{message}");
}

#[test]
fn name_defaults_to_the_full_host_name() {
    let by_host = |host: &str| checked_name(None, || Some(host.to_owned()));
    assert_eq!(by_host("db.east.example").unwrap(), "db.east.example");
    assert_ne!(by_host("db.east.example").unwrap(), by_host("db.west.example").unwrap());
    assert_eq!(checked_name(Some("n".to_owned()), || panic!("a name was given")).unwrap(), "n");
    let long = format!("{}.example", "x".repeat(MAX_NAME_BYTES));
    let message = by_host(&long).unwrap_err().to_string();
    let parts = ["name: the host's name", "has 71 bytes", "give a name of at most 63"];
    assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    assert!(checked_name(None, || None).unwrap_err().to_string().contains("name: is empty"));
}

#[test]
fn nats_errors_name_the_setting_and_no_password() {
    let refused = |nats: &str, parts: &[&str]| refused(&format!("discovery: {{nats: {{{nats}}}}}"), parts);
    refused("", &["discovery.nats.server", "nats://10.0.0.1:4222"]);
    refused("server: []", &["discovery.nats.server"]);
    refused("server: 5", &["discovery.nats.server", "one URL"]);
    refused("server: 'http://a:1'", &["discovery.nats.server", "tls://HOST:4222"]);
    refused("server: 'ws://a:1'", &["discovery.nats.server", "nats://HOST:4222"]);
    refused("server: a, subject: 'a..b'", &["discovery.nats.subject", "kvasir.demo"]);
    refused("server: a, subject: 'a.>'", &["discovery.nats.subject"]);
    refused("server: a, timeout: 0s", &["discovery.nats.timeout", "10ms"]);
    refused("server: a, reconnectWait: 1h", &["discovery.nats.reconnectWait"]);
    refused("server: a, discoveryPort: 0", &["discovery.nats.discoveryPort"]);
    refused("server: a, user: u", &["discovery.nats.password", "passwordFile"]);
    refused("server: a, password: p", &["discovery.nats.user"]);
    refused("server: a, token: t, tokenFile: /t", &["discovery.nats.tokenFile"]);
    refused("server: a, token: t, credentialsFile: /c", &["discovery.nats", "one way to log in"]);
    refused("server: a, reconectWait: 1s", &["discovery.nats.reconectWait", "did you mean `reconnectWait`?"]);
    for url in ["nats://me:hush@a:1", "nats://hush@a:1", "//me:hush@a:x"] {
        let message = config(&format!("discovery: {{nats: {{server: '{url}'}}}}")).unwrap_err().to_string();
        assert!(message.contains("discovery.nats.server") && !message.contains("hush"), "{message}");
    }
    let message = flags(&["--name", "n", "--cluster", "a.*"]).over(file("discovery: {nats: {server: a}}").unwrap());
    let message = message.validate().unwrap_err().to_string();
    assert!(message.contains("discovery.nats.subject"), "{message}");
}

#[test]
fn print_config_round_trips_without_secrets() {
    let printed = |config: &Config| {
        let text = config.to_yaml();
        assert_eq!(file(&text).unwrap().validate().unwrap(), *config, "{text}");
        text
    };
    assert!(!printed(&config("").unwrap()).contains("not shown"));
    printed(
        &config(
            "{role: sidecar, cluster: ns/demo, clusterUid: u-1, peerAddress: '[::]:2', adminAddress: '0.0.0.0:3', syncInterval: 1m30s, \
             maxMemory: 256Mi, maxTtl: 1500ms, logFormat: json, discovery: {kubernetes: {podLabels: {a: b}}, \
             dns: {domainName: d, ipv6: true, server: ['10.0.0.53:53']}, static: {hosts: ['a:1', '[fd00::1]:2']}, \
             nats: {server: [a, b], host: h, user: u, passwordFile: /p, caFile: /ca}}, encryption: {file: /keys}, \
             tls: {certFile: /c, keyFile: /k, clientCaFile: /a}, auth: {tokensFile: /t, clientCertificates: true, \
             tokenReview: true, tokenReviewAudiences: [x]}, clientPort: {maxStreams: 9, idleTimeout: 0s}, \
             access: [{subjects: ['token:a'], prefix: p, verbs: [read, admin]}]}",
        )
        .unwrap(),
    );
    printed(&config("peerTls: {certFile: /c, keyFile: /k, caFile: /a, serverName: name}").unwrap());
    let hush = "aHVzaGh1c2hodXNoaHVzaGh1c2hodXNoaHVzaGh1c2g=";
    let inline = config(&format!("encryption: {{cookie: demo-hush, keys: [{hush}]}}")).unwrap();
    let text = inline.to_yaml();
    assert!(text.contains("# encryption.keys is set, but not shown"), "{text}");
    for shown in [text, format!("{inline:?}")] {
        assert!(!shown.contains("hush") && !shown.contains(hush), "{shown}");
    }
    for (nats, path) in
        [("user: u, password: hush", "discovery.nats.password"), ("token: hush", "discovery.nats.token")]
    {
        let config = config(&format!("discovery: {{nats: {{server: a, {nats}}}}}")).unwrap();
        let text = config.to_yaml();
        assert!(text.contains(&format!("# {path} is set, but not shown\n")) && !text.contains("hush"), "{text}");
        assert!(!format!("{config:?}").contains("hush"), "{config:?}");
    }
}

/// The example file as it is, and with all settings that are commented out.
fn documented() -> (String, String) {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/node.yaml")).unwrap();
    // A setting that is commented out follows its # directly; a comment has a space in between.
    let shown = |line: &str| {
        let text = line.trim_start();
        match text.strip_prefix('#') {
            Some(setting) if !setting.is_empty() && !setting.starts_with(' ') => {
                format!("{}{setting}", &line[..line.len() - text.len()])
            }
            _ => line.to_owned(),
        }
    };
    let all = text.lines().map(shown).collect::<Vec<_>>().join("\n");
    (text, all)
}

#[test]
fn example_file_has_the_defaults() {
    let (text, all) = documented();
    assert_eq!(config(&text).unwrap(), config("").unwrap());
    let shown = config(&all).unwrap();
    let none = Config {
        discovery: DiscoveryConfig::default(),
        encryption: None,
        tls: None,
        peer_tls: None,
        auth: None,
        access: None,
        max_memory: None,
        max_memory_from: MaxMemoryFrom::Nothing,
        cluster_uid: String::new(),
        ..shown.clone()
    };
    assert_eq!(none, config("").unwrap());
    assert_eq!(shown.max_memory, Some(crate::memory::share(96 << 20)), "the share of the limit that the comment names");
    let DiscoveryConfig { kubernetes, nats, dns, static_hosts } = shown.discovery;
    let (kubernetes, nats, dns) = (kubernetes.unwrap(), nats.unwrap(), dns.unwrap());
    assert!(!static_hosts.unwrap().hosts.is_empty());
    // Each provider with only its required settings.
    let least = config(&format!(
        "discovery: {{kubernetes: {{podLabels: {{a: b}}}}, nats: {{server: a}}, dns: {{domainName: {}}}}}",
        dns.domain_name
    ));
    let least = least.unwrap().discovery;
    assert_eq!(dns, DnsConfig { server: dns.server.clone(), ..least.dns.unwrap() });
    let (pod_labels, namespace) = (kubernetes.pod_labels.clone(), kubernetes.namespace.clone());
    assert_eq!(kubernetes, KubernetesConfig { namespace, pod_labels, ..least.kubernetes.unwrap() });
    let NatsConfig { server, discovery_port, host, login, ca_file, .. } = nats.clone();
    assert_eq!(nats, NatsConfig { server, discovery_port, host, login, ca_file, ..least.nats.unwrap() });
}

#[test]
fn example_file_has_every_setting() {
    use clap::CommandFactory;
    let (_, all) = documented();
    // Each key with its parents, named like a flag.
    let mut path: Vec<(usize, String)> = Vec::new();
    let mut named = std::collections::BTreeSet::new();
    for line in all.lines() {
        let text = line.trim_start().trim_start_matches("# or: ");
        let Some((key, _)) = text.split_once(':').filter(|(key, _)| key.chars().all(char::is_alphanumeric)) else {
            continue;
        };
        let indent = line.len() - line.trim_start().len();
        path.retain(|(above, _)| *above < indent);
        path.push((indent, key.to_owned()));
        let words: Vec<_> = path.iter().map(|(_, key)| key.as_str()).collect();
        let dashed = words.join("-").chars().fold(String::new(), |mut flag, c| {
            if c.is_uppercase() {
                flag.push('-');
            }
            flag.extend(c.to_lowercase());
            flag
        });
        named.insert(dashed);
    }
    for arg in Cli::command().get_arguments() {
        let flag = arg.get_long().unwrap();
        if !["config", "print-config", "help", "version"].contains(&flag) {
            assert!(named.contains(flag), "examples/node.yaml lacks --{flag}; it has {named:?}");
        }
    }
}

#[test]
fn voters_file_is_watched_unless_a_flag_sets_voters() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("node.yaml");
    std::fs::write(&path, "voters: 3").unwrap();
    let cli = |words: &[&str]| Cli {
        config: Some(path.clone()),
        settings: flags(&[&["--name", "n"], words].concat()),
        ..Cli::default()
    };
    let config = Config::from_cli(cli(&[])).unwrap();
    assert_eq!((config.voters, config.voters_file), (3, Some(path.clone())));
    let config = Config::from_cli(cli(&["--voters=5"])).unwrap();
    assert_eq!((config.voters, config.voters_file), (5, None));
    assert_eq!(
        Config::from_cli(Cli { settings: flags(&["--name", "n"]), ..Cli::default() }).unwrap().voters_file,
        None
    );
}

#[test]
fn file_that_is_missing_is_named() {
    let cli = Cli { config: Some("/nonexistent/node.yaml".into()), ..Cli::default() };
    let message = Config::from_cli(cli).unwrap_err().to_string();
    assert!(message.contains("/nonexistent/node.yaml"), "{message}");
}

#[test]
fn flag_with_a_wrong_value_is_named() {
    for (flag, value) in [("--sync-interval", "1 second"), ("--max-memory", "lots"), ("--discovery-static-hosts", "a")]
    {
        let error = Cli::try_parse_from(["kvasir-node", flag, value]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(flag), "{error}");
    }
}

#[test]
fn help_has_a_default_or_example_and_a_variable() {
    use clap::CommandFactory;
    let command = Cli::command();
    let others = ["help", "version", "print_config"];
    for arg in command.get_arguments().filter(|arg| !others.contains(&arg.get_id().as_str())) {
        let long = arg.get_long().unwrap();
        let env = format!("KVASIR_{}", long.to_uppercase().replace('-', "_"));
        assert_eq!(arg.get_env(), Some(std::ffi::OsStr::new(&env)), "--{long}");
        let help = arg.get_help().unwrap().to_string();
        let says = ["[default: ", "such as ", "whose addresses", "configuration file"];
        assert!(says.iter().any(|it| help.contains(it)), "--{long}: {help}");
    }
}

#[test]
fn encryption_comes_from_settings_or_a_file() {
    let key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    let given = |text: &str| config(&format!("encryption: {text}")).unwrap().encryption.unwrap();
    let ring = Keyring { cookie: b"c".to_vec(), keys: vec![[1; KEY_BYTES]] };
    assert_eq!(given(&format!("{{cookie: c, keys: {key}}}")), EncryptionConfig::Given(ring.clone()));
    assert_eq!(given("{file: /keys}"), EncryptionConfig::File("/keys".into()));
    let flags = flags(&["--name=n", "--encryption-cookie=c", "--encryption-keys", key]).validate().unwrap();
    assert_eq!(flags.encryption, Some(EncryptionConfig::Given(ring)));
    refused("encryption: {file: /keys, cookie: c}", &["encryption.file", "leave the others out"]);
    refused("encryption: {cookie: c}", &["encryption.keys", "at least one"]);
    refused(&format!("encryption: {{keys: [{key}]}}"), &["encryption.cookie"]);
    refused("encryption: {cookie: c, keys: [hush]}", &["encryption.keys: key 0 is not base64 of 32 bytes"]);
    refused("encryption: {cookie: c, keys: {a: b}}", &["write one secret as text, or a list of them"]);
}

#[test]
fn tls_auth_and_access_must_fit_together() {
    let whole = config(
        "{tls: {certFile: /c, keyFile: /k, clientCaFile: /a}, auth: {clientCertificates: true, tokensFile: /t}, \
         access: [{subjects: ['cert:a', '*'], verbs: [read]}]}",
    )
    .unwrap();
    assert!(whole.auth.unwrap().client_certificates);
    let rules = whole.access.unwrap();
    assert_eq!((rules[0].prefix.as_str(), &rules[0].verbs[..]), ("", &[Verb::Read][..]));
    assert_eq!(config("auth: {clientCertificates: false}").unwrap().auth, None, "no way is on");
    let peers = "peerTls: {certFile: /c, keyFile: /k, caFile: /a}";
    assert_eq!(config(peers).unwrap().peer_tls.unwrap().server_name, "kvasir-peer");
    refused(&format!("{peers}\nencryption: {{file: /keys}}"), &["peerTls: encryption is given too", "leave one out"]);
    refused("peerTls: {certFile: /c, keyFile: /k}", &["peerTls.caFile"]);
    refused("peerTls: {certFile: /c, keyFile: /k, caFile: /a, serverName: a b}", &["peerTls.serverName"]);
    refused("tls: {certFile: /c}", &["tls.keyFile"]);
    refused("tls: {keyFile: /c}", &["tls.certFile"]);
    refused("auth: {clientCertificates: true}", &["auth.clientCertificates", "clientCaFile"]);
    refused("auth: {tokenReview: true, tokenReviewTtl: 1h}", &["auth.tokenReviewTtl", "out of range"]);
    refused("access: []", &["access: needs a way", "set auth"]);
    for (rule, why) in [
        ("{subjects: [], verbs: [read]}", "rule 0: subjects"),
        ("{subjects: [app], verbs: [read]}", "\"app\" is not a subject: give token:NAME"),
        ("{subjects: ['*'], verbs: []}", "rule 0: verbs"),
        ("{subjects: ['*'], verbs: [eat]}", "access[0].verbs[0]"),
        ("{subjects: ['*'], verb: [read]}", "did you mean `verbs`?"),
    ] {
        refused(&format!("auth: {{tokensFile: /t}}\naccess: [{rule}]"), &["access", why]);
    }
    refused("clientPort: {maxConnections: 0}", &["clientPort.maxConnections", "between 1 and"]);
    refused("peerPort: {handshakeTimeout: 2m}", &["peerPort.handshakeTimeout", "out of range"]);
}
