//! A node as far as a client can tell, and a Kubernetes Service as far as a connection can tell.

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt as _};
use kvasir_proto::v1;
use kvasir_proto::v1::cluster_server::{Cluster, ClusterServer};
use kvasir_proto::v1::kv_server::{Kv, KvServer};
use kvasir_proto::v1::pipe_request::Operation;
use kvasir_proto::v1::pipe_response::Result as Answer;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status};

pub(crate) const ORIGIN: u64 = 0xfeed;

struct Held {
    value: Bytes,
    version: v1::Version,
    ends: Option<Instant>,
}

/// What a test may turn and look at while the node runs.
#[derive(Default)]
pub(crate) struct Levers {
    pub(crate) draining: AtomicBool,
    pub(crate) silent: AtomicBool,
    pub(crate) full: AtomicBool,
    /// Breaks off each listing, without a status, after this many messages. 0: does not.
    pub(crate) break_lists_after: AtomicU64,
    pub(crate) calls: AtomicU64,
    /// Of an older release, without pipes, batches and events.
    pub(crate) older: AtomicBool,
    /// Pipes that were opened, and the most calls that were under way in them at a time.
    pub(crate) pipes: AtomicU64,
    under_way: AtomicU64,
    pub(crate) most_under_way: AtomicU64,
    /// What happens to the cluster, and how many listen to it.
    happens: Mutex<Vec<tokio::sync::mpsc::UnboundedSender<v1::ClusterEvent>>>,
    /// Acks that were asked for.
    pub(crate) acks: Mutex<Vec<v1::Ack>>,
}

impl Levers {
    /// Tells those who listen.
    pub(crate) fn happen(&self, kind: v1::ClusterEventKind, name: &str) {
        let event = event(kind, name);
        self.happens.lock().unwrap().retain(|listener| listener.send(event.clone()).is_ok());
    }

    /// Ends the streams of those who listen.
    pub(crate) fn hang_up(&self) {
        self.happens.lock().unwrap().clear();
    }
}

fn event(kind: v1::ClusterEventKind, name: &str) -> v1::ClusterEvent {
    v1::ClusterEvent {
        kind: kind.into(),
        name: name.to_owned(),
        origin: format!("{ORIGIN:016x}"),
        role: v1::Role::Member.into(),
        at: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
    }
}

#[derive(Clone)]
pub(crate) struct Node {
    name: &'static str,
    map: Arc<Mutex<BTreeMap<String, Held>>>,
    clock: Arc<AtomicU64>,
    pub(crate) levers: Arc<Levers>,
}

/// A node that is served, on a runtime of its own so that it can be killed with all that it was doing.
pub(crate) struct Served {
    pub(crate) address: SocketAddr,
    pub(crate) node: Node,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Served {
    /// Returns once listener and connections are closed.
    pub(crate) async fn kill(mut self) {
        let runtime = self.runtime.take().unwrap();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(10))).await.unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Node {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, map: Arc::default(), clock: Arc::default(), levers: Arc::default() }
    }

    /// A node that holds what `other` holds, as a replica does.
    pub(crate) fn replica_of(name: &'static str, other: &Self) -> Self {
        Self { name, map: other.map.clone(), clock: other.clock.clone(), levers: Arc::default() }
    }

    pub(crate) fn serve(self) -> Served {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let node = self.clone();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            tonic::transport::Server::builder()
                .add_service(KvServer::new(self.clone()).max_decoding_message_size(20 << 20))
                .add_service(ClusterServer::new(self))
                .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        Served { address, node, runtime: Some(runtime) }
    }

    pub(crate) fn calls(&self) -> u64 {
        self.levers.calls.load(Ordering::SeqCst)
    }

    fn member(&self) -> v1::Member {
        v1::Member {
            name: self.name.to_owned(),
            origin: format!("{ORIGIN:016x}"),
            role: v1::Role::Member.into(),
            peer_address: "10.0.0.1:7071".to_owned(),
            state: v1::MemberState::Alive.into(),
            started_at: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 5_000_000 }),
            version: "0.1.0".to_owned(),
            linked: true,
            found_by: "dns".to_owned(),
        }
    }

    async fn enter(&self, key: Option<&str>) -> Result<(), Status> {
        self.levers.calls.fetch_add(1, Ordering::SeqCst);
        if self.levers.silent.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if self.levers.draining.load(Ordering::SeqCst) {
            return Err(Status::unavailable("draining"));
        }
        if key.is_some_and(|key| key.starts_with("slow")) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        match key {
            Some(key) if key.is_empty() || key.len() > 1024 => {
                Err(Status::invalid_argument("key: must be 1 to 1024 bytes"))
            }
            _ => Ok(()),
        }
    }

    /// A token that says how many calls had been made; none without a session.
    fn token(&self, session: Option<&Bytes>) -> Bytes {
        session.map_or(Bytes::new(), |_| Bytes::from(self.calls().to_string()))
    }

    /// A node that is alone holds what nobody else does.
    fn acked(&self, ack: Option<v1::Ack>) -> Option<v1::Acked> {
        ack.map(|ack| {
            self.levers.acks.lock().unwrap().push(ack);
            v1::Acked { met: false, peers: 0, voters: 1, lacking: 1, majority: 2 }
        })
    }

    fn current(&self) -> Result<(), Status> {
        if self.levers.older.load(Ordering::SeqCst) {
            return Err(Status::unimplemented("this node is of an older release"));
        }
        Ok(())
    }

    async fn answer(&self, operation: Operation) -> Result<Answer, Status> {
        match operation {
            Operation::Put(put) => Ok(Answer::Put(self.put(Request::new(put)).await?.into_inner())),
            Operation::Exists(exists) => Ok(Answer::Exists(self.exists(Request::new(exists)).await?.into_inner())),
            Operation::Delete(delete) => Ok(Answer::Delete(self.delete(Request::new(delete)).await?.into_inner())),
            Operation::Touch(touch) => Ok(Answer::Touch(self.touch(Request::new(touch)).await?.into_inner())),
            Operation::Get(get) => match self.get(Request::new(get)).await {
                Ok(answer) => Ok(Answer::Get(answer.into_inner())),
                Err(status) if status.code() == tonic::Code::NotFound => {
                    Ok(Answer::Get(v1::GetResponse { missing: true, ..v1::GetResponse::default() }))
                }
                Err(status) => Err(status),
            },
        }
    }
}

