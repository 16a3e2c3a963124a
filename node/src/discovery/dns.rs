//! Peers at the addresses of a DNS name, such as that of a headless Service, or at the targets of SRV records. A name that does
//! not exist yet is an empty answer, not a failure.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use hickory_resolver::{
    TokioResolver,
    config::{NameServerConfig, ResolverConfig, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{RData, Record, RecordType},
    system_conf::read_system_conf,
};
use tokio::time::sleep;

use super::provider::{Provider, Reporter};
use crate::config::DnsConfig;

/// The bounds of the time between two rounds, for any TTL of the records.
const MIN_ROUND: Duration = Duration::from_millis(500);
const MAX_ROUND: Duration = Duration::from_secs(5);
/// The wait after a query that failed.
const RETRY: Duration = Duration::from_secs(2);
/// How many SRV records of a name are followed.
const MAX_TARGETS: usize = 256;

type SystemConf = (ResolverConfig, ResolverOpts);

pub(super) struct Dns {
    config: DnsConfig,
    /// The last complete answer.
    last: BTreeSet<SocketAddr>,
    /// Used instead of the system's configuration.
    given: Option<SystemConf>,
}

impl Dns {
    /// Queries with the system's configuration (`/etc/resolv.conf` with its search list).
    pub(super) fn new(config: DnsConfig) -> Self {
        Self { config, last: BTreeSet::new(), given: None }
    }

    /// Queries with the configuration `given`.
    #[cfg(test)]
    pub(super) fn with_config(config: DnsConfig, given: SystemConf) -> Self {
        Self { given: Some(given), ..Self::new(config) }
    }

    fn resolver(&self) -> Result<TokioResolver, NetError> {
        let (mut config, mut options) = match &self.given {
            Some(given) => given.clone(),
            None => read_system_conf()?,
        };
        if !self.config.server.is_empty() {
            // The system's search list and options still apply.
            let servers = self.config.server.iter().map(|server| {
                let mut name_server = NameServerConfig::udp_and_tcp(server.ip());
                name_server.connections.iter_mut().for_each(|connection| connection.port = server.port());
                name_server
            });
            config = ResolverConfig::from_parts(config.domain().cloned(), config.search().to_vec(), servers.collect());
        }
        // No cache: each round must ask the server.
        options.cache_size = 0;
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        builder.build()
    }

    async fn query(&self, resolver: &TokioResolver) -> Answer {
        let name = &self.config.domain_name;
        if let Some(port) = self.config.port {
            return self.addresses(resolver, name, port).await;
        }
        let records = match lookup(resolver, name, RecordType::SRV).await {
            Ok(records) => records,
            Err(error) => return Answer { error: Some(error), ..Answer::default() },
        };
        let mut answer = Answer::default();
        let mut targets = BTreeSet::new();
        for record in &records {
            // The target "." means that there is no such service.
            if let RData::SRV(srv) = &record.data
                && !srv.target.is_root()
            {
                answer.limit_ttl(record.ttl);
                targets.insert((srv.target.to_string(), srv.port));
            }
        }
        let lookups = targets.iter().take(MAX_TARGETS).map(|(name, port)| self.addresses(resolver, name, *port));
        for of_target in futures::future::join_all(lookups).await {
            answer.add(of_target);
        }
        answer
    }

    /// The addresses of a name in the configured families.
    async fn addresses(&self, resolver: &TokioResolver, name: &str, port: u16) -> Answer {
        let families: &[_] = if self.config.ipv6 { &[RecordType::A, RecordType::AAAA] } else { &[RecordType::A] };
        let mut answer = Answer::default();
        for result in futures::future::join_all(families.iter().map(|family| lookup(resolver, name, *family))).await {
            let records = match result {
                Ok(records) => records,
                Err(error) => {
                    answer.error = Some(error);
                    continue;
                }
            };
            for record in &records {
                let ip: IpAddr = match &record.data {
                    RData::A(a) => a.0.into(),
                    RData::AAAA(aaaa) => aaaa.0.into(),
                    _ => continue,
                };
                answer.addresses.insert(SocketAddr::new(ip, port));
                answer.limit_ttl(record.ttl);
            }
        }
        answer
    }

    async fn round(&mut self, resolver: &mut Option<TokioResolver>, reporter: &Reporter) -> Duration {
        let built = match resolver {
            Some(resolver) => resolver,
            None => match self.resolver() {
                Ok(new) => resolver.insert(new),
                Err(error) => {
                    reporter.failed(format!("cannot set up DNS: {error}; check /etc/resolv.conf"));
                    return RETRY;
                }
            },
        };
        let Answer { addresses, ttl, error } = self.query(built).await;
        let Some(error) = error else {
            self.last.clone_from(&addresses);
            reporter.found(addresses);
            // Well before the TTL ends; almost at once if there are no records.
            return ttl.map_or(MIN_ROUND, |ttl| (ttl / 2).clamp(MIN_ROUND, MAX_ROUND));
        };
        // The next round reads resolv.conf again, in case that was wrong.
        *resolver = None;
        if addresses.is_empty() {
            reporter.failed(error);
        } else {
            // The addresses of names that failed now stay valid.
            reporter.found_in_part(addresses.union(&self.last).copied().collect(), error);
        }
        RETRY
    }
}

/// The servers' answer.
#[derive(Default)]
struct Answer {
    addresses: BTreeSet<SocketAddr>,
    /// How long the answer is valid.
    ttl: Option<Duration>,
    /// Why the answer is incomplete.
    error: Option<String>,
}

impl Answer {
    fn limit_ttl(&mut self, seconds: u32) {
        let ttl = Duration::from_secs(seconds.into());
        self.ttl = Some(self.ttl.map_or(ttl, |least| least.min(ttl)));
    }

    fn add(&mut self, other: Self) {
        let Self { addresses, ttl, error } = other;
        self.addresses.extend(addresses);
        self.ttl = [self.ttl, ttl].into_iter().flatten().min();
        self.error = error.or(self.error.take());
    }
}

/// The records of a name; none if the name does not exist.
async fn lookup(resolver: &TokioResolver, name: &str, kind: RecordType) -> Result<Vec<Record>, String> {
    match resolver.lookup(name, kind).await {
        Ok(lookup) => Ok(lookup.answers().to_vec()),
        Err(error) if error.is_no_records_found() => Ok(Vec::new()),
        Err(error) => Err(format!("cannot look up the {kind} records of {name}: {error}")),
    }
}

impl Provider for Dns {
    fn name(&self) -> &'static str {
        "dns"
    }

    fn run(mut self: Box<Self>, reporter: Reporter) -> BoxFuture<'static, Infallible> {
        async move {
            let mut resolver = None;
            loop {
                sleep(self.round(&mut resolver, &reporter).await).await;
            }
        }
        .boxed()
    }
}
