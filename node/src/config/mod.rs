//! The node's settings: one path, file < environment < flag, ending in a
//! [`Config`] that is complete and valid. Knows nothing of what the settings
//! are used for, and touches nothing but the file it is pointed at.

mod encryption;
mod memory;
mod nats;
mod ports;
mod print;
mod security;
mod settings;
mod swim;
mod text;
mod validate;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::memory::Limit;

pub use encryption::{EncryptionConfig, KEY_BYTES, Keyring, MAX_COOKIE_BYTES, MAX_KEYS};
pub use kvasir_membership::{MAX_NAME_BYTES, Role};
pub use memory::MaxMemoryFrom;
pub use nats::{NatsConfig, NatsLogin, SecretSource};
pub use ports::{ClientPortConfig, PeerPortConfig};
pub use security::{AccessRule, AuthConfig, MAX_RULES, PeerTlsConfig, TlsConfig, TokenReviewConfig, Verb};
pub use settings::{
    AuthSettings, Cli, ClientPortSettings, Command, DevSettings, DiscoverySettings, DnsSettings, EncryptionSettings,
    KubernetesSettings, NatsSettings, PeerPortSettings, PeerTlsSettings, Settings, StaticSettings, SwimSettings,
    TlsSettings,
};
pub use swim::SwimConfig;
pub use text::{DurationText, HostPort, Labels, Quantity, Secret, Secrets, Servers};

/// The longest cluster name: a namespace, a slash, and the longest object name.
pub const MAX_CLUSTER_BYTES: usize = 320;
/// The longest UID of a cluster. Those of Kubernetes have 36 bytes.
pub const MAX_CLUSTER_UID_BYTES: usize = 64;

/// What is wrong with the settings. Every variant names the setting or the file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read the configuration file {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The file is not YAML.
    #[error("{path} is not valid YAML: {message}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        message: String,
    },
    /// A setting in the file has the wrong type or form, or doesn't exist.
    #[error("{path}: {field}: {message}", path = path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The setting's path, such as `discovery.dns.port`.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// A setting that parses, but can't be used.
    #[error("{field}: {message}")]
    Invalid {
        /// The setting's path, such as `discovery.dns.port`.
        field: &'static str,
        /// What is wrong with it, and what would be right.
        message: String,
    },
}

/// What a full node does with a write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum MaxMemoryPolicy {
    /// Refuses it.
    #[default]
    #[value(name = "noeviction")]
    #[serde(rename = "noeviction")]
    NoEviction,
    /// Deletes values that have a TTL, those that end first going first, on all nodes.
    TtlFirst,
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// How the node logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A level, or a list of `target=level` filters.
    pub level: String,
    /// How a line is written.
    pub format: LogFormat,
}

/// What a client may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest key.
    pub max_key_bytes: usize,
    /// The longest value.
    pub max_value_bytes: usize,
    /// The longest time to live.
    pub max_ttl: Duration,
}

/// Finding peers among the pods of a Kubernetes namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// The namespace; `None` is the pod's own.
    pub namespace: Option<String>,
    /// The name of the container port that peers listen on.
    pub discovery_port_name: String,
    /// The name of the container port that clients use.
    pub port_name: String,
    /// The labels that a peer's pod has.
    pub pod_labels: BTreeMap<String, String>,
}

/// Finding peers as the addresses of one DNS name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsConfig {
    /// The name to ask for.
    pub domain_name: String,
    /// Whether IPv6 addresses are asked for, beside IPv4.
    pub ipv6: bool,
    /// The peer port at every address; `None` where SRV records bring it.
    pub port: Option<u16>,
    /// The servers to ask; none: those of `/etc/resolv.conf`.
    pub server: Vec<SocketAddr>,
}

/// Finding peers in a fixed list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticConfig {
    /// Where peers are; names are resolved again and again.
    pub hosts: Vec<HostPort>,
}

/// How a node finds its peers: any number of ways together, or none for a
/// node that is alone by choice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiscoveryConfig {
    /// Among pods.
    pub kubernetes: Option<KubernetesConfig>,
    /// Over NATS.
    pub nats: Option<NatsConfig>,
    /// By name.
    pub dns: Option<DnsConfig>,
    /// In a list.
    pub static_hosts: Option<StaticConfig>,
}

/// The settings of a node: complete, valid, and final.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The node's name, unique in its cluster.
    pub name: String,
    /// What the node is to its cluster.
    pub role: Role,
    /// The cluster: nodes of different clusters never talk.
    pub cluster: String,
    /// Which of the clusters of that name it is, one after the other or side by side; empty: there is one.
    pub cluster_uid: String,
    /// The address at which peers reach this node.
    pub advertise: IpAddr,
    /// Where the node serves clients.
    pub client_address: SocketAddr,
    /// Where the node serves peers, by TCP and by UDP.
    pub peer_address: SocketAddr,
    /// Where the node serves metrics, health and status.
    pub admin_address: SocketAddr,
    /// How often a node tells its peers what it has, and compares itself with three of them.
    pub sync_interval: Duration,
    /// How long a starting node waits for peers that discovery names and it does not reach.
    pub join_timeout: Duration,
    /// Whether a node that found no ready peer in `join_timeout` becomes ready with an empty map.
    pub serve_alone: bool,
    /// How long a leaving node waits until peers hold its writes.
    pub drain_timeout: Duration,
    /// The memory that entries may take; `None` is no limit.
    pub max_memory: Option<u64>,
    /// What `max_memory` comes from.
    pub max_memory_from: MaxMemoryFrom,
    /// The memory that the process may take, if there is a limit and it was looked for: see [`Config::within`].
    pub memory_limit: Option<Limit>,
    /// Whether values with a TTL make room when the memory is used up.
    pub evict_ending: bool,
    /// How many members the cluster is meant to have; 0: as many as are known.
    pub voters: usize,
    /// The file to look at again for a change of `voters`; `None` if something
    /// that stands above a file gave it.
    pub voters_file: Option<PathBuf>,
    /// How long a node may be out of reach until a majority gives up on it.
    pub evict_after: Duration,
    /// What a client may send.
    pub limits: Limits,
    /// How far ahead a peer's clock may be.
    pub max_clock_skew: Duration,
    /// How the nodes keep track of who lives.
    pub swim: SwimConfig,
    /// How the node finds its peers.
    pub discovery: DiscoveryConfig,
    /// What peers encrypt with; `None`: nothing is encrypted.
    pub encryption: Option<EncryptionConfig>,
    /// TLS on the client port; `None`: without.
    pub tls: Option<TlsConfig>,
    /// Mutual TLS between peers; `None`: without.
    pub peer_tls: Option<PeerTlsConfig>,
    /// How clients show who they are; `None`: nobody is asked.
    pub auth: Option<AuthConfig>,
    /// What they may do; `None`: everything.
    pub access: Option<Vec<AccessRule>>,
    /// The file to look at again for a change of `access`.
    pub access_file: Option<PathBuf>,
    /// What clients may take of the node.
    pub client_port: ClientPortConfig,
    /// What peers may take of the node.
    pub peer_port: PeerPortConfig,
    /// How the node logs.
    pub log: LogConfig,
}

impl Config {
    /// The settings of a parsed command line, on top of the file it names.
    pub fn from_cli(cli: Cli) -> Result<Self, ConfigError> {
        let file = cli.config.as_deref().map(Settings::from_file).transpose()?.unwrap_or_default();
        let voters_file = cli.config.clone().filter(|_| cli.settings.voters.is_none());
        Ok(Self { voters_file, access_file: cli.config, ..cli.settings.over(file).validate()? })
    }
}

#[cfg(test)]
mod tests;
