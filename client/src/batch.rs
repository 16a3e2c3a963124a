//! Calls on many keys.

use crate::ack::{self, Ack};
use crate::calls::{Token, given, replace};
use crate::client::Client;
use crate::error::Error;
use crate::kv::{self, BatchGetOptions, PutOptions, Value, Version};
use bytes::Bytes;
use futures::TryStreamExt as _;
use kvasir_proto::v1;
use tonic::Response;

/// Keys in one request; more keys are sent in several requests.
const BATCH: usize = 1000;

impl Client {
    /// Reads many keys. The answers are in the order of the keys.
    pub async fn batch_get(
        &self,
        keys: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Vec<Option<Value>>, Error> {
        self.batch_get_with(keys, BatchGetOptions::default()).await
    }

    /// Reads many keys, with options. With `keys_only` the answers have versions and TTLs but no values.
    pub async fn batch_get_with(
        &self,
        keys: impl IntoIterator<Item = impl Into<String>>,
        options: BatchGetOptions,
    ) -> Result<Vec<Option<Value>>, Error> {
        get(self, None, self::keys(keys), options).await
    }

    /// Writes many keys, one after the other. This is not a transaction: if the node becomes full partway, the call
    /// fails with [`Error::Full`], and the writes before that stay.
    pub async fn batch_put(
        &self,
        entries: impl IntoIterator<Item = (impl Into<String>, impl Into<Bytes>)>,
        options: PutOptions,
    ) -> Result<Vec<Version>, Error> {
        put(self, None, puts(entries, options)?, options.ack).await
    }

    /// Deletes many keys, and returns for each whether it existed.
    pub async fn batch_delete(&self, keys: impl IntoIterator<Item = impl Into<String>>) -> Result<Vec<bool>, Error> {
        delete(self, None, self::keys(keys), None).await
    }

    /// Deletes many keys, and returns once other nodes hold the deletes. More than 1,000 keys are sent in several
    /// requests; after a request that was not held in time, no further one is sent.
    pub async fn batch_delete_with(
        &self,
        keys: impl IntoIterator<Item = impl Into<String>>,
        ack: impl Into<Ack>,
    ) -> Result<Vec<bool>, Error> {
        delete(self, None, self::keys(keys), Some(ack.into())).await
    }
}

pub(crate) fn keys(keys: impl IntoIterator<Item = impl Into<String>>) -> Vec<String> {
    keys.into_iter().map(Into::into).collect()
}

pub(crate) fn puts(
    entries: impl IntoIterator<Item = (impl Into<String>, impl Into<Bytes>)>,
    options: PutOptions,
) -> Result<Vec<v1::PutRequest>, Error> {
    let single = PutOptions { ack: None, ..options };
    entries.into_iter().map(|(key, value)| kv::put_request(key.into(), value.into(), single)).collect()
}

pub(crate) async fn get(
    client: &Client,
    mut token: Token<'_>,
    keys: Vec<String>,
    options: BatchGetOptions,
) -> Result<Vec<Option<Value>>, Error> {
    let BatchGetOptions { keys_only } = options;
    let mut values = Vec::with_capacity(keys.len());
    for some in keys.chunks(BATCH) {
        let request = v1::BatchGetRequest { keys: some.to_vec(), keys_only, session: given(&token) };
        let messages: Vec<v1::BatchGetResponse> = client
            .call(|via| {
                let (mut kv, request) = (client.kv(via), client.timed(request.clone()));
                async move { Ok(Response::new(kv.batch_get(request).await?.into_inner().try_collect().await?)) }
            })
            .await?;
        let before = values.len();
        for message in messages {
            replace(token.as_deref_mut(), message.session);
            for answer in message.answers {
                values.push(if answer.missing { None } else { Some(kv::value(answer)?) });
            }
        }
        if values.len() - before != some.len() {
            return Err(Error::Answer("answer for every key"));
        }
    }
    Ok(values)
}

pub(crate) async fn put(
    client: &Client,
    mut token: Token<'_>,
    puts: Vec<v1::PutRequest>,
    ack: Option<Ack>,
) -> Result<Vec<Version>, Error> {
    let asked = ack.map(Ack::wire).transpose()?;
    let mut versions = Vec::with_capacity(puts.len());
    for some in puts.chunks(BATCH) {
        let request = v1::BatchPutRequest { puts: some.to_vec(), ack: asked, session: given(&token) };
        let answer = client
            .call(|via| {
                let (mut kv, request) = (client.kv(via), client.timed(request.clone()));
                async move { kv.batch_put(request).await }
            })
            .await?;
        replace(token.as_deref_mut(), answer.session);
        for version in answer.versions {
            versions.push(kv::version(Some(version))?);
        }
        if let Some(failure) = answer.failure {
            return Err(Error::Full(failure.message));
        }
        ack::check(ack, versions.last().copied(), answer.acked)?;
    }
    Ok(versions)
}

pub(crate) async fn delete(
    client: &Client,
    mut token: Token<'_>,
    keys: Vec<String>,
    ack: Option<Ack>,
) -> Result<Vec<bool>, Error> {
    let asked = ack.map(Ack::wire).transpose()?;
    let mut existed = Vec::with_capacity(keys.len());
    for some in keys.chunks(BATCH) {
        let request = v1::BatchDeleteRequest { keys: some.to_vec(), ack: asked, session: given(&token) };
        let answer = client
            .call(|via| {
                let (mut kv, request) = (client.kv(via), client.timed(request.clone()));
                async move { kv.batch_delete(request).await }
            })
            .await?;
        replace(token.as_deref_mut(), answer.session);
        existed.extend(answer.existed);
        let version = answer.version.map(|version| kv::version(Some(version))).transpose()?;
        ack::check(ack, version, answer.acked)?;
    }
    Ok(existed)
}
