//! One node, put together: discovery → membership → transport → engine, and
//! the client and admin ports in front. Its life is [`Node::start`], and
//! [`Node::shutdown`] when it is told to stop.

mod drain;
mod peers;
mod voters;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::admin::{Admin, Scrape};
use crate::api::listen::Connections;
use crate::api::overview::{MemoryBounds, Overview};
use crate::api::{Api, ApiError};
use crate::auth::Auth;
use crate::config::{AuthConfig, Config, Role};
use crate::discovery::{self, Provider};
use crate::encryption::Keys;
use crate::encryption::datagram::Sealer;
use crate::engine::{self, Engine, wall_ms};
use crate::membership::{self, Membership, NodeId};
use crate::metrics::Metrics;
use crate::refusals::Refusals;
use crate::reload::Reloads;
use crate::replica::Namesake;
use crate::tls::{ClientPortTls, Clients, Expiries, PeerTls};
use crate::transport::{self, Protection, Transport};

/// Why a node did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A port is taken, or the address is not one of this machine.
    #[error("{setting}: cannot listen on {address}, free it or set another address")]
    Bind {
        /// The setting that gave the address.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The keys cannot be had.
    #[error("encryption: {0}")]
    Encryption(String),
    /// Certificates, tokens or rules cannot be had.
    #[error("{setting}: {why}")]
    Security {
        /// The setting that says where they are.
        setting: &'static str,
        /// What is wrong with them.
        why: String,
    },
    /// The client port failed.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The admin port failed.
    #[error("serving the admin port failed: {0}")]
    Admin(std::io::Error),
    /// Another process has the node's name.
    #[error(
        "another process has the name `{name}` in the cluster `{cluster}`: {holder}. Give this node a name of its own (--name, \
         KVASIR_NAME or `name`; by default it is the host's name) or, if it is of another cluster, a cluster's name of its own \
         (--cluster, KVASIR_CLUSTER or `cluster`). If that is an earlier process of this node, stop it first"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// The cluster in which it is taken.
        cluster: String,
        /// Which process has it.
        holder: String,
    },
    /// A part of the node ended that should not.
    #[error("the {0} ended by itself: this is a bug")]
    Ended(&'static str),
}

/// The versions of the peers' protocols that a node speaks. No setting: only a test of what peers make of another release
/// has a reason to choose them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speaks {
    /// On links.
    pub links: u8,
    /// In membership datagrams.
    pub datagrams: u8,
}

impl Default for Speaks {
    fn default() -> Self {
        Self { links: transport::frame::VERSION, datagrams: membership::wire::VERSION }
    }
}

/// A running node. Its tasks end by [`Node::shutdown`], or with the runtime.
pub struct Node {
    engine: Arc<Engine>,
    membership: Membership,
    transport: Arc<Transport>,
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

/// Where a node listens: as configured, with the ports that were given for 0.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// gRPC.
    pub client: SocketAddr,
    /// Replication (TCP) and membership (UDP).
    pub peer: SocketAddr,
    /// HTTP.
    pub admin: SocketAddr,
}

/// The sockets of a node, all bound before anything runs: a node that cannot
/// have one of its ports joins nobody.
struct Sockets {
    client: TcpListener,
    peer_tcp: TcpListener,
    peer_udp: UdpSocket,
    admin: TcpListener,
    addresses: Addresses,
}

impl Sockets {
    async fn bind(config: &Config) -> Result<Self, NodeError> {
        let failed = |setting, address| move |source| NodeError::Bind { setting, address, source };
        let tcp = async |setting, address| {
            let listener = TcpListener::bind(address).await.map_err(failed(setting, address))?;
            let bound = listener.local_addr().map_err(failed(setting, address))?;
            Ok::<_, NodeError>((listener, bound))
        };
        let (client, client_at) = tcp("clientAddress", config.client_address).await?;
        let (peer_tcp, peer_at) = tcp("peerAddress", config.peer_address).await?;
        let (admin, admin_at) = tcp("adminAddress", config.admin_address).await?;
        let peer_udp = UdpSocket::bind(peer_at).await.map_err(failed("peerAddress", peer_at))?;
        let addresses = Addresses { client: client_at, peer: peer_at, admin: admin_at };
        Ok(Self { client, peer_tcp, peer_udp, admin, addresses })
    }
}

/// Says once what a network can see, or do, that reaches the client port.
fn warn_if_open(client: SocketAddr, auth: Option<&AuthConfig>, tls: bool) {
    if client.ip().to_canonical().is_loopback() {
        return;
    }
    if auth.is_none() {
        warn!(address = %client, "whoever reaches the client port may do everything: set auth");
    } else if !tls {
        warn!(address = %client, "tokens and values pass the client port in the clear: set tls");
    }
}

impl Node {
    /// Binds the ports and begins to join. Returns before the node is ready.
    pub async fn start(config: Config) -> Result<Self, NodeError> {
        Self::start_with(config, Vec::new()).await
    }

    /// The same, looking for peers also in ways that the settings do not know.
    pub async fn start_with(config: Config, more: Vec<Box<dyn Provider>>) -> Result<Self, NodeError> {
        Self::start_speaking(Speaks::default(), config, more).await
    }

