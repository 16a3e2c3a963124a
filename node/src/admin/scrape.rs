//! The metrics that the node's parts count themselves, read at each scrape.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::api::listen::Connections;
use crate::auth::Auth;
use crate::config::MaxMemoryFrom;
use crate::encryption::datagram::Sealer;
use crate::engine::{Phase, SEAT_STATES, Stats};
use crate::membership::{self, MemberState};
use crate::overview::Overview;
use crate::refusals::Reason;
use crate::replica::Counters;
use crate::transport::Transport;

/// Reads the counts of the node's parts for the registry.
pub struct Scrape {
    /// The replica, the members and discovery.
    pub overview: Overview,
    /// Counts of membership.
    pub membership: Arc<membership::MembershipCounters>,
    /// Counts of the peer port.
    pub transport: Arc<Transport>,
    /// Decrypts datagrams, if they are encrypted.
    pub sealer: Option<Arc<Sealer>>,
    /// The client port's connections.
    pub connections: Connections,
    /// Counts of denied calls.
    pub auth: Auth,
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut page = Page(encoder);
        let stats = self.overview.stats();
        self.data(&mut page, &stats)?;
        self.replication(&mut page, &stats)?;
        self.peers(&mut page, &stats)?;
        self.peer_port(&mut page)?;
        self.client_port(&mut page)?;
        self.discovery(&mut page)
    }
}

impl Scrape {
    fn data(&self, page: &mut Page, stats: &Stats) -> fmt::Result {
        page.gauge("keys", "Live keys", stats.keys as f64)?;
        page.gauge("tombstones", "Deleted and expired keys whose tombstone is kept", stats.tombstones as f64)?;
        page.gauge("memory_bytes", "Accounted memory of keys and values", stats.memory_bytes as f64)?;
        let help = "The limit on kvasir_memory_bytes; 0 without a limit";
        page.gauge("memory_limit_bytes", help, stats.max_memory.unwrap_or(0) as f64)?;
        let memory = self.overview.memory();
        let from = MaxMemoryFrom::ALL.map(|from| (from.as_str(), flag(from == memory.from)));
        page.gauges("memory_limit_from", "1 for the source of kvasir_memory_limit_bytes", "from", from)?;
        if let Some(limit) = &memory.limit {
            let help = "The memory limit of the process, from its cgroups; absent without a limit";
            page.gauge("process_memory_limit_bytes", help, limit.bytes as f64)?;
        }
        let help = "Whether the kernel may kill the process for its memory before entries reach their limit";
        page.gauge("memory_unbounded", help, flag(memory.concern.is_some()))?;
        page.gauge("full", "Whether writes are refused for lack of memory", flag(stats.full))?;
        page.gauge("overfull", "Whether a peer's write found no room recently", flag(stats.overfull))?;
        if let Some(epoch) = stats.epoch {
            let help = "When the epoch of this node's map was founded, in seconds since 1970; absent without a map";
            page.gauge("founded_timestamp_seconds", help, epoch.founded_ms as f64 / 1000.0)?;
        }
        if let Some(age) = stats.collected_age {
            let help = "Age of the GC watermark, up to which deletes are collected; absent while there is none";
            page.gauge("collected_age_seconds", help, age.as_secs_f64())?;
        }
        page.gauge("watches", "Open watches", stats.watches as f64)?;
        page.gauge("calls_waiting", "Calls that wait for other nodes", stats.waiting as f64)
    }