impl Held {
    fn ttl(&self, now: Instant) -> Option<prost_types::Duration> {
        self.ends.map(|ends| ends.saturating_duration_since(now).try_into().unwrap())
    }

    fn live(&self, now: Instant) -> bool {
        self.ends.is_none_or(|ends| ends > now)
    }
}

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
            assert!(put.ack.is_none() && put.session.is_none(), "they are the batch's");
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

    // Tested against real nodes.

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
                let under_way = node.levers.under_way.fetch_add(1, Ordering::SeqCst) + 1;
                node.levers.most_under_way.fetch_max(under_way, Ordering::SeqCst);
                let result = node.answer(operation.expect("a pipe of ours asks for something")).await;
                node.levers.under_way.fetch_sub(1, Ordering::SeqCst);
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

    /// In messages of seven entries.
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
                    return; // the client has had enough
                }
            }
        });
        Ok(Response::new(receive.into()))
    }
}

#[tonic::async_trait]
impl Cluster for Node {
    type EventsStream = BoxStream<'static, Result<v1::ClusterEvent, Status>>;

    async fn events(&self, _: Request<v1::EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        self.current()?;
        let (happens, happened) = tokio::sync::mpsc::unbounded_channel();
        let _ = happens.send(event(v1::ClusterEventKind::Joined, self.name));
        self.levers.happens.lock().unwrap().push(happens);
        let happened = tokio_stream::wrappers::UnboundedReceiverStream::new(happened);
        Ok(Response::new(happened.map(Ok).boxed()))
    }

    async fn members(&self, _: Request<v1::MembersRequest>) -> Result<Response<v1::MembersResponse>, Status> {
        let sidecar = v1::Member {
            name: "app-sidecar".to_owned(),
            role: v1::Role::Sidecar.into(),
            state: v1::MemberState::Suspect.into(),
            linked: false,
            found_by: String::new(),
            ..self.member()
        };
        Ok(Response::new(v1::MembersResponse { members: vec![self.member(), sidecar] }))
    }

    async fn who_am_i(&self, _: Request<v1::WhoAmIRequest>) -> Result<Response<v1::WhoAmIResponse>, Status> {
        self.levers.calls.fetch_add(1, Ordering::SeqCst);
        Ok(Response::new(v1::WhoAmIResponse {
            member: Some(self.member()),
            cluster: "apps/demo".to_owned(),
            phase: v1::Phase::Ready.into(),
            cluster_uid: "2c1ea3d5".to_owned(),
        }))
    }

    async fn leader(&self, _: Request<v1::LeaderRequest>) -> Result<Response<v1::LeaderResponse>, Status> {
        Ok(Response::new(v1::LeaderResponse { leader: Some(self.member()), is_me: true }))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        Ok(Response::new(v1::StatusResponse {
            member: Some(self.member()),
            phase: v1::Phase::Syncing.into(),
            keys: self.map.lock().unwrap().len() as u64,
            tombstones: 3,
            memory_bytes: 1000,
            max_memory_bytes: 0,
            fingerprint: "00ff".to_owned(),
            lag: Some(Duration::from_millis(12).try_into().unwrap()),
            discovery: vec![v1::DiscoveryStatus {
                provider: "dns".to_owned(),
                found: 3,
                error: "no such name".to_owned(),
                failures: 2,
                members: vec!["demo-0".to_owned()],
            }],
            seats: [("joining", 0), ("member", 2), ("evicted", 1), ("ended", 0)]
                .map(|(state, count)| (state.to_owned(), count))
                .into(),
            collected_age: Some(Duration::from_secs(7).try_into().unwrap()),
            overfull: true,
            returns: 4,
            founded_at: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 7_000_000 }),
            skewed: vec![v1::SkewedPeer {
                name: "demo-2".to_owned(),
                reason: "its clock is 90s ahead of ours".to_owned(),
            }],
            unjoinable: vec![v1::UnjoinablePeer {
                address: "10.0.0.7:7071".to_owned(),
                name: String::new(),
                reason: "key".to_owned(),
                why: "it has another key".to_owned(),
            }],
            waits_for: vec!["does not reach 10.0.0.8:7071".to_owned()],
        }))
    }
}

/// Passes each new connection on to the backend of the moment, and leaves standing ones where they are: what
/// kube-proxy does for a Service.
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    backend: Arc<Mutex<SocketAddr>>,
    pub(crate) connections: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Service {
    pub(crate) async fn before(backend: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let backend = Arc::new(Mutex::new(backend));
        let connections = Arc::new(AtomicU64::new(0));
        let (to, count) = (backend.clone(), connections.clone());
        let task = tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let to = *to.lock().unwrap();
                tokio::spawn(async move {
                    if let Ok(mut node) = TcpStream::connect(to).await {
                        // Either end may go at any time: that is what the tests are about.
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut node).await;
                    }
                });
            }
        });
        Self { address, backend, connections, task }
    }

    pub(crate) fn point_to(&self, backend: SocketAddr) {
        *self.backend.lock().unwrap() = backend;
    }

    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }
}
