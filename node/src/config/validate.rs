//! From settings to a [`Config`]: adds defaults, and refuses values that cannot work, with the name of the setting.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    ops::RangeInclusive,
    time::Duration,
};

use kvasir_formats::defaults::{self, ADMIN_PORT, CLIENT_PORT, PEER_PORT};

use super::{
    AccessRule, AuthConfig, Config, ConfigError, EncryptionSettings, Limits, LogConfig, MAX_CLUSTER_BYTES,
    MAX_CLUSTER_UID_BYTES, MAX_NAME_BYTES, MaxMemoryFrom, MaxMemoryPolicy, PeerTlsSettings, Quantity, Settings,
    TlsSettings,
    access::checked_access,
    checks::{size_within, within},
    error::invalid,
};

const DEFAULT_CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), CLIENT_PORT);
const DEFAULT_PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PEER_PORT);
const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), ADMIN_PORT);
const DEFAULT_SYNC_INTERVAL: Duration = Duration::from_secs(1);
const DEFAULT_JOIN_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_MAX_KEY_BYTES: usize = 1 << 10;
const DEFAULT_MAX_VALUE_BYTES: usize = 1 << 20;
const DEFAULT_MAX_TTL: Duration = Duration::from_hours(87_600);
const DEFAULT_EVICT_AFTER: Duration = defaults::EVICT_AFTER;
const DEFAULT_MAX_CLOCK_SKEW: Duration = Duration::from_secs(10);

const SYNC_INTERVAL: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_hours(1);
const JOIN_TIMEOUT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(1);
const DRAIN_TIMEOUT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(1);
const MAX_TTL: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_hours(876_000);
const VOTERS: RangeInclusive<usize> = 0..=1024;
const EVICT_AFTER: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(24);
const MAX_CLOCK_SKEW: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_hours(1);
/// Every frame carries whole keys, so keys are small.
const MAX_KEY_BYTES: RangeInclusive<usize> = 1..=64 << 10;
/// A value must fit one message of the API and one frame between peers.
const MAX_VALUE_BYTES: RangeInclusive<usize> = 1..=64 << 20;

impl Settings {
    /// Adds the defaults and checks every setting.
    pub fn validate(self) -> Result<Config, ConfigError> {
        let Self {
            name,
            role,
            cluster,
            cluster_uid,
            advertise_address,
            client_address,
            peer_address,
            admin_address,
            sync_interval,
            join_timeout,
            serve_alone,
            drain_timeout,
            max_memory,
            max_memory_policy,
            voters,
            evict_after,
            max_key_bytes,
            max_value_bytes,
            max_ttl,
            max_clock_skew,
            log_level,
            log_format,
            encryption,
            tls,
            peer_tls,
            auth,
            access,
            client_port,
            peer_port,
            discovery,
            swim,
        } = self;
        let role = role.unwrap_or_default();
        let peer_address = peer_address.unwrap_or(DEFAULT_PEER);
        let client_address = client_address.unwrap_or(DEFAULT_CLIENT);
        let admin_address = admin_address.unwrap_or(DEFAULT_ADMIN);
        distinct("clientAddress", client_address, "peerAddress", peer_address)?;
        distinct("adminAddress", admin_address, "peerAddress", peer_address)?;
        distinct("adminAddress", admin_address, "clientAddress", client_address)?;
        let cluster = checked_text("cluster", cluster.unwrap_or_else(|| "default".to_owned()), MAX_CLUSTER_BYTES)?;
        if encryption.is_some() && peer_tls.is_some() {
            return Err(invalid("peerTls", "encryption is given too: links use one of the two, leave one out"));
        }
        let tls = tls.map(TlsSettings::validate).transpose()?;
        let auth = auth.map(|auth| auth.validate(tls.as_ref())).transpose()?.flatten();
        let access = checked_access(access, auth.is_some())?;
        Ok(Config {
            name: checked_name(name, host_name)?,
            role,
            advertise: advertise(advertise_address, peer_address)?,
            client_address,
            peer_address,
            admin_address,
            sync_interval: within("syncInterval", sync_interval, DEFAULT_SYNC_INTERVAL, &SYNC_INTERVAL)?,
            join_timeout: within("joinTimeout", join_timeout, DEFAULT_JOIN_TIMEOUT, &JOIN_TIMEOUT)?,
            serve_alone: serve_alone.unwrap_or(false),
            drain_timeout: within("drainTimeout", drain_timeout, DEFAULT_DRAIN_TIMEOUT, &DRAIN_TIMEOUT)?,
            max_memory: max_memory.map(|Quantity(bytes)| bytes).filter(|bytes| *bytes > 0),
            max_memory_from: max_memory.map_or(MaxMemoryFrom::Nothing, |_| MaxMemoryFrom::Setting),
            memory_limit: None,
            evict_ending: max_memory_policy.unwrap_or_default() == MaxMemoryPolicy::TtlFirst,
            voters: checked_voters(voters)?,
            voters_file: None,
            evict_after: within("evictAfter", evict_after, DEFAULT_EVICT_AFTER, &EVICT_AFTER)?,
            limits: Limits {
                max_key_bytes: size_within("maxKeyBytes", max_key_bytes, DEFAULT_MAX_KEY_BYTES, &MAX_KEY_BYTES)?,
                max_value_bytes: size_within(
                    "maxValueBytes",
                    max_value_bytes,
                    DEFAULT_MAX_VALUE_BYTES,
                    &MAX_VALUE_BYTES,
                )?,
                max_ttl: within("maxTtl", max_ttl, DEFAULT_MAX_TTL, &MAX_TTL)?,
            },
            max_clock_skew: within("maxClockSkew", max_clock_skew, DEFAULT_MAX_CLOCK_SKEW, &MAX_CLOCK_SKEW)?,
            swim: swim.validate()?,
            discovery: discovery.validate(&cluster)?,
            cluster,
            cluster_uid: match cluster_uid {
                Some(uid) if !uid.is_empty() => checked_text("clusterUid", uid, MAX_CLUSTER_UID_BYTES)?,
                _ => String::new(),
            },
            encryption: encryption.map(EncryptionSettings::validate).transpose()?,
            tls,
            peer_tls: peer_tls.map(PeerTlsSettings::validate).transpose()?,
            auth,
            access,
            access_file: None,
            client_port: client_port.validate()?,
            peer_port: peer_port.validate()?,
            log: LogConfig { level: log_filter(log_level)?, format: log_format.unwrap_or_default() },
        })
    }
}

