//! Peers as the addresses of one DNS name, such as that of a headless Service.
//! A name that doesn't exist yet is nobody found, not a failure.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use hickory_resolver::{
    TokioResolver,
    config::ResolverOpts,
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{RData, RecordType},
    system_conf::read_system_conf,
};
use tokio::time::sleep;

use super::{Provider, Reporter};
use crate::config::DnsConfig;

/// The least and the most time between two questions, whatever the records' TTL.
const MIN_ROUND: Duration = Duration::from_secs(1);
const MAX_ROUND: Duration = Duration::from_secs(5);
/// How long to wait after a question that was not answered.
const RETRY: Duration = Duration::from_secs(2);

type SystemConf = (hickory_resolver::config::ResolverConfig, ResolverOpts);

pub(super) struct Dns {
    config: DnsConfig,
    system: fn() -> Result<SystemConf, NetError>,
    given: Option<SystemConf>,
}

impl Dns {
    /// Asks as the system is set up to (`/etc/resolv.conf`, search list included).
    pub(super) fn new(config: DnsConfig) -> Self {
        Self { config, system: read_system_conf, given: None }
    }

    /// Asks as `given` says.
    #[cfg(test)]
    pub(super) fn asking(config: DnsConfig, given: SystemConf) -> Self {
        Self { given: Some(given), ..Self::new(config) }
    }

    fn resolver(&self) -> Result<TokioResolver, NetError> {
        let (config, mut options) = match &self.given {
            Some(given) => given.clone(),
            None => (self.system)()?,
        };
        // Each round asks anew: the rounds are the cache.
        options.cache_size = 0;
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        builder.build()
    }

    /// The addresses of the name, and how long they may be kept.
    async fn ask(&self, resolver: &TokioResolver) -> Result<(BTreeSet<SocketAddr>, Option<Duration>), NetError> {
        let families: &[_] = if self.config.ipv6 { &[RecordType::A, RecordType::AAAA] } else { &[RecordType::A] };
        let lookups = families.iter().map(|family| resolver.lookup(self.config.domain_name.as_str(), *family));
        let mut addresses = BTreeSet::new();
        let mut ttl: Option<u32> = None;
        for result in futures::future::join_all(lookups).await {
            let lookup = match result {
                Ok(lookup) => lookup,
                Err(error) if error.is_no_records_found() => continue,
                Err(error) => return Err(error),
            };
            for record in lookup.answers() {
                let ip: IpAddr = match &record.data {
                    RData::A(a) => a.0.into(),
                    RData::AAAA(aaaa) => aaaa.0.into(),
                    _ => continue,
                };
                addresses.insert(SocketAddr::new(ip, self.config.port));
                ttl = Some(ttl.map_or(record.ttl, |ttl| ttl.min(record.ttl)));
            }
        }
        Ok((addresses, ttl.map(|seconds| Duration::from_secs(seconds.into()))))
    }

    async fn round(&self, resolver: &mut Option<TokioResolver>, reporter: &Reporter) -> Duration {
        let name = &self.config.domain_name;
        let resolver = match resolver {
            Some(resolver) => resolver,
            None => match self.resolver() {
                Ok(new) => resolver.insert(new),
                Err(error) => {
                    reporter.failed(format!("cannot set up DNS: {error}; check /etc/resolv.conf"));
                    return RETRY;
                }
            },
        };
        match self.ask(resolver).await {
            Ok((addresses, ttl)) => {
                reporter.found(addresses);
                // Well before the TTL ends; at once, almost, while there is nothing.
                ttl.map_or(MIN_ROUND, |ttl| (ttl / 2).clamp(MIN_ROUND, MAX_ROUND))
            }
            Err(error) => {
                reporter.failed(format!("cannot look up {name}: {error}"));
                RETRY
            }
        }
    }
}

impl Provider for Dns {
    fn name(&self) -> &'static str {
        "dns"
    }

    fn run(self: Box<Self>, reporter: Reporter) -> BoxFuture<'static, Infallible> {
        async move {
            let mut resolver = None;
            loop {
                sleep(self.round(&mut resolver, &reporter).await).await;
            }
        }
        .boxed()
    }
}
