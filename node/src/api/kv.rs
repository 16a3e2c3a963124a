//! The gRPC service `Kv`: opens each call and passes it on.

use std::sync::Arc;

use futures::stream::{self, BoxStream, StreamExt as _};
use kvasir_proto::v1::{
    BatchDeleteRequest, BatchDeleteResponse, BatchGetRequest, BatchGetResponse, BatchPutRequest, BatchPutResponse,
    DeleteRequest, DeleteResponse, ExistsRequest, ExistsResponse, GetRequest, GetResponse, ListRequest, ListResponse,
    PipeRequest, PipeResponse, PutRequest, PutResponse, TouchRequest, TouchResponse, WatchRequest, WatchResponse,
    kv_server,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::batch::Reads;
use super::calls::Calls;
use super::deadline::Deadline;
use super::{identify, list, pipe, watch};
use crate::config::Limits;
use crate::engine::Engine;

/// `kvasir.v1.Kv` over an engine.
pub(super) struct Kv {
    pub(super) engine: Arc<Engine>,
    pub(super) limits: Limits,
    /// Ends the streams that do not end by themselves.
    pub(super) stop: CancellationToken,
}

impl Kv {
    /// The operations of the caller, the deadline, and the message.
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
        // An error cannot carry the session's token, so in a session an absent key is an answer.
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
        watch::watch(&calls, &request, self.stop.clone()).map(Response::new)
    }

    type PipeStream = BoxStream<'static, Result<PipeResponse, Status>>;

    async fn pipe(&self, requests: Request<Streaming<PipeRequest>>) -> Result<Response<Self::PipeStream>, Status> {
        let (calls, _, requests) = self.open(requests)?;
        Ok(Response::new(pipe::pipe(calls, requests, self.stop.clone())))
    }

    type ListStream = BoxStream<'static, Result<ListResponse, Status>>;

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let (calls, deadline, request) = self.open(request)?;
        list::list(calls, request, deadline).await.map(Response::new)
    }
}
