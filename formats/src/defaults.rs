//! Ports, defaults and limits that more than one program knows.

use std::{ops::RangeInclusive, time::Duration};

/// Port of the gRPC API for clients.
pub const CLIENT_PORT: u16 = 7070;
/// Port between nodes, TCP and UDP.
pub const PEER_PORT: u16 = 7071;
/// Port of metrics, health and status, over HTTP.
pub const ADMIN_PORT: u16 = 7072;

/// How long a node may be without a link to a majority of the voters before they evict it.
pub const EVICT_AFTER: Duration = Duration::from_secs(5 * 60);
/// How long an answer of the API server about a token may be valid.
pub const REVIEW_TTL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(10 * 60);

/// Bytes that a node takes before it holds anything. CEL rules of the `KvCluster` name it as 24Mi.
pub const EMPTY_NODE_BYTES: u64 = 24 << 20;
/// The lowest memory limit of a container in which a node starts. CEL rules of the `KvCluster` name it as 50Mi.
pub const LEAST_MEMORY_LIMIT: u64 = 50 << 20;
