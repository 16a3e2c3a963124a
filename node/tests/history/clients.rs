//! The load: clients that make one call after the other and record each.
//!
//! The prefix of a key decides what clients do to it, and so what can be checked:
//!
//! | prefix | |
//! | --- | --- |
//! | `f/` | put once, before all faults, acknowledged by all nodes, and only read |
//! | `u/` | put once, by one client; deleted at most once |
//! | `e/` | put once, with a TTL |
//! | `k/` | put, read and deleted by all clients and sessions concurrently |
//! | `t/` | the same with TTLs and touches |

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kvasir_proto::v1;
use kvasir_proto::v1::kv_client::KvClient;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::history::{Call, Entry, History, Op, Outcome, Record, micros, text, version};
use crate::node::channel;

/// Keys that all clients use.
const SHARED: u64 = 40;
/// Keys that are only read.
pub(crate) const FIXED: usize = 40;
/// The deadline of a call.
const DEADLINE: Duration = Duration::from_secs(4);
/// The longest `ack` timeout of a write: well below [`DEADLINE`], so that a node answers in time unless the machine is
/// overloaded.
const ACK: Duration = Duration::from_millis(600);
/// How long after its deadline a call counts as hanging.
const GRACE: Duration = Duration::from_secs(4);
/// Pause between two calls of a client.
const PAUSE: std::ops::Range<u64> = 15..60;
/// Own keys that a client uses again.
const REMEMBERED: usize = 50;

/// Lets the clients work, or pauses them.
#[derive(Clone)]
pub(crate) struct Gate {
    open: watch::Sender<bool>,
    busy: Arc<AtomicU64>,
    idle: Arc<Notify>,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self { open: watch::Sender::new(false), busy: Arc::default(), idle: Arc::default() }
    }

    pub(crate) fn open(&self) {
        self.open.send_replace(true);
    }

    /// Returns when no call is in flight.
    pub(crate) async fn close(&self) {
        self.open.send_replace(false);
        while self.busy.load(Ordering::SeqCst) > 0 {
            let _ = timeout(Duration::from_millis(50), self.idle.notified()).await;
        }
    }

    async fn enter(&self) -> Pass<'_> {
        let mut open = self.open.subscribe();
        loop {
            open.wait_for(|open| *open).await.expect("the gate itself keeps the sender");
            self.busy.fetch_add(1, Ordering::SeqCst);
            let pass = Pass(self);
            // The gate may have been closed in between.
            if *open.borrow() {
                return pass;
            }
        }
    }
}

struct Pass<'a>(&'a Gate);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::SeqCst);
        self.0.idle.notify_waiters();
    }
}

/// The `ack` of a write.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ack {
    None,
    Count(u32),
    Majority,
    All,
}

impl Ack {
    fn wire(self) -> Option<v1::Ack> {
        use v1::ack::Asked;
        let asked = match self {
            Self::None => return None,
            Self::Count(count) => Asked::Count(count),
            Self::Majority => Asked::Level(v1::AckLevel::Majority.into()),
            Self::All => Asked::Level(v1::AckLevel::All.into()),
        };
        let timeout = prost_types::Duration::try_from(ACK).expect("less than a second");
        Some(v1::Ack { asked: Some(asked), timeout: Some(timeout) })
    }
}

/// Calls any node, and records the outcome.
pub(crate) struct Caller {
    id: usize,
    history: History,
    links: Vec<KvClient<Channel>>,
    puts: u64,
    /// The number and the token of the session, if the calls are those of a session.
    session: Option<(u64, Bytes)>,
}

impl Caller {
    pub(crate) fn new(id: usize, nodes: usize, history: History) -> Self {
        Self { id, history, links: (0..nodes).map(link).collect(), puts: 0, session: None }
    }

    fn begin_session(&mut self) {
        static SESSIONS: AtomicU64 = AtomicU64::new(0);
        self.session = Some((SESSIONS.fetch_add(1, Ordering::Relaxed), Bytes::new()));
    }

    /// A value that no other put uses.
    fn value(&mut self) -> String {
        self.puts += 1;
        format!("{}-{}", self.id, self.puts)
    }

    pub(crate) async fn put(&mut self, node: usize, key: String, ttl_ms: Option<u64>, ack: Ack) -> Outcome {
        let call = Call::Put { value: self.value(), ttl_ms };
        self.call(node, key, call, ack).await
    }

    async fn get(&mut self, node: usize, key: String) -> Outcome {
        self.call(node, key, Call::Get, Ack::None).await
    }

