//! The loop against an API server that becomes unreachable, on a paused clock.

use http::Method;
use serde_json::json;
use tokio::{task::JoinHandle, time::sleep};

use super::*;
use crate::{api_server::watches::Watches, fake::Fake, metrics::Metrics};

/// Time within which the controller must act.
const SOON_ENOUGH: Duration = Duration::from_secs(5);

/// A cluster that is being deleted: each reconcile is one request without effect.
fn change(fake: &Fake, generation: u64) {
    fake.put(
        "kvclusters",
        json!({
            "apiVersion": "kvasir.dev/v1alpha1", "kind": "KvCluster",
            "metadata": {
                "name": "demo", "namespace": "shop", "uid": "u-1", "generation": generation,
                "deletionTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": { "replicas": 3 },
        }),
    );
}

struct Running {
    fake: Fake,
    watches: Watches,
    task: JoinHandle<()>,
}

impl Running {
    fn start(fake: &Fake) -> Self {
        let watches = Watches::default();
        let settings = Settings {
            namespace: None,
            node_image: "kvasir:test".to_owned(),
            token_review_role: "kvasir-token-review".to_owned(),
        };
        let context = Context::new(fake.client(), settings, Metrics::default(), watches.clone());
        let task = tokio::spawn(run(Arc::new(context), std::future::pending()));
        Self { fake: fake.clone(), watches, task }
    }

    fn looks(&self) -> usize {
        self.fake.count(&Method::GET, "/kvclusters/demo")
    }

    /// Waits until the cluster is reconciled again.
    async fn acts(&self, before: usize, what: &str) {
        let looked = async {
            while self.looks() <= before {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(SOON_ENOUGH, looked).await.unwrap_or_else(|_| panic!("{what}: it looks at nothing"));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn controller_acts_soon_after_any_outage() {
    let fake = Fake::default();
    change(&fake, 1);
    let running = Running::start(&fake);
    running.acts(0, "at the start").await;
    let mut generation = 1;
    for outage in [1, 5, 74, 600, 2, 2, 74] {
        fake.leave();
        sleep(Duration::from_secs(outage)).await;
        generation += 1;
        change(&fake, generation);
        let before = running.looks();
        fake.back();
        running.acts(before, &format!("after {outage} s away")).await;
        // Later changes are seen at once.
        sleep(Duration::from_secs(6)).await;
        let before = running.looks();
        generation += 1;
        change(&fake, generation);
        running.acts(before, &format!("a change after {outage} s away")).await;
        assert_eq!(running.watches.broken(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn controller_is_not_delayed_by_one_broken_watch() {
    let fake = Fake::default();
    fake.forbid("roles");
    change(&fake, 1);
    let running = Running::start(&fake);
    running.acts(0, "at the start").await;
    for generation in 2..20 {
        sleep(Duration::from_secs(31)).await;
        let before = running.looks();
        change(&fake, generation);
        running.acts(before, "while one watch is broken").await;
    }
    let broken = running.watches.broken().expect("one watch is broken");
    assert!(broken.starts_with("the watch of Role is broken for ") && !broken.contains(','), "{broken}");
}
