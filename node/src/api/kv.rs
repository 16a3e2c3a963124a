//! The gRPC service `Kv`: each method, and the listing.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use kvasir_proto::v1::{
    BatchDeleteRequest, BatchDeleteResponse, BatchGetRequest, BatchGetResponse, BatchPutRequest, BatchPutResponse,
    DeleteRequest, DeleteResponse, ExistsRequest, ExistsResponse, GetRequest, GetResponse, ListEntry, ListRequest,
    ListResponse, PipeRequest, PipeResponse, PutRequest, PutResponse, TouchRequest, TouchResponse, WatchRequest,
    WatchResponse, kv_server,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::batch::Reads;
use super::calls::{Calls, version};
use super::deadline::Deadline;
use super::identify::{self, denied};
use super::status::not_served;
use super::{LIST_MESSAGE_BYTES, LIST_MESSAGE_ENTRIES, check, page_token, pipe, text, watch};
use crate::config::{Limits, Verb};
use crate::engine::{Engine, Value};
use crate::session::Session;

/// `kvasir.v1.Kv` over an engine.
pub(super) struct Kv {
    pub(super) engine: Arc<Engine>,
    pub(super) limits: Limits,
    /// Ends the streams that would never end by themselves.
    pub(super) stop: CancellationToken,
}

impl Kv {
    /// The calls of whoever calls, what the metadata say of a call's time, and
    /// the message.
    fn open<T>(&self, request: Request<T>) -> Result<(Calls, Deadline, T), Status> {
        let caller = identify::caller(request.extensions())?;
        let calls = Calls { engine: self.engine.clone(), limits: self.limits, caller };
        Ok((calls, Deadline::of(request.metadata()), request.into_inner()))
    }
}

#[tonic::async_trait]
impl kv_server::Kv for Kv {
    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let (calls, deadline, request) = self.open(request)?;
        calls.put(request, deadline).await.map(Response::new)
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let (calls, deadline, request) = self.open(request)?;
        let in_session = request.session.is_some();
        let answer = calls.get(request, deadline).await?;
        // An error carries no token, so in a session there is an answer.
        if answer.missing && !in_session {
            return Err(Status::not_found("no such key"));
        }
        Ok(Response::new(answer))
    }

    async fn exists(&self, request: Request<ExistsRequest>) -> Result<Response<ExistsResponse>, Status> {
        let (calls, deadline, request) = self.open(request)?;
        calls.exists(request, deadline).await.map(Response::new)
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let (calls, deadline, request) = self.open(request)?;
        calls.delete(request, deadline).await.map(Response::new)
    }

    async fn touch(&self, request: Request<TouchRequest>) -> Result<Response<TouchResponse>, Status> {
        let (calls, deadline, request) = self.open(request)?;
        calls.touch(request, deadline).await.map(Response::new)
    }

    async fn batch_put(&self, request: Request<BatchPutRequest>) -> Result<Response<BatchPutResponse>, Status> {
        let (calls, deadline, request) = self.open(request)?;
        calls.batch_put(request, deadline).await.map(Response::new)
    }

    async fn batch_delete(
        &self,
        request: Request<BatchDeleteRequest>,
    ) -> Result<Response<BatchDeleteResponse>, Status> {
        let (calls, deadline, request) = self.open(request)?;
        calls.batch_delete(request, deadline).await.map(Response::new)
    }

    type BatchGetStream = BoxStream<'static, Result<BatchGetResponse, Status>>;

    async fn batch_get(&self, request: Request<BatchGetRequest>) -> Result<Response<Self::BatchGetStream>, Status> {
        let (calls, deadline, request) = self.open(request)?;
        let mut reads = Reads::new(calls, request, deadline).await?;
        let first = reads.next_message()?;
        let rest = stream::unfold(Some(reads), async |reads| {
            let mut reads = reads?;
            match reads.next_message() {
                Ok(message) => message.map(|message| (Ok(message), Some(reads))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(stream::iter(first.map(Ok)).chain(rest).boxed()))
    }

    type WatchStream = BoxStream<'static, Result<WatchResponse, Status>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (calls, _, request) = self.open(request)?;
        watch::watch(calls, &request, self.stop.clone()).map(Response::new)
    }

    type PipeStream = BoxStream<'static, Result<PipeResponse, Status>>;

    async fn pipe(&self, requests: Request<Streaming<PipeRequest>>) -> Result<Response<Self::PipeStream>, Status> {
        let (calls, _, requests) = self.open(requests)?;
        Ok(Response::new(pipe::pipe(calls, requests, self.stop.clone())))
    }

    type ListStream = BoxStream<'static, Result<ListResponse, Status>>;

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let (calls, deadline, request) = self.open(request)?;
        let ListRequest { prefix, limit, page_token, keys_only, session } = request;
        check::prefix(&prefix, &calls.limits)?;
        calls.caller.may_all(Verb::Read, &prefix).map_err(denied)?;
        let after = match &page_token[..] {
            [] => None,
            token => Some(page_token::decode(token, &prefix)?),
        };
        let session = calls.enter(session, deadline).await?;
        let mut listing = Listing {
            calls,
            session,
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
    calls: Calls,
    session: Option<Session>,
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
        let now_ms = self.calls.engine.now_ms();
        let page =
            self.calls.engine.list(&self.prefix, self.after.as_deref(), max, LIST_MESSAGE_BYTES).map_err(not_served)?;
        if let Some(session) = &mut self.session {
            self.calls.engine.saw_all(session);
            page.entries.iter().for_each(|(_, value)| session.saw(value.dot));
        }
        let Some((last, _)) = page.entries.last() else {
            self.done = true;
            // Nothing there is an answer too, and a session has its token of it.
            let session = self.session.take();
            return match session {
                None => Ok(None),
                Some(session) => {
                    let session = self.calls.leave(Some(session))?;
                    Ok(Some(ListResponse { session, ..ListResponse::default() }))
                }
            };
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
        let session = self.calls.leave(self.session.clone())?;
        Ok(Some(ListResponse { entries, next_page_token, session }))
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
