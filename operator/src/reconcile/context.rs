//! What all reconciles share.

use std::collections::HashMap;

use kube::Client;
use kube_runtime::reflector::ObjectRef;
use kvasir_crds::KvCluster;
use parking_lot::Mutex;

use super::poll::Poller;
use crate::{
    api_server::watches::Watches,
    metrics::Metrics,
    webhook::pods::{Warned, Watched},
};

/// The operator's settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The only namespace whose clusters are managed; `None`: all.
    pub namespace: Option<String>,
    /// Image of clusters that name none.
    pub node_image: String,
    /// The `ClusterRole` that members need to have tokens reviewed.
    pub token_review_role: String,
}

/// What all reconciles share.
pub struct Context {
    pub(super) client: Client,
    pub(super) settings: Settings,
    pub(super) metrics: Metrics,
    pub(super) watches: Watches,
    pub(super) poller: Poller,
    pub(super) warned: Warned,
    pub(super) applications: Mutex<Watched>,
    pub(super) failures: Mutex<HashMap<ObjectRef<KvCluster>, u32>>,
}

impl Context {
    /// A context without any history.
    pub fn new(client: Client, settings: Settings, metrics: Metrics, watches: Watches) -> Self {
        Self {
            client,
            settings,
            metrics,
            watches,
            poller: Poller::default(),
            warned: Warned::default(),
            applications: Mutex::default(),
            failures: Mutex::default(),
        }
    }
}
