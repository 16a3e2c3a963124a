//! Peers from a fixed list. The system's resolver resolves its names in each round. The list may contain the node itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{net::lookup_host, time::sleep};

use super::provider::{Provider, Reporter};
use crate::config::{HostPort, StaticConfig};

/// How often names are resolved.
const ROUND: Duration = Duration::from_secs(5);

type Lookup = BoxFuture<'static, io::Result<BTreeSet<SocketAddr>>>;

pub(super) struct StaticHosts {
    /// Entries that are addresses. They are reported at once.
    addresses: BTreeSet<SocketAddr>,
    /// Entries that are names, each with its last addresses.
    names: BTreeMap<HostPort, BTreeSet<SocketAddr>>,
    resolve: Box<dyn Fn(HostPort) -> Lookup + Send>,
    round: Duration,
}

impl StaticHosts {
    pub(super) fn new(config: StaticConfig) -> Self {
        let (addresses, names) = (BTreeSet::new(), BTreeMap::new());
        let mut this = Self { addresses, names, resolve: Box::new(|host| resolve(host).boxed()), round: ROUND };
        for host in config.hosts {
            match host.host.parse::<IpAddr>() {
                Ok(ip) => _ = this.addresses.insert(SocketAddr::new(ip, host.port)),
                Err(_) => _ = this.names.insert(host, BTreeSet::new()),
            }
        }
        this
    }

    /// Resolves names by `resolve` and not by the system, at another interval.
    #[cfg(test)]
    pub(super) fn resolving(self, resolve: impl Fn(HostPort) -> Lookup + Send + 'static, round: Duration) -> Self {
        Self { resolve: Box::new(resolve), round, ..self }
    }

    fn known(&self) -> BTreeSet<SocketAddr> {
        self.names.values().flatten().chain(&self.addresses).copied().collect()
    }

    async fn round(&mut self, reporter: &Reporter) {
        let lookup = |host: &HostPort| {
            let (host, found) = (host.clone(), (self.resolve)(host.clone()));
            async move { (host, found.await) }
        };
        let mut lookups: FuturesUnordered<_> = self.names.keys().map(lookup).collect();
        let mut unresolved = BTreeMap::new();
        let mut waiting = lookups.len();
        while let Some((host, result)) = lookups.next().await {
            waiting -= 1;
            match result {
                Ok(addresses) => _ = self.names.insert(host, addresses),
                Err(error) => _ = unresolved.insert(host.to_string(), error),
            }
            // A name whose server is silent takes long to fail. The other names do not wait for it.
            if waiting > 0 {
                reporter.found_so_far(self.known());
            }
        }
        if unresolved.is_empty() {
            return reporter.found(self.known());
        }
        let errors: Vec<_> = unresolved.iter().map(|(host, error)| format!("{host}: {error}")).collect();
        let error = format!("cannot resolve {}", errors.join(", "));
        if unresolved.len() == self.names.len() && self.addresses.is_empty() {
            reporter.failed(error);
        } else {
            reporter.found_in_part(self.known(), error);
        }
    }
}

async fn resolve(host: HostPort) -> io::Result<BTreeSet<SocketAddr>> {
    lookup_host((host.host.as_str(), host.port)).await.map(Iterator::collect)
}

impl Provider for StaticHosts {
    fn name(&self) -> &'static str {
        "static"
    }

    fn run(mut self: Box<Self>, reporter: Reporter) -> BoxFuture<'static, Infallible> {
        async move {
            if !self.addresses.is_empty() {
                reporter.found_so_far(self.known());
            }
            loop {
                self.round(&reporter).await;
                sleep(self.round).await;
            }
        }
        .boxed()
    }
}
