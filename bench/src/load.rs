//! Load on nodes by closed loops, which show the highest rate.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kvasir_proto::v1::kv_client::KvClient;
use kvasir_proto::v1::pipe_request::Operation;
use kvasir_proto::v1::pipe_response::Result as Answer;
use kvasir_proto::v1::{GetRequest, PipeRequest, PutRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::report::quantile;

/// Makes the operation with a number.
pub(crate) type Work = Arc<dyn Fn(u64) -> Operation + Send + Sync>;

/// The results of a closed loop.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) operations: u64,
    pub(crate) time: Duration,
    pub(crate) took_us: Vec<u64>,
}

impl Outcome {
    pub(crate) fn rate(&self) -> f64 {
        self.operations as f64 / self.time.as_secs_f64()
    }

    pub(crate) fn took_us(&mut self, part: f64) -> u64 {
        quantile(&mut self.took_us, part)
    }

    pub(crate) fn add(&mut self, mut other: Self) {
        self.operations += other.operations;
        self.time = self.time.max(other.time);
        self.took_us.append(&mut other.took_us);
    }
}

/// A pipe to a node.
pub(crate) struct Pipe {
    pub(crate) requests: mpsc::Sender<PipeRequest>,
    pub(crate) answers: Streaming<kvasir_proto::v1::PipeResponse>,
}

impl Pipe {
    pub(crate) async fn open(mut kv: KvClient<Channel>, room: usize) -> anyhow::Result<Self> {
        let (requests, rest) = mpsc::channel(room);
        let answers = kv.pipe(ReceiverStream::new(rest)).await?.into_inner();
        Ok(Self { requests, answers })
    }
}

pub(crate) fn check(answer: Option<Answer>) -> anyhow::Result<()> {
    match answer.context("an answer without a result")? {
        Answer::Failure(failure) => anyhow::bail!("an operation failed: {failure:?}"),
        _ => Ok(()),
    }
}

/// Keeps `window` operations in flight on one pipe for some time.
/// `first` and `step` number the operations, so that several loops can share the numbers.
pub(crate) async fn pipe(
    kv: KvClient<Channel>,
    window: usize,
    time: Duration,
    work: Work,
    first: u64,
    step: u64,
) -> anyhow::Result<Outcome> {
    let Pipe { requests, mut answers } = Pipe::open(kv, window).await?;
    let began = Instant::now();
    let mut sent = vec![began; window];
    let mut number = first;
    for (id, sent) in sent.iter_mut().enumerate() {
        *sent = Instant::now();
        requests.send(PipeRequest { id: id as u64, operation: Some(work(number)) }).await?;
        number += step;
    }
    let mut in_flight = window;
    let mut outcome = Outcome::default();
    while in_flight > 0 {
        let answer = answers.message().await?.context("the pipe ended")?;
        check(answer.result)?;
        let at = &mut sent[answer.id as usize];
        outcome.operations += 1;
        outcome.took_us.push(at.elapsed().as_micros() as u64);
        if began.elapsed() < time {
            *at = Instant::now();
            requests.send(PipeRequest { id: answer.id, operation: Some(work(number)) }).await?;
            number += step;
        } else {
            in_flight -= 1;
        }
    }
    outcome.time = began.elapsed();
    Ok(outcome)
}

/// Keeps `window` calls in flight on one connection for some time.
pub(crate) async fn unary(kv: KvClient<Channel>, window: usize, time: Duration, work: Work) -> anyhow::Result<Outcome> {
    let began = Instant::now();
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..window {
        let (mut kv, work) = (kv.clone(), work.clone());
        callers.spawn(async move {
            let mut outcome = Outcome::default();
            let mut number = caller as u64;
            while began.elapsed() < time {
                let at = Instant::now();
                match work(number) {
                    Operation::Put(put) => drop(kv.put(put).await?),
                    Operation::Get(get) => drop(kv.get(get).await?),
                    other => anyhow::bail!("no unary call for {other:?}"),
                }
                outcome.operations += 1;
                outcome.took_us.push(at.elapsed().as_micros() as u64);
                number += window as u64;
            }
            outcome.time = began.elapsed();
            Ok(outcome)
        });
    }
    let mut sum = Outcome::default();
    while let Some(outcome) = callers.join_next().await {
        sum.add(outcome??);
    }
    Ok(sum)
}

/// A put of a value of `len` bytes.
pub(crate) fn put(key: String, len: usize) -> Operation {
    Operation::Put(PutRequest { key, value: vec![b'v'; len].into(), ..PutRequest::default() })
}

pub(crate) fn get(key: String) -> Operation {
    Operation::Get(GetRequest { key, session: None })
}