    /// The same, in these versions of the peers' protocols.
    pub async fn start_speaking(
        speaks: Speaks,
        config: Config,
        more: Vec<Box<dyn Provider>>,
    ) -> Result<Self, NodeError> {
        let Sockets { client, peer_tcp, peer_udp, admin, addresses } = Sockets::bind(&config).await?;
        let memory = MemoryBounds::of(&config);
        let stop = CancellationToken::new();
        let stop_api = CancellationToken::new();
        let reloads = Reloads::default();
        let keys = config.encryption.as_ref().map(|from| Keys::start(from, &reloads, stop.clone()));
        let keys = keys.transpose().map_err(NodeError::Encryption)?;
        let expiries = Expiries::default();
        let failed = |setting| move |why| NodeError::Security { setting, why };
        let peer_tls = config.peer_tls.as_ref().map(|from| PeerTls::start(from, &reloads, &expiries, stop.clone()));
        let protection = match (&keys, peer_tls.transpose().map_err(failed("peerTls"))?) {
            (Some(keys), _) => Protection::Keys(keys.clone()),
            (None, Some(tls)) => Protection::Tls(tls),
            (None, None) => Protection::None,
        };
        // Where a client may show who it is in another way, it may do so without a certificate.
        let clients = if config.auth.is_some() { Clients::May } else { Clients::Must };
        let tls = config.tls.as_ref();
        let tls = tls.map(|from| ClientPortTls::start(from, clients, &reloads, &expiries, stop.clone()));
        let tls = tls.transpose().map_err(failed("tls"))?;
        let auth = Auth::start(config.auth.as_ref(), config.access, config.access_file, &reloads, &stop)
            .map_err(failed("auth"))?;
        warn_if_open(addresses.client, config.auth.as_ref(), config.tls.is_some());
        if config.peer_tls.is_some() {
            warn!(
                "peerTls covers links only: membership datagrams (UDP) are neither encrypted nor authentic, and who reaches the \
                 peer port can have members taken for dead; keep others from that port, or use encryption instead"
            );
        }
        let sealer = keys.map(|keys| Arc::new(Sealer::new(keys, config.max_clock_skew)));

        let me = NodeId::new(
            &config.name,
            rand::random_range(1..=u64::MAX), // 0 is nobody
            config.role,
            SocketAddr::new(config.advertise, addresses.peer.port()),
            wall_ms(),
        );
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

        let engine = Engine::new(&engine::Options {
            origin: me.origin,
            name: me.name.clone(),
            started_ms: me.started_ms,
            voters: config.voters,
            evict_after: config.evict_after,
            evict_ending: config.evict_ending,
            sync_interval: config.sync_interval,
            max_clock_skew: config.max_clock_skew,
            max_memory: config.max_memory,
            may_found: config.role == Role::Member,
            serve_alone: config.serve_alone,
            join_timeout: config.join_timeout,
        });
        let mut providers = discovery::configured(&config.discovery, me.peer_address);
        providers.extend(more);
        let discovery = discovery::start(providers);
        let refusals = Arc::<Refusals>::default();
        let membership = Membership::start(
            me.clone(),
            peer_udp,
            discovery.clone(),
            membership::MembershipOptions {
                cluster: &config.cluster,
                cluster_uid: &config.cluster_uid,
                timing: config.swim,
                max_clock_skew: config.max_clock_skew,
                seal: sealer.clone().map(|sealer| sealer as Arc<dyn membership::Seal>),
                version: speaks.datagrams,
                refusals: refusals.clone(),
            },
            stop.clone(),
        );
        let lives = peers::live_on(engine.subscribe_identity(), membership.process());
        tokio::spawn(stop.clone().run_until_cancelled_owned(lives));
        let transport = Transport::start(
            engine.clone(),
            transport::Options {
                cluster: config.cluster.clone(),
                cluster_uid: config.cluster_uid.clone(),
                sync_interval: config.sync_interval,
                max_clock_skew: config.max_clock_skew,
                max_value_bytes: config.limits.max_value_bytes,
                protection,
                port: config.peer_port,
                version: speaks.links,
                refusals,
            },
            peer_tcp,
            peers::to_link(membership.members(), stop.clone()),
            stop.clone(),
        );
        tokio::spawn(engine.clone().run(stop.clone()));
        if let Some(file) = config.voters_file {
            let follow = voters::follow(file, config.voters, engine.clone());
            tokio::spawn(stop.clone().run_until_cancelled_owned(follow));
        }

        let (leaving, told) = watch::channel(false);
        let mut metrics = Metrics::new(&me.version, me.started_ms);
        let overview = Overview::new(
            &membership,
            (&config.cluster, &config.cluster_uid),
            engine.clone(),
            transport.clone(),
            discovery,
            told,
        )
        .with_files(reloads, expiries)
        .with_memory(memory);
        let view = peers::keep_view(engine.clone(), overview.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(view));
        let connections = Connections::new(&config.client_port);
        let (membership_counters, of_transport) = (membership.counters(), transport.clone());
        metrics.collect(Box::new(Scrape {
            overview: overview.clone(),
            membership: membership_counters,
            transport: of_transport,
            sealer,
            connections: connections.clone(),
            auth: auth.clone(),
        }));
        let counts = metrics.counts();
        let api = Api {
            engine: engine.clone(),
            limits: config.limits,
            overview: overview.clone(),
            counts,
            auth,
            tls,
            port: config.client_port,
            connections,
        };
        let api = tokio::spawn(api.serve(client, stop_api.clone()));
        let served = Admin { overview: overview.clone(), metrics: Arc::new(metrics) };
        let admin = tokio::spawn(served.serve(admin, stop.clone().cancelled_owned()));

        Ok(Self {
            dismissed: engine.subscribe_dismissal(),
            engine,
            membership,
            transport,
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

    /// Where it listens.
    pub const fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// What it knows of itself and the others.
    pub const fn overview(&self) -> &Overview {
        &self.overview
    }

    /// Returns only when a port is served no more, or another process has the node's
    /// name, and why. In the latter case the node is to be [shut down](Self::shutdown).
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
                NodeError::NameTaken { name, cluster, holder: self.overview.process(holder) }
            }
        }
    }
}
