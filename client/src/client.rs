//! The client: its settings, and the calls. How a call is tried again is here; when and how often is `retry`'s, and
//! over which connection `link`'s.

use crate::ack::{self, Ack};
use crate::cluster::{self, Leader, Member, Status, WhoAmI};
use crate::credentials::{Authorised, Bearer, Credentials};
use crate::error::{Error, Failure};
use crate::kv::{self, Entry, ListOptions, PutOptions, Value, Version};
use crate::link::{Current, Link};
use crate::retry::{Attempts, RetryPolicy};
use crate::{address, list};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use kvasir_proto::v1;
use kvasir_proto::v1::cluster_client::ClusterClient;
use kvasir_proto::v1::kv_client::KvClient;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Endpoint;
use tonic::{Code, Response};

/// How long one attempt may take, unless the builder says otherwise.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the making of a connection may take: a pod that is gone answers nothing at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The largest answer taken: twice the value limit that a cluster may reasonably be given (16 MiB).
const MAX_MESSAGE_BYTES: usize = 32 << 20;
/// A connection whose other end is silently gone is noticed within these two, also between calls.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A handle on a cluster, by way of one of its nodes. Clones share the connection.
#[derive(Debug, Clone)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    link: Link,
    settings: Settings,
}

#[derive(Debug)]
struct Settings {
    address: String,
    request_timeout: Duration,
    retry: RetryPolicy,
    max_message_bytes: usize,
    credentials: Credentials,
    bearer: Bearer,
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
        Ok(Client(Arc::new(Inner { link, settings: self.settings })))
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

