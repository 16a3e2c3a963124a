//! Real TLS on loopback, with a client like the API server.

use std::net::SocketAddr;

use axum::routing::get;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::*;
use crate::certs::{self, Purpose, Stored};

const NAME: &str = "kvasir-webhook.kvasir-system.svc";

fn made(age_days: i64) -> Stored {
    let now = k8s_openapi::jiff::Timestamp::now().as_second();
    certs::renew(None, Purpose::Webhook, &[NAME.to_owned()], now - age_days * 24 * 60 * 60).unwrap().unwrap().0
}

struct Running {
    address: SocketAddr,
    slot: Arc<CertificateSlot>,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

async fn running(app: Router) -> Running {
    let slot = Arc::new(CertificateSlot::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(serve(listener, tls_config(slot.clone()).unwrap(), app, stopped));
    Running { address, slot, stop, task }
}

/// The body of one response for a client that trusts `authorities`, or the error.
async fn request(address: SocketAddr, authorities: &str) -> Result<String, std::io::Error> {
    let mut roots = RootCertStore::empty();
    for der in rustls_pki_types::CertificateDer::pem_slice_iter(authorities.as_bytes()) {
        roots.add(der.unwrap()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(NAME).unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    stream.write_all(b"GET /hello HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

fn hello() -> Router {
    Router::new().route("/hello", get(|| async { "hello" }))
}

#[tokio::test]
async fn server_changes_its_certificate_while_it_runs() {
    let running = running(hello()).await;
    let (first, second) = (made(0), made(0));
    request(running.address, &first.authorities).await.expect_err("there is no certificate yet");
    running.slot.set(certs::certified_key(&first).unwrap());
    assert!(request(running.address, &first.authorities).await.unwrap().ends_with("hello"));
    request(running.address, &second.authorities).await.expect_err("signed by another authority");
    running.slot.set(certs::certified_key(&second).unwrap());
    assert!(request(running.address, &second.authorities).await.unwrap().ends_with("hello"));
}

#[tokio::test]
async fn server_is_not_blocked_by_idle_or_plain_clients() {
    let running = running(hello()).await;
    let stored = made(0);
    running.slot.set(certs::certified_key(&stored).unwrap());
    let mut garbage = TcpStream::connect(running.address).await.unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let silent = TcpStream::connect(running.address).await.unwrap();
    assert!(request(running.address, &stored.authorities).await.unwrap().ends_with("hello"));
    drop(silent);
}

#[tokio::test]
async fn server_finishes_requests_under_way() {
    let (started, mut begun) = watch::channel(false);
    let slow = move || async move {
        started.send_replace(true);
        sleep(Duration::from_millis(300)).await;
        "done"
    };
    let running = running(Router::new().route("/hello", get(slow))).await;
    let stored = made(0);
    running.slot.set(certs::certified_key(&stored).unwrap());
    let authorities = stored.authorities.clone();
    let address = running.address;
    let asked = tokio::spawn(async move { request(address, &authorities).await });
    begun.wait_for(|begun| *begun).await.unwrap();
    running.stop.send_replace(true);
    assert!(asked.await.unwrap().unwrap().ends_with("done"));
    running.task.await.unwrap();
    TcpStream::connect(address).await.expect_err("the listener is closed");
}
