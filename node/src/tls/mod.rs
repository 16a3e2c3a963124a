//! TLS by rustls with certificates from files, which are reloaded. A reload affects new connections only. Knows nothing of what
//! the connections carry.

mod certificates;

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tokio_util::sync::CancellationToken;

pub use self::certificates::{Expiries, Expiry, names, not_after};
use crate::config::{PeerTlsConfig, TlsConfig};
use crate::reload::{self, Reloads};

/// The ALPN protocol of gRPC.
const HTTP2: &[u8] = b"h2";

/// Whether clients must have a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// No, but a certificate that they present is verified.
    May,
    /// Yes.
    Must,
}

/// TLS of the client port, with the current certificate.
#[derive(Clone)]
pub struct ClientPortTls(watch::Receiver<Arc<ServerConfig>>);

impl ClientPortTls {
    /// Reads the certificates, and follows changes of the files until `stop` is cancelled.
    pub fn start(
        config: &TlsConfig,
        clients: Clients,
        reloads: &Reloads,
        expiries: &Expiries,
        stop: CancellationToken,
    ) -> Result<Self, String> {
        let mut files = vec![config.cert_file.clone(), config.key_file.clone()];
        files.extend(config.client_ca_file.clone());
        let expiries = expiries.clone();
        let load = move |held: &[Vec<u8>]| {
            let chain = Chain::read(&held[0], &held[1])?;
            let ca = held.get(2).map(|pem| roots(pem).map(|roots| (roots, clients))).transpose()?;
            let not_after = not_after(&chain.certificates)?;
            let mut server = chain.server(ca)?;
            server.alpn_protocols = vec![HTTP2.to_vec()];
            expiries.set("client", not_after);
            Ok(Arc::new(server))
        };
        follow("tls", files, load, reloads, stop).map(Self)
    }

    /// The TLS handshake.
    pub async fn accept<S>(&self, stream: S) -> std::io::Result<server::TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.0.borrow().clone();
        TlsAcceptor::from(config).accept(stream).await
    }
}

/// Both sides of mutual TLS between peers.
#[derive(Clone)]
pub struct PeerTls {
    configs: watch::Receiver<(Arc<ServerConfig>, Arc<ClientConfig>)>,
    name: ServerName<'static>,
}

impl PeerTls {
    /// Reads the certificates, and follows changes of the files until `stop` is cancelled.
    pub fn start(
        config: &PeerTlsConfig,
        reloads: &Reloads,
        expiries: &Expiries,
        stop: CancellationToken,
    ) -> Result<Self, String> {
        let PeerTlsConfig { cert_file, key_file, ca_file, server_name } = config;
        let name = ServerName::try_from(server_name.clone()).map_err(|error| error.to_string())?;
        let files = vec![cert_file.clone(), key_file.clone(), ca_file.clone()];
        let (expiries, own) = (expiries.clone(), name.clone());
        let load = move |held: &[Vec<u8>]| {
            let chain = Chain::read(&held[0], &held[1])?;
            let roots = roots(&held[2])?;
            let not_after = not_after(&chain.certificates)?;
            // Otherwise each peer would refuse the certificate.
            check_name(&chain.certificates, &own)
                .map_err(|error| format!("the certificate is not for {}: {error}", own.to_str()))?;
            let client = chain.client(roots.clone())?;
            let server = chain.server(Some((roots, Clients::Must)))?;
            expiries.set("peer", not_after);
            Ok((Arc::new(server), Arc::new(client)))
        };
        Ok(Self { configs: follow("peerTls", files, load, reloads, stop)?, name })
    }

    /// The TLS handshake of the side that accepts.
    pub async fn accept<S>(&self, stream: S) -> std::io::Result<server::TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.configs.borrow().0.clone();
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        // A chain to the CA is not enough: it may also sign certificates that are not for peers.
        check_name(stream.get_ref().1.peer_certificates().unwrap_or_default(), &self.name)
            .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))?;
        Ok(stream)
    }

    /// The TLS handshake of the side that dials.
    pub async fn connect<S>(&self, stream: S) -> std::io::Result<client::TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.configs.borrow().1.clone();
        TlsConnector::from(config).connect(self.name.clone(), stream).await
    }
}

fn check_name(chain: &[CertificateDer<'_>], name: &ServerName<'_>) -> Result<(), rustls::Error> {
    let leaf = chain.first().ok_or(rustls::Error::NoCertificatesPresented)?;
    verify_server_name(&ParsedCertificate::try_from(leaf)?, name)
}

/// Loads the files, and reloads them when they change.
fn follow<T: Send + Sync + 'static>(
    what: &'static str,
    files: Vec<PathBuf>,
    load: impl Fn(&[Vec<u8>]) -> Result<T, String> + Send + 'static,
    reloads: &Reloads,
    stop: CancellationToken,
) -> Result<watch::Receiver<T>, String> {
    let held = reload::read_all(&files)?;
    let shown = files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ");
    let load = move |held: &[Vec<u8>]| load(held).map_err(|error| format!("{shown}: {error}"));
    let (sender, loaded) = watch::channel(load(&held)?);
    let take = move |held: &[Vec<u8>]| {
        sender.send_replace(load(held)?);
        Ok(())
    };
    let follow = reloads.clone().follow(what, files, held, take);
    tokio::spawn(stop.run_until_cancelled_owned(follow));
    Ok(loaded)
}

/// A certificate chain and its key.
struct Chain {
    certificates: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Chain {
    fn read(certificates: &[u8], key: &[u8]) -> Result<Self, String> {
        let certificates = pem_certificates(certificates)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("the key is not valid PEM: {error}"))?;
        Ok(Self { certificates, key })
    }

    fn server(&self, clients: Option<(RootCertStore, Clients)>) -> Result<ServerConfig, String> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some((roots, clients)) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
                let verifier = if clients == Clients::May { verifier.allow_unauthenticated() } else { verifier };
                builder.with_client_cert_verifier(verifier.build().map_err(|error| error.to_string())?)
            }
        };
        // Fails if the key does not belong to the certificate.
        builder
            .with_single_cert(self.certificates.clone(), self.key.clone_key())
            .map_err(|error| format!("certificate and key do not match: {error}"))
    }

    fn client(&self, roots: RootCertStore) -> Result<ClientConfig, String> {
        ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_client_auth_cert(self.certificates.clone(), self.key.clone_key())
            .map_err(|error| format!("certificate and key do not match: {error}"))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn pem_certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("the certificates are not valid PEM: {error}"))?;
    if certificates.is_empty() { Err("the file contains no certificate".to_owned()) } else { Ok(certificates) }
}

fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in pem_certificates(pem)? {
        roots.add(certificate).map_err(|error| format!("a CA certificate cannot be used: {error}"))?;
    }
    Ok(roots)
}
