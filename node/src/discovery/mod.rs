//! Where peers may be. One file for each way of finding out, behind one trait;
//! all of them together make a [`View`]. Knows nothing of who answers at the
//! addresses it finds, and never ends.

mod dns;
mod kubernetes;
mod static_hosts;

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderStatus {
    /// Its name, as in the settings.
    pub provider: &'static str,
    /// How many addresses it found when it last answered.
    pub found: u32,
    /// Why it doesn't answer now.
    pub error: Option<String>,
    /// Whether it has ever answered.
    pub answered: bool,
}

/// One way of finding peers.
pub trait Provider: Send {
    /// Its name, as in the settings.
    fn name(&self) -> &'static str;

    /// Looks for peers again and again, and tells what it finds. Never ends:
    /// what fails now may work later.
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

    /// The provider doesn't answer. What it found before still stands.
    pub fn failed(&self, error: String) {
        self.report(None, Some(error));
    }

    fn report(&self, addresses: Option<BTreeSet<SocketAddr>>, error: Option<String>) {
        let mut slots = self.shared.slots.lock();
        let slot = &mut slots[self.place];
        let state_before = slot.state();
        if let Some(mut addresses) = addresses {
            if addresses.len() > MAX_ADDRESSES {
                addresses = addresses.into_iter().take(MAX_ADDRESSES).collect();
            }
            slot.addresses = addresses;
            slot.status.answered = true;
            slot.status.found = slot.addresses.len() as u32;
        }
        slot.status.error = error;
        let (state, provider) = (slot.state(), slot.status.provider);
        debug!(provider, addresses = ?slot.addresses, error = slot.status.error, "discovery round");
        if state != state_before {
            match &slot.status.error {
                Some(error) => warn!(provider, error, known = slot.addresses.len(), "discovery fails"),
                None if slot.addresses.is_empty() => info!(provider, "discovery works, and finds nobody yet"),
                None => info!(provider, found = slot.addresses.len(), "discovery finds addresses of peers"),
            }
        }
        let view = merge(&slots);
        self.shared.view.send_if_modified(|now| {
            let changed = **now != view;
            if changed {
                *now = Arc::new(view);
            }
            changed
        });
    }
}

#[derive(Debug)]
struct Shared {
    slots: Mutex<Vec<Slot>>,
    view: watch::Sender<Arc<View>>,
}

#[derive(Debug)]
struct Slot {
    status: ProviderStatus,
    addresses: BTreeSet<SocketAddr>,
}

/// What is worth a log line when it changes.
#[derive(PartialEq, Eq)]
enum State {
    Waiting,
    Failing,
    Empty,
    Finding,
}

impl Slot {
    fn state(&self) -> State {
        match (&self.status.error, self.status.answered, self.addresses.is_empty()) {
            (Some(_), _, _) => State::Failing,
            (None, false, _) => State::Waiting,
            (None, true, true) => State::Empty,
            (None, true, false) => State::Finding,
        }
    }
}

/// All providers' addresses; one that several name counts for the first.
fn merge(slots: &[Slot]) -> View {
    let mut view = View::default();
    for slot in slots {
        for address in &slot.addresses {
            view.addresses.entry(*address).or_insert(slot.status.provider);
        }
        view.providers.push(slot.status.clone());
    }
    view
}

/// Starts to look for peers in every way that is configured. Ends when nobody
/// holds the view any more.
pub fn start(config: &DiscoveryConfig) -> watch::Receiver<Arc<View>> {
    let DiscoveryConfig { kubernetes, dns, static_hosts } = config;
    let mut providers: Vec<Box<dyn Provider>> = Vec::new();
    if let Some(config) = kubernetes {
        providers.push(Box::new(kubernetes::Kubernetes::new(config.clone())));
    }
    if let Some(config) = dns {
        providers.push(Box::new(dns::Dns::new(config.clone())));
    }
    if let Some(config) = static_hosts {
        providers.push(Box::new(static_hosts::StaticHosts::new(config.clone())));
    }
    start_providers(providers)
}

/// Starts to look for peers with these providers.
pub fn start_providers(providers: Vec<Box<dyn Provider>>) -> watch::Receiver<Arc<View>> {
    let slots: Vec<_> = providers
        .iter()
        .map(|provider| Slot {
            status: ProviderStatus { provider: provider.name(), found: 0, error: None, answered: false },
            addresses: BTreeSet::new(),
        })
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