    async fn call(&mut self, node: usize, key: String, call: Call, ack: Ack) -> Outcome {
        let begin = self.history.now();
        let kv = self.links[node].clone();
        let token = self.session.as_ref().map(|(_, token)| token.clone());
        let clock = Instant::now();
        let made = timeout(DEADLINE + GRACE, make(kv, &key, &call, ack, token)).await;
        let late = clock.elapsed() >= DEADLINE;
        let outcome = match made {
            Ok(Ok((outcome, token))) => {
                if let Some((_, kept)) = &mut self.session {
                    *kept = token;
                }
                outcome
            }
            Ok(Err(status)) => failed(&status, late),
            Err(_) => failed(&Status::deadline_exceeded("the call hangs"), true),
        };
        if matches!(&outcome, Outcome::Failed { cut: true, .. }) {
            // The next call must not suffer from a broken connection.
            self.links[node] = link(node);
        }
        let (end, session) = (self.history.now(), self.session.as_ref().map(|(number, _)| *number));
        let (client, deadline, outcome_) = (self.id, micros(DEADLINE), outcome.clone());
        self.history.add(Record::Op(Op { client, node, session, begin, end, deadline, key, call, outcome: outcome_ }));
        outcome
    }
}

fn link(node: usize) -> KvClient<Channel> {
    KvClient::new(channel(node)).max_decoding_message_size(64 << 20)
}

fn failed(status: &Status, late: bool) -> Outcome {
    Outcome::Failed { code: format!("{:?}", status.code()), message: status.message().to_owned(), cut: late }
}

/// Everything that a node holds.
pub(crate) async fn list(node: usize, within: Duration) -> Result<Vec<Entry>, Status> {
    let mut kv = link(node);
    let all = async {
        let mut stream = kv.list(v1::ListRequest::default()).await?.into_inner();
        let mut entries = Vec::new();
        while let Some(message) = stream.message().await? {
            entries.extend(message.entries.into_iter().map(Entry::from));
        }
        Ok(entries)
    };
    timeout(within, all).await.unwrap_or_else(|_| Err(Status::deadline_exceeded("no listing")))
}

fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

fn wrote(wire: Option<v1::Version>, acked: Option<v1::Acked>) -> Outcome {
    let (peers, all) = acked.map_or((0, false), |acked| (acked.peers as usize, acked.lacking == 0));
    Outcome::Wrote { version: version(wire), peers, all }
}

/// One call: its outcome, and the session's new token.
async fn make(
    mut kv: KvClient<Channel>,
    key: &str,
    call: &Call,
    ack: Ack,
    session: Option<Bytes>,
) -> Result<(Outcome, Bytes), Status> {
    let (key, ack) = (key.to_owned(), ack.wire());
    let ttl = |ms: Option<u64>| {
        ms.map(|ms| prost_types::Duration::try_from(Duration::from_millis(ms)).expect("a few seconds"))
    };
    Ok(match call {
        Call::Put { value, ttl_ms } => {
            let request =
                v1::PutRequest { key, value: value.clone().into_bytes().into(), ttl: ttl(*ttl_ms), ack, session };
            let answer = kv.put(timed(request)).await?.into_inner();
            (wrote(answer.version, answer.acked), answer.session)
        }
        Call::Get => match kv.get(timed(v1::GetRequest { key, session })).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                let found = || Outcome::Found { value: text(&answer.value), version: version(answer.version) };
                (if answer.missing { Outcome::Missing } else { found() }, answer.session)
            }
            Err(status) if status.code() == Code::NotFound => (Outcome::Missing, Bytes::new()),
            Err(status) => return Err(status),
        },
        Call::Delete => {
            let answer = kv.delete(timed(v1::DeleteRequest { key, ack, session })).await?.into_inner();
            let outcome = if answer.existed { wrote(answer.version, answer.acked) } else { Outcome::Nothing };
            (outcome, answer.session)
        }
        Call::Touch { ttl_ms } => {
            let request = v1::TouchRequest { key, ttl: ttl(*ttl_ms), ack, session };
            let answer = kv.touch(timed(request)).await?.into_inner();
            let outcome = if answer.existed { wrote(answer.version, answer.acked) } else { Outcome::Nothing };
            (outcome, answer.session)
        }
        Call::List => {
            let request = v1::ListRequest { prefix: key, session, ..v1::ListRequest::default() };
            let mut stream = kv.list(timed(request)).await?.into_inner();
            let (mut entries, mut token) = (Vec::new(), Bytes::new());
            while let Some(message) = stream.message().await? {
                entries.extend(message.entries.into_iter().map(Entry::from));
                token = message.session;
            }
            (Outcome::Listed(entries), token)
        }
    })
}

/// Puts the keys that are only read.
pub(crate) async fn prepare(nodes: usize, history: &History) {
    let mut caller = Caller::new(usize::MAX, nodes, history.clone());
    for n in 0..FIXED {
        let outcome = caller.put(n % nodes, format!("f/{n}"), None, Ack::All).await;
        let all = matches!(outcome, Outcome::Wrote { peers, .. } if peers == nodes - 1);
        assert!(all, "a cluster without faults does not acknowledge a write: {outcome:?}");
    }
}

