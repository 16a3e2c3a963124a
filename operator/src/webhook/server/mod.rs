//! HTTPS: sockets, TLS, and the limits of both. The certificate can change while it is in use.
//!
//! Knows nothing of what is served, of pods, or of where the certificate comes from.

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use parking_lot::RwLock;
use rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

/// Connections at the same time; more wait in the kernel's queue.
const MOST_CONNECTIONS: usize = 256;
/// Time limit for a TLS handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// A connection without a request for this long is closed.
const IDLE_LIMIT: Duration = Duration::from_mins(1);
/// How long requests under way may take to end after the shutdown signal.
const FAREWELL: Duration = Duration::from_secs(5);
/// Pause after the kernel refused a connection, for lack of file descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Holds the serving certificate. It starts empty, and handshakes fail until the first certificate is set.
#[derive(Debug, Default)]
pub struct CertificateSlot(RwLock<Option<Arc<CertifiedKey>>>);

impl CertificateSlot {
    /// Uses this certificate for new connections.
    pub fn set(&self, certificate: CertifiedKey) {
        *self.0.write() = Some(Arc::new(certificate));
    }
}

impl ResolvesServerCert for CertificateSlot {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().clone()
    }
}

/// TLS with the certificate that the slot holds at each handshake.
pub fn tls_config(slot: Arc<CertificateSlot>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(slot);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Serves until `stopped` becomes true, then lets requests under way end.
pub async fn serve(listener: TcpListener, tls: Arc<ServerConfig>, app: Router, mut stopped: watch::Receiver<bool>) {
    let acceptor = TlsAcceptor::from(tls);
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accept = async {
            let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            accepted = accept => accepted,
            () = signalled(&mut stopped) => break,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                let (acceptor, app, stopped) = (acceptor.clone(), app.clone(), stopped.clone());
                connections.spawn(async move {
                    connection(stream, acceptor, app, stopped).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the webhook could not accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let farewell = async { while connections.join_next().await.is_some() {} };
    if timeout(FAREWELL, farewell).await.is_err() {
        tracing::warn!("some requests to the webhook did not end in time and were cut off");
    }
}

/// Resolves when the signal is true, or its sender is gone.
async fn signalled(stopped: &mut watch::Receiver<bool>) {
    drop(stopped.wait_for(|stop| *stop).await);
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, app: Router, mut stopped: watch::Receiver<bool>) {
    let stream = match timeout(HANDSHAKE_LIMIT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a client of the webhook failed its TLS handshake");
            return;
        }
        Err(_) => {
            tracing::debug!("a client of the webhook did not finish its TLS handshake in time");
            return;
        }
    };
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(IDLE_LIMIT);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = signalled(&mut stopped) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the webhook broke");
    }
}

#[cfg(test)]
mod tests;
