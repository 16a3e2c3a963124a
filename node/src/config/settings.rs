//! The settings as people give them, each of them optional: the flags, their
//! environment variables, the file's keys, and how the three are laid over
//! each other.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use clap::{ArgAction, Args, Parser, Subcommand};
use serde::{Deserialize, Serialize};

use super::{
    AccessRule, ConfigError, DurationText, HostPort, Labels, LogFormat, MaxMemoryPolicy, Quantity, Role, Secret,
    Secrets, Servers,
};

/// A node of a Kvasir cluster: a full replica of the cluster's keys, served over gRPC.
///
/// Settings are read from the file, then the environment, then the flags; the later one wins.
#[derive(Debug, Default, Parser)]
#[command(name = "kvasir-node", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// The configuration file (YAML; its keys are the flags' names in camelCase)
    #[arg(long, env = "KVASIR_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the settings that are in force, without secrets, in the form of the configuration file; then end
    #[arg(long)]
    pub print_config: bool,
    /// Everything else.
    #[command(flatten)]
    pub settings: Settings,
    /// What to do instead of running one node.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What `kvasir-node` can do besides running one node.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a cluster in this one process, on loopback, for trying and for the tests of applications. It ends with
    /// Ctrl-C, and keeps nothing
    Dev(DevSettings),
}

/// The settings of a cluster for trying.
#[derive(Clone, Debug, Args)]
pub struct DevSettings {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub nodes: u16,
    /// The first node's client port; its peer and admin ports are the next two, and each further node's are 10 higher.
    /// 0: any that are free
    #[arg(long, default_value_t = kvasir_formats::defaults::CLIENT_PORT, value_name = "PORT")]
    pub port: u16,
    /// What to log: error, warn, info, debug, trace, or a list such as `info,kvasir_node=debug`
    #[arg(long, default_value = "error", value_name = "FILTER")]
    pub log_level: String,
}

