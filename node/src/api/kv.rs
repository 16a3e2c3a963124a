//! The gRPC service `Kv`. Checks what came in, hands it to the engine, and
//! says in gRPC's terms what the engine answered.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use kvasir_proto::v1::{
    DeleteRequest, DeleteResponse, ExistsRequest, ExistsResponse, GetRequest, GetResponse, ListEntry, ListRequest,
    ListResponse, PutRequest, PutResponse, Version, kv_server,
};
use tonic::{Request, Response, Status};

use super::{LIST_MESSAGE_BYTES, LIST_MESSAGE_ENTRIES, check, page_token};
use crate::clock::Dot;
use crate::config::Limits;
use crate::engine::{Engine, Phase, ReadError, Value, WriteError};

/// `kvasir.v1.Kv` over an engine.
pub(super) struct Kv {
    pub(super) engine: Arc<Engine>,
    pub(super) limits: Limits,
}

#[tonic::async_trait]
impl kv_server::Kv for Kv {
    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let PutRequest { key, value, ttl } = request.into_inner();
        check::key(&key, &self.limits)?;
        check::value(&value, &self.limits)?;
        let ttl = ttl.map(|ttl| check::ttl(ttl, &self.limits)).transpose()?;
        let dot = self.engine.put(&key, &value, ttl).map_err(refused)?;
        Ok(Response::new(PutResponse { version: Some(version(dot)) }))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let GetRequest { key } = request.into_inner();
        check::key(&key, &self.limits)?;
        let now_ms = self.engine.now_ms();
        let Value { value, dot, expires_ms } =
            self.engine.get(&key).map_err(not_served)?.ok_or_else(|| Status::not_found("no such key"))?;
        Ok(Response::new(GetResponse { value, version: Some(version(dot)), ttl: check::left(expires_ms, now_ms) }))
    }

    async fn exists(&self, request: Request<ExistsRequest>) -> Result<Response<ExistsResponse>, Status> {
        let ExistsRequest { key } = request.into_inner();
        check::key(&key, &self.limits)?;
        let exists = self.engine.exists(&key).map_err(not_served)?;
        Ok(Response::new(ExistsResponse { exists }))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let DeleteRequest { key } = request.into_inner();
        check::key(&key, &self.limits)?;
        let dot = self.engine.delete(&key).map_err(refused)?;
        Ok(Response::new(DeleteResponse { existed: dot.is_some(), version: dot.map(version) }))
    }

    type ListStream = BoxStream<'static, Result<ListResponse, Status>>;

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let ListRequest { prefix, limit, page_token, keys_only } = request.into_inner();
        check::prefix(&prefix, &self.limits)?;
        let after = match &page_token[..] {
            [] => None,
            token => Some(page_token::decode(token, &prefix)?),
        };
        let mut listing = Listing {
            engine: self.engine.clone(),
            prefix,
            after,
            left: (limit > 0).then_some(limit as usize),
            keys_only,
            done: false,
        };
        // The first page now: a node that is not ready refuses the call, not the stream.
        let first = listing.next_message()?;
        // A page is read only when the transport asks for it, which it does when
        // the client has taken the one before: a slow client holds one page, and no lock.
        let rest = stream::unfold(listing, async |mut listing| match listing.next_message() {
            Ok(None) => None,
            Ok(Some(message)) => Some((Ok(message), listing)),
            Err(status) => {
                listing.done = true;
                Some((Err(status), listing))
            }
        });
        Ok(Response::new(stream::iter(first.map(Ok)).chain(rest).boxed()))
    }
}

/// A listing under way: where it stands, nothing of what it read.
struct Listing {
    engine: Arc<Engine>,
    prefix: String,
    after: Option<String>,
    /// Entries still wanted; `None`: all.
    left: Option<usize>,
    keys_only: bool,
    done: bool,
}

impl Listing {
    fn next_message(&mut self) -> Result<Option<ListResponse>, Status> {
        if self.done {
            return Ok(None);
        }
        let max = self.left.unwrap_or(usize::MAX).min(LIST_MESSAGE_ENTRIES);
        let now_ms = self.engine.now_ms();
        let page =
            self.engine.list(&self.prefix, self.after.as_deref(), max, LIST_MESSAGE_BYTES).map_err(not_served)?;
        let Some((last, _)) = page.entries.last() else {
            self.done = true;
            return Ok(None);
        };
        let last = text(last)?;
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(page.entries.len());
        }
        let ended_by_limit = page.more && self.left == Some(0);
        self.done = !page.more || self.left == Some(0);
        let next_page_token =
            if ended_by_limit { page_token::encode(&self.prefix, last.as_bytes()).into() } else { Bytes::new() };
        self.after = Some(last);
        let entries =
            page.entries.into_iter().map(|(key, value)| self.entry(&key, value, now_ms)).collect::<Result<_, _>>()?;
        Ok(Some(ListResponse { entries, next_page_token }))
    }

    fn entry(&self, key: &Bytes, value: Value, now_ms: u64) -> Result<ListEntry, Status> {
        Ok(ListEntry {
            key: text(key)?,
            value: if self.keys_only { Bytes::new() } else { value.value },
            version: Some(version(value.dot)),
            ttl: check::left(value.expires_ms, now_ms),
        })
    }
}

/// Keys come in as UTF-8; one that is not came from a broken peer.
fn text(key: &[u8]) -> Result<String, Status> {
    String::from_utf8(key.to_vec())
        .map_err(|_| Status::internal(format!("the node holds a key that is not UTF-8: {}", key.escape_ascii())))
}

fn version(dot: Dot) -> Version {
    Version { hlc: dot.hlc, origin: dot.origin }
}

fn not_served(error: ReadError) -> Status {
    match error {
        ReadError::NotReady(phase) => unavailable(phase),
    }
}

fn refused(error: WriteError) -> Status {
    match error {
        WriteError::NotReady(phase) => unavailable(phase),
        WriteError::Full(full) => Status::resource_exhausted(full.to_string()),
    }
}

fn unavailable(phase: Phase) -> Status {
    Status::unavailable(match phase {
        Phase::Joining => "the node is joining: it looks for its peers; try again or another node",
        Phase::Syncing => "the node is syncing: it takes in what its peers hold; try again or another node",
        Phase::Ready => "the node was not ready a moment ago; try again",
        Phase::Draining => "the node is draining: it was told to stop; try another node",
    })
}
