//! Peers as the addresses of one DNS name, such as that of a headless Service,
//! or as what SRV records name. A name that doesn't exist yet is nobody found,
//! not a failure.

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

use super::{Provider, Reporter};
use crate::config::DnsConfig;

/// The least and the most time between two questions, whatever the records' TTL.
const MIN_ROUND: Duration = Duration::from_millis(500);
const MAX_ROUND: Duration = Duration::from_secs(5);
/// How long to wait after a question that was not answered.
const RETRY: Duration = Duration::from_secs(2);
/// How many SRV records of a name are followed.
const MAX_TARGETS: usize = 256;

type SystemConf = (ResolverConfig, ResolverOpts);

pub(super) struct Dns {
    config: DnsConfig,
    /// The last answer that was whole.
    last: BTreeSet<SocketAddr>,
    system: fn() -> Result<SystemConf, NetError>,
    given: Option<SystemConf>,
}

impl Dns {
    /// Asks as the system is set up to (`/etc/resolv.conf`, search list included).
    pub(super) fn new(config: DnsConfig) -> Self {
        Self { config, last: BTreeSet::new(), system: read_system_conf, given: None }
    }

    /// Asks as `given` says.
    #[cfg(test)]
    pub(super) fn asking(config: DnsConfig, given: SystemConf) -> Self {
        Self { given: Some(given), ..Self::new(config) }
    }

    fn resolver(&self) -> Result<TokioResolver, NetError> {
        let (mut config, mut options) = match &self.given {
            Some(given) => given.clone(),
            None => (self.system)()?,
        };
        if !self.config.server.is_empty() {
            // Others than the system's; its search list and options still apply.
            let servers = self.config.server.iter().map(|server| {
                let mut name_server = NameServerConfig::udp_and_tcp(server.ip());
                name_server.connections.iter_mut().for_each(|connection| connection.port = server.port());
                name_server
            });
            config = ResolverConfig::from_parts(config.domain().cloned(), config.search().to_vec(), servers.collect());
        }
        // Each round asks anew: the rounds are the cache.
        options.cache_size = 0;
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        builder.build()
    }

    async fn ask(&self, resolver: &TokioResolver) -> Answer {
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
            // A single dot is how a record says that there is no such service.
            if let RData::SRV(srv) = &record.data
                && !srv.target.is_root()
            {
                answer.keep_for(record.ttl);
                targets.insert((srv.target.to_string(), srv.port));
            }
        }
        let lookups = targets.iter().take(MAX_TARGETS).map(|(name, port)| self.addresses(resolver, name, *port));
        for of_target in futures::future::join_all(lookups).await {
            answer.add(of_target);
        }
        answer
    }

    /// The addresses of a name, in the families that are wanted.
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
                answer.keep_for(record.ttl);
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
        let Answer { addresses, ttl, error } = self.ask(built).await;
        let Some(error) = error else {
            self.last.clone_from(&addresses);
            reporter.found(addresses);
            // Well before the TTL ends; at once, almost, while there is nothing.
            return ttl.map_or(MIN_ROUND, |ttl| (ttl / 2).clamp(MIN_ROUND, MAX_ROUND));
        };
        // The next one reads resolv.conf again, which may be what was wrong.
        *resolver = None;
        if addresses.is_empty() {
            reporter.failed(error);
        } else {
            // Where the others were stands, too.
            reporter.found_in_part(addresses.union(&self.last).copied().collect(), error);
        }
        RETRY
    }
}

/// What the servers said.
#[derive(Default)]
struct Answer {
    addresses: BTreeSet<SocketAddr>,
    /// How long that may be kept.
    ttl: Option<Duration>,
    /// Why it is not everything.
    error: Option<String>,
}

impl Answer {
    fn keep_for(&mut self, seconds: u32) {
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

/// The records of a name; none where there is no such name.
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
