//! Peers by the labels of pods in a namespace. Pods that are not ready are included: they become ready only after they have
//! found each other.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture};
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::{
    Api, Client, ResourceExt,
    runtime::watcher::{self, watcher},
};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

use super::provider::{Provider, Reporter, causes};
use crate::config::KubernetesConfig;

/// The wait after the first failure, which doubles with each further failure, and its maximum. The maximum is short: without
/// the API server a starting node does not know its peers and is not ready.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// The time limits for a connection to the API server, and for the list of pods with which a watch begins.
const CONNECT_WITHIN: Duration = Duration::from_secs(4);
const LIST_WITHIN: Duration = Duration::from_secs(10);

pub(super) struct Kubernetes {
    config: KubernetesConfig,
    /// Used instead of the API server of the environment.
    given: Option<kube::Config>,
    list_within: Duration,
}

impl Kubernetes {
    pub(super) fn new(config: KubernetesConfig) -> Self {
        Self { config, given: None, list_within: LIST_WITHIN }
    }

    async fn api_server(&self) -> Result<kube::Config, kube::config::InferConfigError> {
        match &self.given {
            Some(given) => Ok(given.clone()),
            None => kube::Config::infer().await,
        }
    }

    fn selector(&self) -> String {
        let labels: Vec<_> = self.config.pod_labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        labels.join(",")
    }

    /// Watches until the watch fails, and returns why.
    async fn watch(&self, pods: &mut Pods, failures: &mut u32, reporter: &Reporter) -> String {
        let mut config = match self.api_server().await {
            Ok(config) => config,
            Err(error) => {
                return format!(
                    "cannot find the Kubernetes API: {error}; run in a pod with a ServiceAccount token, or set KUBECONFIG"
                );
            }
        };
        // By default the pod's own.
        let namespace = self.config.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        config.connect_timeout = Some(CONNECT_WITHIN);
        let client = match Client::try_from(config) {
            Ok(client) => client,
            Err(error) => return format!("cannot set up the Kubernetes client: {}", explain(&error, &namespace)),
        };
        let selection = watcher::Config::default().labels(&self.selector());
        let mut events = watcher(Api::<Pod>::namespaced(client, &namespace), selection).boxed();
        let deadline = Instant::now() + self.list_within;
        let mut listed = false;
        loop {
            // A watch is silent while no pod changes, a list never.
            let event = if listed {
                events.next().await
            } else {
                let Ok(event) = timeout_at(deadline, events.next()).await else {
                    let within = self.list_within;
                    return format!(
                        "cannot list the pods of namespace {namespace}: no complete answer within {within:?}"
                    );
                };
                event
            };
            let Some(event) = event else { break };
            match event {
                Ok(event) => {
                    if pods.apply(event) {
                        listed = true;
                        *failures = 0;
                        reporter.found(pods.addresses());
                    }
                }
                // The watcher would retry by itself, but not report when it works again. A new watcher begins with a
                // full list.
                Err(error) => return explain_watch(&error, &namespace),
            }
        }
        format!("the watch on the pods of namespace {namespace} ended")
    }
}

impl Provider for Kubernetes {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    fn run(self: Box<Self>, reporter: Reporter) -> BoxFuture<'static, Infallible> {
        async move {
            let mut pods = Pods::new(self.config.discovery_port_name.clone());
            let mut failures = 0;
            loop {
                let error = self.watch(&mut pods, &mut failures, &reporter).await;
                reporter.failed(error);
                // Spreads the retries of all nodes.
                sleep(pause(failures).mul_f64(rand::random_range(0.5..=1.0))).await;
                failures = failures.saturating_add(1);
            }
        }
        .boxed()
    }
}

/// The longest wait after a failure that follows this many failures.
fn pause(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << failures.min(8)).min(LONGEST_PAUSE)
}

/// The pods, by the events of the watch.
struct Pods {
    port_name: String,
    known: BTreeMap<String, Option<SocketAddr>>,
    /// The list that is being received.
    listing: Option<BTreeMap<String, Option<SocketAddr>>>,
    /// The pods without the port, for which a warning was logged.
    warned: HashSet<String>,
}

