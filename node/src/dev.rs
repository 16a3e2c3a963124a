//! A whole cluster in one process, on loopback: for trying, and for the tests
//! of applications. It runs the very nodes that production runs; only they find
//! each other without looking, and nothing is kept at the end.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use tokio::sync::watch;

use crate::{
    config::{ConfigError, DevSettings, DurationText, Settings},
    discovery::{Provider, Reporter},
    memory,
    node::{Addresses, Node, NodeError},
};

/// From one node's ports to the next one's.
const STRIDE: u16 = 10;

/// Why there is no cluster.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// The ports would be beyond the last one.
    #[error("--port: {port} leaves no room for {nodes} nodes of three ports each: give a lower one, or 0 for any")]
    Ports {
        /// The first port.
        port: u16,
        /// How many nodes were asked for.
        nodes: u16,
    },
    /// A setting that the nodes refuse.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A node did not start.
    #[error("{0}; or give another --port, or 0 for any that are free")]
    Node(#[from] NodeError),
}

/// A running cluster.
pub struct DevCluster {
    nodes: Vec<Node>,
}

impl DevCluster {
    /// Starts the nodes. They are ready a moment later, see [`Self::ready`].
    pub async fn start(settings: &DevSettings) -> Result<Self, DevError> {
        let (all, found) = watch::channel(BTreeSet::new());
        let mut nodes = Vec::new();
        for number in 0..settings.nodes {
            let mut config = node_settings(settings, number)?.validate()?.within(memory::limit())?;
            // All of them are in this one process.
            config.max_memory = config.max_memory.map(|max| max / u64::from(settings.nodes));
            nodes.push(Node::start_with(config, vec![Box::new(Neighbours(found.clone()))]).await?);
        }
        all.send_replace(nodes.iter().map(|node| node.addresses().peer).collect());
        Ok(Self { nodes })
    }

    /// Returns once every node is ready and linked to all others.
    pub async fn ready(&self) {
        for node in &self.nodes {
            while node.overview().phase().as_str() != "ready"
                || node.overview().peers().iter().filter(|peer| peer.linked).count() + 1 < self.nodes.len()
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// Returns only when a node fails, and why.
    pub async fn failed(&mut self) -> NodeError {
        futures::future::select_all(self.nodes.iter_mut().map(|node| node.failed().boxed())).await.0
    }

    /// Where each node listens.
    pub fn addresses(&self) -> Vec<(String, Addresses)> {
        self.nodes.iter().map(|node| (node.overview().me().id.name, node.addresses())).collect()
    }

    /// Ends all nodes, and what they hold with them.
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
        // All end together: nobody is left to hand over to.
        drain_timeout: Some(DurationText(Duration::ZERO)),
        ..Settings::default()
    })
}

/// The nodes of this process, once all of them have their ports.
struct Neighbours(watch::Receiver<BTreeSet<SocketAddr>>);

impl Provider for Neighbours {
    fn name(&self) -> &'static str {
        "dev"
    }

    fn run(mut self: Box<Self>, reporter: Reporter) -> BoxFuture<'static, Infallible> {
        async move {
            loop {
                // Until then nobody knows how many there will be: no answer, rather than an empty one.
                if let Ok(all) = self.0.wait_for(|all| !all.is_empty()).await {
                    reporter.found(all.clone());
                }
                std::future::pending::<()>().await;
            }
        }
        .boxed()
    }
}
