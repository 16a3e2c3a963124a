//! The node's settings: file < environment < flag, validated into a [`Config`]. Knows nothing of what the settings are used
//! for, and reads no file but the configuration file.

mod access;
mod checks;
mod discovery;
mod encryption;
mod error;
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
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::memory::Limit;

pub use access::{AccessRule, MAX_RULES, Verb};
pub use discovery::{DiscoveryConfig, DnsConfig, KubernetesConfig, StaticConfig};
pub use encryption::{EncryptionConfig, KEY_BYTES, Keyring, MAX_COOKIE_BYTES, MAX_KEYS};
pub use error::ConfigError;
pub use kvasir_membership::{MAX_NAME_BYTES, Role};
pub use memory::MaxMemoryFrom;
pub use nats::{NatsConfig, NatsLogin, SecretSource};
pub use ports::{ClientPortConfig, PeerPortConfig};
pub use security::{AuthConfig, PeerTlsConfig, TlsConfig, TokenReviewConfig};
pub use settings::{
    AuthSettings, Cli, ClientPortSettings, Command, DevSettings, DiscoverySettings, DnsSettings, EncryptionSettings,
    KubernetesSettings, NatsSettings, PeerPortSettings, PeerTlsSettings, Settings, StaticSettings, SwimSettings,
    TlsSettings,
};
pub use swim::SwimConfig;
pub use text::{DurationText, HostPort, Labels, Quantity, Secret, Secrets, Servers};

/// The longest cluster name: a namespace, a slash, and the longest object name.
pub const MAX_CLUSTER_BYTES: usize = 320;
/// The longest UID of a cluster. UIDs of Kubernetes have 36 bytes.
pub const MAX_CLUSTER_UID_BYTES: usize = 64;

/// What a full node does with a write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum MaxMemoryPolicy {
    /// Refuse it.
    #[default]
    #[value(name = "noeviction")]
    #[serde(rename = "noeviction")]
    NoEviction,
    /// Delete values with a TTL, those that end first going first, on all nodes.
    TtlFirst,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Readable text.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// How the node logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A level, or a list of `target=level` filters.
    pub level: String,
    /// The format of lines.
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

/// The settings of a node, complete and valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The node's name, unique in its cluster.
    pub name: String,
    /// The node's part in its cluster.
    pub role: Role,
    /// The name of the cluster; nodes of different clusters never talk.
    pub cluster: String,
    /// Tells clusters of one name apart; may be empty.
    pub cluster_uid: String,
    /// The address at which peers reach this node.
    pub advertise: IpAddr,
    /// Where the node serves clients.
    pub client_address: SocketAddr,
    /// Where the node serves peers, by TCP and by UDP.
    pub peer_address: SocketAddr,
    /// Where the node serves metrics, health and status.
    pub admin_address: SocketAddr,
    /// How often the node sends heartbeats, and compares its map with three peers.
    pub sync_interval: Duration,
    /// How long a starting node waits for peers that discovery finds but the node cannot reach.
    pub join_timeout: Duration,
    /// Whether a node that finds no ready peer within `join_timeout` becomes ready with an empty map.
    pub serve_alone: bool,
    /// How long a leaving node waits for peers to hold its writes.
    pub drain_timeout: Duration,
    /// The memory that entries may take; `None` means no limit.
    pub max_memory: Option<u64>,
    /// What `max_memory` comes from.
    pub max_memory_from: MaxMemoryFrom,
    /// The memory limit of the process, if it has one and [`Config::within`] was called.
    pub memory_limit: Option<Limit>,
    /// Whether values with a TTL are deleted to make room.
    pub evict_ending: bool,
    /// How many members the cluster is meant to have; 0 means as many as are known.
    pub voters: usize,
    /// The file to watch for changes of `voters`; `None` if a flag or the environment sets it.
    pub voters_file: Option<PathBuf>,
    /// How long a node may be unreachable for a majority until they evict it.
    pub evict_after: Duration,
    /// What a client may send.
    pub limits: Limits,
    /// How far a peer's clock may be ahead.
    pub max_clock_skew: Duration,
    /// The membership protocol.
    pub swim: SwimConfig,
    /// How the node finds its peers.
    pub discovery: DiscoveryConfig,
    /// Encryption between peers.
    pub encryption: Option<EncryptionConfig>,
    /// TLS on the client port.
    pub tls: Option<TlsConfig>,
    /// Mutual TLS between peers.
    pub peer_tls: Option<PeerTlsConfig>,
    /// How clients authenticate; `None`: they need not.
    pub auth: Option<AuthConfig>,
    /// What clients may do; `None` means everything.
    pub access: Option<Vec<AccessRule>>,
    /// The file to watch for changes of `access`.
    pub access_file: Option<PathBuf>,
    /// Limits of the client port.
    pub client_port: ClientPortConfig,
    /// Limits of the peer port.
    pub peer_port: PeerPortConfig,
    /// How the node logs.
    pub log: LogConfig,
}

impl Config {
    /// Combines a parsed command line with the file that it names.
    pub fn from_cli(cli: Cli) -> Result<Self, ConfigError> {
        let file = cli.config.as_deref().map(Settings::from_file).transpose()?.unwrap_or_default();
        let voters_file = cli.config.clone().filter(|_| cli.settings.voters.is_none());
        Ok(Self { voters_file, access_file: cli.config, ..cli.settings.over(file).validate()? })
    }
}

#[cfg(test)]
mod tests;
