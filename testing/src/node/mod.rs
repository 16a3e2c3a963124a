//! A stand-in for a node: a plain map behind the real gRPC API, with levers to make it misbehave.

mod cluster;
mod kv;

use bytes::Bytes;
use kvasir_proto::v1;
use kvasir_proto::v1::cluster_server::ClusterServer;
use kvasir_proto::v1::kv_server::{Kv as _, KvServer};
use kvasir_proto::v1::pipe_request::Operation;
use kvasir_proto::v1::pipe_response::Result as Answer;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tonic::{Request, Status};

/// Origin of every stand-in.
pub const ORIGIN: u64 = 0xfeed;

struct Held {
    value: Bytes,
    version: v1::Version,
    ends: Option<Instant>,
}

/// What a test may change and read while the node runs.
#[derive(Default)]
pub struct Levers {
    /// Refuses calls as a draining node does.
    pub draining: AtomicBool,
    /// Does not answer.
    pub silent: AtomicBool,
    /// Refuses puts as a node at `maxMemory` does.
    pub full: AtomicBool,
    /// Breaks off each listing after this many messages, without a status; 0: never.
    pub break_lists_after: AtomicU64,
    /// How many calls came.
    pub calls: AtomicU64,
    /// Behaves as an older release, without pipes, batches and events.
    pub older: AtomicBool,
    /// How many pipes were opened.
    pub pipes: AtomicU64,
    in_progress: AtomicU64,
    /// The most calls that were in progress in pipes at a time.
    pub most_in_progress: AtomicU64,
    listeners: Mutex<Vec<tokio::sync::mpsc::UnboundedSender<v1::ClusterEvent>>>,
    /// The acks that calls asked for.
    pub acks: Mutex<Vec<v1::Ack>>,
}

impl Levers {
    /// Sends an event to all listeners.
    pub fn happen(&self, kind: v1::ClusterEventKind, name: &str) {
        let event = event(kind, name);
        self.listeners.lock().unwrap().retain(|listener| listener.send(event.clone()).is_ok());
    }

    /// Ends the streams of all listeners.
    pub fn hang_up(&self) {
        self.listeners.lock().unwrap().clear();
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

/// A stand-in that is not served yet.
#[derive(Clone)]
pub struct Node {
    name: &'static str,
    map: Arc<Mutex<BTreeMap<String, Held>>>,
    clock: Arc<AtomicU64>,
    /// What a test may change and read.
    pub levers: Arc<Levers>,
}

/// A stand-in that is served, on a runtime of its own so that it can be killed with everything that it was doing.
pub struct Served {
    /// Where it serves.
    pub address: SocketAddr,
    /// The stand-in.
    pub node: Node,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Served {
    /// Kills the node; returns once its listener and connections are closed.
    pub async fn kill(mut self) {
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
    /// A node with an empty map.
    pub fn new(name: &'static str) -> Self {
        Self { name, map: Arc::default(), clock: Arc::default(), levers: Arc::default() }
    }

    /// A node that shares the map of `other`, as a replica would.
    pub fn replica_of(name: &'static str, other: &Self) -> Self {
        Self { name, map: other.map.clone(), clock: other.clock.clone(), levers: Arc::default() }
    }

    /// Serves the node on a free port of loopback.
    pub fn serve(self) -> Served {
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

    /// How many calls came.
    pub fn calls(&self) -> u64 {
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

    /// In a session, a token that counts the calls so far.
    fn token(&self, session: Option<&Bytes>) -> Bytes {
        session.map_or(Bytes::new(), |_| Bytes::from(self.calls().to_string()))
    }

    /// The answer of a node that is alone, whose writes no other node holds.
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