    /// Stores `value` under `key`, replacing what was there.
    ///
    /// ```no_run
    /// # async fn run(client: kvasir_client::Client) -> Result<(), kvasir_client::Error> {
    /// use kvasir_client::PutOptions;
    /// use std::time::Duration;
    ///
    /// client.put("config/colour", "green", PutOptions::default()).await?;
    /// client.put("lock/job-7", vec![0, 1, 2], PutOptions::with_ttl(Duration::from_secs(3))).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn put(
        &self,
        key: impl Into<String>,
        value: impl Into<Bytes>,
        options: PutOptions,
    ) -> Result<Version, Error> {
        let answer = self.send_put(kv::put_request(key.into(), value.into(), options)?).await?;
        let version = kv::version(answer.version)?;
        ack::check(options.ack, Some(version), answer.acked)?;
        Ok(version)
    }

    /// Reads a key; none when it is not there, or its TTL has ended.
    pub async fn get(&self, key: impl Into<String>) -> Result<Option<Value>, Error> {
        let request = v1::GetRequest { key: key.into(), session: None };
        self.send_get(request).await?.map(kv::value).transpose()
    }

    /// Tells whether a key is there.
    pub async fn exists(&self, key: impl Into<String>) -> Result<bool, Error> {
        let request = v1::ExistsRequest { key: key.into(), session: None };
        Ok(self.send_exists(request).await?.exists)
    }

    /// Deletes a key, and tells whether it was there.
    pub async fn delete(&self, key: impl Into<String>) -> Result<bool, Error> {
        let request = v1::DeleteRequest { key: key.into(), ..v1::DeleteRequest::default() };
        Ok(self.send_delete(request).await?.existed)
    }

    /// Deletes a key, and returns once others hold the delete. If it was not there, nothing is waited for.
    pub async fn delete_with(&self, key: impl Into<String>, ack: impl Into<Ack>) -> Result<bool, Error> {
        let ack = ack.into();
        let request = v1::DeleteRequest { key: key.into(), ack: Some(ack.wire()?), session: None };
        let answer = self.send_delete(request).await?;
        let version = answer.version.map(|version| kv::version(Some(version))).transpose()?;
        ack::check(Some(ack), version, answer.acked)?;
        Ok(answer.existed)
    }

    /// Gives a key another end, or none, and leaves its value. Tells whether it was there.
    pub async fn touch(&self, key: impl Into<String>, ttl: Option<Duration>) -> Result<bool, Error> {
        let request = v1::TouchRequest { key: key.into(), ttl: kv::wire_ttl(ttl)?, ..v1::TouchRequest::default() };
        Ok(self.send_touch(request).await?.existed)
    }

    /// The live keys that begin with `prefix`, all with an empty one, in ascending byte order. They are fetched as the
    /// stream is read; a node that goes away half way is replaced without a key read twice. It is no snapshot: a key
    /// written or deleted meanwhile may or may not show. After an error the stream ends.
    ///
    /// ```no_run
    /// # async fn run(client: kvasir_client::Client) -> Result<(), kvasir_client::Error> {
    /// use futures::TryStreamExt as _;
    /// use kvasir_client::ListOptions;
    ///
    /// let mut entries = client.list("config/", ListOptions::default());
    /// while let Some(entry) = entries.try_next().await? {
    ///     println!("{} = {:?}", entry.key, entry.value);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn list(&self, prefix: impl Into<String>, options: ListOptions) -> BoxStream<'static, Result<Entry, Error>> {
        list::list(self.clone(), prefix.into(), options).boxed()
    }

    /// All nodes that the answering one knows to be alive or suspects, itself included, eldest first.
    pub async fn members(&self) -> Result<Vec<Member>, Error> {
        let answer = self
            .call(|via| {
                let mut cluster = self.cluster(via);
                async move { cluster.members(v1::MembersRequest {}).await }
            })
            .await?;
        Ok(answer.members.into_iter().map(cluster::member).collect())
    }

    /// The health of the answering node.
    pub async fn status(&self) -> Result<Status, Error> {
        let answer = self
            .call(|via| {
                let mut cluster = self.cluster(via);
                async move { cluster.status(v1::StatusRequest {}).await }
            })
            .await?;
        cluster::status(answer)
    }

    /// The answering node.
    pub async fn who_am_i(&self) -> Result<WhoAmI, Error> {
        let answer = self
            .call(|via| {
                let mut cluster = self.cluster(via);
                async move { cluster.who_am_i(v1::WhoAmIRequest {}).await }
            })
            .await?;
        cluster::who_am_i(answer)
    }

    /// The eldest member, as the answering node sees it.
    pub async fn leader(&self) -> Result<Leader, Error> {
        let answer = self
            .call(|via| {
                let mut cluster = self.cluster(via);
                async move { cluster.leader(v1::LeaderRequest {}).await }
            })
            .await?;
        cluster::leader(answer)
    }

    pub(crate) async fn send_put(&self, request: v1::PutRequest) -> Result<v1::PutResponse, Error> {
        self.call(|via| {
            let (mut kv, request) = (self.kv(via), self.timed(request.clone()));
            async move { kv.put(request).await }
        })
        .await
    }

    /// None when the node answers that there is no such key.
    pub(crate) async fn send_get(&self, request: v1::GetRequest) -> Result<Option<v1::GetResponse>, Error> {
        self.call(|via| {
            let (mut kv, request) = (self.kv(via), self.timed(request.clone()));
            async move {
                match kv.get(request).await {
                    Ok(answer) => Ok(Response::new(Some(answer.into_inner()))),
                    Err(status) if status.code() == Code::NotFound => Ok(Response::new(None)),
                    Err(status) => Err(status),
                }
            }
        })
        .await
    }

    pub(crate) async fn send_exists(&self, request: v1::ExistsRequest) -> Result<v1::ExistsResponse, Error> {
        self.call(|via| {
            let (mut kv, request) = (self.kv(via), self.timed(request.clone()));
            async move { kv.exists(request).await }
        })
        .await
    }

    pub(crate) async fn send_delete(&self, request: v1::DeleteRequest) -> Result<v1::DeleteResponse, Error> {
        self.call(|via| {
            let (mut kv, request) = (self.kv(via), self.timed(request.clone()));
            async move { kv.delete(request).await }
        })
        .await
    }

    pub(crate) async fn send_touch(&self, request: v1::TouchRequest) -> Result<v1::TouchResponse, Error> {
        self.call(|via| {
            let (mut kv, request) = (self.kv(via), self.timed(request.clone()));
            async move { kv.touch(request).await }
        })
        .await
    }

    /// A request that tells the node how long its answer is waited for: what the node itself has to wait for, it then
    /// gives up in time to say so.
    pub(crate) fn timed<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.set_timeout(self.settings().request_timeout);
        request
    }

    /// Makes attempts until one is answered for good.
    pub(crate) async fn call<T, F, A>(&self, attempt: F) -> Result<T, Error>
    where
        F: Fn(&Current) -> A,
        A: Future<Output = Result<Response<T>, tonic::Status>>,
    {
        let mut attempts = self.attempts();
        loop {
            let via = self.link().current();
            match self.within(attempts.timeout(), &via, attempt(&via)).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(failure) => self.pause(&mut attempts, failure).await?,
            }
        }
    }

    /// One attempt. If it failed in a way that another connection may cure, the connection is dropped.
    pub(crate) async fn within<T>(
        &self,
        timeout: Duration,
        via: &Current,
        attempt: impl Future<Output = Result<T, tonic::Status>>,
    ) -> Result<T, Failure> {
        let began = tokio::time::Instant::now();
        let failure = match tokio::time::timeout(timeout, attempt).await {
            Ok(Ok(answer)) => return Ok(answer),
            // The connection watches the same time, and may be the first to say that it is over.
            Ok(Err(_)) if began.elapsed() >= timeout => Failure::NoAnswer(timeout),
            Ok(Err(status)) => Failure::from(status),
            Err(_) => Failure::NoAnswer(timeout),
        };
        match failure {
            Failure::Passing(_) | Failure::NoAnswer(_) => self.link().renew(via),
            Failure::Final(_) => {}
        }
        Err(failure)
    }

    /// Waits before the next attempt, or says that there is none.
    pub(crate) async fn pause(&self, attempts: &mut Attempts, failure: Failure) -> Result<(), Error> {
        match failure {
            Failure::Final(error) => return Err(error),
            Failure::Passing(reason) => attempts.answered(reason),
            Failure::NoAnswer(within) => attempts.unanswered(within),
        }
        match attempts.after_failure() {
            Some(pause) => {
                tokio::time::sleep(pause).await;
                Ok(())
            }
            None => Err(Error::Unavailable {
                address: self.settings().address.clone(),
                reason: attempts.reason().to_owned(),
                attempts: attempts.failed(),
                elapsed: attempts.elapsed(),
            }),
        }
    }

    pub(crate) fn attempts(&self) -> Attempts {
        Attempts::new(&self.settings().retry, self.settings().request_timeout)
    }

    pub(crate) fn link(&self) -> &Link {
        &self.0.link
    }

    pub(crate) fn kv(&self, via: &Current) -> KvClient<Authorised> {
        KvClient::with_interceptor(via.channel.clone(), self.settings().bearer.clone())
            .max_decoding_message_size(self.settings().max_message_bytes)
    }

    fn cluster(&self, via: &Current) -> ClusterClient<Authorised> {
        ClusterClient::with_interceptor(via.channel.clone(), self.settings().bearer.clone())
            .max_decoding_message_size(self.settings().max_message_bytes)
    }

    fn settings(&self) -> &Settings {
        &self.0.settings
    }
}
