//! Discovery without NATS: the validated settings of the providers.

use std::{collections::BTreeMap, net::SocketAddr};

use kvasir_formats::defaults::PEER_PORT;

use super::{
    ConfigError, DiscoverySettings, DnsSettings, HostPort, KubernetesSettings, NatsConfig, StaticSettings,
    error::invalid,
};

const DEFAULT_DISCOVERY_PORT_NAME: &str = "peer";
const DEFAULT_PORT_NAME: &str = "client";
/// All names are resolved at the same time.
const MAX_HOSTS: usize = 256;
const MAX_DNS_SERVERS: usize = 8;

/// Discovery by the pods of a Kubernetes namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// The namespace; `None` means the pod's own.
    pub namespace: Option<String>,
    /// The name of the container port that peers listen on.
    pub discovery_port_name: String,
    /// The name of the container port that clients use.
    pub port_name: String,
    /// The labels of the peers' pods.
    pub pod_labels: BTreeMap<String, String>,
}

/// Discovery by the addresses of a DNS name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsConfig {
    /// The name to resolve.
    pub domain_name: String,
    /// Whether to resolve IPv6 addresses as well.
    pub ipv6: bool,
    /// The peer port at every address; `None` if SRV records contain it.
    pub port: Option<u16>,
    /// The servers to query; if empty, those of `/etc/resolv.conf`.
    pub server: Vec<SocketAddr>,
}

/// Discovery from a fixed list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticConfig {
    /// The peers. Names are resolved repeatedly.
    pub hosts: Vec<HostPort>,
}

/// How a node finds its peers: by any number of providers, or none for a node that is meant to be alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiscoveryConfig {
    /// By pods.
    pub kubernetes: Option<KubernetesConfig>,
    /// Over NATS.
    pub nats: Option<NatsConfig>,
    /// By a DNS name.
    pub dns: Option<DnsConfig>,
    /// From a list.
    pub static_hosts: Option<StaticConfig>,
}

impl DiscoverySettings {
    pub(super) fn validate(self, cluster: &str) -> Result<DiscoveryConfig, ConfigError> {
        let Self { kubernetes, nats, dns, static_hosts } = self;
        Ok(DiscoveryConfig {
            kubernetes: kubernetes.map(KubernetesSettings::validate).transpose()?,
            nats: nats.map(|nats| nats.validate(cluster)).transpose()?,
            dns: dns.map(DnsSettings::validate).transpose()?,
            static_hosts: static_hosts.map(StaticSettings::validate).transpose()?,
        })
    }
}

impl KubernetesSettings {
    fn validate(self) -> Result<KubernetesConfig, ConfigError> {
        let Self { namespace, discovery_port_name, port_name, pod_labels } = self;
        let pod_labels = pod_labels.unwrap_or_default().0;
        if pod_labels.is_empty() {
            return Err(invalid(
                "discovery.kubernetes.podLabels",
                "give at least one label of the peers' pods, such as kvasir.dev/member-of: demo",
            ));
        }
        let checked_port = |field, given: Option<String>, default: &str| match given {
            Some(name) if name.is_empty() => Err(invalid(field, "give the name of a container port")),
            name => Ok(name.unwrap_or_else(|| default.to_owned())),
        };
        Ok(KubernetesConfig {
            namespace: namespace.filter(|namespace| !namespace.is_empty()),
            discovery_port_name: checked_port(
                "discovery.kubernetes.discoveryPortName",
                discovery_port_name,
                DEFAULT_DISCOVERY_PORT_NAME,
            )?,
            port_name: checked_port("discovery.kubernetes.portName", port_name, DEFAULT_PORT_NAME)?,
            pod_labels,
        })
    }
}

impl DnsSettings {
    fn validate(self) -> Result<DnsConfig, ConfigError> {
        let Self { domain_name, ipv6, port, server } = self;
        let domain_name = domain_name.unwrap_or_default();
        if domain_name.is_empty() {
            return Err(invalid(
                "discovery.dns.domainName",
                "give the name that resolves to the peers' addresses, such as demo-peers.default.svc",
            ));
        }
        let is_srv = domain_name.starts_with('_');
        let port = match port {
            Some(0) => {
                return Err(invalid("discovery.dns.port", "0 is not a port: give the peers' port, such as 7071"));
            }
            Some(_) if is_srv => {
                return Err(invalid(
                    "discovery.dns.port",
                    format!("{domain_name} names SRV records, which contain the port: leave it out"),
                ));
            }
            port => (!is_srv).then_some(port.unwrap_or(PEER_PORT)),
        };
        let server = server.unwrap_or_default();
        if server.len() > MAX_DNS_SERVERS {
            return Err(invalid("discovery.dns.server", format!("give at most {MAX_DNS_SERVERS} servers")));
        }
        Ok(DnsConfig { domain_name, ipv6: ipv6.unwrap_or(false), port, server })
    }
}

impl StaticSettings {
    fn validate(self) -> Result<StaticConfig, ConfigError> {
        let hosts = self.hosts.unwrap_or_default();
        if hosts.is_empty() {
            return Err(invalid("discovery.static.hosts", "give at least one peer, such as 10.0.0.1:7071"));
        }
        if hosts.len() > MAX_HOSTS {
            return Err(invalid("discovery.static.hosts", format!("{} hosts: give at most {MAX_HOSTS}", hosts.len())));
        }
        Ok(StaticConfig { hosts })
    }
}
