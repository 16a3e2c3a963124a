//! Many keys in one call.

use crate::client::Client;
use crate::error::Error;
use crate::kv::{self, PutOptions, Value, Version};
use bytes::Bytes;
use futures::TryStreamExt as _;
use kvasir_proto::v1;
use tonic::Response;

/// Keys of one call; more are sent in several.
const BATCH: usize = 1000;

impl Client {
    /// Reads many keys; the answers are in the order of the keys.
    pub async fn batch_get(
        &self,
        keys: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Vec<Option<Value>>, Error> {
        let keys: Vec<String> = keys.into_iter().map(Into::into).collect();
        let mut values = Vec::with_capacity(keys.len());
        for some in keys.chunks(BATCH) {
            let request = v1::BatchGetRequest { keys: some.to_vec(), ..v1::BatchGetRequest::default() };
            let messages: Vec<_> = self
                .call(|via| {
                    let (mut kv, request) = (self.kv(via), self.timed(request.clone()));
                    async move { Ok(Response::new(kv.batch_get(request).await?.into_inner().try_collect().await?)) }
                })
                .await?;
            let answers = messages.into_iter().flat_map(|message: v1::BatchGetResponse| message.answers);
            let before = values.len();
            for answer in answers {
                values.push(if answer.missing { None } else { Some(kv::value(answer)?) });
            }
            if values.len() - before != some.len() {
                return Err(Error::Answer("answer for every key"));
            }
        }
        Ok(values)
    }

    /// Writes many keys, one after the other: no transaction. Should the node run full half way, the call fails with
    /// [`Error::Full`], and what came before stays.
    pub async fn batch_put(
        &self,
        entries: impl IntoIterator<Item = (impl Into<String>, impl Into<Bytes>)>,
        options: PutOptions,
    ) -> Result<Vec<Version>, Error> {
        let single = PutOptions { ack: None, ..options };
        let puts = entries
            .into_iter()
            .map(|(key, value)| kv::put_request(key.into(), value.into(), single))
            .collect::<Result<Vec<_>, _>>()?;
        let ack = options.ack.map(crate::Ack::wire).transpose()?;
        let mut versions = Vec::with_capacity(puts.len());
        for some in puts.chunks(BATCH) {
            let request = v1::BatchPutRequest { puts: some.to_vec(), ack, session: None };
            let answer = self
                .call(|via| {
                    let (mut kv, request) = (self.kv(via), self.timed(request.clone()));
                    async move { kv.batch_put(request).await }
                })
                .await?;
            for version in answer.versions {
                versions.push(kv::version(Some(version))?);
            }
            if let Some(failure) = answer.failure {
                return Err(Error::Full(failure.message));
            }
            crate::ack::check(options.ack, versions.last().copied(), answer.acked)?;
        }
        Ok(versions)
    }

    /// Deletes many keys, and tells of each whether it was there.
    pub async fn batch_delete(&self, keys: impl IntoIterator<Item = impl Into<String>>) -> Result<Vec<bool>, Error> {
        let keys: Vec<String> = keys.into_iter().map(Into::into).collect();
        let mut existed = Vec::with_capacity(keys.len());
        for some in keys.chunks(BATCH) {
            let request = v1::BatchDeleteRequest { keys: some.to_vec(), ..v1::BatchDeleteRequest::default() };
            let answer = self
                .call(|via| {
                    let (mut kv, request) = (self.kv(via), self.timed(request.clone()));
                    async move { kv.batch_delete(request).await }
                })
                .await?;
            existed.extend(answer.existed);
        }
        Ok(existed)
    }
}
