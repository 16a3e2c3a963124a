//! The registry of metrics, and the metrics of gRPC calls. The other parts of the node keep their own figures; a
//! collector that is registered here reads them at each scrape.

use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// The content type of what [`Metrics::render`] writes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The upper bounds of the request duration buckets, seconds: reads take microseconds, long listings seconds.
const DURATION_BUCKETS: [f64; 12] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 10.0];

type Requests = Family<[(&'static str, &'static str); 2], Counter>;
type Durations = Family<[(&'static str, &'static str); 1], Histogram, fn() -> Histogram>;

/// All metrics of a node.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    calls: CallCounts,
}

/// Counts gRPC calls. Cheap to clone; clones count into the same metrics.
#[derive(Clone, Debug)]
pub struct CallCounts {
    requests: Requests,
    durations: Durations,
}

impl Metrics {
    /// The metrics of a process that started at `started_ms`.
    pub fn new(version: &str, started_ms: u64) -> Self {
        let calls = CallCounts {
            requests: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS)),
        };
        let started: Gauge<f64, std::sync::atomic::AtomicU64> = Gauge::default();
        started.set(started_ms as f64 / 1000.0);

        let mut registry = Registry::with_prefix("kvasir");
        registry.register("build", "The release of this node", Info::new([("version", version.to_owned())]));
        registry.register("process_start_time_seconds", "When the process started, in seconds since 1970", started);
        registry.register("requests", "Completed gRPC calls, by method and code", calls.requests.clone());
        registry.register(
            "request_duration_seconds",
            "Time from the arrival of a gRPC call to the end of its answer, by method",
            calls.durations.clone(),
        );
        Self { registry, calls }
    }

    /// Adds a collector that is read at each scrape.
    pub fn collect(&mut self, collector: Box<dyn Collector>) {
        self.registry.register_collector(collector);
    }

    /// The counters of gRPC calls.
    pub fn calls(&self) -> CallCounts {
        self.calls.clone()
    }

    /// All metrics in the `OpenMetrics` text format.
    pub fn render(&self) -> Result<String, std::fmt::Error> {
        let mut page = String::with_capacity(16 << 10);
        text::encode(&mut page, &self.registry)?;
        Ok(page)
    }
}

impl CallCounts {
    /// Counts a gRPC call that ended.
    pub fn count(&self, method: &'static str, code: &'static str, took: Duration) {
        self.requests.get_or_create(&[("method", method), ("code", code)]).inc();
        self.durations.get_or_create(&[("method", method)]).observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_render_counted_calls() {
        let metrics = Metrics::new("1.2.3", 1_500);
        let calls = metrics.calls();
        calls.count("/kvasir.v1.Kv/Get", "OK", Duration::from_millis(2));
        calls.count("/kvasir.v1.Kv/Get", "OK", Duration::from_millis(2));
        let page = metrics.render().unwrap();
        for line in [
            "kvasir_build_info{version=\"1.2.3\"} 1",
            "kvasir_process_start_time_seconds 1.5",
            "kvasir_requests_total{method=\"/kvasir.v1.Kv/Get\",code=\"OK\"} 2",
            "kvasir_request_duration_seconds_count{method=\"/kvasir.v1.Kv/Get\"} 2",
            "kvasir_request_duration_seconds_bucket{le=\"0.001\",method=\"/kvasir.v1.Kv/Get\"} 0",
        ] {
            assert!(page.lines().any(|l| l == line), "{line} is missing in\n{page}");
        }
        assert!(page.ends_with("# EOF\n"));
    }
}
