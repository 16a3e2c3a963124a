//! The third step of a start: discovery, membership, links and the engine.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::protect::Protected;
use super::versions::ProtocolVersions;
use super::{peers, voters};
use crate::config::{Config, Role};
use crate::discovery::{self, Provider, View};
use crate::engine::{Engine, EngineOptions};
use crate::membership::{self, Membership, NodeId};
use crate::refusals::Refusals;
use crate::transport::{Transport, TransportOptions};
use crate::wall_clock::wall_ms;

/// The parts of a node that take part in the cluster.
pub(super) struct Joined {
    pub(super) me: NodeId,
    pub(super) engine: Arc<Engine>,
    pub(super) membership: Membership,
    pub(super) transport: Arc<Transport>,
    pub(super) discovery: watch::Receiver<Arc<View>>,
}

/// A new identity for this process.
pub(super) fn identity(config: &Config, peer_port: u16) -> NodeId {
    let origin = rand::random_range(1..=u64::MAX); // 0 identifies no process
    NodeId::new(&config.name, origin, config.role, SocketAddr::new(config.advertise, peer_port), wall_ms())
}

impl Joined {
    /// Starts every part; they end when `stop` is cancelled.
    pub(super) fn start(
        me: NodeId,
        config: &Config,
        versions: ProtocolVersions,
        protected: &Protected,
        (peer_tcp, peer_udp): (TcpListener, UdpSocket),
        more: Vec<Box<dyn Provider>>,
        stop: &CancellationToken,
    ) -> Self {
        let engine = Engine::new(&engine_options(&me, config));
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
                seal: protected.sealer.clone().map(|sealer| sealer as Arc<dyn membership::Seal>),
                version: versions.datagrams,
                refusals: refusals.clone(),
            },
            stop.clone(),
        );
        let lives = peers::follow_identity(engine.subscribe_identity(), membership.process());
        tokio::spawn(stop.clone().run_until_cancelled_owned(lives));
        let transport = Transport::start(
            engine.clone(),
            TransportOptions {
                cluster: config.cluster.clone(),
                cluster_uid: config.cluster_uid.clone(),
                sync_interval: config.sync_interval,
                max_clock_skew: config.max_clock_skew,
                max_value_bytes: config.limits.max_value_bytes,
                protection: protected.links.clone(),
                port: config.peer_port,
                version: versions.links,
                refusals,
            },
            peer_tcp,
            peers::link_targets(membership.members(), stop.clone()),
            stop.clone(),
        );
        tokio::spawn(engine.clone().run(stop.clone()));
        if let Some(file) = config.voters_file.clone() {
            let follow = voters::follow(file, config.voters, engine.clone());
            tokio::spawn(stop.clone().run_until_cancelled_owned(follow));
        }
        Self { me, engine, membership, transport, discovery }
    }
}

fn engine_options(me: &NodeId, config: &Config) -> EngineOptions {
    EngineOptions {
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
    }
}
