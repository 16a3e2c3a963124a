//! Where peers may be: one file for each provider, behind the trait [`Provider`]. All providers together make a [`View`]. Knows
//! nothing of the nodes at the addresses that it finds, and runs as long as the node.
//!
//! Pass a provider of your own to [`Node::start_with`](crate::node::Node::start_with).

mod dns;
mod kubernetes;
mod nats;
mod provider;
mod static_hosts;

/// The decoder of NATS announcements, for the fuzz targets.
#[doc(hidden)]
pub mod fuzzing {
    use std::net::SocketAddr;

    pub fn read_announcement(payload: &[u8]) -> Result<Vec<SocketAddr>, String> {
        super::nats::read(payload)
    }

    pub fn write_announcement(addresses: Vec<SocketAddr>) -> Vec<u8> {
        super::nats::write(addresses)
    }
}

use std::net::SocketAddr;

pub use self::provider::{MAX_ADDRESSES, Provider, ProviderStatus, Reporter, View, start};
use crate::config::DiscoveryConfig;

/// The configured providers. `me` is the address at which peers reach this node, for providers that announce it.
pub fn configured(config: &DiscoveryConfig, me: SocketAddr) -> Vec<Box<dyn Provider>> {
    let DiscoveryConfig { kubernetes, nats, dns, static_hosts } = config;
    let mut providers: Vec<Box<dyn Provider>> = Vec::new();
    if let Some(config) = kubernetes {
        providers.push(Box::new(kubernetes::Kubernetes::new(config.clone())));
    }
    if let Some(config) = nats {
        providers.push(Box::new(nats::Nats::new(config.clone(), me)));
    }
    if let Some(config) = dns {
        providers.push(Box::new(dns::Dns::new(config.clone())));
    }
    if let Some(config) = static_hosts {
        providers.push(Box::new(static_hosts::StaticHosts::new(config.clone())));
    }
    providers
}

#[cfg(test)]
mod tests;
