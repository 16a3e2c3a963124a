//! From settings to a [`Config`]: fills in the defaults, and refuses what
//! can't work, naming the setting. Each limit has its name here.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    ops::RangeInclusive,
    time::Duration,
};

use kvasir_formats::defaults::{self, ADMIN_PORT, CLIENT_PORT, PEER_PORT};

use super::security::checked_access;
use super::{
    AccessRule, AuthConfig, Config, ConfigError, DiscoveryConfig, DiscoverySettings, DnsConfig, DurationText,
    EncryptionSettings, KubernetesConfig, Limits, LogConfig, MAX_CLUSTER_BYTES, MAX_CLUSTER_UID_BYTES, MAX_NAME_BYTES,
    MaxMemoryFrom, MaxMemoryPolicy, PeerTlsSettings, Quantity, Settings, StaticConfig, TlsSettings,
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
const DEFAULT_DISCOVERY_PORT_NAME: &str = "peer";
const DEFAULT_PORT_NAME: &str = "client";

const SYNC_INTERVAL: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_hours(1);
const JOIN_TIMEOUT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(1);
const DRAIN_TIMEOUT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(1);
const MAX_TTL: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_hours(876_000);
const VOTERS: RangeInclusive<usize> = 0..=1024;
const EVICT_AFTER: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(24);
const MAX_CLOCK_SKEW: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_hours(1);
/// Keys travel whole in every frame, so they are kept small.
const MAX_KEY_BYTES: RangeInclusive<usize> = 1..=64 << 10;
/// A value must fit one message of the API and one frame between peers.
const MAX_VALUE_BYTES: RangeInclusive<usize> = 1..=64 << 20;

/// Names are looked up all at the same time.
const MAX_HOSTS: usize = 256;
const MAX_DNS_SERVERS: usize = 8;

pub(super) fn invalid(field: &'static str, message: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { field, message: message.into() }
}

impl Settings {
    /// Fills in the defaults and checks every setting.
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
            return Err(invalid(
                "peerTls",
                "encryption is given too: peers are protected by one of the two, leave one out",
            ));
        }
        let tls = tls.map(TlsSettings::validate).transpose()?;
        let auth = auth.map(|auth| auth.validate(tls.as_ref())).transpose()?.flatten();
        let access = checked_access(access, auth.as_ref())?;
        Ok(Config {
            name: checked_name(name, host_name)?,
            role,
            advertise: advertise(advertise_address, peer_address)?,
            client_address,
            peer_address,
            admin_address,
            sync_interval: within("syncInterval", sync_interval, DEFAULT_SYNC_INTERVAL, &SYNC_INTERVAL)?,
            join_timeout: within("joinTimeout", join_timeout, DEFAULT_JOIN_TIMEOUT, &JOIN_TIMEOUT)?,
            // A node that serves alone answers its clients from an empty map.
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
    /// The rules of access, and nothing else, for a node with this way of
    /// telling clients apart.
    pub fn access(self, auth: Option<&AuthConfig>) -> Result<Option<Vec<AccessRule>>, ConfigError> {
        checked_access(self.access, auth)
    }

    /// How many members the cluster is meant to have, and nothing else.
    pub fn voters(&self) -> Result<usize, ConfigError> {
        checked_voters(self.voters)
    }
}

impl DiscoverySettings {
    fn validate(self, cluster: &str) -> Result<DiscoveryConfig, ConfigError> {
        let Self { kubernetes, nats, dns, static_hosts } = self;
        let kubernetes = kubernetes.map(|given| {
            let pod_labels = given.pod_labels.unwrap_or_default().0;
            if pod_labels.is_empty() {
                return Err(invalid(
                    "discovery.kubernetes.podLabels",
                    "give at least one label of the peers' pods, such as kvasir.dev/member-of: demo",
                ));
            }
            let port_name = |field, given: Option<String>, default: &str| match given {
                Some(name) if name.is_empty() => Err(invalid(field, "give the name of a container port")),
                name => Ok(name.unwrap_or_else(|| default.to_owned())),
            };
            Ok(KubernetesConfig {
                namespace: given.namespace.filter(|namespace| !namespace.is_empty()),
                discovery_port_name: port_name(
                    "discovery.kubernetes.discoveryPortName",
                    given.discovery_port_name,
                    DEFAULT_DISCOVERY_PORT_NAME,
                )?,
                port_name: port_name("discovery.kubernetes.portName", given.port_name, DEFAULT_PORT_NAME)?,
                pod_labels,
            })
        });
        let dns = dns.map(|given| {
            let domain_name = given.domain_name.unwrap_or_default();
            if domain_name.is_empty() {
                return Err(invalid(
                    "discovery.dns.domainName",
                    "give the name whose addresses are the peers', such as demo-peers.default.svc",
                ));
            }
            let srv = domain_name.starts_with('_');
            let port = match given.port {
                Some(0) => {
                    return Err(invalid("discovery.dns.port", "0 is no port: give the peers' port, such as 7071"));
                }
                Some(_) if srv => {
                    return Err(invalid(
                        "discovery.dns.port",
                        format!("{domain_name} names SRV records, which bring the port: leave it out"),
                    ));
                }
                port => (!srv).then_some(port.unwrap_or(DEFAULT_PEER.port())),
            };
            let server = given.server.unwrap_or_default();
            if server.len() > MAX_DNS_SERVERS {
                return Err(invalid("discovery.dns.server", format!("give at most {MAX_DNS_SERVERS}")));
            }
            Ok(DnsConfig { domain_name, ipv6: given.ipv6.unwrap_or(false), port, server })
        });
        let static_hosts = static_hosts.map(|given| match given.hosts.unwrap_or_default() {
            hosts if hosts.is_empty() => {
                Err(invalid("discovery.static.hosts", "give at least one peer, such as 10.0.0.1:7071"))
            }
            hosts if hosts.len() > MAX_HOSTS => {
                Err(invalid("discovery.static.hosts", format!("{} hosts: give at most {MAX_HOSTS}", hosts.len())))
            }
            hosts => Ok(StaticConfig { hosts }),
        });
        Ok(DiscoveryConfig {
            kubernetes: kubernetes.transpose()?,
            nats: nats.map(|nats| nats.validate(cluster)).transpose()?,
            dns: dns.transpose()?,
            static_hosts: static_hosts.transpose()?,
        })
    }
}

pub(super) fn within(
    field: &'static str,
    given: Option<DurationText>,
    default: Duration,
    range: &RangeInclusive<Duration>,
) -> Result<Duration, ConfigError> {
    let value = given.map_or(default, |DurationText(duration)| duration);
    if range.contains(&value) {
        return Ok(value);
    }
    Err(invalid(field, format!("{value:?} is out of range: give between {:?} and {:?}", range.start(), range.end())))
}

pub(super) fn size_within(
    field: &'static str,
    given: Option<usize>,
    default: usize,
    range: &RangeInclusive<usize>,
) -> Result<usize, ConfigError> {
    let value = given.unwrap_or(default);
    if range.contains(&value) {
        return Ok(value);
    }
    Err(invalid(field, format!("{value} is out of range: give between {} and {}", range.start(), range.end())))
}

fn checked_text(field: &'static str, text: String, max_bytes: usize) -> Result<String, ConfigError> {
    if text.is_empty() {
        return Err(invalid(field, "is empty: give a name"));
    }
    if text.len() > max_bytes {
        return Err(invalid(field, format!("has {} bytes: give at most {max_bytes}", text.len())));
    }
    if !text.chars().all(|c| c.is_ascii_graphic()) {
        return Err(invalid(field, format!("{text:?} may hold only letters, digits and signs, and no spaces")));
    }
    Ok(text)
}

fn advertise(given: Option<IpAddr>, peer_address: SocketAddr) -> Result<IpAddr, ConfigError> {
    let address = given.unwrap_or_else(|| match peer_address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => reaches_others_from(ip.into()).unwrap_or(Ipv4Addr::LOCALHOST.into()),
        // Both families are listened to; IPv6 is what was asked for.
        IpAddr::V6(ip) if ip.is_unspecified() => reaches_others_from(ip.into())
            .or_else(|| reaches_others_from(Ipv4Addr::UNSPECIFIED.into()))
            .unwrap_or(Ipv6Addr::LOCALHOST.into()),
        bound => bound,
    });
    if address.is_unspecified() {
        return Err(invalid("advertiseAddress", format!("{address} reaches nobody: give this node's own IP address")));
    }
    Ok(address)
}

/// The address from which this machine would send to the world, in the family of `any`; none without a route there.
/// Nothing is sent: connecting a datagram socket only asks the system for the route.
fn reaches_others_from(any: IpAddr) -> Option<IpAddr> {
    // Addresses that are set aside for documentation, and so are nobody's.
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
    // Port 0 is "any free port", and so never a clash.
    if address == other_address && address.port() != 0 {
        return Err(invalid(field, format!("{address} is {other} too: give each its own port")));
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

/// The name that is given, or else the host's. Not cut: two hosts may differ only after their first dot.
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

/// The host's whole name.
fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok())?;
    let name = name.trim();
    (!name.is_empty()).then(|| name.to_owned())
}
