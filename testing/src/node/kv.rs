//! The key/value calls.

use super::{Held, Node, ORIGIN};
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt as _};
use kvasir_proto::v1;
use kvasir_proto::v1::kv_server::Kv;
use kvasir_proto::v1::pipe_request::Operation;
use kvasir_proto::v1::pipe_response::Result as Answer;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tonic::{Request, Response, Status};

#[tonic::async_trait]
impl Kv for Node {
    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        let v1::PutRequest { key, value, ttl, ack, session } = request.into_inner();
        self.enter(Some(&key)).await?;
        if self.levers.full.load(Ordering::SeqCst) {
            return Err(Status::resource_exhausted("the node holds maxMemory (1Mi)"));
        }
        let ttl = ttl.map(|ttl| Duration::try_from(ttl).unwrap());
        if ttl == Some(Duration::ZERO) {
            return Err(Status::invalid_argument("ttl: must be above zero"));
        }
        let version = v1::Version { hlc: self.clock.fetch_add(1, Ordering::SeqCst) + 1, origin: ORIGIN };
        let held = Held { value, version, ends: ttl.map(|ttl| Instant::now() + ttl) };
        self.map.lock().unwrap().insert(key, held);
        let (acked, session) = (self.acked(ack), self.token(session.as_ref()));
        Ok(Response::new(v1::PutResponse { version: Some(version), acked, session }))
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let v1::GetRequest { key, session } = request.into_inner();
        self.enter(Some(&key)).await?;
        let now = Instant::now();
        match self.map.lock().unwrap().get(&key).filter(|held| held.live(now)) {
            Some(held) => Ok(Response::new(v1::GetResponse {
                value: held.value.clone(),
                version: Some(held.version),
                ttl: held.ttl(now),
                session: self.token(session.as_ref()),
                ..v1::GetResponse::default()
            })),
            None if session.is_some() => {
                let session = self.token(session.as_ref());
                Ok(Response::new(v1::GetResponse { missing: true, session, ..v1::GetResponse::default() }))
            }
            None => Err(Status::not_found("no such key")),
        }
    }

    async fn exists(&self, request: Request<v1::ExistsRequest>) -> Result<Response<v1::ExistsResponse>, Status> {
        let key = request.into_inner().key;
        self.enter(Some(&key)).await?;
        let exists = self.map.lock().unwrap().get(&key).is_some_and(|held| held.live(Instant::now()));
        Ok(Response::new(v1::ExistsResponse { exists, ..v1::ExistsResponse::default() }))
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteResponse>, Status> {
        let v1::DeleteRequest { key, ack, session } = request.into_inner();
        self.enter(Some(&key)).await?;
        let gone = self.map.lock().unwrap().remove(&key).filter(|held| held.live(Instant::now()));
        Ok(Response::new(v1::DeleteResponse {
            existed: gone.is_some(),
            acked: gone.as_ref().and_then(|_| self.acked(ack)),
            version: gone.map(|held| held.version),
            session: self.token(session.as_ref()),
        }))
    }

    async fn touch(&self, request: Request<v1::TouchRequest>) -> Result<Response<v1::TouchResponse>, Status> {
        let v1::TouchRequest { key, ttl, ack, session } = request.into_inner();
        self.enter(Some(&key)).await?;
        let mut map = self.map.lock().unwrap();
        let Some(held) = map.get_mut(&key).filter(|held| held.live(Instant::now())) else {
            let session = self.token(session.as_ref());
            return Ok(Response::new(v1::TouchResponse { session, ..v1::TouchResponse::default() }));
        };
        held.ends = ttl.map(|ttl| Instant::now() + Duration::try_from(ttl).unwrap());
        let (version, acked, session) = (Some(held.version), self.acked(ack), self.token(session.as_ref()));
        Ok(Response::new(v1::TouchResponse { existed: true, version, acked, session }))
    }

    async fn batch_put(&self, request: Request<v1::BatchPutRequest>) -> Result<Response<v1::BatchPutResponse>, Status> {
        self.current()?;
        let v1::BatchPutRequest { puts, ack, session } = request.into_inner();
        let mut versions = Vec::new();
        for put in puts {
            assert!(put.ack.is_none() && put.session.is_none(), "ack and session belong to the batch");
            versions.extend(self.put(Request::new(put)).await?.into_inner().version);
        }
        let (acked, session) = (self.acked(ack), self.token(session.as_ref()));
        Ok(Response::new(v1::BatchPutResponse { versions, failure: None, acked, session }))
    }

    async fn batch_delete(
        &self,
        request: Request<v1::BatchDeleteRequest>,
    ) -> Result<Response<v1::BatchDeleteResponse>, Status> {
        self.current()?;
        let v1::BatchDeleteRequest { keys, ack, session } = request.into_inner();
        let (mut existed, mut version) = (Vec::new(), None);
        for key in keys {
            let answer = self.delete(Request::new(v1::DeleteRequest { key, ..v1::DeleteRequest::default() })).await?;
            existed.push(answer.get_ref().existed);
            version = answer.into_inner().version.or(version);
        }
        let (acked, session) = (version.and_then(|_| self.acked(ack)), self.token(session.as_ref()));
        Ok(Response::new(v1::BatchDeleteResponse { existed, acked, session, version }))
    }

    type BatchGetStream = BoxStream<'static, Result<v1::BatchGetResponse, Status>>;

    async fn batch_get(&self, request: Request<v1::BatchGetRequest>) -> Result<Response<Self::BatchGetStream>, Status> {
        self.current()?;
        let v1::BatchGetRequest { keys, keys_only, session } = request.into_inner();
        let mut messages = Vec::new();
        for key in keys {
            match self.answer(Operation::Get(v1::GetRequest { key, session: None })).await? {
                Answer::Get(mut answer) => {
                    if keys_only {
                        answer.value = Bytes::new();
                    }
                    let session = self.token(session.as_ref());
                    messages.push(Ok(v1::BatchGetResponse { answers: vec![answer], session }));
                }
                other => panic!("{other:?}"),
            }
        }
        Ok(Response::new(futures::stream::iter(messages).boxed()))
    }

    // Watches are tested against real nodes.

    type WatchStream = tokio_stream::Empty<Result<v1::WatchResponse, Status>>;

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("this node has no watches"))
    }

    type PipeStream = BoxStream<'static, Result<v1::PipeResponse, Status>>;

    async fn pipe(
        &self,
        requests: Request<tonic::Streaming<v1::PipeRequest>>,
    ) -> Result<Response<Self::PipeStream>, Status> {
        self.current()?;
        self.levers.pipes.fetch_add(1, Ordering::SeqCst);
        let node = self.clone();
        let answers = requests.into_inner().map(move |request| {
            let node = node.clone();
            async move {
                let v1::PipeRequest { id, operation } = request?;
                let in_progress = node.levers.in_progress.fetch_add(1, Ordering::SeqCst) + 1;
                node.levers.most_in_progress.fetch_max(in_progress, Ordering::SeqCst);
                let result = node.answer(operation.expect("the client always sends an operation")).await;
                node.levers.in_progress.fetch_sub(1, Ordering::SeqCst);
                let failure = |status: Status| {
                    let message = status.message().to_owned();
                    Answer::Failure(v1::Failure { code: status.code().into(), message })
                };
                Ok(v1::PipeResponse { id, result: Some(result.unwrap_or_else(failure)) })
            }
        });
        Ok(Response::new(answers.buffer_unordered(1000).boxed()))
    }

    type ListStream = tokio_stream::wrappers::ReceiverStream<Result<v1::ListResponse, Status>>;

    /// Answers in messages of seven entries.
    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let v1::ListRequest { prefix, limit, page_token, keys_only, session } = request.into_inner();
        self.enter(None).await?;
        let limit = if limit == 0 { usize::MAX } else { limit as usize };
        let after = String::from_utf8(page_token.to_vec()).unwrap();
        let now = Instant::now();
        let (entries, more) = {
            let map = self.map.lock().unwrap();
            let mut found =
                map.iter().filter(|(key, held)| key.starts_with(&prefix) && **key > after && held.live(now));
            let entries: Vec<_> = found
                .by_ref()
                .take(limit)
                .map(|(key, held)| v1::ListEntry {
                    key: key.clone(),
                    value: if keys_only { Bytes::new() } else { held.value.clone() },
                    version: Some(held.version),
                    ttl: held.ttl(now),
                })
                .collect();
            (entries, found.next().is_some())
        };
        let last = entries.last().map(|entry| Bytes::from(entry.key.clone())).unwrap_or_default();
        let mut messages: Vec<_> = entries
            .chunks(7)
            .map(|some| v1::ListResponse {
                entries: some.to_vec(),
                next_page_token: Bytes::new(),
                session: self.token(session.as_ref()),
            })
            .collect();
        if let (true, Some(message)) = (more, messages.last_mut()) {
            message.next_page_token = last;
        }
        let broken = self.levers.break_lists_after.load(Ordering::SeqCst) as usize;
        let (send, receive) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            for (sent, message) in messages.into_iter().enumerate() {
                if broken > 0 && sent == broken {
                    let _ = send.send(Err(Status::unavailable("going away"))).await;
                    return;
                }
                if send.send(Ok(message)).await.is_err() {
                    return; // the client has stopped reading
                }
            }
        });
        Ok(Response::new(receive.into()))
    }
}