    fn replication(&self, page: &mut Page, stats: &Stats) -> fmt::Result {
        if let Some(lag) = stats.lag {
            let help = "How far this node may be behind its linked peers; absent without a peer";
            page.gauge("lag_seconds", help, lag.as_secs_f64())?;
        }
        let now = self.overview.phase();
        page.gauges("phase", "1 for the node's phase", "phase", PHASES.map(|p| (p.as_str(), flag(p == now))))?;
        let by_state = SEAT_STATES.iter().map(|(_, name)| *name).zip(stats.seats.map(|count| count as f64));
        page.gauges("seats", "Seats of the roster, by state", "state", by_state)?;
        let Counters {
            scans,
            syncs,
            divergences,
            entries_in,
            entries_out,
            returns,
            reissued,
            too_late,
            adoptions,
            evicted_keys,
            no_room,
            twins,
        } = stats.counters;
        page.counter("deltas_sent", "Syncs of peers that were answered with a scan of the map", scans)?;
        page.counter("syncs_sent", "Requests to peers for what this node lacks", syncs)?;
        page.counter(
            "divergences",
            "Times that a peer's map differed although its version vector was equal",
            divergences,
        )?;
        page.counter("entries_received", "Entries received from peers", entries_in)?;
        page.counter("entries_sent", "Entries sent to peers", entries_out)?;
        page.counter("returns", "Times this node was reset and rejoined with a new origin", returns)?;
        page.counter("entries_reissued", "Writes of this node's former origins that were reissued", reissued)?;
        let help =
            "Writes of this node's former origins that were dropped, because the keys may have been deleted since";
        page.counter("entries_too_late", help, too_late)?;
        page.counter("adoptions", "Times that partial writes of a gone node were adopted", adoptions)?;
        page.counter("keys_evicted", "Values deleted to make room", evicted_keys)?;
        page.counter("entries_without_room", "Writes of peers that found no room", no_room)?;
        page.counter("twins_refused", "Processes that were refused because a live one has their name", twins)
    }

    fn peers(&self, page: &mut Page, stats: &Stats) -> fmt::Result {
        let peers = self.overview.peers();
        let in_state = |state| peers.iter().filter(|p| p.state == state).count() as f64;
        page.gauges("peers", "Other nodes, by state", "state", STATES.map(|s| (s.as_str(), in_state(s))))?;
        // Counted by the links, not by the peers: a peer may be declared dead while its link is still up.
        page.gauge("links", "Replication links that are up", stats.linked.len() as f64)?;
        let skewed = self.overview.skewed().len() as f64;
        page.gauge("skewed_peers", "Nodes refused because their clock and this node's are too far apart", skewed)?;
        let unjoinable = self.overview.unjoinable();
        let with = |reason| unjoinable.iter().filter(|refusal| refusal.reason == reason).count() as f64;
        let help = "Peers that this node cannot talk to, by reason";
        page.gauges("unjoinable_peers", help, "reason", Reason::ALL.map(|reason| (reason.as_str(), with(reason))))?;
        let counters = &*self.membership;
        let events = [
            ("joined", &counters.joined),
            ("left", &counters.left),
            ("failed", &counters.failed),
            ("renewed", &counters.renewed),
        ];
        let help = "Membership events; renewed: this node was declared dead and announced that it is alive";
        let evicted = ("evicted", stats.evicted);
        page.counters("membership_events", help, "event", events.map(read).into_iter().chain([evicted]))?;
        let datagrams = [("in", &counters.datagrams_in), ("out", &counters.datagrams_out)];
        page.counters("membership_datagrams", "Membership datagrams, by direction", "direction", datagrams.map(read))?;
        let bytes = [("in", &counters.bytes_in), ("out", &counters.bytes_out)];
        page.counters("membership_bytes", "Bytes of membership datagrams, by direction", "direction", bytes.map(read))?;
        let errors = [("send", &counters.send_errors), ("fault", &counters.faults)];
        page.counters(
            "membership_errors",
            "Datagrams that could not be sent, and internal errors of the protocol",
            "kind",
            errors.map(read),
        )
    }

