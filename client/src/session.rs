//! A session: calls that follow each other, each of which sees what those before it saw, whichever node answers.

use crate::ack;
use crate::client::Client;
use crate::error::Error;
use crate::kv::{self, PutOptions, Value, Version};
use bytes::Bytes;
use kvasir_proto::v1;
use std::time::Duration;

/// Reads its own writes, and never an older value after a newer one. The calls take `&mut self` because they follow
/// each other: that is what makes them a session.
///
/// A node that has not yet seen what the session saw is waited for, and left for another one when it takes too long.
/// [`Error::SessionLost`] says that no node will ever see it: a write that this session saw died with the only nodes
/// that held it. Begin a new session then.
#[derive(Debug, Clone)]
pub struct Session {
    client: Client,
    token: Bytes,
}

impl Client {
    /// Begins a session.
    pub fn session(&self) -> Session {
        self.resume(Bytes::new())
    }

    /// Goes on with a session by its [token](Session::token), which another process may have begun.
    pub fn resume(&self, token: Bytes) -> Session {
        Session { client: self.clone(), token }
    }
}

impl Session {
    /// What the session has seen, for another process to go on with.
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
        let request =
            v1::PutRequest { session: Some(self.token()), ..kv::put_request(key.into(), value.into(), options)? };
        let answer = self.client.send_put(request).await?;
        self.token = answer.session;
        let version = kv::version(answer.version)?;
        ack::check(options.ack, Some(version), answer.acked)?;
        Ok(version)
    }

    /// As [`Client::get`].
    pub async fn get(&mut self, key: impl Into<String>) -> Result<Option<Value>, Error> {
        let request = v1::GetRequest { key: key.into(), session: Some(self.token()) };
        let Some(answer) = self.client.send_get(request).await? else { return Ok(None) };
        self.token = answer.session.clone();
        if answer.missing { Ok(None) } else { kv::value(answer).map(Some) }
    }

    /// As [`Client::exists`].
    pub async fn exists(&mut self, key: impl Into<String>) -> Result<bool, Error> {
        let request = v1::ExistsRequest { key: key.into(), session: Some(self.token()) };
        let answer = self.client.send_exists(request).await?;
        self.token = answer.session;
        Ok(answer.exists)
    }

    /// As [`Client::delete`].
    pub async fn delete(&mut self, key: impl Into<String>) -> Result<bool, Error> {
        let request =
            v1::DeleteRequest { key: key.into(), session: Some(self.token()), ..v1::DeleteRequest::default() };
        let answer = self.client.send_delete(request).await?;
        self.token = answer.session;
        Ok(answer.existed)
    }

    /// As [`Client::touch`].
    pub async fn touch(&mut self, key: impl Into<String>, ttl: Option<Duration>) -> Result<bool, Error> {
        let (ttl, session) = (kv::wire_ttl(ttl)?, Some(self.token()));
        let request = v1::TouchRequest { key: key.into(), ttl, session, ..v1::TouchRequest::default() };
        let answer = self.client.send_touch(request).await?;
        self.token = answer.session;
        Ok(answer.existed)
    }
}
