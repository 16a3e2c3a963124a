//! Where peers may be. One file for each way of finding out, behind one trait;
//! all of them together make a [`View`]. Knows nothing of who answers at the
//! addresses it finds, and never ends.
//!
//! A way of your own is a [`Provider`], given to
//! [`Node::start_with`](crate::node::Node::start_with).

mod dns;
mod kubernetes;
mod nats;
mod static_hosts;

/// What a NATS server hands on, for the fuzz targets.
#[doc(hidden)]
pub mod fuzzing {
    use std::net::SocketAddr;

    pub fn read_announcement(payload: &[u8]) -> Result<Vec<SocketAddr>, String> {
        super::nats::read(payload)
    }

    pub fn write_announcement(addresses: Vec<SocketAddr>) -> Vec<u8> {
        super::nats::write(addresses)
    }
}

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::SocketAddr,
    sync::Arc,
};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::config::DiscoveryConfig;

/// How many addresses of one provider are used; a cluster is far smaller.
pub const MAX_ADDRESSES: usize = 1024;

/// What all providers found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Peer ports, and the provider that named each. The node's own may be among them.
    pub addresses: BTreeMap<SocketAddr, &'static str>,
    /// How each provider fares. Empty for a node that is alone by choice.
    pub providers: Vec<ProviderStatus>,
}

impl View {
    /// Whether every provider has answered at least once.
    pub fn answered(&self) -> bool {
        self.providers.iter().all(|provider| provider.answered)
    }
}

/// How one provider fares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProviderStatus {
    /// Its name, as in the settings.
    pub provider: &'static str,
    /// The addresses that it found when it last answered.
    pub addresses: BTreeSet<SocketAddr>,
    /// Why it doesn't answer now.
    pub error: Option<String>,
    /// Whether it has ever answered.
    pub answered: bool,
    /// How often it has failed, wholly or in part.
    pub failures: u64,
}

impl ProviderStatus {
    /// How many addresses it found when it last answered.
    pub fn found(&self) -> u32 {
        self.addresses.len() as u32
    }
}

/// One way of finding peers.
///
/// A provider only gives addresses of peer ports; who is behind them, and
/// whether they belong to the cluster, is for membership to find out. So it may
/// name addresses where nobody is, and the node's own.
///
/// ```
/// use std::{collections::BTreeSet, convert::Infallible, net::SocketAddr, path::PathBuf, time::Duration};
///
/// use futures::{FutureExt, future::BoxFuture};
/// use kvasir_node::config::Settings;
/// use kvasir_node::discovery::{Provider, Reporter};
/// use kvasir_node::node::Node;
///
/// /// Peers as the lines of a file that some other program keeps.
/// struct FileOfPeers(PathBuf);
///
/// impl FileOfPeers {
///     async fn read(&self) -> Result<BTreeSet<SocketAddr>, String> {
///         let failed = |error| format!("cannot read {}: {error}", self.0.display());
///         let text = tokio::fs::read_to_string(&self.0).await.map_err(failed)?;
///         let address = |line: &str| line.parse().map_err(|_| format!("{line:?} is no address: write 10.0.0.1:7071"));
///         text.lines().map(address).collect()
///     }
/// }
///
/// impl Provider for FileOfPeers {
///     fn name(&self) -> &'static str {
///         "file"
///     }
///
///     fn run(self: Box<Self>, reporter: Reporter) -> BoxFuture<'static, Infallible> {
///         async move {
///             loop {
///                 match self.read().await {
///                     Ok(addresses) => reporter.found(addresses),
///                     Err(error) => reporter.failed(error),
///                 }
///                 tokio::time::sleep(Duration::from_millis(200)).await;
///             }
///         }
///         .boxed()
///     }
/// }
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let file = folder.path().join("peers");
/// // Two nodes, on whatever ports are free.
/// let settings = "{clientAddress: '127.0.0.1:0', peerAddress: '127.0.0.1:0', adminAddress: '127.0.0.1:0', drainTimeout: 1s}";
/// let mut nodes = Vec::new();
/// for name in ["a", "b"] {
///     let mut settings = Settings::from_yaml("example".as_ref(), settings)?;
///     settings.name = Some(name.to_owned());
///     nodes.push(Node::start_with(settings.validate()?, vec![Box::new(FileOfPeers(file.clone()))]).await?);
/// }
/// let peers: Vec<_> = nodes.iter().map(|node| node.addresses().peer.to_string()).collect();
/// std::fs::write(&file, peers.join("\n"))?;
///
/// // They find each other by the file.
/// for node in nodes.iter().map(Node::overview) {
///     while node.phase().as_str() != "ready" || node.peers().iter().all(|peer| peer.found_by != Some("file")) {
///         tokio::time::sleep(Duration::from_millis(20)).await;
///     }
/// }
/// # for node in nodes {
/// #     node.shutdown().await;
/// # }
/// # Ok(())
/// # }
/// ```
pub trait Provider: Send {
    /// Its name, as in the settings.
    fn name(&self) -> &'static str;

    /// Looks for peers again and again, and tells what it finds. Never ends:
    /// what fails now may work later. It is dropped when the node ends.
    fn run(self: Box<Self>, reporter: Reporter) -> BoxFuture<'static, Infallible>;
}

