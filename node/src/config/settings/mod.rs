//! The settings as users give them, each of them optional: flags, environment variables, and keys of the file.

mod discovery;
mod file;
mod layers;
mod ports;
mod security;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::{ArgAction, Args, Parser, Subcommand};

use self::layers::settings;
pub use self::{
    discovery::{DiscoverySettings, DnsSettings, KubernetesSettings, NatsSettings, StaticSettings},
    ports::{ClientPortSettings, PeerPortSettings, SwimSettings},
    security::{AuthSettings, EncryptionSettings, PeerTlsSettings, TlsSettings},
};
use super::{AccessRule, DurationText, LogFormat, MaxMemoryPolicy, Quantity, Role};

/// A node of a Kvasir cluster: a full replica of the cluster's keys, served over gRPC.
///
/// Settings are read from the file, then the environment, then the flags; the later one wins.
#[derive(Debug, Default, Parser)]
#[command(name = "kvasir-node", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// The configuration file (YAML; its keys are the flags' names in camelCase)
    #[arg(long, env = "KVASIR_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the settings in force as a configuration file, without secrets, and exit
    #[arg(long)]
    pub print_config: bool,
    /// The settings.
    #[command(flatten)]
    pub settings: Settings,
    /// A subcommand; without one, run a node.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a cluster in this process, on loopback, to try Kvasir and to test applications. Ctrl-C ends it, and its data
    /// are gone
    Dev(DevSettings),
}

/// The settings of a development cluster.
#[derive(Clone, Debug, Args)]
pub struct DevSettings {
    /// Number of nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub nodes: u16,
    /// The first node's client port. Its peer and admin ports are the next two, and the ports of each further node are 10
    /// higher. With 0, any free ports
    #[arg(long, default_value_t = kvasir_formats::defaults::CLIENT_PORT, value_name = "PORT")]
    pub port: u16,
    /// What to log: error, warn, info, debug, trace, or a list such as `info,kvasir_node=debug`
    #[arg(long, default_value = "error", value_name = "FILTER")]
    pub log_level: String,
}

settings! {
    /// The settings of a node that one source gives.
    Settings {
        /// The node's name, unique in its cluster [default: the full host name]
        #[arg(long, env = "KVASIR_NAME")]
        name: String,
        /// The node's part in its cluster [default: member]
        #[arg(long, env = "KVASIR_ROLE", value_enum)]
        role: Role,
        /// The name of the node's cluster; nodes of different clusters never talk [default: default]
        #[arg(long, env = "KVASIR_CLUSTER")]
        cluster: String,
        /// Tells clusters of one name apart: nodes with different UIDs never talk, nor does a node with a UID to one without. On Kubernetes it is the UID of the `KvCluster`, so that what remains of a deleted cluster does not join a later one [default: none]
        #[arg(long, env = "KVASIR_CLUSTER_UID", value_name = "UID")]
        cluster_uid: String,
        /// The IP address at which peers reach this node [default: that of --peer-address; if that is 0.0.0.0 or [::], the source address of the machine's default route]
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
        /// How often the node sends heartbeats to its peers and compares its map with three of them, such as 500ms [default: 1s]
        #[arg(long, env = "KVASIR_SYNC_INTERVAL", value_name = "DURATION")]
        sync_interval: DurationText,
        /// How long a starting node waits for peers that discovery finds but the node cannot reach [default: 10s]
        #[arg(long, env = "KVASIR_JOIN_TIMEOUT", value_name = "DURATION")]
        join_timeout: DurationText,
        /// Whether a node that finds no ready peer within --join-timeout becomes ready with an empty map, although other nodes may hold one [default: false]
        #[arg(long, env = "KVASIR_SERVE_ALONE", action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
        serve_alone: bool,
        /// How long a leaving node waits for peers to hold its writes [default: 10s]
        #[arg(long, env = "KVASIR_DRAIN_TIMEOUT", value_name = "DURATION")]
        drain_timeout: DurationText,
        /// The memory that entries may take, in bytes, such as 256Mi; 0 means no limit [default: what fits into the memory limit of the process; without one, no limit]
        #[arg(long, env = "KVASIR_MAX_MEMORY", value_name = "BYTES")]
        max_memory: Quantity,
        /// What a full node does with a write [default: noeviction]
        #[arg(long, env = "KVASIR_MAX_MEMORY_POLICY", value_enum)]
        max_memory_policy: MaxMemoryPolicy,
        /// How many members the cluster is meant to have: it takes a majority of them to found the cluster, to evict a node and to collect deletes; 0 means as many as are known [default: 0]
        #[arg(long, env = "KVASIR_VOTERS", value_name = "NUMBER")]
        voters: usize,
        /// How long a node may be unreachable for a majority of the members until they evict it [default: 5m]
        #[arg(long, env = "KVASIR_EVICT_AFTER", value_name = "DURATION")]
        evict_after: DurationText,
        /// The longest key, in bytes [default: 1024]
        #[arg(long, env = "KVASIR_MAX_KEY_BYTES", value_name = "BYTES")]
        max_key_bytes: usize,
        /// The longest value, in bytes [default: 1048576]
        #[arg(long, env = "KVASIR_MAX_VALUE_BYTES", value_name = "BYTES")]
        max_value_bytes: usize,
        /// The longest time to live that a client may set [default: 87600h]
        #[arg(long, env = "KVASIR_MAX_TTL", value_name = "DURATION")]
        max_ttl: DurationText,
        /// How far a peer's clock may be ahead before the peer is refused [default: 10s]
        #[arg(long, env = "KVASIR_MAX_CLOCK_SKEW", value_name = "DURATION")]
        max_clock_skew: DurationText,
        /// What to log: error, warn, info, debug, trace, or a list such as `info,kvasir_node=debug` [default: info]
        #[arg(long, env = "KVASIR_LOG_LEVEL", value_name = "FILTER")]
        log_level: String,
        /// The format of log lines [default: text]
        #[arg(long, env = "KVASIR_LOG_FORMAT", value_enum)]
        log_format: LogFormat,
        /// Encryption between peers.
        #[command(flatten)]
        encryption: EncryptionSettings,
        /// TLS on the client port.
        #[command(flatten)]
        tls: TlsSettings,
        /// Mutual TLS between peers.
        #[command(flatten)]
        peer_tls: PeerTlsSettings,
        /// How clients authenticate.
        #[command(flatten)]
        auth: AuthSettings,
        /// The access rules; in the file only.
        #[arg(skip)]
        access: Vec<AccessRule>,
    } and {
        /// Limits of the client port.
        #[command(flatten)]
        client_port: ClientPortSettings,
        /// Limits of the peer port.
        #[command(flatten)]
        peer_port: PeerPortSettings,
        /// How the node finds its peers; several providers may be combined.
        #[command(flatten)]
        discovery: DiscoverySettings,
        /// The membership protocol.
        #[command(flatten)]
        swim: SwimSettings,
    }
}