/// A client that mostly talks to one node and makes every kind of call.
pub(crate) async fn at_home(id: usize, home: usize, nodes: usize, seed: u64, history: History, gate: Gate) {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed ^ (id as u64) << 32);
    let mut caller = Caller::new(id, nodes, history);
    let (mut own, mut gone, mut ending): (Vec<String>, Vec<String>, Vec<String>) = Default::default();
    for round in 0_u64.. {
        sleep(Duration::from_millis(rng.random_range(PAUSE))).await;
        let pass = gate.enter().await;
        let away = rng.random_ratio(1, 5);
        let node = if away { rng.random_range(0..nodes) } else { home };
        let shared = |rng: &mut Xoshiro256PlusPlus, class: &str| format!("{class}/{}", rng.random_range(0..SHARED));
        match rng.random_range(0..100) {
            0..20 => {
                let key = format!("u/{id}/{round}");
                if let Outcome::Wrote { .. } = caller.put(node, key.clone(), None, some_ack(&mut rng)).await {
                    own.push(key);
                }
            }
            20..28 if !own.is_empty() => {
                let key = own.swap_remove(rng.random_range(0..own.len()));
                caller.call(node, key.clone(), Call::Delete, some_ack(&mut rng)).await;
                gone.push(key);
            }
            28..36 => {
                if let Some(key) = own.choose(&mut rng).cloned() {
                    caller.get(node, key).await;
                }
            }
            36..44 => {
                if let Some(key) = gone.choose(&mut rng).cloned() {
                    caller.get(node, key).await;
                }
            }
            44..56 => drop(caller.put(node, shared(&mut rng, "k"), None, some_ack(&mut rng)).await),
            56..68 => drop(caller.get(node, shared(&mut rng, "k")).await),
            68..74 => drop(caller.call(node, shared(&mut rng, "k"), Call::Delete, some_ack(&mut rng)).await),
            74..79 => {
                let (key, ttl) = (format!("e/{id}/{round}"), rng.random_range(500..4_000));
                caller.put(node, key.clone(), Some(ttl), some_ack(&mut rng)).await;
                ending.push(key);
            }
            79..84 => {
                // Most have expired already: the latest is there, or should be gone.
                let recent = &ending[ending.len().saturating_sub(4)..];
                if let Some(key) = recent.choose(&mut rng).cloned() {
                    caller.get(node, key).await;
                }
            }
            84..87 => {
                let ttl = rng.random_ratio(2, 3).then(|| rng.random_range(500..5_000));
                caller.put(node, shared(&mut rng, "t"), ttl, some_ack(&mut rng)).await;
            }
            87..89 => {
                let ttl_ms = rng.random_ratio(2, 3).then(|| rng.random_range(500..5_000));
                caller.call(node, shared(&mut rng, "t"), Call::Touch { ttl_ms }, some_ack(&mut rng)).await;
            }
            89..92 => drop(caller.get(node, shared(&mut rng, "t")).await),
            92..94 => {
                let prefix = ["k/", "t/", "f/"][rng.random_range(0..3)].to_owned();
                caller.call(node, prefix, Call::List, Ack::None).await;
            }
            _ => drop(caller.get(node, format!("f/{}", rng.random_range(0..FIXED))).await),
        }
        drop(pass);
        for keys in [&mut own, &mut gone, &mut ending] {
            if keys.len() > REMEMBERED {
                keys.remove(0);
            }
        }
    }
}

/// A session that moves from node to node.
pub(crate) async fn roaming(id: usize, nodes: usize, seed: u64, history: History, gate: Gate) {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed ^ (id as u64) << 32);
    let mut caller = Caller::new(id, nodes, history);
    caller.begin_session();
    loop {
        sleep(Duration::from_millis(rng.random_range(PAUSE))).await;
        let pass = gate.enter().await;
        let (node, key) = (rng.random_range(0..nodes), format!("k/{}", rng.random_range(0..SHARED)));
        let outcome = match rng.random_range(0..100) {
            0..35 => caller.put(node, key, None, some_ack(&mut rng)).await,
            35..85 => caller.get(node, key).await,
            85..97 => caller.call(node, key, Call::Delete, some_ack(&mut rng)).await,
            _ => caller.call(node, "k/".to_owned(), Call::List, Ack::None).await,
        };
        drop(pass);
        // A session ends when it saw a write that is lost, and otherwise at random.
        if matches!(&outcome, Outcome::Failed { code, .. } if code == "DataLoss") || rng.random_ratio(1, 300) {
            caller.begin_session();
        }
    }
}

fn some_ack(rng: &mut Xoshiro256PlusPlus) -> Ack {
    match rng.random_range(0..20) {
        0..7 => Ack::None,
        7..12 => Ack::Count(1),
        12..14 => Ack::Count(2),
        14..15 => Ack::Count(3),
        15..18 => Ack::Majority,
        _ => Ack::All,
    }
}
