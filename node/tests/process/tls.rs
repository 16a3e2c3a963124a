//! TLS on the client port and between peers, with certificates that change while the nodes run.

use std::sync::Arc;
use std::time::Duration;

use kvasir_client::{Client, Credentials, Error, PutOptions, RetryPolicy};
use kvasir_testing::authority::{Authority, Issued};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::{Node, PATIENCE, eventually, meshed, nodes};
use crate::mounted::Mounted;

const LOCAL: &[&str] = &["127.0.0.1", "localhost"];

pub(crate) fn secret(ca: &str, issued: &Issued) -> Mounted {
    Mounted::new(&[("ca.crt", ca), ("tls.crt", &issued.certificate), ("tls.key", &issued.key)])
}

pub(crate) fn with_tls(node: Node, files: &Mounted) -> Node {
    node.with("tls-cert-file", files.text("tls.crt")).with("tls-key-file", files.text("tls.key"))
}

/// A client that makes one attempt.
pub(crate) fn client(node: &Node, credentials: Credentials) -> Client {
    Client::builder(format!("https://{}", node.client))
        .credentials(credentials)
        .request_timeout(PATIENCE)
        .retry(RetryPolicy { budget: Duration::ZERO, ..RetryPolicy::default() })
        .build()
        .unwrap()
}

pub(crate) fn trusting(files: &Mounted) -> Credentials {
    Credentials::default().ca_file(files.path("ca.crt"))
}

async fn value(node: &Node, series: &str) -> f64 {
    let page = node.metrics().await;
    page.value(series).unwrap_or_else(|| panic!("{series} in {}", page.0))
}

#[tokio::test]
async fn the_client_port_uses_the_current_certificate() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let files = secret(&old.pem, &old.issue("node", LOCAL, 2098));
    let others = Mounted::new(&[("ca.crt", &new.pem)]);
    let node = with_tls(Node::new("n"), &files).started().await;
    let first = client(&node, trusting(&files));
    first.put("k", "v", PutOptions::default()).await.unwrap();
    assert_eq!(first.get("k").await.unwrap().unwrap().value, "v");

    // A client that does not speak TLS, or does not trust the certificate, has no call.
    assert!(node.kv().get("k").await.is_err());
    let strange = client(&node, trusting(&others)).get("k").await.unwrap_err();
    assert!(matches!(&strange, Error::Unavailable { .. }), "{strange}");
    eventually("both are counted", async || {
        let counted = value(&node, "kvasir_client_refused_total{reason=\"tls\"}").await;
        if counted >= 2.0 { Ok(()) } else { Err(counted) }
    })
    .await;
    let end = value(&node, "kvasir_certificate_expiry_timestamp_seconds{use=\"client\"}").await;
    let reported = node.status().await["certificates"]["client"]["notAfterMs"].as_f64().unwrap();
    assert!((reported / 1000.0 - end).abs() < 1.0, "{reported} {end}");

    // A certificate without its key is refused; the previous one stays in use.
    let next = new.issue("node", LOCAL, 2099);
    let keep = std::fs::read_to_string(files.path("tls.key")).unwrap();
    files.put(&[("ca.crt", &old.pem), ("tls.crt", &next.certificate), ("tls.key", &keep)]);
    eventually("the error is logged", async || {
        let status = node.status().await;
        let error = status["reloads"]["tls"]["error"].as_str().unwrap_or_default().to_owned();
        if error.contains("do not match") { Ok(()) } else { Err(error) }
    })
    .await;
    client(&node, trusting(&files)).get("k").await.unwrap();
    files.put(&[("ca.crt", &new.pem), ("tls.crt", &next.certificate), ("tls.key", &next.key)]);
    eventually("new connections have the new certificate", async || {
        client(&node, trusting(&others)).get("k").await.map(drop)
    })
    .await;
    first.get("k").await.expect("a connection keeps what it began with");
    let later = value(&node, "kvasir_certificate_expiry_timestamp_seconds{use=\"client\"}").await;
    assert!(later > end, "{later} {end}");
    assert_eq!(node.status().await["reloads"]["tls"]["error"], serde_json::Value::Null);
}

