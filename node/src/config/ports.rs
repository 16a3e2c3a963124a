//! The limits of the client port and the peer port.

use std::{ops::RangeInclusive, time::Duration};

use super::{
    ClientPortSettings, ConfigError, PeerPortSettings,
    checks::{size_within, within},
};

const CONNECTIONS: RangeInclusive<usize> = 1..=1 << 20;
const STREAMS: RangeInclusive<usize> = 1..=1 << 16;
const HEADER_BYTES: RangeInclusive<usize> = 1 << 10..=1 << 20;
const HANDSHAKE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_mins(1);
/// 0: never.
const IDLE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(24);
const KEEPALIVE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_hours(1);

/// Limits of the client port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientPortConfig {
    /// Open connections.
    pub max_connections: usize,
    /// Open connections from one address.
    pub max_connections_per_address: usize,
    /// Calls in progress on one connection; more wait.
    pub max_streams: usize,
    /// The size of a call's headers in bytes.
    pub max_header_bytes: usize,
    /// How long the TLS and HTTP/2 handshakes may take.
    pub handshake_timeout: Duration,
    /// How long a connection may have no call; `None` means forever.
    pub idle_timeout: Option<Duration>,
    /// How long a connection may be silent before the node sends a ping.
    pub keepalive_interval: Duration,
    /// How long the answer to a ping may take before the connection is closed.
    pub keepalive_timeout: Duration,
}

impl ClientPortConfig {
    /// The defaults.
    pub const DEFAULT: Self = Self {
        max_connections: 4096,
        max_connections_per_address: 1024,
        max_streams: 256,
        max_header_bytes: 16 << 10,
        handshake_timeout: Duration::from_secs(10),
        idle_timeout: Some(Duration::from_hours(1)),
        keepalive_interval: Duration::from_secs(20),
        keepalive_timeout: Duration::from_secs(10),
    };
}

/// Limits of the peer port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerPortConfig {
    /// Open inbound connections.
    pub max_connections: usize,
    /// Open inbound connections from one address.
    pub max_connections_per_address: usize,
    /// Inbound connections in the handshake; more wait.
    pub max_handshakes: usize,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
}

impl PeerPortConfig {
    /// The defaults.
    pub const DEFAULT: Self = Self {
        max_connections: 1024,
        max_connections_per_address: 256,
        max_handshakes: 64,
        handshake_timeout: Duration::from_secs(5),
    };
}

impl ClientPortSettings {
    pub(super) fn validate(self) -> Result<ClientPortConfig, ConfigError> {
        let Self {
            max_connections,
            max_connections_per_address,
            max_streams,
            max_header_bytes,
            handshake_timeout,
            idle_timeout,
            keepalive_interval,
            keepalive_timeout,
        } = self;
        let default = ClientPortConfig::DEFAULT;
        let idle = within("clientPort.idleTimeout", idle_timeout, default.idle_timeout.unwrap_or_default(), &IDLE)?;
        Ok(ClientPortConfig {
            max_connections: size_within(
                "clientPort.maxConnections",
                max_connections,
                default.max_connections,
                &CONNECTIONS,
            )?,
            max_connections_per_address: size_within(
                "clientPort.maxConnectionsPerAddress",
                max_connections_per_address,
                default.max_connections_per_address,
                &CONNECTIONS,
            )?,
            max_streams: size_within("clientPort.maxStreams", max_streams, default.max_streams, &STREAMS)?,
            max_header_bytes: size_within(
                "clientPort.maxHeaderBytes",
                max_header_bytes,
                default.max_header_bytes,
                &HEADER_BYTES,
            )?,
            handshake_timeout: within(
                "clientPort.handshakeTimeout",
                handshake_timeout,
                default.handshake_timeout,
                &HANDSHAKE,
            )?,
            idle_timeout: (!idle.is_zero()).then_some(idle),
            keepalive_interval: within(
                "clientPort.keepaliveInterval",
                keepalive_interval,
                default.keepalive_interval,
                &KEEPALIVE,
            )?,
            keepalive_timeout: within(
                "clientPort.keepaliveTimeout",
                keepalive_timeout,
                default.keepalive_timeout,
                &KEEPALIVE,
            )?,
        })
    }
}

impl PeerPortSettings {
    pub(super) fn validate(self) -> Result<PeerPortConfig, ConfigError> {
        let Self { max_connections, max_connections_per_address, max_handshakes, handshake_timeout } = self;
        let default = PeerPortConfig::DEFAULT;
        Ok(PeerPortConfig {
            max_connections: size_within(
                "peerPort.maxConnections",
                max_connections,
                default.max_connections,
                &CONNECTIONS,
            )?,
            max_connections_per_address: size_within(
                "peerPort.maxConnectionsPerAddress",
                max_connections_per_address,
                default.max_connections_per_address,
                &CONNECTIONS,
            )?,
            max_handshakes: size_within(
                "peerPort.maxHandshakes",
                max_handshakes,
                default.max_handshakes,
                &CONNECTIONS,
            )?,
            handshake_timeout: within(
                "peerPort.handshakeTimeout",
                handshake_timeout,
                default.handshake_timeout,
                &HANDSHAKE,
            )?,
        })
    }
}
