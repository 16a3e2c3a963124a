//! Polls the members' status, over HTTP at their admin port.
//!
//! Knows nothing of what the answers mean for the cluster.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures::{StreamExt, stream};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use serde::Deserialize;

use crate::names::ADMIN_PORT;

/// Members polled at the same time.
const AT_ONCE: usize = 16;
/// Time limit for one member.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The longest answer that is read; a member in a cluster of 64 answers with some 20 KiB.
const MAX_BYTES: usize = 1 << 20;

/// The status of a member. Fields that its version does not report have their default.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeStatus {
    /// The origin of its process.
    pub origin: String,
    /// Earlier origins of the same process, from before it rejoined; it kept what it held then.
    pub former_origins: Vec<String>,
    /// The epoch of its map, once it has one.
    pub founding: Option<FoundingStatus>,
    /// Its version.
    pub version: String,
    /// Its phase: joining, syncing, ready or draining.
    pub phase: String,
    /// Live keys.
    pub keys: u64,
    /// The limit of its entries in bytes; 0 is no limit.
    pub max_memory_bytes: u64,
    /// Why it may be killed for its memory.
    pub memory_concern: Option<String>,
    /// Whether it refuses writes because it is full.
    pub full: bool,
    /// The fingerprint of its map.
    pub fingerprint: String,
    /// How far it is behind its peers, if known.
    pub lag_ms: Option<u64>,
    /// The keys that it encrypts with.
    pub encryption: Option<KeysStatus>,
    /// The state of the files that it reloads, by their use.
    pub reloads: BTreeMap<String, ReloadStatus>,
    /// Its certificates, by their use.
    pub certificates: BTreeMap<String, CertificateStatus>,
    /// The state of its discovery providers.
    pub discovery: Vec<DiscoveryStatus>,
    /// Its peers.
    pub peers: Vec<PeerStatus>,
    /// Peers that it heard of lately and cannot talk to.
    pub unjoinable: Vec<UnjoinableStatus>,
}

/// A peer that a member cannot talk to.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct UnjoinableStatus {
    /// Address of the peer.
    pub address: String,
    /// Name of the peer, if known.
    pub name: Option<String>,
    /// Why, and what to do.
    pub why: String,
}

/// The epoch of a map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FoundingStatus {
    /// When the map was founded, in milliseconds since 1970.
    pub at_ms: i64,
}

/// A peer, as a member sees it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PeerStatus {
    /// The origin of its process.
    pub origin: String,
    /// The discovery provider that found it.
    pub found_by: Option<String>,
}

/// The keys that a member encrypts with, by their names.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct KeysStatus {
    /// The key that it encrypts with.
    pub primary: String,
    /// The keys that it can decrypt with, the primary key first.
    pub keys: Vec<String>,
}

/// The state of files that a member reloads.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ReloadStatus {
    /// Why the current files cannot be used.
    pub error: Option<String>,
}

/// A certificate in use.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CertificateStatus {
    /// When it expires, in milliseconds since 1970; `None` if it does not say.
    pub not_after_ms: Option<i64>,
}

/// The state of a discovery provider.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DiscoveryStatus {
    /// Name of the provider.
    pub provider: String,
    /// What is wrong.
    pub error: Option<String>,
}

