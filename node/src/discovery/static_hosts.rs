//! Peers in a fixed list. Names in it are resolved again each round, by the
//! system's own resolver; listing the node itself is fine.

use std::{
    collections::{BTreeSet, HashMap},
    convert::Infallible,
    net::SocketAddr,
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use tokio::{net::lookup_host, time::sleep};

use super::{Provider, Reporter};
use crate::config::{HostPort, StaticConfig};

/// How often names are resolved.
const ROUND: Duration = Duration::from_secs(5);

pub(super) struct StaticHosts {
    hosts: Vec<HostPort>,
    /// What each name resolved to when it last did.
    last: HashMap<String, BTreeSet<SocketAddr>>,
    round: Duration,
}

impl StaticHosts {
    pub(super) fn new(config: StaticConfig) -> Self {
        Self { hosts: config.hosts, last: HashMap::new(), round: ROUND }
    }

    async fn round(&mut self, reporter: &Reporter) {
        let lookups = self.hosts.iter().map(|host| lookup_host((host.host.as_str(), host.port)));
        let results = futures::future::join_all(lookups).await;
        let mut unresolved = Vec::new();
        for (host, result) in self.hosts.iter().zip(results) {
            match result {
                Ok(addresses) => {
                    self.last.insert(host.to_string(), addresses.collect());
                }
                Err(error) => unresolved.push(format!("{host}: {error}")),
            }
        }
        let addresses = self.last.values().flatten().copied().collect();
        if unresolved.is_empty() {
            reporter.found(addresses);
        } else {
            let error = format!("cannot resolve {}", unresolved.join(", "));
            if unresolved.len() == self.hosts.len() {
                reporter.failed(error);
            } else {
                reporter.found_in_part(addresses, error);
            }
        }
    }
}

impl Provider for StaticHosts {
    fn name(&self) -> &'static str {
        "static"
    }

    fn run(mut self: Box<Self>, reporter: Reporter) -> BoxFuture<'static, Infallible> {
        async move {
            loop {
                self.round(&reporter).await;
                sleep(self.round).await;
            }
        }
        .boxed()
    }
}
