//! The sidecar webhook: puts a Kvasir node beside every application pod that asks for one.
//!
//! A pod labelled [`CLUSTER_LABEL`] passes through [`admit`] when it is created; [`sidecar`] says what becomes of it.
//! [`crate::certs`] makes its certificates, [`keeper`] shows them to the server and tells the API server whom to trust,
//! and [`server`] serves. [`count`] looks at the pods afterwards: who has a sidecar, and who came through without.
//!
//! This module knows nothing of the controller: it reads `KvCluster`s and never writes one.
//!
//! # For `main`
//!
//! ```text
//! #[derive(clap::Parser)]
//! struct Args { #[command(flatten)] webhook: webhook::Settings, /* … */ }
//!
//! let monitor = webhook::Monitor::default();
//! monitor.register(&mut registry);                        // its metrics
//! let ready = || !args.webhook.enabled || monitor.serving(); // part of /readyz
//! webhook::run(args.webhook, client, node_image, monitor, watches, shutdown).await?; // ends after `shutdown` resolves
//! ```

pub mod admit;
pub mod count;
pub mod keeper;
pub mod monitor;
pub mod server;
pub mod sidecar;

use std::{future::Future, net::SocketAddr, sync::Arc};

use kube::Client;
use tokio::{net::TcpListener, sync::watch};

use crate::watches::Watches;

pub use monitor::Monitor;

/// Label of application pods: the name of the `KvCluster`, in the pod's namespace, whose sidecar the pod gets.
pub const CLUSTER_LABEL: &str = "kvasir.dev/cluster";
/// Annotation that the webhook leaves on a pod it gave a sidecar.
pub const INJECTED_ANNOTATION: &str = "kvasir.dev/injected";
/// Annotation by which a labelled pod declines its sidecar (`"false"`).
pub const INJECT_ANNOTATION: &str = "kvasir.dev/inject";
/// Name of the sidecar container.
pub const SIDECAR_NAME: &str = "kvasir";

/// Where the webhook listens, and the names of its objects; one group of the operator's flags.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Sidecar webhook")]
pub struct Settings {
    /// Serve the webhook that gives labelled pods their sidecar.
    #[arg(
        id = "webhook",
        long = "webhook",
        env = "KVASIR_WEBHOOK",
        default_value_t = true,
        action = clap::ArgAction::Set,
        value_name = "BOOL"
    )]
    pub enabled: bool,
    /// Address on which the webhook is served.
    #[arg(
        id = "webhook-listen",
        long = "webhook-listen",
        env = "KVASIR_WEBHOOK_LISTEN",
        default_value = "0.0.0.0:9443",
        value_name = "ADDRESS"
    )]
    pub listen: SocketAddr,
    /// Namespace of the webhook's Service and of the Secret with its certificate.
    #[arg(
        id = "webhook-namespace",
        long = "webhook-namespace",
        env = "KVASIR_NAMESPACE",
        default_value = "kvasir-system",
        value_name = "NAMESPACE"
    )]
    pub namespace: String,
    /// Service by which the API server reaches the webhook; the certificate is made for its DNS name.
    #[arg(
        id = "webhook-service",
        long = "webhook-service",
        env = "KVASIR_WEBHOOK_SERVICE",
        default_value = "kvasir-webhook",
        value_name = "NAME"
    )]
    pub service: String,
    /// Secret that holds the webhook's certificate authority and certificate; the operator fills and renews it.
    #[arg(
        id = "webhook-secret",
        long = "webhook-secret",
        env = "KVASIR_WEBHOOK_SECRET",
        default_value = "kvasir-webhook-cert",
        value_name = "NAME"
    )]
    pub secret: String,
    /// `MutatingWebhookConfiguration` whose `caBundle` the operator keeps right.
    #[arg(
        id = "webhook-configuration",
        long = "webhook-configuration",
        env = "KVASIR_WEBHOOK_CONFIGURATION",
        default_value = "kvasir-sidecar",
        value_name = "NAME"
    )]
    pub configuration: String,
}

impl Settings {
    /// The DNS names that the serving certificate must carry; the API server asks for the first.
    pub fn names(&self) -> Vec<String> {
        let host = format!("{}.{}", self.service, self.namespace);
        vec![format!("{host}.svc"), host.clone(), format!("{host}.svc.cluster.local")]
    }
}

/// Why the webhook could not be served.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The address is taken or not ours.
    #[error("cannot listen on {address} for the webhook, choose another with --webhook-listen: {source}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// TLS could not be set up at all.
    #[error("cannot set up TLS for the webhook: {0}")]
    Tls(#[from] rustls::Error),
}

/// Serves the webhook and keeps its certificate, until `shutdown` resolves.
///
/// `node_image` is the image of sidecars whose `KvCluster` names none. Trouble with the API server is logged and tried
/// again; only what no waiting mends is returned.
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
        () = &mut keep => unreachable!("keeping the certificate is a loop without end"),
        () = &mut serve => unreachable!("serving ends only when it is told to stop, below"),
        () = &mut shutdown => {}
    }
    monitor.stop_serving();
    stop.send_replace(true);
    serve.await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command};

    use super::*;

    #[test]
    fn the_flags_fit_beside_others_of_the_same_field_names() {
        let command = Settings::augment_args(Command::new("operator"));
        for argument in command.get_arguments() {
            let id = argument.get_id().as_str();
            assert!(id.starts_with("webhook"), "{id} could be the name of another flag as well");
        }
        command.debug_assert();
    }
}
