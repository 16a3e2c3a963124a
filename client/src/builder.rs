//! How a client is made: its settings, and the first connection.

use crate::address;
use crate::client::Client;
use crate::credentials::{Bearer, Credentials};
use crate::error::{Error, Failure};
use crate::link::Link;
use crate::retry::RetryPolicy;
use std::time::Duration;
use tonic::transport::Endpoint;

/// How long one attempt may take, unless the builder says otherwise.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the making of a connection may take: a pod that is gone answers nothing at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The largest answer taken: twice the value limit that a cluster may reasonably be given (16 MiB).
const MAX_MESSAGE_BYTES: usize = 32 << 20;
/// A connection whose other end is silently gone is noticed within these two, also between calls.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a client was told.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) address: String,
    pub(crate) request_timeout: Duration,
    pub(crate) retry: RetryPolicy,
    pub(crate) max_message_bytes: usize,
    pub(crate) credentials: Credentials,
    pub(crate) bearer: Bearer,
}

/// Settings of a [`Client`] in the making.
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
    /// How long one attempt of a call may take; in a listing, the time until its next message. 5 s by default.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.settings.request_timeout = timeout;
        self
    }

    /// Whether, and for how long, calls are tried again.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.settings.retry = policy;
        self
    }

    /// The largest answer taken, in bytes: above the cluster's `maxValueBytes` with some room. 32 MiB by default.
    /// What is sent has no limit here; the node has its own.
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.settings.max_message_bytes = bytes;
        self
    }

    /// What the client shows, and whom it trusts. Nothing and the system's authorities by default.
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.settings.bearer = credentials.bearer();
        self.settings.credentials = credentials;
        self
    }

    /// A client that connects with its first call. Must be called within a tokio runtime.
    pub fn build(self) -> Result<Client, Error> {
        let link = Link::new(self.endpoint()?, self.settings.credentials.clone())?;
        Ok(Client::new(link, self.settings))
    }

    /// A client that has reached its node once. Whether the node is ready yet is not asked.
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
    /// Reaches the node, or the Service, at `address`: `host:port`, with or without `http://`, or with `https://`.
    pub async fn connect(address: impl Into<String>) -> Result<Self, Error> {
        Self::builder(address).connect().await
    }

    /// The client of the address in `KVASIR_ADDRESS`, where the injector puts that of the sidecar, or of
    /// [`DEFAULT_ADDRESS`](crate::DEFAULT_ADDRESS), with [the environment's credentials](Credentials::from_env). It connects with its first call. Must be called within a tokio
    /// runtime.
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

    /// Settings to begin with.
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