/// Why a member did not answer.
#[derive(Debug, thiserror::Error)]
pub enum PollError {
    /// No answer in time.
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// No connection.
    #[error("no connection: {0}")]
    Connect(#[from] hyper_util::client::legacy::Error),
    /// An HTTP error.
    #[error("answered {0}")]
    Refused(http::StatusCode),
    /// The answer ended early or was too long.
    #[error("the answer ended early: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// The answer is not a status.
    #[error("the answer is not a status: {0}")]
    Parse(#[from] serde_json::Error),
    /// The address does not fit into a URL.
    #[error("invalid address: {0}")]
    Address(#[from] http::uri::InvalidUri),
}

/// The answer of each member, by the name of its pod.
pub type Answers = BTreeMap<String, Result<NodeStatus, PollError>>;

/// Polls members; keeps its connections between polls.
#[derive(Clone, Debug)]
pub struct Poller {
    client: Client<HttpConnector, Empty<Bytes>>,
}

impl Default for Poller {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(TIMEOUT));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(connector);
        Self { client }
    }
}

impl Poller {
    /// Polls these members, each given by name and address of its pod.
    pub async fn poll(&self, members: Vec<(String, IpAddr)>) -> Answers {
        let port = u16::try_from(ADMIN_PORT).expect("the port is a constant below 65536");
        stream::iter(members)
            .map(|(name, address)| async move {
                let answer = self.ask(SocketAddr::new(address, port)).await;
                (name, answer)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await
    }

    async fn ask(&self, address: SocketAddr) -> Result<NodeStatus, PollError> {
        let ask = async {
            let response = self.client.get(format!("http://{address}/status").parse()?).await?;
            if !response.status().is_success() {
                return Err(PollError::Refused(response.status()));
            }
            let body = Limited::new(response.into_body(), MAX_BYTES).collect().await.map_err(PollError::Body)?;
            Ok(serde_json::from_slice(&body.to_bytes())?)
        };
        tokio::time::timeout(TIMEOUT, ask).await.map_err(|_| PollError::Timeout)?
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, http::StatusCode, routing::get};

    use super::*;

    async fn serve(router: Router) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    #[tokio::test]
    async fn poll_reads_a_status_of_any_version() {
        let answer = r#"{"name":"demo-0","origin":"ab","version":"9.9.9","phase":"ready","keys":12,"full":true,
            "fingerprint":"cd","lagMs":null,"discovery":[{"provider":"kubernetes","found":3,"error":"no"}],"new":1,
            "encryption":{"primary":"0a","keys":["0a","0b"]},"founding":{"atMs":5,"by":"ab"},"formerOrigins":["aa"],"reloads":{"encryption":{"times":2,"error":"bad"}},"certificates":{"client":{"notAfterMs":7}},
            "unjoinable":[{"address":"10.0.0.1:7071","name":null,"reason":"key","why":"another key"}]}"#;
        let address = serve(Router::new().route("/status", get(move || async move { answer }))).await;
        let status = Poller::default().ask(address).await.unwrap();
        assert_eq!((status.keys, status.full, status.lag_ms), (12, true, None));
        assert_eq!(status.discovery[0].error.as_deref(), Some("no"));
        assert_eq!(status.encryption.unwrap().keys, ["0a", "0b"]);
        assert_eq!(status.reloads["encryption"].error.as_deref(), Some("bad"));
        assert_eq!(status.certificates["client"].not_after_ms, Some(7));
        assert_eq!(
            (status.founding, status.former_origins),
            (Some(FoundingStatus { at_ms: 5 }), vec!["aa".to_owned()])
        );
        assert_eq!((status.unjoinable[0].name.as_deref(), status.unjoinable[0].why.as_str()), (None, "another key"));
    }

    #[tokio::test]
    async fn poll_errors_are_distinct() {
        let router = Router::new().route("/status", get(|| async { (StatusCode::INTERNAL_SERVER_ERROR, "") }));
        assert!(matches!(Poller::default().ask(serve(router).await).await, Err(PollError::Refused(_))));
        let router = Router::new().route("/status", get(|| async { "busy" }));
        assert!(matches!(Poller::default().ask(serve(router).await).await, Err(PollError::Parse(_))));
        let router = Router::new().route("/status", get(|| async { vec![b' '; MAX_BYTES + 1] }));
        assert!(matches!(Poller::default().ask(serve(router).await).await, Err(PollError::Body(_))));
        let unused = SocketAddr::from(([127, 0, 0, 1], 1));
        assert!(matches!(Poller::default().ask(unused).await, Err(PollError::Connect(_))));
    }

    #[tokio::test]
    async fn poll_does_not_wait_for_a_hanging_member() {
        let router = Router::new().route("/status", get(std::future::pending::<&str>));
        let address = serve(router).await;
        // It never answers. Checks only that the poll ends; how soon depends on the machine.
        let asked = tokio::time::timeout(20 * TIMEOUT, Poller::default().ask(address)).await;
        assert!(matches!(asked.expect("the question ends"), Err(PollError::Timeout)));
    }
}
