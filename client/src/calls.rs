//! The calls on single keys, sent as separate gRPC calls or through a pipe. In a session the request carries the
//! session's token, and the answer replaces it.

use crate::ack::{self, Ack};
use crate::client::Client;
use crate::error::Error;
use crate::kv::{self, Entry, ListOptions, PutOptions, Value, Version};
use crate::list;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use kvasir_proto::v1;
use std::time::Duration;
use tonic::{Code, Response};

/// Sends requests to a node and returns the answers. A missing key is an answer, not an error.
pub(crate) trait Carrier {
    async fn send_put(&self, request: v1::PutRequest) -> Result<v1::PutResponse, Error>;
    async fn send_get(&self, request: v1::GetRequest) -> Result<v1::GetResponse, Error>;
    async fn send_exists(&self, request: v1::ExistsRequest) -> Result<v1::ExistsResponse, Error>;
    async fn send_delete(&self, request: v1::DeleteRequest) -> Result<v1::DeleteResponse, Error>;
    async fn send_touch(&self, request: v1::TouchRequest) -> Result<v1::TouchResponse, Error>;
}

/// The session's token, if the call belongs to a session.
pub(crate) type Token<'a> = Option<&'a mut Bytes>;

pub(crate) fn given(token: &Token<'_>) -> Option<Bytes> {
    token.as_deref().cloned()
}

pub(crate) fn replace(token: Token<'_>, answered: Bytes) {
    // A node of a release without sessions returns no token: keep the one that we have.
    if let Some(token) = token.filter(|_| !answered.is_empty()) {
        *token = answered;
    }
}

pub(crate) async fn put(
    via: &impl Carrier,
    token: Token<'_>,
    key: String,
    value: Bytes,
    options: PutOptions,
) -> Result<Version, Error> {
    let request = v1::PutRequest { session: given(&token), ..kv::put_request(key, value, options)? };
    let answer = via.send_put(request).await?;
    replace(token, answer.session);
    let version = kv::version(answer.version)?;
    ack::check(options.ack, Some(version), answer.acked)?;
    Ok(version)
}

pub(crate) async fn get(via: &impl Carrier, token: Token<'_>, key: String) -> Result<Option<Value>, Error> {
    let mut answer = via.send_get(v1::GetRequest { key, session: given(&token) }).await?;
    replace(token, std::mem::take(&mut answer.session));
    if answer.missing { Ok(None) } else { kv::value(answer).map(Some) }
}

pub(crate) async fn exists(via: &impl Carrier, token: Token<'_>, key: String) -> Result<bool, Error> {
    let answer = via.send_exists(v1::ExistsRequest { key, session: given(&token) }).await?;
    replace(token, answer.session);
    Ok(answer.exists)
}

pub(crate) async fn delete(via: &impl Carrier, token: Token<'_>, key: String, ack: Option<Ack>) -> Result<bool, Error> {
    let request = v1::DeleteRequest { key, ack: ack.map(Ack::wire).transpose()?, session: given(&token) };
    let answer = via.send_delete(request).await?;
    replace(token, answer.session);
    let version = answer.version.map(|version| kv::version(Some(version))).transpose()?;
    ack::check(ack, version, answer.acked)?;
    Ok(answer.existed)
}

pub(crate) async fn touch(
    via: &impl Carrier,
    token: Token<'_>,
    key: String,
    ttl: Option<Duration>,
    ack: Option<Ack>,
) -> Result<bool, Error> {
    let (ttl, asked) = (kv::wire_ttl(ttl)?, ack.map(Ack::wire).transpose()?);
    let request = v1::TouchRequest { key, ttl, ack: asked, session: given(&token) };
    let answer = via.send_touch(request).await?;
    replace(token, answer.session);
    let version = answer.version.map(|version| kv::version(Some(version))).transpose()?;
    ack::check(ack, version, answer.acked)?;
    Ok(answer.existed)
}

impl Client {
    /// Stores `value` under `key` and replaces a former value.
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
        put(self, None, key.into(), value.into(), options).await
    }

    /// Reads a key; `None` if the key does not exist or its TTL has ended.
    pub async fn get(&self, key: impl Into<String>) -> Result<Option<Value>, Error> {
        get(self, None, key.into()).await
    }

    /// Whether a key exists.
    pub async fn exists(&self, key: impl Into<String>) -> Result<bool, Error> {
        exists(self, None, key.into()).await
    }

    /// Deletes a key; returns whether it existed.
    pub async fn delete(&self, key: impl Into<String>) -> Result<bool, Error> {
        delete(self, None, key.into(), None).await
    }

    /// Deletes a key, and returns once other nodes hold the delete. If the key did not exist, the call returns at once.
    pub async fn delete_with(&self, key: impl Into<String>, ack: impl Into<Ack>) -> Result<bool, Error> {
        delete(self, None, key.into(), Some(ack.into())).await
    }

    /// Sets or removes the TTL of a key and leaves its value; returns whether the key existed.
    pub async fn touch(&self, key: impl Into<String>, ttl: Option<Duration>) -> Result<bool, Error> {
        touch(self, None, key.into(), ttl, None).await
    }

    /// Sets or removes the TTL of a key, and returns once other nodes hold the change. If the key did not exist, the call
    /// returns at once.
    pub async fn touch_with(
        &self,
        key: impl Into<String>,
        ttl: Option<Duration>,
        ack: impl Into<Ack>,
    ) -> Result<bool, Error> {
        touch(self, None, key.into(), ttl, Some(ack.into())).await
    }

    /// Lists the keys that begin with `prefix`, or all keys if it is empty, in ascending byte order.
    ///
    /// Pages are fetched as the stream is read. If the node goes away partway, another node continues, and no key
    /// appears twice. The listing is not a snapshot: a key that is written or deleted meanwhile may or may not appear.
    /// After an error the stream ends.
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
        list::list(self.clone(), prefix.into(), options, None).boxed()
    }
}

impl Carrier for Client {
    async fn send_put(&self, request: v1::PutRequest) -> Result<v1::PutResponse, Error> {
        self.call(|via| {
            let (mut kv, request) = (self.kv(via), self.timed(request.clone()));
            async move { kv.put(request).await }
        })
        .await
    }

    async fn send_get(&self, request: v1::GetRequest) -> Result<v1::GetResponse, Error> {
        self.call(|via| {
            let (mut kv, request) = (self.kv(via), self.timed(request.clone()));
            async move {
                match kv.get(request).await {
                    Err(status) if status.code() == Code::NotFound => {
                        Ok(Response::new(v1::GetResponse { missing: true, ..v1::GetResponse::default() }))
                    }
                    other => other,
                }
            }
        })
        .await
    }

    async fn send_exists(&self, request: v1::ExistsRequest) -> Result<v1::ExistsResponse, Error> {
        self.call(|via| {
            let (mut kv, request) = (self.kv(via), self.timed(request.clone()));
            async move { kv.exists(request).await }
        })
        .await
    }

    async fn send_delete(&self, request: v1::DeleteRequest) -> Result<v1::DeleteResponse, Error> {
        self.call(|via| {
            let (mut kv, request) = (self.kv(via), self.timed(request.clone()));
            async move { kv.delete(request).await }
        })
        .await
    }

    async fn send_touch(&self, request: v1::TouchRequest) -> Result<v1::TouchResponse, Error> {
        self.call(|via| {
            let (mut kv, request) = (self.kv(via), self.timed(request.clone()));
            async move { kv.touch(request).await }
        })
        .await
    }
}
