//! The state of the webhook for the rest of the operator: whether it serves, and its metrics.
//!
//! Knows nothing of how the figures come about.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicI64, Ordering},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// The webhook's answer for a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Answer {
    /// The pod got a sidecar, or the part of it that was missing.
    Injected,
    /// The pod needed no change.
    Unchanged,
    /// The pod got no sidecar, and its creator got a warning.
    Warned,
    /// The webhook could not answer; the API server applied its failure policy.
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    answer: Answer,
}

/// A handle to the webhook's state; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Monitor {
    serving: Arc<AtomicBool>,
    answers: Family<Labels, Counter>,
    certificate_end: Gauge<i64, AtomicI64>,
}

impl Monitor {
    /// Whether the webhook serves with a certificate, which the operator's readiness depends on.
    pub fn serving(&self) -> bool {
        self.serving.load(Ordering::Acquire)
    }

    /// Registers the webhook's metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "kvasir_webhook_answers",
            "Pods that the sidecar webhook answered for, by answer",
            self.answers.clone(),
        );
        registry.register(
            "kvasir_webhook_certificate_end_seconds",
            "When the webhook's serving certificate expires, in seconds since 1970; 0 before there is one",
            self.certificate_end.clone(),
        );
    }

    /// How often this answer was given.
    pub fn answered(&self, answer: Answer) -> u64 {
        self.answers.get_or_create(&Labels { answer }).get()
    }

    pub(super) fn count(&self, answer: Answer) {
        self.answers.get_or_create(&Labels { answer }).inc();
    }

    pub(super) fn start_serving(&self, certificate_end: i64) {
        self.certificate_end.set(certificate_end);
        self.serving.store(true, Ordering::Release);
    }

    pub(super) fn stop_serving(&self) {
        self.serving.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monitor_metrics_have_their_names() {
        let monitor = Monitor::default();
        let mut registry = Registry::default();
        monitor.register(&mut registry);
        monitor.count(Answer::Warned);
        monitor.start_serving(42);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("kvasir_webhook_answers_total{answer=\"Warned\"} 1"), "{text}");
        assert!(text.contains("kvasir_webhook_certificate_end_seconds 42"), "{text}");
        assert!(monitor.serving());
        monitor.stop_serving();
        assert!(!monitor.serving());
    }
}
