//! One node, put together: discovery → membership → transport → engine, with the client and admin ports in front.
//!
//! [`Node::start`] goes through four steps, a file each: bind the ports, load what protects them, join the cluster, serve
//! clients. [`Node::shutdown`] ends the node.

mod bind;
mod drain;
mod error;
mod join;
mod peers;
mod protect;
mod serve;
mod versions;
mod voters;

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::info;

pub use self::bind::Addresses;
use self::bind::Sockets;
pub use self::error::NodeError;
use self::join::Joined;
use self::protect::Protected;
use self::serve::{Served, serve};
pub use self::versions::ProtocolVersions;
use crate::api::ApiError;
use crate::config::{Config, Role};
use crate::discovery::Provider;
use crate::membership::NodeId;
use crate::overview::{MemoryBounds, Overview};
use crate::replica::Namesake;

/// A running node. Its tasks end with [`Node::shutdown`], or with the runtime.
pub struct Node {
    joined: Joined,
    overview: Overview,
    role: Role,
    drain_timeout: Duration,
    leaving: watch::Sender<bool>,
    dismissed: watch::Receiver<Option<Namesake>>,
    api: JoinHandle<Result<(), ApiError>>,
    admin: JoinHandle<std::io::Result<()>>,
    /// Closes the client port gracefully.
    stop_api: CancellationToken,
    /// Ends everything else.
    stop: CancellationToken,
    addresses: Addresses,
}

impl Node {
    /// Binds the ports and begins to join. Returns before the node is ready.
    pub async fn start(config: Config) -> Result<Self, NodeError> {
        Self::start_with(config, Vec::new()).await
    }

    /// Like [`Self::start`], with discovery providers besides those of the settings.
    pub async fn start_with(config: Config, more: Vec<Box<dyn Provider>>) -> Result<Self, NodeError> {
        Self::start_versions(ProtocolVersions::default(), config, more).await
    }

    /// Like [`Self::start_with`], with other versions of the peer protocols.
    pub async fn start_versions(
        versions: ProtocolVersions,
        config: Config,
        more: Vec<Box<dyn Provider>>,
    ) -> Result<Self, NodeError> {
        let (stop, stop_api) = (CancellationToken::new(), CancellationToken::new());
        let Sockets { client, peer_tcp, peer_udp, admin, addresses } = Sockets::bind(&config).await?;
        let protected = Protected::load(&config, addresses.client, &stop)?;
        let me = join::identity(&config, addresses.peer.port());
        let memory = MemoryBounds::of(&config);
        log_start(&me, &config, addresses, &memory);
        let joined = Joined::start(me, &config, versions, &protected, (peer_tcp, peer_udp), more, &stop);
        let served = serve(&joined, protected, &config, memory, (client, admin), (&stop_api, &stop));
        let Served { overview, leaving, api, admin } = served;
        Ok(Self {
            dismissed: joined.engine.subscribe_dismissal(),
            joined,
            overview,
            role: config.role,
            drain_timeout: config.drain_timeout,
            leaving,
            api,
            admin,
            stop_api,
            stop,
            addresses,
        })
    }

    /// The addresses that the node listens on.
    pub const fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// What the node knows of itself and of the others.
    pub const fn overview(&self) -> &Overview {
        &self.overview
    }

    /// Returns only if a port failed, or another process holds the node's name. In the latter case the node should be
    /// [shut down](Self::shutdown).
    pub async fn failed(&mut self) -> NodeError {
        tokio::select! {
            ended = &mut self.api => match ended {
                Ok(Err(error)) => error.into(),
                Ok(Ok(())) | Err(_) => NodeError::Ended("client port"),
            },
            ended = &mut self.admin => match ended {
                Ok(Err(error)) => NodeError::Admin(error),
                Ok(Ok(())) | Err(_) => NodeError::Ended("admin port"),
            },
            Ok(Some(holder)) = async { self.dismissed.wait_for(Option::is_some).await.map(|holder| *holder) } => {
                let (name, cluster) = (self.overview.me().id.name, self.overview.cluster().to_owned());
                NodeError::NameTaken { name, cluster, holder: self.overview.describe(holder) }
            }
        }
    }
}

fn log_start(me: &NodeId, config: &Config, addresses: Addresses, memory: &MemoryBounds) {
    info!(
        name = me.name,
        role = me.role.as_str(),
        cluster = config.cluster,
        cluster_uid = config.cluster_uid,
        origin = format!("{:016x}", me.origin),
        version = me.version,
        client = %addresses.client,
        peer = %me.peer_address,
        admin = %addresses.admin,
        "node started"
    );
    memory.log(config.max_memory);
}
