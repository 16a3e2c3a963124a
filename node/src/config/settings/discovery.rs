//! Settings of discovery.

use std::{net::SocketAddr, path::PathBuf};

use clap::ArgAction;

use super::layers::{by_field, settings};
use crate::config::{DurationText, HostPort, Labels, Secret, Servers};

by_field!(KubernetesSettings, NatsSettings, DnsSettings, StaticSettings);

settings! {
    /// How the node finds its peers.
    DiscoverySettings {
        /// The pods of a namespace.
        #[command(flatten)]
        kubernetes: KubernetesSettings,
        /// A NATS subject.
        #[command(flatten)]
        nats: NatsSettings,
        /// A DNS name.
        #[command(flatten)]
        dns: DnsSettings,
        /// A fixed list.
        #[command(flatten)]
        #[serde(rename = "static")]
        static_hosts: StaticSettings,
    }
}

settings! {
    /// Discovery by Kubernetes pods.
    KubernetesSettings {
        /// The namespace of the peers' pods [default: the pod's own]
        #[arg(long = "discovery-kubernetes-namespace", env = "KVASIR_DISCOVERY_KUBERNETES_NAMESPACE")]
        namespace: String,
        /// The name of the container port that peers listen on [default: peer]
        #[arg(long = "discovery-kubernetes-discovery-port-name", env = "KVASIR_DISCOVERY_KUBERNETES_DISCOVERY_PORT_NAME", value_name = "NAME")]
        discovery_port_name: String,
        /// The name of the container port that clients use [default: client]
        #[arg(long = "discovery-kubernetes-port-name", env = "KVASIR_DISCOVERY_KUBERNETES_PORT_NAME", value_name = "NAME")]
        port_name: String,
        /// The labels of the peers' pods, such as kvasir.dev/member-of=demo; at least one label
        #[arg(long = "discovery-kubernetes-pod-labels", env = "KVASIR_DISCOVERY_KUBERNETES_POD_LABELS", value_name = "KEY=VALUE,...")]
        pod_labels: Labels,
    }
}

settings! {
    /// Discovery over NATS.
    NatsSettings {
        /// The NATS servers, such as `nats://10.0.0.1:4222` or `tls://nats.example:4222`; the node uses the first that answers
        #[arg(id = "nats_server", long = "discovery-nats-server", env = "KVASIR_DISCOVERY_NATS_SERVER", value_name = "URL,...")]
        server: Servers,
        /// The subject on which the nodes announce themselves; no other cluster may use it [default: kvasir.CLUSTER]
        #[arg(long = "discovery-nats-subject", env = "KVASIR_DISCOVERY_NATS_SUBJECT")]
        subject: String,
        /// How long to wait for a server's answer [default: 5s]
        #[arg(long = "discovery-nats-timeout", env = "KVASIR_DISCOVERY_NATS_TIMEOUT", value_name = "DURATION")]
        timeout: DurationText,
        /// The number of attempts to connect after which the wait between them begins to double, up to 5s [default: 5]
        #[arg(long = "discovery-nats-max-join-attempts", env = "KVASIR_DISCOVERY_NATS_MAX_JOIN_ATTEMPTS", value_name = "COUNT")]
        max_join_attempts: u32,
        /// How long to wait between two attempts to connect [default: 2s]
        #[arg(long = "discovery-nats-reconnect-wait", env = "KVASIR_DISCOVERY_NATS_RECONNECT_WAIT", value_name = "DURATION")]
        reconnect_wait: DurationText,
        /// The port to announce [default: that of --peer-address]
        #[arg(long = "discovery-nats-discovery-port", env = "KVASIR_DISCOVERY_NATS_DISCOVERY_PORT", value_name = "PORT")]
        discovery_port: u16,
        /// The name or IP address to announce; a name is resolved before each announcement [default: --advertise-address]
        #[arg(long = "discovery-nats-host", env = "KVASIR_DISCOVERY_NATS_HOST")]
        host: String,
        /// The user to log in as, such as kvasir; with --discovery-nats-password
        #[arg(long = "discovery-nats-user", env = "KVASIR_DISCOVERY_NATS_USER")]
        user: String,
        /// The user's password; a file is safer, such as --discovery-nats-password-file
        #[arg(long = "discovery-nats-password", env = "KVASIR_DISCOVERY_NATS_PASSWORD", hide_env_values = true)]
        password: Secret,
        /// A file with the user's password, such as /run/secrets/nats-password; read again for each connection
        #[arg(long = "discovery-nats-password-file", env = "KVASIR_DISCOVERY_NATS_PASSWORD_FILE", value_name = "FILE")]
        password_file: PathBuf,
        /// The token to log in with; a file is safer, such as --discovery-nats-token-file
        #[arg(long = "discovery-nats-token", env = "KVASIR_DISCOVERY_NATS_TOKEN", hide_env_values = true)]
        token: Secret,
        /// A file with the token, such as /run/secrets/nats-token; read again for each connection
        #[arg(long = "discovery-nats-token-file", env = "KVASIR_DISCOVERY_NATS_TOKEN_FILE", value_name = "FILE")]
        token_file: PathBuf,
        /// A NATS credentials file (JWT and seed), such as /run/secrets/kvasir.creds; read again for each connection
        #[arg(long = "discovery-nats-credentials-file", env = "KVASIR_DISCOVERY_NATS_CREDENTIALS_FILE", value_name = "FILE")]
        credentials_file: PathBuf,
        /// The CA certificates for tls:// servers (PEM), such as /etc/kvasir/nats-ca.crt [default: the system's]
        #[arg(long = "discovery-nats-ca-file", env = "KVASIR_DISCOVERY_NATS_CA_FILE", value_name = "FILE")]
        ca_file: PathBuf,
    }
}

settings! {
    /// Discovery by DNS.
    DnsSettings {
        /// The name that resolves to the peers' addresses, or the name of SRV records, such as _peer._tcp.demo-peers.default.svc; without a final dot the search list applies
        #[arg(long = "discovery-dns-domain-name", env = "KVASIR_DISCOVERY_DNS_DOMAIN_NAME", value_name = "NAME")]
        domain_name: String,
        /// Whether to resolve IPv6 addresses as well [default: false]
        #[arg(long = "discovery-dns-ipv6", env = "KVASIR_DISCOVERY_DNS_IPV6", action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
        ipv6: bool,
        /// The peer port at every address; SRV records contain the port [default: 7071]
        #[arg(long = "discovery-dns-port", env = "KVASIR_DISCOVERY_DNS_PORT")]
        port: u16,
        /// The DNS servers to query, such as 10.0.0.53:53 [default: those of /etc/resolv.conf]
        #[arg(id = "dns_server", long = "discovery-dns-server", env = "KVASIR_DISCOVERY_DNS_SERVER", value_delimiter = ',', value_name = "IP:PORT,...")]
        server: Vec<SocketAddr>,
    }
}

settings! {
    /// Discovery from a list.
    StaticSettings {
        /// The peers, such as `a:7071,10.0.0.1:7071,[fd00::1]:7071`; names are resolved every 5s
        #[arg(long = "discovery-static-hosts", env = "KVASIR_DISCOVERY_STATIC_HOSTS", value_delimiter = ',', value_name = "HOST:PORT,...")]
        hosts: Vec<HostPort>,
    }
}
