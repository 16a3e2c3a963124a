//! Asks members how they are, over HTTP at their admin port.
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

use crate::resources::ADMIN_PORT;

/// Members asked at the same time.
const AT_ONCE: usize = 16;
/// How long a member may take.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The longest answer that is read; a member of 64 says some 20 KiB.
const MAX_BYTES: usize = 1 << 20;

/// What a member says of itself. Fields that it does not give, being of another version, have their default.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeStatus {
    /// Identity of its process.
    pub origin: String,
    /// Origins of the same process before it rejoined: what it held then it brought along.
    pub former_origins: Vec<String>,
    /// The founding that its map goes back to, once it has one.
    pub founding: Option<FoundingStatus>,
    /// Its version.
    pub version: String,
    /// Where in its life it is.
    pub phase: String,
    /// Live keys.
    pub keys: u64,
    /// The most bytes that entries may take; 0 is no limit.
    pub max_memory_bytes: u64,
    /// Why it may be killed for the memory that it takes, if it may.
    pub memory_concern: Option<String>,
    /// Whether it refuses writes because of that.
    pub full: bool,
    /// A sum over all live entries.
    pub fingerprint: String,
    /// How far behind its peers it is, if it can tell.
    pub lag_ms: Option<u64>,
    /// The keys that it encrypts with, if it does.
    pub encryption: Option<KeysStatus>,
    /// How the following of files goes, by their use.
    pub reloads: BTreeMap<String, ReloadStatus>,
    /// Its certificates, by use.
    pub certificates: BTreeMap<String, CertificateStatus>,
    /// How the finding of peers goes.
    pub discovery: Vec<DiscoveryStatus>,
    /// The others, as it sees them.
    pub peers: Vec<PeerStatus>,
    /// Peers that it heard of lately and cannot talk to.
    pub unjoinable: Vec<UnjoinableStatus>,
}

/// A peer that a member cannot talk to.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct UnjoinableStatus {
    /// Where it is.
    pub address: String,
    /// Its name, if it is known.
    pub name: Option<String>,
    /// Why, and what to do.
    pub why: String,
}

/// When a map began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FoundingStatus {
    /// Milliseconds since 1970.
    pub at_ms: i64,
}

/// Another node, as a member sees it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PeerStatus {
    /// Identity of its process.
    pub origin: String,
    /// Which way of finding peers named it, if any.
    pub found_by: Option<String>,
}

/// The keys that a member encrypts with, by their names.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct KeysStatus {
    /// The key that seals.
    pub primary: String,
    /// All keys that open, the primary one first.
    pub keys: Vec<String>,
}

/// How the following of some files goes.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ReloadStatus {
    /// Why what is there cannot be taken, if it cannot.
    pub error: Option<String>,
}

/// A certificate in force.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CertificateStatus {
    /// Until when it is valid, in milliseconds since 1970; unset of one that does not say.
    pub not_after_ms: Option<i64>,
}

/// How one way of finding peers goes.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DiscoveryStatus {
    /// Which way.
    pub provider: String,
    /// What is wrong, if anything.
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
    /// An answer that says no.
    #[error("answered {0}")]
    Refused(http::StatusCode),
    /// An answer that broke off or was too long.
    #[error("the answer broke off: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// An answer that is no status.
    #[error("the answer is no status: {0}")]
    Parse(#[from] serde_json::Error),
    /// An address that makes no URL.
    #[error("no such address: {0}")]
    Address(#[from] http::uri::InvalidUri),
}

/// What became of asking each member, by the name of its pod.
pub type Answers = BTreeMap<String, Result<NodeStatus, PollError>>;

/// Asks members; keeps its connections between rounds.
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
    /// Asks these members, each by the name and the address of its pod.
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
    async fn a_member_is_heard_whatever_its_version() {
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
    async fn trouble_has_a_name() {
        let router = Router::new().route("/status", get(|| async { (StatusCode::INTERNAL_SERVER_ERROR, "") }));
        assert!(matches!(Poller::default().ask(serve(router).await).await, Err(PollError::Refused(_))));
        let router = Router::new().route("/status", get(|| async { "busy" }));
        assert!(matches!(Poller::default().ask(serve(router).await).await, Err(PollError::Parse(_))));
        let router = Router::new().route("/status", get(|| async { vec![b' '; MAX_BYTES + 1] }));
        assert!(matches!(Poller::default().ask(serve(router).await).await, Err(PollError::Body(_))));
        let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
        assert!(matches!(Poller::default().ask(nobody).await, Err(PollError::Connect(_))));
    }

    #[tokio::test]
    async fn a_member_that_hangs_is_not_waited_for() {
        let router = Router::new().route("/status", get(std::future::pending::<&str>));
        let address = serve(router).await;
        // It never answers: that the question ends is all that counts, for how soon is up to the machine.
        let asked = tokio::time::timeout(20 * TIMEOUT, Poller::default().ask(address)).await;
        assert!(matches!(asked.expect("the question ends"), Err(PollError::Timeout)));
    }
}
