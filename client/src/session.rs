//! Sessions: consecutive calls, each of which sees what the calls before it saw, on any node.

use crate::ack::Ack;
use crate::batch;
use crate::calls::{self, Carrier};
use crate::client::Client;
use crate::error::Error;
use crate::kv::{BatchGetOptions, Entry, ListOptions, PutOptions, Value, Version};
use crate::list;
use crate::pipe::Pipe;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use kvasir_proto::v1;
use std::time::Duration;

/// Consecutive calls with two guarantees: the session reads its own writes, and never reads an older value after a newer
/// one. The calls take `&mut self` because each needs the token that the one before it returned.
///
/// A node that does not cover the session yet waits until it does; if that takes too long, the client tries another node.
/// [`Error::SessionLost`] means that no node will ever cover it: a write that the session saw was lost with the only nodes
/// that held it. Begin a new session then.
///
/// ```no_run
/// # async fn run(client: kvasir_client::Client, other: kvasir_client::Client) -> Result<(), kvasir_client::Error> {
/// use kvasir_client::PutOptions;
///
/// let mut session = client.session();
/// session.put("cart/7", "one apple", PutOptions::default()).await?;
/// // Another process, with the token, at another node:
/// let mut there = other.resume(session.token());
/// assert!(there.exists("cart/7").await?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Session {
    via: Via,
    token: Bytes,
}

/// How the calls on single keys are sent.
#[derive(Debug, Clone)]
enum Via {
    Calls(Client),
    Pipe(Pipe),
}

impl Client {
    /// Begins a session.
    pub fn session(&self) -> Session {
        self.resume(Bytes::new())
    }

    /// Continues a session from its [token](Session::token), which may come from another process.
    pub fn resume(&self, token: Bytes) -> Session {
        Session { via: Via::Calls(self.clone()), token }
    }
}

impl Session {
    pub(crate) fn through(pipe: Pipe, token: Bytes) -> Self {
        Self { via: Via::Pipe(pipe), token }
    }

    /// What the session has seen, for another process to continue from.
    pub fn token(&self) -> Bytes {
        self.token.clone()
    }

    /// As [`Client::put`].
    pub async fn put(
        &mut self,
        key: impl Into<String>,
        value: impl Into<Bytes>,
        options: PutOptions,
    ) -> Result<Version, Error> {
        calls::put(&self.via, Some(&mut self.token), key.into(), value.into(), options).await
    }

    /// As [`Client::get`].
    pub async fn get(&mut self, key: impl Into<String>) -> Result<Option<Value>, Error> {
        calls::get(&self.via, Some(&mut self.token), key.into()).await
    }

    /// As [`Client::exists`].
    pub async fn exists(&mut self, key: impl Into<String>) -> Result<bool, Error> {
        calls::exists(&self.via, Some(&mut self.token), key.into()).await
    }

    /// As [`Client::delete`].
    pub async fn delete(&mut self, key: impl Into<String>) -> Result<bool, Error> {
        calls::delete(&self.via, Some(&mut self.token), key.into(), None).await
    }

    /// As [`Client::delete_with`].
    pub async fn delete_with(&mut self, key: impl Into<String>, ack: impl Into<Ack>) -> Result<bool, Error> {
        calls::delete(&self.via, Some(&mut self.token), key.into(), Some(ack.into())).await
    }

    /// As [`Client::touch`].
    pub async fn touch(&mut self, key: impl Into<String>, ttl: Option<Duration>) -> Result<bool, Error> {
        calls::touch(&self.via, Some(&mut self.token), key.into(), ttl, None).await
    }

    /// As [`Client::touch_with`].
    pub async fn touch_with(
        &mut self,
        key: impl Into<String>,
        ttl: Option<Duration>,
        ack: impl Into<Ack>,
    ) -> Result<bool, Error> {
        calls::touch(&self.via, Some(&mut self.token), key.into(), ttl, Some(ack.into())).await
    }

    /// As [`Client::list`]. The session has seen what the stream returned.
    pub fn list(&mut self, prefix: impl Into<String>, options: ListOptions) -> BoxStream<'_, Result<Entry, Error>> {
        let client = self.client().clone();
        list::list(client, prefix.into(), options, Some(&mut self.token)).boxed()
    }

    /// As [`Client::batch_get`].
    pub async fn batch_get(
        &mut self,
        keys: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Vec<Option<Value>>, Error> {
        self.batch_get_with(keys, BatchGetOptions::default()).await
    }

    /// As [`Client::batch_get_with`].
    pub async fn batch_get_with(
        &mut self,
        keys: impl IntoIterator<Item = impl Into<String>>,
        options: BatchGetOptions,
    ) -> Result<Vec<Option<Value>>, Error> {
        let client = self.client().clone();
        batch::get(&client, Some(&mut self.token), batch::keys(keys), options).await
    }

    /// As [`Client::batch_put`].
    pub async fn batch_put(
        &mut self,
        entries: impl IntoIterator<Item = (impl Into<String>, impl Into<Bytes>)>,
        options: PutOptions,
    ) -> Result<Vec<Version>, Error> {
        let (client, puts) = (self.client().clone(), batch::puts(entries, options)?);
        batch::put(&client, Some(&mut self.token), puts, options.ack).await
    }

    /// As [`Client::batch_delete`].
    pub async fn batch_delete(
        &mut self,
        keys: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Vec<bool>, Error> {
        let client = self.client().clone();
        batch::delete(&client, Some(&mut self.token), batch::keys(keys), None).await
    }

    /// As [`Client::batch_delete_with`].
    pub async fn batch_delete_with(
        &mut self,
        keys: impl IntoIterator<Item = impl Into<String>>,
        ack: impl Into<Ack>,
    ) -> Result<Vec<bool>, Error> {
        let client = self.client().clone();
        batch::delete(&client, Some(&mut self.token), batch::keys(keys), Some(ack.into())).await
    }

    fn client(&self) -> &Client {
        match &self.via {
            Via::Calls(client) => client,
            Via::Pipe(pipe) => pipe.client(),
        }
    }
}

impl Carrier for Via {
    async fn send_put(&self, request: v1::PutRequest) -> Result<v1::PutResponse, Error> {
        match self {
            Self::Calls(client) => client.send_put(request).await,
            Self::Pipe(pipe) => pipe.send_put(request).await,
        }
    }

    async fn send_get(&self, request: v1::GetRequest) -> Result<v1::GetResponse, Error> {
        match self {
            Self::Calls(client) => client.send_get(request).await,
            Self::Pipe(pipe) => pipe.send_get(request).await,
        }
    }

    async fn send_exists(&self, request: v1::ExistsRequest) -> Result<v1::ExistsResponse, Error> {
        match self {
            Self::Calls(client) => client.send_exists(request).await,
            Self::Pipe(pipe) => pipe.send_exists(request).await,
        }
    }

    async fn send_delete(&self, request: v1::DeleteRequest) -> Result<v1::DeleteResponse, Error> {
        match self {
            Self::Calls(client) => client.send_delete(request).await,
            Self::Pipe(pipe) => pipe.send_delete(request).await,
        }
    }

    async fn send_touch(&self, request: v1::TouchRequest) -> Result<v1::TouchResponse, Error> {
        match self {
            Self::Calls(client) => client.send_touch(request).await,
            Self::Pipe(pipe) => pipe.send_touch(request).await,
        }
    }
}
