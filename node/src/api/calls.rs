//! The operations on single keys, for calls and for pipes. Checks limits and rights, passes the request to the engine,
//! waits for other nodes if the client asked for it, and builds the answer.

use std::sync::Arc;

use bytes::Bytes;
use kvasir_proto::v1::{
    Ack, Acked, DeleteRequest, DeleteResponse, ExistsRequest, ExistsResponse, GetRequest, GetResponse, PutRequest,
    PutResponse, TouchRequest, TouchResponse, Version,
};
use tonic::Status;

use super::deadline::Deadline;
use super::errors::{not_served, of_session, refused};
use super::identify::denied;
use super::limits;
use crate::auth::Caller;
use crate::clock::Dot;
use crate::config::{Limits, Verb};
use crate::engine::{Engine, Permit, Read, Value};
use crate::session::Session;
use crate::wall_clock::wall_ms;

/// What a caller's operations need.
#[derive(Clone)]
pub(super) struct Calls {
    pub(super) engine: Arc<Engine>,
    pub(super) limits: Limits,
    /// The caller, whose rights are checked before each operation.
    pub(super) caller: Caller,
}

/// Which nodes a write waits for, and the permit to wait.
pub(super) struct Waiting {
    ack: limits::Ack,
    permit: Permit,
}

impl Calls {
    pub(super) async fn put(&self, request: PutRequest, deadline: Deadline) -> Result<PutResponse, Status> {
        let PutRequest { key, value, ttl, ack, session } = request;
        limits::key(&key, &self.limits)?;
        self.caller.may(Verb::Write, &key).map_err(denied)?;
        limits::value(&value, &self.limits)?;
        let ttl = ttl.map(|ttl| limits::ttl(ttl, &self.limits)).transpose()?;
        let waiting = self.will_wait(ack)?;
        let mut session = self.enter(session, deadline).await?;
        let dot = self.engine.put(&key, &value, ttl).map_err(refused)?;
        saw(&mut session, Some(dot));
        let acked = self.acked(waiting, Some(dot), deadline).await;
        Ok(PutResponse { version: Some(version(dot)), acked, session: self.leave(session)? })
    }

    /// Reads a key. An absent key is an answer, not an error.
    pub(super) async fn get(&self, request: GetRequest, deadline: Deadline) -> Result<GetResponse, Status> {
        let GetRequest { key, session } = request;
        limits::key(&key, &self.limits)?;
        self.caller.may(Verb::Read, &key).map_err(denied)?;
        let mut session = self.enter(session, deadline).await?;
        let now_ms = wall_ms();
        let Read { value, dot } = self.engine.read(&key).map_err(not_served)?;
        saw(&mut session, dot);
        Ok(GetResponse { session: self.leave(session)?, ..found(value, now_ms) })
    }

    pub(super) async fn exists(&self, request: ExistsRequest, deadline: Deadline) -> Result<ExistsResponse, Status> {
        let ExistsRequest { key, session } = request;
        limits::key(&key, &self.limits)?;
        self.caller.may(Verb::Read, &key).map_err(denied)?;
        let mut session = self.enter(session, deadline).await?;
        let Read { value, dot } = self.engine.read(&key).map_err(not_served)?;
        saw(&mut session, dot);
        Ok(ExistsResponse { exists: value.is_some(), session: self.leave(session)? })
    }

    pub(super) async fn delete(&self, request: DeleteRequest, deadline: Deadline) -> Result<DeleteResponse, Status> {
        let DeleteRequest { key, ack, session } = request;
        limits::key(&key, &self.limits)?;
        self.caller.may(Verb::Delete, &key).map_err(denied)?;
        let waiting = self.will_wait(ack)?;
        let mut session = self.enter(session, deadline).await?;
        let dot = self.engine.delete(&key).map_err(refused)?;
        saw(&mut session, dot.or_else(|| self.engine.dot(&key)));
        let acked = self.acked(waiting, dot, deadline).await;
        Ok(DeleteResponse { existed: dot.is_some(), version: dot.map(version), acked, session: self.leave(session)? })
    }

    pub(super) async fn touch(&self, request: TouchRequest, deadline: Deadline) -> Result<TouchResponse, Status> {
        let TouchRequest { key, ttl, ack, session } = request;
        limits::key(&key, &self.limits)?;
        self.caller.may(Verb::Write, &key).map_err(denied)?;
        let ttl = ttl.map(|ttl| limits::ttl(ttl, &self.limits)).transpose()?;
        let waiting = self.will_wait(ack)?;
        let mut session = self.enter(session, deadline).await?;
        let dot = self.engine.touch(&key, ttl).map_err(refused)?;
        saw(&mut session, dot.or_else(|| self.engine.dot(&key)));
        let acked = self.acked(waiting, dot, deadline).await;
        Ok(TouchResponse { existed: dot.is_some(), version: dot.map(version), acked, session: self.leave(session)? })
    }

    /// Reserves a permit before anything is written, if the write must wait.
    pub(super) fn will_wait(&self, ack: Option<Ack>) -> Result<Option<Waiting>, Status> {
        let Some(ack) = limits::ack(ack)? else { return Ok(None) };
        let permit = self.engine.permit().map_err(|error| Status::resource_exhausted(error.to_string()))?;
        Ok(Some(Waiting { ack, permit }))
    }

    /// Waits until enough nodes cover the write. `None` without an `ack`, or if nothing was written.
    pub(super) async fn acked(&self, waiting: Option<Waiting>, dot: Option<Dot>, deadline: Deadline) -> Option<Acked> {
        let (Waiting { ack, permit }, dot) = (waiting?, dot?);
        let acked = self.engine.acked(&permit, dot, ack.need, deadline.wait(ack.timeout)).await;
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Some(Acked {
            met: acked.met,
            peers: count(acked.holders.peers),
            voters: count(acked.holders.voters),
            lacking: count(acked.holders.lacking),
            majority: count(acked.holders.majority),
        })
    }

    /// Waits until this node covers the session.
    pub(super) async fn enter(&self, token: Option<Bytes>, deadline: Deadline) -> Result<Option<Session>, Status> {
        let Some(token) = token else { return Ok(None) };
        let session = Session::decode(&token).map_err(|bad| Status::invalid_argument(bad.to_string()))?;
        if !self.engine.covers(&session) {
            let _permit = self.engine.permit().map_err(|error| Status::resource_exhausted(error.to_string()))?;
            self.engine.catch_up(&session, deadline.wait(None)).await.map_err(of_session)?;
        }
        Ok(Some(session))
    }

    /// The session's new token; empty without a session.
    pub(super) fn leave(&self, session: Option<Session>) -> Result<Bytes, Status> {
        session.map_or(Ok(Bytes::new()), |mut session| self.engine.token(&mut session).map_err(of_session))
    }
}

/// Adds a write to what the session saw.
pub(super) fn saw(session: &mut Option<Session>, dot: Option<Dot>) {
    if let (Some(session), Some(dot)) = (session, dot) {
        session.saw(dot);
    }
}

/// The answer to a read, without the session's token.
pub(super) fn found(value: Option<Value>, now_ms: u64) -> GetResponse {
    match value {
        Some(Value { value, dot, expires_ms }) => GetResponse {
            value,
            version: Some(version(dot)),
            ttl: limits::remaining(expires_ms, now_ms),
            ..GetResponse::default()
        },
        None => GetResponse { missing: true, ..GetResponse::default() },
    }
}

pub(super) fn version(dot: Dot) -> Version {
    Version { hlc: dot.hlc, origin: dot.origin }
}
