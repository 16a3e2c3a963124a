//! Many keys in one call. A batch saves round trips; it is not a transaction.

use bytes::Bytes;
use kvasir_proto::v1::{
    BatchDeleteRequest, BatchDeleteResponse, BatchGetRequest, BatchGetResponse, BatchPutRequest, BatchPutResponse,
};
use tonic::Status;

use super::calls::{Calls, found, saw, version};
use super::deadline::Deadline;
use super::errors::{failure, not_served, refused};
use super::identify::denied;
use super::{LIST_MESSAGE_BYTES, limits};
use crate::clock::Dot;
use crate::config::Verb;
use crate::engine::Read;
use crate::session::Session;
use crate::wall_clock::wall_ms;

/// The most keys of a batch.
pub const MAX_BATCH: usize = 1000;

/// A batch of reads in progress.
pub(super) struct Reads {
    calls: Calls,
    keys: std::vec::IntoIter<String>,
    keys_only: bool,
    session: Option<Session>,
}

impl Reads {
    pub(super) async fn new(calls: Calls, request: BatchGetRequest, deadline: Deadline) -> Result<Self, Status> {
        let BatchGetRequest { keys, keys_only, session } = request;
        limits::batch("keys", keys.len(), MAX_BATCH)?;
        for (n, key) in keys.iter().enumerate() {
            limits::key(key, &calls.limits)
                .and_then(|()| calls.caller.may(Verb::Read, key).map_err(denied))
                .map_err(|status| at("keys", n, &status))?;
        }
        let session = calls.enter(session, deadline).await?;
        Ok(Self { calls, keys: keys.into_iter(), keys_only, session })
    }

    /// The next message; `None` after the last one.
    pub(super) fn next_message(&mut self) -> Result<Option<BatchGetResponse>, Status> {
        if self.keys.len() == 0 {
            return Ok(None);
        }
        let now_ms = wall_ms();
        let (mut answers, mut bytes) = (Vec::new(), 0);
        while bytes < LIST_MESSAGE_BYTES
            && let Some(key) = self.keys.next()
        {
            let Read { value, dot } = self.calls.engine.read(&key).map_err(not_served)?;
            saw(&mut self.session, dot);
            let mut answer = found(value, now_ms);
            if self.keys_only {
                answer.value = Bytes::new();
            }
            bytes += answer.value.len();
            answers.push(answer);
        }
        let session = self.calls.leave(self.session.clone())?;
        Ok(Some(BatchGetResponse { answers, session }))
    }
}

impl Calls {
    pub(super) async fn batch_put(
        &self,
        request: BatchPutRequest,
        deadline: Deadline,
    ) -> Result<BatchPutResponse, Status> {
        let BatchPutRequest { puts, ack, session } = request;
        limits::batch("puts", puts.len(), MAX_BATCH)?;
        let mut ttls = Vec::with_capacity(puts.len());
        for (n, put) in puts.iter().enumerate() {
            let field = |status: Status| at("puts", n, &status);
            limits::key(&put.key, &self.limits).map_err(field)?;
            self.caller.may(Verb::Write, &put.key).map_err(denied).map_err(field)?;
            limits::value(&put.value, &self.limits).map_err(field)?;
            if put.ack.is_some() || put.session.is_some() {
                return Err(Status::invalid_argument(format!(
                    "puts[{n}]: ack and session belong to the batch: leave them out of its puts"
                )));
            }
            ttls.push(put.ttl.map(|ttl| limits::ttl(ttl, &self.limits)).transpose().map_err(field)?);
        }
        let waiting = self.will_wait(ack)?;
        let mut session = self.enter(session, deadline).await?;
        let (mut versions, mut last, mut failed) = (Vec::with_capacity(puts.len()), None, None);
        for (put, ttl) in puts.into_iter().zip(ttls) {
            match self.engine.put(&put.key, &put.value, ttl) {
                Ok(dot) => {
                    saw(&mut session, Some(dot));
                    versions.push(version(dot));
                    last = Some(dot);
                }
                // Nothing was written: the whole call fails.
                Err(error) if versions.is_empty() => return Err(refused(error)),
                Err(error) => {
                    failed = Some(failure(&refused(error)));
                    break;
                }
            }
        }
        let acked = self.acked(waiting, last, deadline).await;
        Ok(BatchPutResponse { versions, failure: failed, acked, session: self.leave(session)? })
    }

    pub(super) async fn batch_delete(
        &self,
        request: BatchDeleteRequest,
        deadline: Deadline,
    ) -> Result<BatchDeleteResponse, Status> {
        let BatchDeleteRequest { keys, ack, session } = request;
        limits::batch("keys", keys.len(), MAX_BATCH)?;
        for (n, key) in keys.iter().enumerate() {
            limits::key(key, &self.limits)
                .and_then(|()| self.caller.may(Verb::Delete, key).map_err(denied))
                .map_err(|status| at("keys", n, &status))?;
        }
        let waiting = self.will_wait(ack)?;
        let mut session = self.enter(session, deadline).await?;
        let mut last: Option<Dot> = None;
        let mut existed = Vec::with_capacity(keys.len());
        for key in keys {
            let dot = self.engine.delete(&key).map_err(refused)?;
            saw(&mut session, dot.or_else(|| self.engine.dot(&key)));
            existed.push(dot.is_some());
            last = dot.or(last);
        }
        let acked = self.acked(waiting, last, deadline).await;
        let (version, session) = (last.map(version), self.leave(session)?);
        Ok(BatchDeleteResponse { existed, acked, session, version })
    }
}

/// Adds the position in the batch to an error.
fn at(field: &str, n: usize, status: &Status) -> Status {
    Status::new(status.code(), format!("{field}[{n}]: {}", status.message()))
}