impl Pods {
    fn new(port_name: String) -> Self {
        Self { port_name, known: BTreeMap::new(), listing: None, warned: HashSet::new() }
    }

    /// Applies an event. Returns whether the addresses are complete.
    fn apply(&mut self, event: watcher::Event<Pod>) -> bool {
        match event {
            watcher::Event::Init => self.listing = Some(BTreeMap::new()),
            watcher::Event::InitApply(pod) => {
                let address = self.address(&pod);
                self.listing.get_or_insert_default().insert(pod.name_any(), address);
            }
            watcher::Event::InitDone => {
                self.known = self.listing.take().unwrap_or_default();
                self.warned.retain(|name| self.known.contains_key(name));
            }
            watcher::Event::Apply(pod) => {
                let address = self.address(&pod);
                self.known.insert(pod.name_any(), address);
            }
            watcher::Event::Delete(pod) => {
                self.known.remove(&pod.name_any());
                self.warned.remove(&pod.name_any());
            }
        }
        self.listing.is_none()
    }

    fn address(&mut self, pod: &Pod) -> Option<SocketAddr> {
        match peer(pod, &self.port_name) {
            PodPeer::At(address) => Some(address),
            PodPeer::Unavailable => None,
            PodPeer::WithoutPort => {
                if self.warned.insert(pod.name_any()) {
                    warn!(
                        pod = pod.name_any(),
                        port = self.port_name,
                        "pod has no container port of this name: skipped"
                    );
                }
                None
            }
        }
    }

    fn addresses(&self) -> BTreeSet<SocketAddr> {
        self.known.values().flatten().copied().collect()
    }
}

/// A pod as seen by discovery.
#[derive(Debug, PartialEq, Eq)]
enum PodPeer {
    /// A peer may be at this address.
    At(SocketAddr),
    /// The pod has no address yet, has ended, or is ending.
    Unavailable,
    /// The pod has no port of the configured name.
    WithoutPort,
}

fn peer(pod: &Pod, port_name: &str) -> PodPeer {
    let status = pod.status.as_ref();
    let ended = status.and_then(|it| it.phase.as_deref()).is_some_and(|phase| matches!(phase, "Succeeded" | "Failed"));
    if ended || pod.metadata.deletion_timestamp.is_some() {
        return PodPeer::Unavailable;
    }
    // `podIP` is the first of `podIPs`. It is in the cluster's first family, which every pod of a dual-stack cluster has.
    let ip = status.and_then(|it| it.pod_ip.as_deref()).and_then(|ip| ip.parse::<IpAddr>().ok());
    let Some(ip) = ip else { return PodPeer::Unavailable };
    let is_sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let port = pod.spec.as_ref().and_then(|spec| {
        // Native sidecars are init containers that keep running.
        let sidecars = spec.init_containers.iter().flatten().filter(is_sidecar);
        spec.containers
            .iter()
            .chain(sidecars)
            .flat_map(|container| container.ports.iter().flatten())
            .find(|port| port.name.as_deref() == Some(port_name))
            .and_then(|port| u16::try_from(port.container_port).ok())
    });
    port.map_or(PodPeer::WithoutPort, |port| PodPeer::At(SocketAddr::new(ip, port)))
}

fn explain_watch(error: &watcher::Error, namespace: &str) -> String {
    match error {
        watcher::Error::InitialListFailed(error) => {
            format!("cannot list the pods of namespace {namespace}: {}", explain(error, namespace))
        }
        watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => {
            format!("cannot watch the pods of namespace {namespace}: {}", explain(error, namespace))
        }
        watcher::Error::WatchError(status) => {
            format!("the watch on the pods of namespace {namespace} ended: {}", status.message)
        }
        watcher::Error::NoResourceVersion => error.to_string(),
    }
}

fn explain(error: &kube::Error, namespace: &str) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => format!(
            "{}; give this pod's ServiceAccount a Role in namespace {namespace} with the rule \
             apiGroups: [\"\"], resources: [pods], verbs: [get, list, watch]",
            status.message
        ),
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        other => causes(other),
    }
}

#[cfg(test)]
mod tests;
