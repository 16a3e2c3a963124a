//! Builds a client: its settings, and the first connection.

use crate::address;
use crate::client::Client;
use crate::credentials::{Bearer, Credentials};
use crate::error::{Error, Failure};
use crate::link::Link;
use crate::retry::RetryPolicy;
use std::time::Duration;
use tonic::transport::Endpoint;

/// Default limit on one attempt.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Limit on connecting: the address of a pod that is gone does not answer at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Default limit on an answer: twice the largest `maxValueBytes` that makes sense (16 MiB).
const MAX_MESSAGE_BYTES: usize = 32 << 20;
/// A connection whose other end has vanished is noticed within the sum of these two, also between calls.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The settings of a client.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) address: String,
    pub(crate) request_timeout: Duration,
    pub(crate) retry: RetryPolicy,
    pub(crate) max_message_bytes: usize,
    pub(crate) credentials: Credentials,
    pub(crate) bearer: Bearer,
}

/// Settings of a [`Client`] that is about to be built.
///
/// ```no_run
/// use kvasir_client::{Client, RetryPolicy};
/// use std::time::Duration;
///
/// # async fn run() -> Result<(), kvasir_client::Error> {
/// let client = Client::builder("demo.default.svc:7070")
///     .request_timeout(Duration::from_secs(1))
///     .retry(RetryPolicy { budget: Duration::from_secs(30), ..RetryPolicy::default() })
///     .connect()
///     .await?;
/// # drop(client);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing until build() or connect()"]
pub struct Builder {
    settings: Settings,
}

impl Builder {
    /// Limit on one attempt of a call; in a listing, on the time until the next message. Default: 5 s.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.settings.request_timeout = timeout;
        self
    }

    /// Whether and for how long failed calls are tried again.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.settings.retry = policy;
        self
    }

    /// The largest answer that the client accepts, in bytes. Choose more than the cluster's `maxValueBytes`.
    /// Default: 32 MiB. Requests are limited by the node only.
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.settings.max_message_bytes = bytes;
        self
    }

    /// The client's token and certificate, and the authorities that it trusts. Default: no token, no certificate, the
    /// system's authorities.
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.settings.bearer = credentials.bearer();
        self.settings.credentials = credentials;
        self
    }

    /// Builds a client that connects with its first call. Must be called within a tokio runtime.
    pub fn build(self) -> Result<Client, Error> {
        let link = Link::new(self.endpoint()?, self.settings.credentials.clone())?;
        Ok(Client::new(link, self.settings))
    }

    /// Builds a client and connects it. The node need not be ready yet.
    pub async fn connect(self) -> Result<Client, Error> {
        let endpoint = self.settings.credentials.apply(self.endpoint()?)?;
        let client = self.build()?;
        let mut attempts = client.attempts();
        loop {
            let timeout = attempts.timeout();
            let failure = match tokio::time::timeout(timeout, endpoint.connect()).await {
                Ok(Ok(channel)) => {
                    client.link().adopt(channel);
                    return Ok(client);
                }
                Ok(Err(error)) => Failure::from(tonic::Status::from_error(error.into())),
                Err(_) => Failure::NoAnswer(timeout),
            };
            client.pause(&mut attempts, failure).await?;
        }
    }

    fn endpoint(&self) -> Result<Endpoint, Error> {
        let uri = address::parse(&self.settings.address)?;
        Ok(Endpoint::from(uri)
            .connect_timeout(CONNECT_TIMEOUT.min(self.settings.request_timeout))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true))
    }
}

impl Client {
    /// Connects to the node or the Service at `address`: `host:port`, or with `http://` or `https://` in front.
    pub async fn connect(address: impl Into<String>) -> Result<Self, Error> {
        Self::builder(address).connect().await
    }

    /// A client for the address in `KVASIR_ADDRESS`, or for [`DEFAULT_ADDRESS`](crate::DEFAULT_ADDRESS) without it, with
    /// the [credentials of the environment](Credentials::from_env). The webhook sets `KVASIR_ADDRESS` to the sidecar's
    /// address. The client connects with its first call. Must be called within a tokio runtime.
    pub fn from_env() -> Result<Self, Error> {
        let address = match std::env::var("KVASIR_ADDRESS") {
            Ok(address) if !address.trim().is_empty() => address,
            Ok(_) | Err(std::env::VarError::NotPresent) => address::DEFAULT_ADDRESS.to_owned(),
            Err(std::env::VarError::NotUnicode(bytes)) => {
                return Err(Error::Address {
                    address: bytes.to_string_lossy().into_owned(),
                    reason: "KVASIR_ADDRESS is not UTF-8".to_owned(),
                });
            }
        };
        Self::builder(address).credentials(Credentials::from_env()).build()
    }

    /// Begins a client for `address`, with default settings.
    pub fn builder(address: impl Into<String>) -> Builder {
        Builder {
            settings: Settings {
                address: address.into(),
                request_timeout: REQUEST_TIMEOUT,
                retry: RetryPolicy::default(),
                max_message_bytes: MAX_MESSAGE_BYTES,
                credentials: Credentials::default(),
                bearer: Credentials::default().bearer(),
            },
        }
    }
}
