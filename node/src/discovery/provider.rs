//! What a provider is, and how the findings of all providers become a [`View`].

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

/// How many addresses of one provider are used. A cluster is far smaller.
pub const MAX_ADDRESSES: usize = 1024;

/// The findings of all providers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Addresses of peer ports, each with the provider that found it. The node's own may be among them.
    pub addresses: BTreeMap<SocketAddr, &'static str>,
    /// The state of each provider. Empty for a node that is meant to be alone.
    pub providers: Vec<ProviderStatus>,
}

impl View {
    /// Whether every provider has answered at least once.
    pub fn answered(&self) -> bool {
        self.providers.iter().all(|provider| provider.answered)
    }
}

/// The state of one provider.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProviderStatus {
    /// The provider's name, as in the settings.
    pub provider: &'static str,
    /// The addresses of its last answer.
    pub addresses: BTreeSet<SocketAddr>,
    /// Why it does not answer now.
    pub error: Option<String>,
    /// Whether it has ever answered.
    pub answered: bool,
    /// How often it has failed, fully or in part.
    pub failures: u64,
}

impl ProviderStatus {
    /// The number of addresses in its last answer.
    pub fn found(&self) -> u32 {
        self.addresses.len() as u32
    }
}

/// A way of finding peers.
///
/// A provider only returns addresses of peer ports. Membership finds out which nodes are there and whether they belong to the
/// cluster. So a provider may also return addresses without a node, and the node's own.
///
/// ```
/// use std::{collections::BTreeSet, convert::Infallible, net::SocketAddr, path::PathBuf, time::Duration};
///
/// use futures::{FutureExt, future::BoxFuture};
/// use kvasir_node::config::Settings;
/// use kvasir_node::discovery::{Provider, Reporter};
/// use kvasir_node::node::Node;
///
/// /// Reads peers from a file, one per line, that another program writes.
/// struct FileOfPeers(PathBuf);
///
/// impl FileOfPeers {
///     async fn read(&self) -> Result<BTreeSet<SocketAddr>, String> {
///         let failed = |error| format!("cannot read {}: {error}", self.0.display());
///         let text = tokio::fs::read_to_string(&self.0).await.map_err(failed)?;
///         let address = |line: &str| line.parse().map_err(|_| format!("{line:?} is not an address: write 10.0.0.1:7071"));
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
/// // Two nodes on free ports.
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
/// // They find each other through the file.
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
    /// The provider's name, as in the settings.
    fn name(&self) -> &'static str;

    /// Looks for peers repeatedly and reports what it finds. Never returns, because what fails now may work later. The future
    /// is dropped when the node ends.
    fn run(self: Box<Self>, reporter: Reporter) -> BoxFuture<'static, Infallible>;
}

/// Accepts the findings of one provider.
#[derive(Clone, Debug)]
pub struct Reporter {
    shared: Arc<Shared>,
    /// The index of the provider.
    index: usize,
}

impl Reporter {
    /// The provider answered: peers may be at these addresses and no others.
    pub fn found(&self, addresses: BTreeSet<SocketAddr>) {
        self.report(Some(addresses), None);
    }

    /// The provider answered in part.
    pub fn found_in_part(&self, addresses: BTreeSet<SocketAddr>, error: String) {
        self.report(Some(addresses), Some(error));
    }

    /// The answer is not complete yet: a starting node must not conclude that there are no other peers.
    pub fn found_so_far(&self, addresses: BTreeSet<SocketAddr>) {
        let mut slots = self.shared.slots.lock();
        slots[self.index].addresses = bounded(addresses);
        self.publish(&slots);
    }

    /// The provider does not answer. Its last findings stay valid.
    pub fn failed(&self, error: String) {
        self.report(None, Some(error));
    }

    fn report(&self, addresses: Option<BTreeSet<SocketAddr>>, error: Option<String>) {
        let mut slots = self.shared.slots.lock();
        let slot = &mut slots[self.index];
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
                None if slot.addresses.is_empty() => info!(provider, "discovery works, but found no peers yet"),
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

/// An error with its causes, each text once.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let deeper = error.to_string();
        if !text.contains(&deeper) {
            text = format!("{text}: {deeper}");
        }
        cause = error.source();
    }
    text
}

fn bounded(addresses: BTreeSet<SocketAddr>) -> BTreeSet<SocketAddr> {
    if addresses.len() <= MAX_ADDRESSES { addresses } else { addresses.into_iter().take(MAX_ADDRESSES).collect() }
}

#[derive(Debug)]
struct Shared {
    slots: Mutex<Vec<ProviderStatus>>,
    view: watch::Sender<Arc<View>>,
}

/// A provider's state as far as a change of it is logged.
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

/// The addresses of all providers. An address that several providers found belongs to the first.
fn merge(slots: &[ProviderStatus]) -> View {
    let mut view = View { addresses: BTreeMap::new(), providers: slots.to_vec() };
    for slot in slots {
        for address in &slot.addresses {
            view.addresses.entry(*address).or_insert(slot.provider);
        }
    }
    view
}

/// Runs these providers until all receivers of the view are dropped.
pub fn start(providers: Vec<Box<dyn Provider>>) -> watch::Receiver<Arc<View>> {
    let slots: Vec<_> = providers
        .iter()
        .map(|provider| ProviderStatus { provider: provider.name(), ..ProviderStatus::default() })
        .collect();
    let (view, receiver) = watch::channel(Arc::new(merge(&slots)));
    let shared = Arc::new(Shared { slots: Mutex::new(slots), view });
    for (index, provider) in providers.into_iter().enumerate() {
        let shared = Arc::clone(&shared);
        let running = provider.run(Reporter { shared: Arc::clone(&shared), index });
        tokio::spawn(async move {
            tokio::select! {
                never = running => match never {},
                () = shared.view.closed() => {}
            }
        });
    }
    receiver
}