/// Without `auth`, a certificate alone admits a client.
#[tokio::test]
async fn mutual_tls_admits_clients_of_the_authority_only() {
    let (ca, other) = (Authority::new("ca"), Authority::new("other"));
    let files = secret(&ca.pem, &ca.issue("node", LOCAL, 2098));
    let node = with_tls(Node::new("n"), &files).with("tls-client-ca-file", files.text("ca.crt")).started().await;
    let shows = |issued: &Issued| {
        let own = secret(&ca.pem, issued);
        let credentials = trusting(&own).certificate(own.path("tls.crt"), own.path("tls.key"));
        (own, credentials)
    };
    let (_own, credentials) = shows(&ca.issue("app", &[], 2098));
    client(&node, credentials).put("k", "v", PutOptions::default()).await.unwrap();
    let (_own, credentials) = shows(&other.issue("app", &[], 2098));
    client(&node, credentials).get("k").await.unwrap_err();
    client(&node, trusting(&files)).get("k").await.unwrap_err();
    let (_own, credentials) = shows(&ca.issue("app", &[], 2000));
    client(&node, credentials).get("k").await.unwrap_err();
}

/// It says what is wrong, and exits.
#[tokio::test]
async fn bad_certificates_keep_a_node_from_starting() {
    let ca = Authority::new("ca");
    let (one, two) = (ca.issue("node", LOCAL, 2098), ca.issue("node", LOCAL, 2098));
    let odd = Issued { certificate: one.certificate.clone(), key: two.key };
    let empty = Issued { certificate: String::new(), key: one.key };
    for (issued, why) in [(odd, "do not match"), (empty, "the file contains no certificate")] {
        let files = secret(&ca.pem, &issued);
        let mut broken = with_tls(Node::new("n"), &files);
        broken.start();
        assert_eq!(broken.ended().await.code(), Some(1));
        assert!(broken.log().contains("tls: ") && broken.log().contains(why), "{}", broken.log());
    }
    let files = secret(&ca.pem, &ca.issue("node", &["other"], 2098));
    let mut node = peer_tls(Node::new("n"), &files);
    node.start();
    assert_eq!(node.ended().await.code(), Some(1));
    assert!(node.log().contains("the certificate is not for kvasir-peer"), "{}", node.log());
}

pub(crate) fn peer_tls(node: Node, files: &Mounted) -> Node {
    node.with("peer-tls-cert-file", files.text("tls.crt"))
        .with("peer-tls-key-file", files.text("tls.key"))
        .with("peer-tls-ca-file", files.text("ca.crt"))
        .with("log-format", "json")
}

async fn replicates(from: &Node, to: &Node) {
    let key = rand::random::<u64>().to_string();
    from.kv().put(&key, "v").await.unwrap();
    eventually("a write at one node reaches the other", async || {
        to.kv().exists(&key).await.unwrap().then_some(()).ok_or("not there")
    })
    .await;
}

async fn refused(node: &Node, reason: &str) -> f64 {
    value(node, &format!("kvasir_peer_refused_total{{reason=\"{reason}\"}}")).await
}

/// Dials the peer port with a certificate; returns whether the node keeps the connection.
async fn kept(node: &Node, ca: &str, issued: &Issued) -> bool {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    let mut stream = TcpStream::connect(node.peer).await.unwrap();
    stream.write_all(b"kvasir=\x01").await.unwrap();
    stream.read_exact(&mut [0; 8]).await.unwrap();
    let name = ServerName::try_from("kvasir-peer").unwrap();
    let Ok(mut stream) = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await else {
        return false;
    };
    // The node sends its Hello only to a peer that it accepts.
    let mut hello = [0; 4];
    matches!(timeout(PATIENCE, stream.read_exact(&mut hello)).await, Ok(Ok(_)))
}