fn checked_voters(given: Option<usize>) -> Result<usize, ConfigError> {
    size_within("voters", given, 0, &VOTERS)
}

impl Settings {
    /// Only the access rules, for a node with this authentication.
    pub fn access(self, auth: Option<&AuthConfig>) -> Result<Option<Vec<AccessRule>>, ConfigError> {
        checked_access(self.access, auth.is_some())
    }

    /// Only the number of voters.
    pub fn voters(&self) -> Result<usize, ConfigError> {
        checked_voters(self.voters)
    }
}

fn checked_text(field: &'static str, text: String, max_bytes: usize) -> Result<String, ConfigError> {
    if text.is_empty() {
        return Err(invalid(field, "is empty: give a name"));
    }
    if text.len() > max_bytes {
        return Err(invalid(field, format!("has {} bytes: give at most {max_bytes}", text.len())));
    }
    if !text.chars().all(|c| c.is_ascii_graphic()) {
        return Err(invalid(
            field,
            format!("{text:?}: use only letters, digits and punctuation (ASCII), and no spaces"),
        ));
    }
    Ok(text)
}

fn advertise(given: Option<IpAddr>, peer_address: SocketAddr) -> Result<IpAddr, ConfigError> {
    let address = given.unwrap_or_else(|| match peer_address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => default_source(ip.into()).unwrap_or(Ipv4Addr::LOCALHOST.into()),
        // The socket serves both families, but the address is IPv6, so IPv6 goes first.
        IpAddr::V6(ip) if ip.is_unspecified() => default_source(ip.into())
            .or_else(|| default_source(Ipv4Addr::UNSPECIFIED.into()))
            .unwrap_or(Ipv6Addr::LOCALHOST.into()),
        bound => bound,
    });
    if address.is_unspecified() {
        return Err(invalid(
            "advertiseAddress",
            format!("{address} cannot be reached: give this node's own IP address"),
        ));
    }
    Ok(address)
}

/// The source address of the default route, in the family of `any`; none without such a route. Nothing is sent: connecting
/// a datagram socket only looks up the route.
fn default_source(any: IpAddr) -> Option<IpAddr> {
    // Addresses reserved for documentation.
    let far: SocketAddr = match any {
        IpAddr::V4(_) => (Ipv4Addr::new(192, 0, 2, 1), 9).into(),
        IpAddr::V6(_) => (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9).into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(far).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_unspecified())
}

fn distinct(
    field: &'static str,
    address: SocketAddr,
    other: &'static str,
    other_address: SocketAddr,
) -> Result<(), ConfigError> {
    // Port 0 means any free port, so it never conflicts.
    if address == other_address && address.port() != 0 {
        return Err(invalid(field, format!("{address} is {other} as well: give each its own port")));
    }
    Ok(())
}

fn log_filter(given: Option<String>) -> Result<String, ConfigError> {
    let filter = given.unwrap_or_else(|| "info".to_owned());
    tracing_subscriber::EnvFilter::try_new(&filter).map_err(|error| {
        invalid("logLevel", format!("{filter:?} is not a filter ({error}): give error, warn, info, debug or trace"))
    })?;
    Ok(filter)
}

/// The given name, or the host's. The host's name is not cut: hosts may differ only after the first dot.
pub(super) fn checked_name(
    given: Option<String>,
    host: impl FnOnce() -> Option<String>,
) -> Result<String, ConfigError> {
    if let Some(name) = given {
        return checked_text("name", name, MAX_NAME_BYTES);
    }
    let name = host().unwrap_or_default();
    if name.len() > MAX_NAME_BYTES {
        let (bytes, most) = (name.len(), MAX_NAME_BYTES);
        return Err(invalid(
            "name",
            format!("the host's name {name} has {bytes} bytes: give a name of at most {most}"),
        ));
    }
    checked_text("name", name, MAX_NAME_BYTES)
}

/// The full host name.
fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok())?;
    let name = name.trim();
    (!name.is_empty()).then(|| name.to_owned())
}
