//! Metrics of the controller.
//!
//! Knows nothing of how they are served.

use std::time::Duration;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};

/// How a reconcile ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum End {
    /// Successfully.
    Done,
    /// With an error; it is retried.
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabel {
    end: End,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: String,
}

/// A handle to the metrics; clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    reconciles: Family<EndLabel, Counter>,
    writes: Family<KindLabel, Counter>,
    seconds: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            reconciles: Family::default(),
            writes: Family::default(),
            seconds: Histogram::new([0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]),
        }
    }
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("kvasir_operator_reconciles", "Reconciles, by how they ended", self.reconciles.clone());
        registry.register(
            "kvasir_operator_writes",
            "Write requests to the API server, by kind of object",
            self.writes.clone(),
        );
        registry.register("kvasir_operator_reconcile_seconds", "How long a reconcile takes", self.seconds.clone());
    }

    /// Counts a reconcile that ended.
    pub fn reconciled(&self, end: End, took: Duration) {
        self.reconciles.get_or_create(&EndLabel { end }).inc();
        self.seconds.observe(took.as_secs_f64());
    }

    /// Counts a write request that is about to be sent.
    pub fn wrote(&self, kind: &str) {
        self.writes.get_or_create(&KindLabel { kind: kind.to_owned() }).inc();
    }
}
