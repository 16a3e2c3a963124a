//! HTTPS: sockets, TLS, and the limits on both. The certificate can be changed while it serves.
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

/// Connections at the same time; more wait in the system's queue.
const MOST_CONNECTIONS: usize = 256;
/// A client that has not finished its handshake by then is dropped.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// A connection on which no request begins for this long is closed.
const IDLE_LIMIT: Duration = Duration::from_mins(1);
/// How long requests under way may take to end after the server was told to stop.
const FAREWELL: Duration = Duration::from_secs(5);
/// After the system refused a connection (out of descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Holds the certificate to serve with; empty until the first is there, and every handshake fails until then.
#[derive(Debug, Default)]
pub struct CertificateSlot(RwLock<Option<Arc<CertifiedKey>>>);

impl CertificateSlot {
    /// Serves new connections with this certificate.
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

/// Serves until `stopped` says so; then lets requests under way end.
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
            () = told(&mut stopped) => break,
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
        tracing::warn!("some requests to the webhook were still under way and are cut off");
    }
}

/// Resolves when the server is told to stop, or nobody is left who could tell it.
async fn told(stopped: &mut watch::Receiver<bool>) {
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
        () = told(&mut stopped) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the webhook broke");
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
