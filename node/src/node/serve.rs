//! The last step of a start: the client port, the admin port, and the overview that both read.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::join::Joined;
use super::peers;
use super::protect::Protected;
use crate::admin::{Admin, Scrape};
use crate::api::listen::Connections;
use crate::api::{Api, ApiError};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::overview::{MemoryBounds, Overview, OverviewParts};

/// The served ports, and what they read.
pub(super) struct Served {
    pub(super) overview: Overview,
    /// Makes the node report that it is draining.
    pub(super) leaving: watch::Sender<bool>,
    pub(super) api: JoinHandle<Result<(), ApiError>>,
    pub(super) admin: JoinHandle<std::io::Result<()>>,
}

/// Serves the client port until `stop_api`, and the admin port until `stop`.
pub(super) fn serve(
    joined: &Joined,
    protected: Protected,
    config: &Config,
    memory: MemoryBounds,
    (client, admin): (TcpListener, TcpListener),
    (stop_api, stop): (&CancellationToken, &CancellationToken),
) -> Served {
    let Joined { me, engine, membership, transport, discovery } = joined;
    let Protected { links: _, sealer, tls, auth, reloads, expiries } = protected;
    let (leaving, is_leaving) = watch::channel(false);
    let overview = Overview::new(OverviewParts {
        cluster: &config.cluster,
        cluster_uid: &config.cluster_uid,
        membership,
        engine: engine.clone(),
        transport: transport.clone(),
        discovery: discovery.clone(),
        reloads,
        expiries,
        memory,
        leaving: is_leaving,
    });
    let view = peers::keep_view(engine.clone(), overview.clone());
    tokio::spawn(stop.clone().run_until_cancelled_owned(view));

    let connections = Connections::new(&config.client_port);
    let mut metrics = Metrics::new(&me.version, me.started_ms);
    metrics.collect(Box::new(Scrape {
        overview: overview.clone(),
        membership: membership.counters(),
        transport: transport.clone(),
        sealer,
        connections: connections.clone(),
        auth: auth.clone(),
    }));
    let api = Api {
        engine: engine.clone(),
        limits: config.limits,
        overview: overview.clone(),
        counts: metrics.calls(),
        auth,
        tls,
        port: config.client_port,
        connections,
    };
    let api = tokio::spawn(api.serve(client, stop_api.clone()));
    let served = Admin { overview: overview.clone(), metrics: Arc::new(metrics) };
    let admin = tokio::spawn(served.serve(admin, stop.clone().cancelled_owned()));
    Served { overview, leaving, api, admin }
}
