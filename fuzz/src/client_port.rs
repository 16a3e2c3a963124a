//! The client port: any requests of a client, compared with a plain map.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use kvasir_node::api::fuzzing::{self, ClientPort};
use kvasir_node::config::Limits;
use kvasir_node::engine::{Engine, EngineOptions, Phase};
use kvasir_node::replica::View;
use kvasir_proto::v1::pipe_request::Operation;
use kvasir_proto::v1::pipe_response::Result as Answer;
use kvasir_proto::v1::{self, kv_server::Kv as _};
use prost::Message as _;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::answers::decoded;
use crate::input::{Input, chunk};

const LIMITS: Limits = Limits { max_key_bytes: 64, max_value_bytes: 256, max_ttl: Duration::from_hours(1000) };
const MAX_MEMORY: u64 = 2048;
const KEYS: [&str; 6] = ["a", "a/1", "a/2", "b", "ä", ""];

pub(crate) fn run(bytes: &[u8]) {
    // Time advances only while all tasks wait, and then at once.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime without sockets").block_on(async {
        let mut world = World::new().await;
        let mut input = Input::new(bytes);
        while !input.is_empty() {
            world.step(&mut input).await;
        }
        world.list("", 0, false).await;
    });
}

struct World {
    port: ClientPort,
    engine: Arc<Engine>,
    /// The expected entries, and whether each expires.
    model: BTreeMap<String, (Bytes, bool)>,
    session: Bytes,
    id: u64,
}

impl World {
    async fn new() -> Self {
        let engine = Engine::new(&EngineOptions {
            origin: 7,
            name: "node".to_owned(),
            started_ms: 1,
            voters: 1,
            evict_after: Duration::from_mins(10),
            evict_ending: false,
            sync_interval: Duration::from_secs(1),
            max_clock_skew: Duration::from_secs(10),
            max_memory: Some(MAX_MEMORY),
            may_found: true,
            serve_alone: true,
            join_timeout: Duration::ZERO,
        });
        engine.set_view(View::ALONE, engine.linked().1);
        let stop = CancellationToken::new();
        let clockwork = engine.clone().run(stop.clone());
        let mut phase = engine.subscribe_phase();
        let ready = async {
            phase.wait_for(|phase| *phase == Phase::Ready).await.expect("the engine is there");
            stop.cancel();
        };
        futures::join!(clockwork, ready);
        let port = ClientPort::new(engine.clone(), LIMITS);
        Self { port, engine, model: BTreeMap::new(), session: Bytes::new(), id: 0 }
    }

    async fn step(&mut self, input: &mut Input<'_>) {
        match input.below(8) {
            0 => {
                if let Some(request) = decoded::<v1::PipeRequest>(input.chunk()) {
                    self.pipe(request).await;
                }
            }
            1 => {
                if let Some(request) = decoded(input.chunk()) {
                    self.batch_put(request).await;
                }
            }
            2 => {
                if let Some(request) = decoded::<v1::BatchDeleteRequest>(input.chunk()) {
                    let keys = request.keys.clone();
                    match self.port.kv().batch_delete(fuzzing::request(request)).await {
                        Ok(answer) => {
                            assert_eq!(answer.into_inner().existed.len(), keys.len());
                            for key in keys {
                                self.model.remove(&key);
                            }
                        }
                        Err(status) => explained(&status),
                    }
                }
            }
            3 => {
                if let Some(request) = decoded::<v1::BatchGetRequest>(input.chunk()) {
                    self.batch_get(request).await;
                }
            }
            4 => {
                if let Some(request) = decoded::<v1::ListRequest>(input.chunk()) {
                    drop(self.page(request).await);
                }
            }
            5 => {
                let (prefix, limit, keys_only) = (input.of(&KEYS), u32::from(input.byte() % 4), input.flag());
                self.list(prefix, limit, keys_only).await;
            }
            _ => {
                let request = self.request(input);
                self.pipe(request).await;
            }
        }
        let stats = self.engine.stats();
        // The memory check of a put leaves out its entry in the expiry index, which takes less than 96 bytes.
        let overhead = stats.tombstones * 512 + stats.keys * 96;
        assert!(stats.memory_bytes <= MAX_MEMORY + overhead, "{stats:?}");
    }