    fn peer_port(&self, page: &mut Page) -> fmt::Result {
        let refused = self.transport.counters().read();
        page.counters("peer_refused", "Connections on the peer port that were refused, by reason", "reason", refused)?;
        let (_, datagrams) = read(("", &self.membership.refused));
        page.counter("peer_datagrams_refused", "Datagrams on the peer port that were refused", datagrams)?;
        let reasons = membership::Refused::KINDS.into_iter().zip(&self.membership.refused_by);
        page.counters(
            "membership_refused",
            "Membership datagrams that were refused, by reason",
            "reason",
            reasons.map(read),
        )?;
        let help = "Whether this node hears only of another cluster of its cluster's name, because its own was deleted";
        page.gauge("stale", help, if self.overview.is_stale() { 1.0 } else { 0.0 })?;
        if let Some(sealer) = &self.sealer {
            let help = "Datagrams on the peer port that could not be decrypted, by reason; they are among the refused";
            page.counters("peer_datagrams_unopened", help, "reason", sealer.counters().read())?;
        }
        let reloads = self.overview.reloads();
        let times = reloads.iter().map(|(what, reload)| (*what, reload.times));
        page.counters("reloads", "Times that changed files were loaded, by use", "what", times)?;
        let failing = reloads.iter().map(|(what, reload)| (*what, flag(reload.error.is_some())));
        page.gauges("reload_failing", "Whether the current files cannot be loaded, by use", "what", failing)?;
        let keys = self.overview.keys().unwrap_or_default();
        let places = (1..).map(f64::from).zip(&keys).map(|(place, key)| (key.to_string(), place));
        page.gauges("encryption_key", "The position of each key in use, by name; 1 is the primary key", "key", places)
    }

    fn client_port(&self, page: &mut Page) -> fmt::Result {
        let open = self.connections.open() as f64;
        page.gauge("client_connections", "Open connections on the client port", open)?;
        let help = "Connections on the client port that were refused or closed, by reason";
        page.counters("client_refused", help, "reason", self.connections.counters().read())?;
        if let Some(counters) = self.auth.counters() {
            let help = "Calls of unidentified clients, and calls denied to identified ones, by reason";
            page.counters("access_denied", help, "reason", counters.read())?;
        }
        let expiries = self.overview.expiries();
        let ends = expiries.iter().map(|(of, expiry)| (*of, expiry.not_after_ms as f64 / 1000.0));
        let help = "When this node's certificate expires, in seconds since 1970, by use";
        page.gauges("certificate_expiry_timestamp_seconds", help, "use", ends)
    }

    fn discovery(&self, page: &mut Page) -> fmt::Result {
        let view = self.overview.discovery();
        let found = view.providers.iter().map(|p| (p.provider, f64::from(p.found())));
        page.gauges("discovery_found", "Addresses found in the last round, by provider", "provider", found)?;
        let failing = view.providers.iter().map(|p| (p.provider, flag(p.error.is_some())));
        page.gauges("discovery_failing", "Whether the last round failed, by provider", "provider", failing)?;
        let failures = view.providers.iter().map(|p| (p.provider, p.failures));
        page.counters("discovery_failures", "Rounds that failed, wholly or in part, by provider", "provider", failures)
    }
}

const PHASES: [Phase; 4] = [Phase::Joining, Phase::Syncing, Phase::Ready, Phase::Draining];
const STATES: [MemberState; 2] = [MemberState::Alive, MemberState::Suspect];

fn flag(set: bool) -> f64 {
    f64::from(u8::from(set))
}

fn read((label, counter): (&'static str, &AtomicU64)) -> (&'static str, u64) {
    (label, counter.load(Ordering::Relaxed))
}

/// Writes metrics to the page.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        ConstGauge::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Gauge)?)
    }

    fn gauges<K: AsRef<str>>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (K, f64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (key, value) in values {
            ConstGauge::new(value).encode(family.encode_family(&[(label, key.as_ref())])?)?;
        }
        Ok(())
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        ConstCounter::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Counter)?)
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'static str, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (key, value) in values {
            ConstCounter::new(value).encode(family.encode_family(&[(label, key)])?)?;
        }
        Ok(())
    }
}
