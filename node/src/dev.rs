//! A whole cluster in one process, on loopback, to try Kvasir out and for the tests of applications. It runs the same
//! nodes as production, except that they get each other's addresses from the process. Their data ends with the process.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures::{FutureExt, future::BoxFuture};
use tokio::sync::watch;

use crate::config::{ConfigError, DevSettings, DurationText, Settings};
use crate::discovery::{Provider, Reporter};
use crate::engine::Phase;
use crate::memory;
use crate::node::{Addresses, Node, NodeError};

/// The distance between the ports of one node and of the next.
const STRIDE: u16 = 10;

/// Why the cluster did not start.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// The ports would be above 65535.
    #[error("--port: {port} leaves no room for {nodes} nodes of three ports each: give a lower one, or 0 for any")]
    Ports {
        /// The first port.
        port: u16,
        /// The number of nodes.
        nodes: u16,
    },
    /// The nodes refuse a setting.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A node did not start.
    #[error("{0}; or give another --port, or 0 for any free ports")]
    Node(#[from] NodeError),
}

/// A running cluster.
pub struct DevCluster {
    nodes: Vec<Node>,
}

impl DevCluster {
    /// Starts the nodes. They become ready later: see [`Self::ready`].
    pub async fn start(settings: &DevSettings) -> Result<Self, DevError> {
        let (all, found) = watch::channel(BTreeSet::new());
        let mut nodes = Vec::new();
        for number in 0..settings.nodes {
            let mut config = node_settings(settings, number)?.validate()?.within(memory::limit())?;
            // The nodes share the memory of one process.
            config.max_memory = config.max_memory.map(|max| max / u64::from(settings.nodes));
            nodes.push(Node::start_with(config, vec![Box::new(Neighbours(found.clone()))]).await?);
        }
        all.send_replace(nodes.iter().map(|node| node.addresses().peer).collect());
        Ok(Self { nodes })
    }

    /// Returns when every node is ready and linked to all others.
    pub async fn ready(&self) {
        for node in &self.nodes {
            while node.overview().phase() != Phase::Ready
                || node.overview().peers().iter().filter(|peer| peer.linked).count() + 1 < self.nodes.len()
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// Returns only if a node fails.
    pub async fn failed(&mut self) -> NodeError {
        futures::future::select_all(self.nodes.iter_mut().map(|node| node.failed().boxed())).await.0
    }

    /// The name and the addresses of each node.
    pub fn addresses(&self) -> Vec<(String, Addresses)> {
        self.nodes.iter().map(|node| (node.overview().me().id.name, node.addresses())).collect()
    }

    /// Stops all nodes; their data ends with them.
    pub async fn stop(self) {
        futures::future::join_all(self.nodes.into_iter().map(Node::shutdown)).await;
    }
}

fn node_settings(settings: &DevSettings, number: u16) -> Result<Settings, DevError> {
    let DevSettings { nodes, port, .. } = *settings;
    let first = match port {
        0 => 0,
        port => number
            .checked_mul(STRIDE)
            .and_then(|up| port.checked_add(up))
            .filter(|it| it.checked_add(2).is_some())
            .ok_or(DevError::Ports { port, nodes })?,
    };
    let at = |offset| Some(SocketAddr::from((Ipv4Addr::LOCALHOST, if first == 0 { 0 } else { first + offset })));
    Ok(Settings {
        name: Some(format!("dev-{number}")),
        cluster: Some("dev".to_owned()),
        client_address: at(0),
        peer_address: at(1),
        admin_address: at(2),
        // All nodes end together, so there is no peer to hand over to.
        drain_timeout: Some(DurationText(Duration::ZERO)),
        ..Settings::default()
    })
}

/// Finds the nodes of this process, once all of them have their ports.
struct Neighbours(watch::Receiver<BTreeSet<SocketAddr>>);

impl Provider for Neighbours {
    fn name(&self) -> &'static str {
        "dev"
    }

    fn run(mut self: Box<Self>, reporter: Reporter) -> BoxFuture<'static, Infallible> {
        async move {
            loop {
                // Before that the number of nodes is unknown: no answer is better than an empty one.
                if let Ok(all) = self.0.wait_for(|all| !all.is_empty()).await {
                    reporter.found(all.clone());
                }
                std::future::pending::<()>().await;
            }
        }
        .boxed()
    }
}
