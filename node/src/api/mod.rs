//! The gRPC API on the `client` port: `Kv` and `Cluster`, health and
//! reflection. Knows the engine, and nothing of how replication works.

pub mod batch;
mod calls;
mod check;
mod cluster;
pub mod deadline;
mod events;
#[doc(hidden)]
pub mod fuzzing;
mod identify;
mod kv;
pub mod listen;
mod measure;
mod oversize;
mod page_token;
pub mod pipe;
mod status;
mod watch;

use std::convert::Infallible;
use std::sync::Arc;

use kvasir_proto::v1::{DESCRIPTORS, cluster_server::ClusterServer, kv_server::KvServer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, health_reporter};

use self::listen::Connections;

use crate::auth::Auth;
use crate::config::{ClientPortConfig, Limits};
use crate::engine::{Engine, Phase};
use crate::metrics::Counts;
use crate::overview::Overview;
use crate::tls::ClientPortTls;

/// A message of a listing has at most this many entries.
pub const LIST_MESSAGE_ENTRIES: usize = 1000;
/// A message of a listing carries at most this many bytes of keys and values,
/// unless a single entry is larger.
pub const LIST_MESSAGE_BYTES: usize = 256 << 10;
/// How far above `maxValueBytes` a message is still read, so that its sender
/// is told which field is over which limit.
pub const MESSAGE_SLACK: usize = 4 << 20;
/// Calls that a client may open and reset before they were looked at.
const PENDING_RESETS: usize = 32;
/// What a client may send on one call before the node has read it.
const STREAM_WINDOW: u32 = 1 << 20;
/// What a client may send on one connection before the node has read it.
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Services whose health is the node's readiness; the empty name is the node.
const READY_SERVICES: [&str; 2] = ["", "kvasir.v1.Kv"];
/// Answers in every phase.
const CLUSTER_SERVICE: &str = "kvasir.v1.Cluster";

/// Why the API cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The compiled-in descriptors do not decode: a broken build.
    #[error("the API's own descriptors are broken, rebuild the node: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The server gave up.
    #[error("serving the client port failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// What the API serves from.
pub struct Api {
    /// The data.
    pub engine: Arc<Engine>,
    /// What a request may hold.
    pub limits: Limits,
    /// What `Cluster` tells, and what health follows.
    pub overview: Overview,
    /// Where calls are counted.
    pub counts: Counts,
    /// Who may do what.
    pub auth: Auth,
    /// TLS, if it is spoken.
    pub tls: Option<ClientPortTls>,
    /// What clients may take of the node.
    pub port: ClientPortConfig,
    /// Their connections.
    pub connections: Connections,
}

impl Api {
    /// Serves until `stop`; then closes the listener, tells every client to go
    /// elsewhere (GOAWAY), and returns when their calls have ended.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) -> Result<(), ApiError> {
        let Self { engine, limits, overview, counts, auth, tls, port, connections } = self;
        let streams = u32::try_from(port.max_streams).expect("a validated setting");
        let (reporter, health) = health_reporter();
        let descriptors = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let max_message = limits.max_value_bytes.saturating_add(limits.max_key_bytes).saturating_add(MESSAGE_SLACK);
        let router = Server::builder()
            .layer(measure::Measure(counts))
            .layer(oversize::Oversize { limits, max_message })
            .layer(identify::Identify(auth))
            .max_concurrent_streams(streams)
            .concurrency_limit_per_connection(port.max_streams)
            .http2_max_header_list_size(u32::try_from(port.max_header_bytes).expect("a validated setting"))
            .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keepalive_interval(Some(port.keepalive_interval))
            .http2_keepalive_timeout(Some(port.keepalive_timeout))
            .add_service(
                KvServer::new(kv::Kv { engine, limits, stop: stop.clone() })
                    .max_decoding_message_size(max_message)
                    .max_encoding_message_size(usize::MAX),
            )
            .add_service(ClusterServer::new(cluster::Cluster {
                overview: overview.clone(),
                stop: stop.clone(),
                listeners: events::listeners(),
            }))
            .add_service(health)
            .add_service(descriptors().build_v1()?)
            // Clients of before 2023, grpcurl among them, ask for this one.
            .add_service(descriptors().build_v1alpha()?);
        let phase = overview.phase();
        report(&reporter, phase).await;
        let incoming = listen::incoming(listener, tls, port, connections, stop.clone());
        tokio::select! {
            served = router.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()) => Ok(served?),
            never = report_health(reporter, overview, phase) => match never {},
        }
    }
}

/// Keys come in as UTF-8; one that is not came from a broken peer.
fn text(key: &[u8]) -> Result<String, Status> {
    String::from_utf8(key.to_vec())
        .map_err(|_| Status::internal(format!("the node holds a key that is not UTF-8: {}", key.escape_ascii())))
}

/// Keeps health as the phase is, which was reported as `phase`.
async fn report_health(reporter: HealthReporter, overview: Overview, mut phase: Phase) -> Infallible {
    loop {
        phase = overview.phase_other_than(phase).await;
        report(&reporter, phase).await;
    }
}

async fn report(reporter: &HealthReporter, phase: Phase) {
    let status = if phase == Phase::Ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in READY_SERVICES {
        reporter.set_service_status(service, status).await;
    }
    reporter.set_service_status(CLUSTER_SERVICE, ServingStatus::Serving).await;
}
