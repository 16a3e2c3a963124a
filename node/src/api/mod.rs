//! The gRPC API on the client port: `Kv` and `Cluster`, health and reflection. Knows the engine, and nothing of how
//! replication works.

pub mod batch;
mod call_metrics;
mod calls;
mod cluster;
pub mod deadline;
mod errors;
mod events;
#[doc(hidden)]
pub mod fuzzing;
mod identify;
mod kv;
mod layer;
mod limits;
mod list;
pub mod listen;
mod oversize;
mod page_token;
pub mod pipe;
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
use crate::metrics::CallCounts;
use crate::overview::Overview;
use crate::tls::ClientPortTls;

/// The most entries of a message of a listing.
pub const LIST_MESSAGE_ENTRIES: usize = 1000;
/// The most bytes of keys and values in a message of a listing, unless a single entry is larger.
pub const LIST_MESSAGE_BYTES: usize = 256 << 10;
/// How far a message may exceed `maxKeyBytes` and `maxValueBytes` and still be decoded, so that the answer can name the
/// field and its limit.
pub const MESSAGE_SLACK: usize = 4 << 20;
/// How many calls a client may open and reset before the node handled them.
const PENDING_RESETS: usize = 32;
/// How many bytes a client may send on one call before the node reads them.
const STREAM_WINDOW: u32 = 1 << 20;
/// How many bytes a client may send on one connection before the node reads them.
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Services that are healthy while the node is ready; the empty name stands for the whole node.
const READY_SERVICES: [&str; 2] = ["", "kvasir.v1.Kv"];
/// The service that answers in every phase, and so is always healthy.
const CLUSTER_SERVICE: &str = "kvasir.v1.Cluster";

/// Why the API cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The compiled-in descriptors do not decode: the build is broken.
    #[error("the API's own descriptors are broken, rebuild the node: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The server failed.
    #[error("serving the client port failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// What the API needs.
pub struct Api {
    /// The data.
    pub engine: Arc<Engine>,
    /// The limits on a request's fields.
    pub limits: Limits,
    /// The view that `Cluster` and health report.
    pub overview: Overview,
    /// Where calls are counted.
    pub counts: CallCounts,
    /// Which clients may do what.
    pub auth: Auth,
    /// TLS, if it is configured.
    pub tls: Option<ClientPortTls>,
    /// The limits of the client port.
    pub port: ClientPortConfig,
    /// The open connections.
    pub connections: Connections,
}

impl Api {
    /// Serves until `stop`; then closes the listener, sends every client a GOAWAY, and returns when their calls have
    /// ended.
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
            .layer(layer::CallLayer { counts, oversize: oversize::Oversize { limits, max_message }, auth })
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
            // Clients from before 2023, including grpcurl, use this version of reflection.
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

/// A key as text. Clients can write only UTF-8, so a key that is not UTF-8 came from a faulty peer.
fn text(key: &[u8]) -> Result<String, Status> {
    String::from_utf8(key.to_vec())
        .map_err(|_| Status::internal(format!("the node holds a key that is not UTF-8: {}", key.escape_ascii())))
}

/// Reports each change of the phase; `phase` was reported already.
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