/// Defines a struct of optional settings, and how one is laid over another.
/// The list of fields is written once, so that no setting can be forgotten in
/// the merge.
macro_rules! settings {
    (
        $(#[$struct_meta:meta])* $name:ident { $($(#[$meta:meta])* $field:ident: $type:ty,)* }
        $(and { $($(#[$group_meta:meta])* $group:ident: $group_type:ty,)* })?
    ) => {
        $(#[$struct_meta])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, Args, Deserialize, Serialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
        pub struct $name {
            $($(#[$meta])* #[serde(skip_serializing_if = "Option::is_none")] pub $field: Option<$type>,)*
            $($($(#[$group_meta])* pub $group: $group_type,)*)?
        }

        impl $name {
            /// These settings, and where they say nothing, those of `below`.
            #[must_use]
            pub fn over(self, below: Self) -> Self {
                Self {
                    $($field: Layer::over(self.$field, below.$field),)*
                    $($($group: self.$group.over(below.$group),)*)?
                }
            }
        }
    };
}

/// What happens to one setting that two sources may give.
trait Layer: Sized {
    fn over(above: Option<Self>, below: Option<Self>) -> Option<Self>;
}

macro_rules! whole {
    ($($type:ty),*) => {$(
        impl Layer for $type {
            fn over(above: Option<Self>, below: Option<Self>) -> Option<Self> { above.or(below) }
        }
    )*};
}
whole!(String, bool, u16, u32, usize, IpAddr, SocketAddr, PathBuf, Role, MaxMemoryPolicy, LogFormat);
whole!(DurationText, Quantity, Labels, Secret, Secrets, Servers, Vec<HostPort>, Vec<SocketAddr>, Vec<AccessRule>);

macro_rules! by_field {
    ($($type:ty),*) => {$(
        impl Layer for $type {
            fn over(above: Option<Self>, below: Option<Self>) -> Option<Self> {
                match (above, below) {
                    (Some(above), Some(below)) => Some(above.over(below)),
                    (above, below) => above.or(below),
                }
            }
        }
    )*};
}
by_field!(KubernetesSettings, NatsSettings, DnsSettings, StaticSettings, EncryptionSettings);
by_field!(TlsSettings, PeerTlsSettings, AuthSettings);

settings! {
    /// The settings of a node, each where it was given.
    Settings {
        /// The node's name, unique in its cluster [default: the host's whole name]
        #[arg(long, env = "KVASIR_NAME")]
        name: String,
        /// What the node is to its cluster [default: member]
        #[arg(long, env = "KVASIR_ROLE", value_enum)]
        role: Role,
        /// The cluster that the node belongs to; nodes of different clusters never talk [default: default]
        #[arg(long, env = "KVASIR_CLUSTER")]
        cluster: String,
        /// Which of the clusters of that name: nodes with different ones never talk, nor do nodes with one and without. On Kubernetes the UID of the `KvCluster`, so that what remains of a deleted one does not join a later one [default: none]
        #[arg(long, env = "KVASIR_CLUSTER_UID", value_name = "UID")]
        cluster_uid: String,
        /// The IP address at which peers reach this node [default: that of --peer-address; where that is 0.0.0.0 or [::], the one from which this machine reaches others]
        #[arg(long, env = "KVASIR_ADVERTISE_ADDRESS", value_name = "IP")]
        advertise_address: IpAddr,
        /// Where to serve clients (gRPC) [default: 127.0.0.1:7070]
        #[arg(long, env = "KVASIR_CLIENT_ADDRESS", value_name = "IP:PORT")]
        client_address: SocketAddr,
        /// Where to serve peers (TCP and UDP) [default: 127.0.0.1:7071]
        #[arg(long, env = "KVASIR_PEER_ADDRESS", value_name = "IP:PORT")]
        peer_address: SocketAddr,
        /// Where to serve metrics, health and status (HTTP) [default: 127.0.0.1:7072]
        #[arg(long, env = "KVASIR_ADMIN_ADDRESS", value_name = "IP:PORT")]
        admin_address: SocketAddr,
        /// How often the node tells its peers what it has, and compares itself with three of them, such as 500ms [default: 1s]
        #[arg(long, env = "KVASIR_SYNC_INTERVAL", value_name = "DURATION")]
        sync_interval: DurationText,
        /// How long a starting node waits for peers that discovery names and it does not reach [default: 10s]
        #[arg(long, env = "KVASIR_JOIN_TIMEOUT", value_name = "DURATION")]
        join_timeout: DurationText,
        /// Whether a node that found no ready peer in --join-timeout becomes ready with an empty map, though others may hold one [default: false]
        #[arg(long, env = "KVASIR_SERVE_ALONE", action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
        serve_alone: bool,
        /// How long a leaving node waits until peers hold its writes [default: 10s]
        #[arg(long, env = "KVASIR_DRAIN_TIMEOUT", value_name = "DURATION")]
        drain_timeout: DurationText,
        /// The memory that entries may take, in bytes, such as 256Mi; 0 is no limit [default: what fits into the memory limit of the process; without one, no limit]
        #[arg(long, env = "KVASIR_MAX_MEMORY", value_name = "BYTES")]
        max_memory: Quantity,
        /// What a full node does with a write [default: noeviction]
        #[arg(long, env = "KVASIR_MAX_MEMORY_POLICY", value_enum)]
        max_memory_policy: MaxMemoryPolicy,
        /// How many members the cluster is meant to have: only a majority of them founds it, gives up on a node and forgets deletes; 0 is as many as are known [default: 0]
        #[arg(long, env = "KVASIR_VOTERS", value_name = "NUMBER")]
        voters: usize,
        /// How long a node may be out of reach until a majority of the members gives up on it [default: 5m]
        #[arg(long, env = "KVASIR_EVICT_AFTER", value_name = "DURATION")]
        evict_after: DurationText,
        /// The longest key, in bytes [default: 1024]
        #[arg(long, env = "KVASIR_MAX_KEY_BYTES", value_name = "BYTES")]
        max_key_bytes: usize,
        /// The longest value, in bytes [default: 1048576]
        #[arg(long, env = "KVASIR_MAX_VALUE_BYTES", value_name = "BYTES")]
        max_value_bytes: usize,
        /// The longest time to live that a client may give a key [default: 87600h]
        #[arg(long, env = "KVASIR_MAX_TTL", value_name = "DURATION")]
        max_ttl: DurationText,
        /// How far ahead a peer's clock may be before the peer is refused [default: 10s]
        #[arg(long, env = "KVASIR_MAX_CLOCK_SKEW", value_name = "DURATION")]
        max_clock_skew: DurationText,
        /// What to log: error, warn, info, debug, trace, or a list such as `info,kvasir_node=debug` [default: info]
        #[arg(long, env = "KVASIR_LOG_LEVEL", value_name = "FILTER")]
        log_level: String,
        /// How to write a log line [default: text]
        #[arg(long, env = "KVASIR_LOG_FORMAT", value_enum)]
        log_format: LogFormat,
        /// What peers encrypt with.
        #[command(flatten)]
        encryption: EncryptionSettings,
        /// TLS on the client port.
        #[command(flatten)]
        tls: TlsSettings,
        /// Mutual TLS between peers.
        #[command(flatten)]
        peer_tls: PeerTlsSettings,
        /// How clients show who they are.
        #[command(flatten)]
        auth: AuthSettings,
        /// Who may do what; in the file only.
        #[arg(skip)]
        access: Vec<AccessRule>,
    } and {
        /// What clients may take of the node.
        #[command(flatten)]
        client_port: ClientPortSettings,
        /// What peers may take of the node.
        #[command(flatten)]
        peer_port: PeerPortSettings,
        /// How the node finds its peers; several ways may be given together.
        #[command(flatten)]
        discovery: DiscoverySettings,
        /// How the nodes keep track of who lives.
        #[command(flatten)]
        swim: SwimSettings,
    }
}

settings! {
    /// How the node finds its peers.
    DiscoverySettings {
        /// Among the pods of a namespace.
        #[command(flatten)]
        kubernetes: KubernetesSettings,
        /// Over a NATS subject.
        #[command(flatten)]
        nats: NatsSettings,
        /// As the addresses of a name.
        #[command(flatten)]
        dns: DnsSettings,
        /// In a list.
        #[command(flatten)]
        #[serde(rename = "static")]
        static_hosts: StaticSettings,
    }
}

settings! {
    /// What peers encrypt with, links and datagrams: a cookie and keys, the same on all nodes.
    EncryptionSettings {
        /// Binds what is encrypted to these nodes, beside the key; a file is safer, such as --encryption-file
        #[arg(long = "encryption-cookie", env = "KVASIR_ENCRYPTION_COOKIE", hide_env_values = true)]
        cookie: Secret,
        /// The keys, each base64 of 32 bytes; all open, the first one seals; a file is safer, such as --encryption-file
        #[arg(long = "encryption-keys", env = "KVASIR_ENCRYPTION_KEYS", hide_env_values = true, value_name = "KEY,...")]
        keys: Secrets,
        /// A YAML file with cookie and keys, such as /run/secrets/peers.yaml; read again when it changes
        #[arg(id = "encryption_file", long = "encryption-file", env = "KVASIR_ENCRYPTION_FILE", value_name = "FILE")]
        file: PathBuf,
    }
}

settings! {
    /// TLS on the client port.
    TlsSettings {
        /// The node's certificate and those it was made with (PEM), such as /run/secrets/tls/tls.crt; this and the other files are read again when they change
        #[arg(id = "tls_cert_file", long = "tls-cert-file", env = "KVASIR_TLS_CERT_FILE", value_name = "FILE")]
        cert_file: PathBuf,
        /// The certificate's key (PEM), such as /run/secrets/tls/tls.key
        #[arg(id = "tls_key_file", long = "tls-key-file", env = "KVASIR_TLS_KEY_FILE", value_name = "FILE")]
        key_file: PathBuf,
        /// The authorities of clients' certificates (PEM), such as /run/secrets/tls/ca.crt; without auth every client must have one
        #[arg(long = "tls-client-ca-file", env = "KVASIR_TLS_CLIENT_CA_FILE", value_name = "FILE")]
        client_ca_file: PathBuf,
    }
}

settings! {
    /// Mutual TLS between peers, on links. The membership's datagrams (UDP) are not covered: those only `encryption`
    /// protects, which cannot be given too.
    PeerTlsSettings {
        /// The node's certificate towards peers and those it was made with (PEM), such as /run/secrets/peer/tls.crt; this and the other files are read again when they change
        #[arg(id = "peer_tls_cert_file", long = "peer-tls-cert-file", env = "KVASIR_PEER_TLS_CERT_FILE", value_name = "FILE")]
        cert_file: PathBuf,
        /// The certificate's key (PEM), such as /run/secrets/peer/tls.key
        #[arg(id = "peer_tls_key_file", long = "peer-tls-key-file", env = "KVASIR_PEER_TLS_KEY_FILE", value_name = "FILE")]
        key_file: PathBuf,
        /// The authorities of peers' certificates (PEM), such as /run/secrets/peer/ca.crt
        #[arg(id = "peer_tls_ca_file", long = "peer-tls-ca-file", env = "KVASIR_PEER_TLS_CA_FILE", value_name = "FILE")]
        ca_file: PathBuf,
        /// The DNS name that every peer's certificate has among its alternative names [default: kvasir-peer]
        #[arg(long = "peer-tls-server-name", env = "KVASIR_PEER_TLS_SERVER_NAME", value_name = "NAME")]
        server_name: String,
    }
}

settings! {
    /// How clients show who they are; without any of these nobody is asked.
    AuthSettings {
        /// By a bearer token of this file, a YAML map of names to tokens, such as /run/secrets/tokens.yaml; read again when it changes
        #[arg(long = "auth-tokens-file", env = "KVASIR_AUTH_TOKENS_FILE", value_name = "FILE")]
        tokens_file: PathBuf,
        /// By a certificate of an authority of --tls-client-ca-file [default: false]
        #[arg(long = "auth-client-certificates", env = "KVASIR_AUTH_CLIENT_CERTIFICATES", action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
        client_certificates: bool,
        /// By the token of a service account of Kubernetes, which the API server is asked about [default: false]
        #[arg(long = "auth-token-review", env = "KVASIR_AUTH_TOKEN_REVIEW", action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
        token_review: bool,
        /// Whom such a token must be meant for, one of them [default: the API server]
        #[arg(long = "auth-token-review-audiences", env = "KVASIR_AUTH_TOKEN_REVIEW_AUDIENCES", value_name = "NAME,...")]
        token_review_audiences: Servers,
        /// How long the API server's answer is good for [default: 1m]
        #[arg(long = "auth-token-review-ttl", env = "KVASIR_AUTH_TOKEN_REVIEW_TTL", value_name = "DURATION")]
        token_review_ttl: DurationText,
    }
}

settings! {
    /// What clients may take of the node.
    ClientPortSettings {
        /// How many connections may be open; more are refused [default: 4096]
        #[arg(id = "client_max_connections", long = "client-port-max-connections", env = "KVASIR_CLIENT_PORT_MAX_CONNECTIONS", value_name = "NUMBER")]
        max_connections: usize,
        /// How many of them from one address [default: 1024]
        #[arg(id = "client_max_connections_per_address", long = "client-port-max-connections-per-address", env = "KVASIR_CLIENT_PORT_MAX_CONNECTIONS_PER_ADDRESS", value_name = "NUMBER")]
        max_connections_per_address: usize,
        /// How many calls one connection may have open; more wait [default: 256]
        #[arg(long = "client-port-max-streams", env = "KVASIR_CLIENT_PORT_MAX_STREAMS", value_name = "NUMBER")]
        max_streams: usize,
        /// How large the headers of a call may be [default: 16384]
        #[arg(long = "client-port-max-header-bytes", env = "KVASIR_CLIENT_PORT_MAX_HEADER_BYTES", value_name = "BYTES")]
        max_header_bytes: usize,
        /// How long a connection may take until it speaks HTTP/2, TLS included [default: 10s]
        #[arg(id = "client_handshake_timeout", long = "client-port-handshake-timeout", env = "KVASIR_CLIENT_PORT_HANDSHAKE_TIMEOUT", value_name = "DURATION")]
        handshake_timeout: DurationText,
        /// How long a connection may have no call before it is closed; 0s is for ever [default: 1h]
        #[arg(long = "client-port-idle-timeout", env = "KVASIR_CLIENT_PORT_IDLE_TIMEOUT", value_name = "DURATION")]
        idle_timeout: DurationText,
        /// How long a connection may be silent before it is asked whether it lives [default: 20s]
        #[arg(long = "client-port-keepalive-interval", env = "KVASIR_CLIENT_PORT_KEEPALIVE_INTERVAL", value_name = "DURATION")]
        keepalive_interval: DurationText,
        /// How long it may take to answer that [default: 10s]
        #[arg(long = "client-port-keepalive-timeout", env = "KVASIR_CLIENT_PORT_KEEPALIVE_TIMEOUT", value_name = "DURATION")]
        keepalive_timeout: DurationText,
    }
}

settings! {
    /// What peers may take of the node.
    PeerPortSettings {
        /// How many connections that others opened may be open; more are refused [default: 1024]
        #[arg(id = "peer_max_connections", long = "peer-port-max-connections", env = "KVASIR_PEER_PORT_MAX_CONNECTIONS", value_name = "NUMBER")]
        max_connections: usize,
        /// How many of them from one address [default: 256]
        #[arg(id = "peer_max_connections_per_address", long = "peer-port-max-connections-per-address", env = "KVASIR_PEER_PORT_MAX_CONNECTIONS_PER_ADDRESS", value_name = "NUMBER")]
        max_connections_per_address: usize,
        /// How many of them may be in the handshake; more wait [default: 64]
        #[arg(long = "peer-port-max-handshakes", env = "KVASIR_PEER_PORT_MAX_HANDSHAKES", value_name = "NUMBER")]
        max_handshakes: usize,
        /// How long a handshake may take [default: 5s]
        #[arg(id = "peer_handshake_timeout", long = "peer-port-handshake-timeout", env = "KVASIR_PEER_PORT_HANDSHAKE_TIMEOUT", value_name = "DURATION")]
        handshake_timeout: DurationText,
    }
}

settings! {
    /// How the nodes keep track of who lives: the membership protocol.
    SwimSettings {
        /// How often the node probes one member; with one or two others every 7/3 of it, with three 7/5 [default: 200ms]
        #[arg(long = "swim-probe-period", env = "KVASIR_SWIM_PROBE_PERIOD", value_name = "DURATION")]
        probe_period: DurationText,
        /// How long it waits for the answer before it asks others to probe [default: 80ms]
        #[arg(long = "swim-probe-timeout", env = "KVASIR_SWIM_PROBE_TIMEOUT", value_name = "DURATION")]
        probe_timeout: DurationText,
        /// How long a member that did not answer may take to say that it lives [default: 1200ms]
        #[arg(long = "swim-suspicion", env = "KVASIR_SWIM_SUSPICION", value_name = "DURATION")]
        suspicion: DurationText,
        /// How often news of members go out, while there are any [default: 100ms]
        #[arg(long = "swim-gossip-period", env = "KVASIR_SWIM_GOSSIP_PERIOD", value_name = "DURATION")]
        gossip_period: DurationText,
        /// How often a member is asked for all members it knows [default: 10s]
        #[arg(long = "swim-exchange-period", env = "KVASIR_SWIM_EXCHANGE_PERIOD", value_name = "DURATION")]
        exchange_period: DurationText,
        /// How often some of those who failed are tried again [default: 5s]
        #[arg(long = "swim-retry-period", env = "KVASIR_SWIM_RETRY_PERIOD", value_name = "DURATION")]
        retry_period: DurationText,
        /// How often addresses that no member has are tried [default: 2s]
        #[arg(long = "swim-announce-period", env = "KVASIR_SWIM_ANNOUNCE_PERIOD", value_name = "DURATION")]
        announce_period: DurationText,
        /// How long the dead are remembered, so that old news cannot revive them [default: 1h]
        #[arg(long = "swim-forget-after", env = "KVASIR_SWIM_FORGET_AFTER", value_name = "DURATION")]
        forget_after: DurationText,
        /// How many members are asked to probe one that did not answer [default: 3]
        #[arg(long = "swim-indirect-probes", env = "KVASIR_SWIM_INDIRECT_PROBES", value_name = "NUMBER")]
        indirect_probes: usize,
        /// How many members a round of gossip goes to [default: 3]
        #[arg(long = "swim-gossip-fanout", env = "KVASIR_SWIM_GOSSIP_FANOUT", value_name = "NUMBER")]
        gossip_fanout: usize,
        /// How many times one node passes on a piece of news [default: 10]
        #[arg(long = "swim-transmissions", env = "KVASIR_SWIM_TRANSMISSIONS", value_name = "NUMBER")]
        transmissions: usize,
    }
}

settings! {
    /// Finding peers among pods.
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
        /// The labels of the peers' pods, such as kvasir.dev/member-of=demo; at least one
        #[arg(long = "discovery-kubernetes-pod-labels", env = "KVASIR_DISCOVERY_KUBERNETES_POD_LABELS", value_name = "KEY=VALUE,...")]
        pod_labels: Labels,
    }
}

settings! {
    /// Finding peers over NATS.
    NatsSettings {
        /// The NATS servers, such as `nats://10.0.0.1:4222` or `tls://nats.example:4222`; the first that answers is used
        #[arg(id = "nats_server", long = "discovery-nats-server", env = "KVASIR_DISCOVERY_NATS_SERVER", value_name = "URL,...")]
        server: Servers,
        /// The subject on which the cluster's nodes meet, and no others [default: kvasir.CLUSTER]
        #[arg(long = "discovery-nats-subject", env = "KVASIR_DISCOVERY_NATS_SUBJECT")]
        subject: String,
        /// How long to wait for a server's answer [default: 5s]
        #[arg(long = "discovery-nats-timeout", env = "KVASIR_DISCOVERY_NATS_TIMEOUT", value_name = "DURATION")]
        timeout: DurationText,
        /// How often to try to connect at the pace of reconnectWait; after that the wait doubles each time, up to 30s [default: 5]
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
        /// The authorities that a tls:// server's certificate may come from, such as /etc/kvasir/nats-ca.crt [default: the system's]
        #[arg(long = "discovery-nats-ca-file", env = "KVASIR_DISCOVERY_NATS_CA_FILE", value_name = "FILE")]
        ca_file: PathBuf,
    }
}

settings! {
    /// Finding peers by name.
    DnsSettings {
        /// The name whose addresses are the peers', or of SRV records that name them, such as _peer._tcp.demo-peers.default.svc; without a final dot the search list applies
        #[arg(long = "discovery-dns-domain-name", env = "KVASIR_DISCOVERY_DNS_DOMAIN_NAME", value_name = "NAME")]
        domain_name: String,
        /// Whether to ask for IPv6 addresses too [default: false]
        #[arg(long = "discovery-dns-ipv6", env = "KVASIR_DISCOVERY_DNS_IPV6", action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
        ipv6: bool,
        /// The peer port at every address; SRV records bring their own [default: 7071]
        #[arg(long = "discovery-dns-port", env = "KVASIR_DISCOVERY_DNS_PORT")]
        port: u16,
        /// The DNS servers to ask, such as 10.0.0.53:53 [default: those of /etc/resolv.conf]
        #[arg(id = "dns_server", long = "discovery-dns-server", env = "KVASIR_DISCOVERY_DNS_SERVER", value_delimiter = ',', value_name = "IP:PORT,...")]
        server: Vec<SocketAddr>,
    }
}

settings! {
    /// Finding peers in a list.
    StaticSettings {
        /// The peers, such as `a:7071,10.0.0.1:7071,[fd00::1]:7071`; names are resolved again every 5s
        #[arg(long = "discovery-static-hosts", env = "KVASIR_DISCOVERY_STATIC_HOSTS", value_delimiter = ',', value_name = "HOST:PORT,...")]
        hosts: Vec<HostPort>,
    }
}

impl Settings {
    /// Reads a file of settings.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::from_yaml(path, &text)
    }

    /// Parses the text of a file of settings; `path` is for the error.
    pub fn from_yaml(path: &Path, text: &str) -> Result<Self, ConfigError> {
        // Two steps, so that what is wrong with a setting is told by its path
        // and not by the parser's position.
        let tree: serde_json::Value = serde_yaml::from_str(text)
            .map_err(|error| ConfigError::Syntax { path: path.to_owned(), message: error.to_string() })?;
        if tree.is_null() {
            return Ok(Self::default());
        }
        serde_path_to_error::deserialize(tree).map_err(|error| {
            let message = error.inner().to_string();
            let message = match nearest_name(&message) {
                Some(nearest) => format!("{message}; did you mean `{nearest}`?"),
                None => message,
            };
            let field = match error.path().to_string() {
                root if root == "." => "the file".to_owned(),
                field => field,
            };
            ConfigError::Field { path: path.to_owned(), field, message }
        })
    }
}

/// In serde's message on an unknown field, the known name that is nearest to it.
fn nearest_name(message: &str) -> Option<&str> {
    let mut quoted = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    let unknown = quoted.next()?;
    quoted
        .map(|known| (strsim::damerau_levenshtein(&unknown.to_lowercase(), &known.to_lowercase()), known))
        .filter(|(distance, known)| *distance <= known.len().div_ceil(3))
        .min()
        .map(|(_, known)| known)
}