    fn request(&mut self, input: &mut Input<'_>) -> v1::PipeRequest {
        let key = input.of(&KEYS).to_owned();
        let session = match input.below(4) {
            0 => Some(self.session.clone()),
            1 => Some(Bytes::copy_from_slice(input.bytes(21))),
            _ => None,
        };
        let ttl = input.flag().then(|| prost_types::Duration {
            seconds: i64::from(input.byte()) * 600,
            nanos: i32::from(input.byte()) << 20,
        });
        let ack = input.flag().then(|| v1::Ack {
            timeout: input.flag().then(|| prost_types::Duration { seconds: i64::from(input.byte()), nanos: 0 }),
            asked: Some(match input.below(3) {
                0 => v1::ack::Asked::Count(u32::from(input.byte()) << 3),
                _ => v1::ack::Asked::Level(i32::from(input.byte() % 4)),
            }),
        });
        let operation = match input.below(6) {
            0 | 1 => {
                let value = Bytes::from(vec![input.byte(); input.below(300) + input.below(4)]);
                Operation::Put(v1::PutRequest { key, value, ttl, ack, session })
            }
            2 => Operation::Get(v1::GetRequest { key, session }),
            3 => Operation::Exists(v1::ExistsRequest { key, session }),
            4 => Operation::Delete(v1::DeleteRequest { key, ack, session }),
            _ => Operation::Touch(v1::TouchRequest { key, ttl, ack, session }),
        };
        self.id += 1;
        v1::PipeRequest { id: self.id, operation: Some(operation) }
    }

    async fn pipe(&mut self, request: v1::PipeRequest) {
        let v1::PipeResponse { id, result } = self.port.pipe(request.clone()).await;
        assert_eq!(id, request.id);
        let result = result.expect("every request is answered");
        if let Answer::Failure(failure) = result {
            return explained(&Status::new(failure.code.into(), failure.message));
        }
        let session = match (request.operation.expect("a request without an operation is refused"), result) {
            (Operation::Put(v1::PutRequest { key, value, ttl, ack, .. }), Answer::Put(answer)) => {
                assert!(key.len() <= LIMITS.max_key_bytes && value.len() <= LIMITS.max_value_bytes && !key.is_empty());
                assert!(answer.version.is_some());
                alone(ack.as_ref(), answer.acked.as_ref());
                self.model.insert(key, (value, ttl.is_some()));
                answer.session
            }
            (Operation::Get(v1::GetRequest { key, .. }), Answer::Get(answer)) => {
                let found = (!answer.missing).then_some(answer.value);
                self.compare(&key, found.as_ref());
                answer.session
            }
            (Operation::Exists(v1::ExistsRequest { key, .. }), Answer::Exists(answer)) => {
                self.there(&key, answer.exists);
                answer.session
            }
            (Operation::Delete(v1::DeleteRequest { key, .. }), Answer::Delete(answer)) => {
                self.there(&key, answer.existed);
                self.model.remove(&key);
                answer.session
            }
            (Operation::Touch(v1::TouchRequest { key, ttl, .. }), Answer::Touch(answer)) => {
                self.there(&key, answer.existed);
                if let Some(held) = self.model.get_mut(&key) {
                    held.1 = ttl.is_some();
                }
                answer.session
            }
            (asked, answered) => panic!("{asked:?} was answered with {answered:?}"),
        };
        if !session.is_empty() {
            self.session = session;
        }
    }

    /// An entry that expires may be gone.
    fn compare(&mut self, key: &str, found: Option<&Bytes>) {
        match (self.model.get(key), found) {
            (Some((_, true)), None) => drop(self.model.remove(key)),
            (held, found) => assert_eq!(held.map(|(value, _)| value), found, "{key:?}"),
        }
    }

    fn there(&mut self, key: &str, there: bool) {
        let held = self.model.get(key).map(|(value, _)| value.clone());
        self.compare(key, held.as_ref().filter(|_| there));
        assert!(!there || held.is_some(), "{key:?} is there");
    }