#[tokio::test]
async fn only_peers_of_one_authority_are_linked() {
    let (ca, other) = (Authority::new("ca"), Authority::new("other"));
    let peer = &["kvasir-peer"];
    let secrets = [
        secret(&ca.pem, &ca.issue("a", peer, 2098)),
        secret(&ca.pem, &ca.issue("b", peer, 2098)),
        secret(&other.pem, &other.issue("c", peer, 2098)),
    ];
    let mut all: Vec<_> = nodes(4)
        .into_iter()
        .enumerate()
        .map(|(n, node)| match secrets.get(n) {
            Some(files) => peer_tls(node, files),
            None => node,
        })
        // The others are refused, and otherwise the node would wait for them.
        .map(|node| node.with("voters", "3").with("serve-alone", "true").with("join-timeout", "2s"))
        .collect();
    all.iter_mut().for_each(Node::start);
    for node in &mut all[..2] {
        node.ready().await;
    }
    replicates(&all[0], &all[1]).await;
    for (n, reason) in [(2, "tls"), (3, "plaintext")] {
        eventually(&format!("{reason} is counted"), async || {
            let counted = refused(&all[0], reason).await + refused(&all[1], reason).await;
            if counted > 0.0 { Ok(()) } else { Err(counted) }
        })
        .await;
        let linked = all[n].status().await["peers"].as_array().unwrap().iter().any(|peer| peer["linked"] == true);
        assert!(!linked, "{}", all[n].log());
    }
    eventually("the plain one says why", async || {
        let log = all[3].log();
        if log.contains("the peer speaks TLS, and this node does not encrypt") { Ok(()) } else { Err(log) }
    })
    .await;

    let node = &all[0];
    assert!(kept(node, &ca.pem, &ca.issue("d", peer, 2098)).await, "a stolen certificate is as good as the owner");
    let before = refused(node, "tls").await;
    assert!(!kept(node, &ca.pem, &ca.issue("d", &["app"], 2098)).await, "the authority signs for others too");
    assert!(!kept(node, &ca.pem, &other.issue("d", peer, 2098)).await);
    assert!(!kept(node, &ca.pem, &ca.issue("d", peer, 2000)).await);
    eventually("they are counted", async || {
        let now = refused(node, "tls").await;
        if now >= before + 3.0 { Ok(()) } else { Err(now) }
    })
    .await;
    replicates(&all[1], node).await;
}

#[tokio::test]
async fn the_peers_authority_rotates_with_an_overlap() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let both = format!("{}{}", old.pem, new.pem);
    let peer = &["kvasir-peer"];
    let secrets: Vec<_> = (0..2).map(|_| secret(&old.pem, &old.issue("n", peer, 2098))).collect();
    let mut all: Vec<_> = nodes(2).into_iter().zip(&secrets).map(|(node, files)| peer_tls(node, files)).collect();
    all.iter_mut().for_each(Node::start);
    for node in &mut all {
        node.ready().await;
    }
    meshed(&all).await;
    for (step, (ca, signs)) in [(&both, &old), (&both, &new), (&new.pem, &new)].into_iter().enumerate() {
        for files in &secrets {
            let issued = signs.issue("n", peer, 2098);
            files.put(&[("ca.crt", ca), ("tls.crt", &issued.certificate), ("tls.key", &issued.key)]);
        }
        for node in &all {
            eventually(&format!("{} has taken step {step}", node.name), async || {
                let status = node.status().await;
                let times = status["reloads"]["peerTls"]["times"].as_u64().unwrap_or(0);
                if times > step as u64 { Ok(()) } else { Err(status) }
            })
            .await;
        }
    }
    // A new link uses nothing of the old authority.
    let mut second = all.pop().unwrap();
    second.terminate();
    second.ended().await;
    let second = second.started().await;
    all.push(second);
    meshed(&all).await;
    replicates(&all[0], &all[1]).await;
    let ends = value(&all[0], "kvasir_certificate_expiry_timestamp_seconds{use=\"peer\"}").await;
    assert!(ends > 4e9, "{ends}");
}
