//! The sidecar webhook: injects a Kvasir node into every application pod that asks for one.
//!
//! [`admit`] answers for a labelled pod when it is created; [`sidecar`] changes the pod. [`keeper`] renews the serving
//! certificate with [`crate::certs`] and publishes its authority; [`server`] serves HTTPS. [`pods`] looks at the pods
//! afterwards: which have a sidecar, and which came through without one.
//!
//! Knows nothing of the controller: it reads `KvCluster`s and never writes one.

pub mod admit;
pub mod keeper;
pub mod monitor;
pub mod pods;
pub mod server;
pub mod settings;
pub mod sidecar;

use std::{future::Future, net::SocketAddr, sync::Arc};

use kube::Client;
use tokio::{net::TcpListener, sync::watch};

use crate::api_server::watches::Watches;

pub use self::{monitor::Monitor, settings::Settings};

/// Why the webhook could not be served.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The address is in use or not local.
    #[error("cannot listen on {address} for the webhook, choose another with --webhook-listen: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The error.
        source: std::io::Error,
    },
    /// TLS could not be set up.
    #[error("cannot set up TLS for the webhook: {0}")]
    Tls(#[from] rustls::Error),
}

/// Serves the webhook and keeps its certificate up to date, until `shutdown` resolves.
///
/// `node_image` is the image of sidecars whose `KvCluster` names none. Problems with the API server are logged and retried;
/// only an error that no retry fixes is returned.
pub async fn run(
    settings: Settings,
    client: Client,
    node_image: String,
    monitor: Monitor,
    watches: Watches,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), WebhookError> {
    let address = settings.listen;
    let listener = TcpListener::bind(address).await.map_err(|source| WebhookError::Listen { address, source })?;
    tracing::info!(%address, service = settings.service, "serving the sidecar webhook");

    let slot = Arc::new(server::CertificateSlot::default());
    let tls = server::tls_config(slot.clone())?;
    let app = admit::router(client.clone(), node_image, monitor.clone());
    let (stop, stopped) = watch::channel(false);

    let keep = keeper::keep(&settings, client, &slot, &monitor, &watches);
    let serve = server::serve(listener, tls, app, stopped);
    tokio::pin!(keep, serve, shutdown);
    tokio::select! {
                () = &mut keep => unreachable!("the keeper's loop never ends"),
                () = &mut serve => unreachable!("serving ends only after the signal below"),
        () = &mut shutdown => {}
    }
    monitor.stop_serving();
    stop.send_replace(true);
    serve.await;
    Ok(())
}