    async fn batch_put(&mut self, request: v1::BatchPutRequest) {
        let puts = request.puts.clone();
        match self.port.kv().batch_put(fuzzing::request(request)).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                assert!(answer.versions.len() == puts.len() || answer.failure.is_some());
                for put in puts.into_iter().take(answer.versions.len()) {
                    self.model.insert(put.key, (put.value, put.ttl.is_some()));
                }
            }
            Err(status) => explained(&status),
        }
    }

    async fn batch_get(&mut self, request: v1::BatchGetRequest) {
        let (keys, keys_only) = (request.keys.clone(), request.keys_only);
        let answers = match self.port.kv().batch_get(fuzzing::request(request)).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return explained(&status),
        };
        let messages = Box::pin(answers).collect::<Vec<_>>().await;
        let answers =
            messages.into_iter().flat_map(|message| message.expect("a ready node answers to the end").answers);
        let answers: Vec<_> = answers.collect();
        assert_eq!(answers.len(), keys.len());
        for (key, answer) in keys.iter().zip(answers) {
            if keys_only {
                assert!(answer.value.is_empty(), "{answer:?}");
                self.there(key, !answer.missing);
            } else {
                let found = (!answer.missing).then_some(answer.value);
                self.compare(key, found.as_ref());
            }
        }
    }

    async fn page(&self, request: v1::ListRequest) -> Option<(Vec<v1::ListEntry>, Bytes)> {
        match self.port.kv().list(fuzzing::request(request)).await {
            Ok(messages) => {
                let messages = Box::pin(messages.into_inner()).collect::<Vec<_>>().await;
                let (mut entries, mut next) = (Vec::new(), Bytes::new());
                for message in messages {
                    let message = message.expect("a ready node lists to the end");
                    entries.extend(message.entries);
                    next = message.next_page_token;
                }
                Some((entries, next))
            }
            Err(status) => {
                explained(&status);
                None
            }
        }
    }

    /// All pages together are the whole content.
    async fn list(&mut self, prefix: &str, limit: u32, keys_only: bool) {
        let (mut listed, mut page_token) = (Vec::new(), Bytes::new());
        loop {
            let request = v1::ListRequest { prefix: prefix.to_owned(), limit, page_token, keys_only, session: None };
            let (entries, next) = self.page(request).await.expect("a node's own token is taken");
            assert!(limit == 0 || entries.len() <= limit as usize);
            listed.extend(entries);
            if next.is_empty() {
                break;
            }
            page_token = next;
        }
        assert!(listed.is_sorted_by(|a, b| a.key < b.key), "{listed:?}");
        let found: BTreeMap<_, _> = listed.into_iter().map(|entry| (entry.key, entry.value)).collect();
        let keys: Vec<_> = self.model.keys().filter(|key| key.starts_with(prefix)).cloned().collect();
        assert!(found.keys().all(|key| keys.contains(key)), "{found:?} and {keys:?}");
        for key in keys {
            match found.get(&key) {
                Some(value) if keys_only => assert!(value.is_empty()),
                found => self.compare(&key, found),
            }
        }
    }
}

/// A node without peers never reaches an `ack`, and reports that.
fn alone(asked: Option<&v1::Ack>, held: Option<&v1::Acked>) {
    if let Some(held) = held {
        assert!(asked.is_some());
        assert_eq!((held.peers, held.voters), (0, 1));
    }
}

/// Refusals have a code that the API documents, and a message.
fn explained(status: &Status) {
    assert!(!status.message().is_empty(), "{status:?}");
    match status.code() {
        Code::InvalidArgument => assert!(status.message().contains(':'), "no field is named: {status:?}"),
        // No room; too many waiting calls; a session of another cluster, or one that saw a lost write.
        Code::ResourceExhausted | Code::Unavailable | Code::DataLoss | Code::FailedPrecondition => {}
        _ => panic!("{status:?}"),
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let pipe = |operation| {
        let request = v1::PipeRequest { id: 5, operation: Some(operation) };
        [vec![0], chunk(&request.encode_to_vec())].concat()
    };
    let put = |key: &str, value: &'static [u8]| v1::PutRequest {
        key: key.to_owned(),
        value: value.into(),
        ttl: Some(prost_types::Duration { seconds: 3, nanos: 1 }),
        ack: Some(v1::Ack { asked: Some(v1::ack::Asked::Count(2)), timeout: None }),
        session: Some(Bytes::new()),
    };
    let get = v1::GetRequest { key: "a".to_owned(), session: None };
    // In a batch, these fields apply to all puts.
    let one = |key: &str, value: &'static [u8]| v1::PutRequest { ack: None, session: None, ..put(key, value) };
    let v1::PutRequest { ack, session, .. } = put("", b"");
    let batch = v1::BatchPutRequest { puts: vec![one("a", b"1"), one("b", b"2")], ack, session };
    let keys =
        v1::BatchDeleteRequest { keys: vec!["a".to_owned(), "c".to_owned()], ..v1::BatchDeleteRequest::default() };
    let there = v1::BatchGetRequest { keys: vec!["a".to_owned()], keys_only: true, ..v1::BatchGetRequest::default() };
    let kept = v1::PutRequest { ttl: None, ..one("a", b"v") };
    let list = v1::ListRequest { prefix: "a".to_owned(), limit: 1, ..v1::ListRequest::default() };
    let long = v1::PutRequest { ttl: None, ..one("long", &[7; 250]) };
    vec![
        [pipe(Operation::Put(put("a", b"v"))), pipe(Operation::Get(get)), vec![5, 0, 1, 0]].concat(),
        [vec![1], chunk(&batch.encode_to_vec()), vec![2], chunk(&keys.encode_to_vec())].concat(),
        [vec![1], chunk(&batch.encode_to_vec()), vec![3], chunk(&keys.encode_to_vec())].concat(),
        [pipe(Operation::Put(kept)), vec![3], chunk(&there.encode_to_vec())].concat(),
        [vec![4], chunk(&list.encode_to_vec()), pipe(Operation::Put(long))].concat(),
        (0..=255).collect(),
    ]
}