/// Takes what one provider finds.
#[derive(Clone, Debug)]
pub struct Reporter {
    shared: Arc<Shared>,
    /// Which provider this is of.
    place: usize,
}

impl Reporter {
    /// The provider answered: peers may be here, and nowhere else.
    pub fn found(&self, addresses: BTreeSet<SocketAddr>) {
        self.report(Some(addresses), None);
    }

    /// The provider answered in part.
    pub fn found_in_part(&self, addresses: BTreeSet<SocketAddr>, error: String) {
        self.report(Some(addresses), Some(error));
    }

    /// Peers may be here, and the answer is not complete: a node that starts
    /// does not yet take it that there is nobody else.
    pub fn found_so_far(&self, addresses: BTreeSet<SocketAddr>) {
        let mut slots = self.shared.slots.lock();
        slots[self.place].addresses = bounded(addresses);
        self.publish(&slots);
    }

    /// The provider doesn't answer. What it found before still stands.
    pub fn failed(&self, error: String) {
        self.report(None, Some(error));
    }

    fn report(&self, addresses: Option<BTreeSet<SocketAddr>>, error: Option<String>) {
        let mut slots = self.shared.slots.lock();
        let slot = &mut slots[self.place];
        let state_before = State::of(slot);
        if let Some(addresses) = addresses {
            slot.addresses = bounded(addresses);
            slot.answered = true;
        }
        slot.failures += u64::from(error.is_some());
        slot.error = error;
        let (state, provider) = (State::of(slot), slot.provider);
        debug!(provider, addresses = ?slot.addresses, error = slot.error, "discovery round");
        if state != state_before {
            match &slot.error {
                Some(error) => warn!(provider, error, known = slot.addresses.len(), "discovery fails"),
                None if slot.addresses.is_empty() => info!(provider, "discovery works, and finds nobody yet"),
                None => info!(provider, found = slot.addresses.len(), "discovery finds addresses of peers"),
            }
        }
        self.publish(&slots);
    }

    fn publish(&self, slots: &[ProviderStatus]) {
        let view = merge(slots);
        self.shared.view.send_if_modified(|now| {
            let changed = **now != view;
            if changed {
                *now = Arc::new(view);
            }
            changed
        });
    }
}

fn bounded(addresses: BTreeSet<SocketAddr>) -> BTreeSet<SocketAddr> {
    if addresses.len() <= MAX_ADDRESSES { addresses } else { addresses.into_iter().take(MAX_ADDRESSES).collect() }
}

#[derive(Debug)]
struct Shared {
    slots: Mutex<Vec<ProviderStatus>>,
    view: watch::Sender<Arc<View>>,
}

/// What is worth a log line when it changes.
#[derive(PartialEq, Eq)]
enum State {
    Waiting,
    Failing,
    Empty,
    Finding,
}

impl State {
    fn of(status: &ProviderStatus) -> Self {
        match (&status.error, status.answered, status.addresses.is_empty()) {
            (Some(_), _, _) => Self::Failing,
            (None, false, _) => Self::Waiting,
            (None, true, true) => Self::Empty,
            (None, true, false) => Self::Finding,
        }
    }
}

/// All providers' addresses; one that several name counts for the first.
fn merge(slots: &[ProviderStatus]) -> View {
    let mut view = View { addresses: BTreeMap::new(), providers: slots.to_vec() };
    for slot in slots {
        for address in &slot.addresses {
            view.addresses.entry(*address).or_insert(slot.provider);
        }
    }
    view
}

/// The ways that are configured. `me` is where this node's peers reach it, for
/// those ways that have to tell others.
pub fn configured(config: &DiscoveryConfig, me: SocketAddr) -> Vec<Box<dyn Provider>> {
    let DiscoveryConfig { kubernetes, nats, dns, static_hosts } = config;
    let mut providers: Vec<Box<dyn Provider>> = Vec::new();
    if let Some(config) = kubernetes {
        providers.push(Box::new(kubernetes::Kubernetes::new(config.clone())));
    }
    if let Some(config) = nats {
        providers.push(Box::new(nats::Nats::new(config.clone(), me)));
    }
    if let Some(config) = dns {
        providers.push(Box::new(dns::Dns::new(config.clone())));
    }
    if let Some(config) = static_hosts {
        providers.push(Box::new(static_hosts::StaticHosts::new(config.clone())));
    }
    providers
}

/// Starts to look for peers with these providers. Ends when nobody holds the
/// view any more.
pub fn start(providers: Vec<Box<dyn Provider>>) -> watch::Receiver<Arc<View>> {
    let slots: Vec<_> = providers
        .iter()
        .map(|provider| ProviderStatus { provider: provider.name(), ..ProviderStatus::default() })
        .collect();
    let (view, receiver) = watch::channel(Arc::new(merge(&slots)));
    let shared = Arc::new(Shared { slots: Mutex::new(slots), view });
    for (place, provider) in providers.into_iter().enumerate() {
        let shared = Arc::clone(&shared);
        let running = provider.run(Reporter { shared: Arc::clone(&shared), place });
        tokio::spawn(async move {
            tokio::select! {
                never = running => match never {},
                () = shared.view.closed() => {}
            }
        });
    }
    receiver
}

#[cfg(test)]
mod tests;
