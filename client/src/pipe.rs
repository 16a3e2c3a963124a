//! Many calls on one stream. Each call has an ID, and answers come in any order. A call whose node goes away is tried
//! again on a new stream, like the other calls of the client.

use crate::Ack;
use crate::calls::{self, Carrier};
use crate::client::Client;
use crate::error::{Error, Failure};
use crate::kv::{PutOptions, Value, Version};
use crate::link::Current;
use crate::session::Session;
use bytes::Bytes;
use kvasir_proto::v1;
use kvasir_proto::v1::pipe_request::Operation;
use kvasir_proto::v1::pipe_response::Result as Answer;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Calls of one pipe that are in flight at a time; further calls wait. A node carries out as many.
pub const PIPE_IN_FLIGHT: usize = 256;
/// The part of a call's time that is reserved for the node's answer.
const MARGIN: Duration = Duration::from_millis(100);
/// The longest that a node waits for other nodes.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// The calls of a [`Client`] on one stream, which is faster for many small calls. [`Client::pipe`] makes a pipe; clones
/// share its stream.
///
/// Concurrent calls are carried out in any order: if the order matters, await one call before the next. At most
/// [`PIPE_IN_FLIGHT`] calls are in flight, further calls wait. A failed call is tried again on a new stream, so it may be
/// carried out twice.
///
/// ```no_run
/// # async fn run(client: kvasir_client::Client) -> Result<(), kvasir_client::Error> {
/// use kvasir_client::PutOptions;
///
/// let pipe = client.pipe();
/// let puts = (0..1000).map(|n| pipe.put(format!("n/{n}"), n.to_string(), PutOptions::default()));
/// futures::future::try_join_all(puts).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Pipe(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Client,
    places: Semaphore,
    ids: AtomicU64,
    current: Mutex<Option<Arc<Stream>>>,
}

impl Client {
    /// Makes a pipe to the client's node. It opens with the first call.
    pub fn pipe(&self) -> Pipe {
        Pipe(Arc::new(Inner {
            client: self.clone(),
            places: Semaphore::new(PIPE_IN_FLIGHT),
            ids: AtomicU64::new(0),
            current: Mutex::new(None),
        }))
    }
}

impl Pipe {
    /// As [`Client::put`].
    pub async fn put(
        &self,
        key: impl Into<String>,
        value: impl Into<Bytes>,
        options: PutOptions,
    ) -> Result<Version, Error> {
        calls::put(self, None, key.into(), value.into(), options).await
    }

    /// As [`Client::get`].
    pub async fn get(&self, key: impl Into<String>) -> Result<Option<Value>, Error> {
        calls::get(self, None, key.into()).await
    }

    /// As [`Client::exists`].
    pub async fn exists(&self, key: impl Into<String>) -> Result<bool, Error> {
        calls::exists(self, None, key.into()).await
    }

    /// As [`Client::delete`].
    pub async fn delete(&self, key: impl Into<String>) -> Result<bool, Error> {
        calls::delete(self, None, key.into(), None).await
    }

    /// As [`Client::delete_with`].
    pub async fn delete_with(&self, key: impl Into<String>, ack: impl Into<Ack>) -> Result<bool, Error> {
        calls::delete(self, None, key.into(), Some(ack.into())).await
    }

    /// As [`Client::touch`].
    pub async fn touch(&self, key: impl Into<String>, ttl: Option<Duration>) -> Result<bool, Error> {
        calls::touch(self, None, key.into(), ttl, None).await
    }

    /// As [`Client::touch_with`].
    pub async fn touch_with(
        &self,
        key: impl Into<String>,
        ttl: Option<Duration>,
        ack: impl Into<Ack>,
    ) -> Result<bool, Error> {
        calls::touch(self, None, key.into(), ttl, Some(ack.into())).await
    }

    /// Begins a session whose calls on single keys go through this pipe.
    pub fn session(&self) -> Session {
        self.resume(Bytes::new())
    }

    /// Continues a session from its [token](Session::token), through this pipe.
    pub fn resume(&self, token: Bytes) -> Session {
        Session::through(self.clone(), token)
    }

    pub(crate) fn client(&self) -> &Client {
        &self.0.client
    }

    /// Makes attempts until one succeeds or fails for good.
    async fn call(&self, operation: Operation) -> Result<Answer, Error> {
        let _place = self.0.places.acquire().await.expect("the semaphore is never closed");
        let client = self.client();
        let mut attempts = client.attempts();
        loop {
            let (stream, timeout) = (self.stream(), attempts.timeout());
            let id = self.0.ids.fetch_add(1, Ordering::Relaxed);
            let asked = stream.ask(v1::PipeRequest { id, operation: Some(operation.clone()) });
            let failure = match tokio::time::timeout(timeout, asked).await {
                Ok(Ok(Answer::Failure(v1::Failure { code, message }))) => {
                    tonic::Status::new(code.into(), message).into()
                }
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(failure)) => failure,
                Err(_) => Failure::NoAnswer(timeout),
            };
            if !matches!(failure, Failure::Final(_)) {
                self.leave(&stream);
            }
            client.pause(&mut attempts, failure).await?;
        }
    }

    /// The stream in use, or a new one.
    fn stream(&self) -> Arc<Stream> {
        let mut current = lock(&self.0.current);
        if let Some(stream) = current.as_ref().filter(|stream| lock(&stream.waiting).ended.is_none()) {
            return stream.clone();
        }
        current.insert(Stream::open(&self.0.client)).clone()
    }

    /// Lets the next call open another stream on another connection. Calls in flight on this stream end there.
    fn leave(&self, stream: &Arc<Stream>) {
        let mut current = lock(&self.0.current);
        if current.as_ref().is_some_and(|it| Arc::ptr_eq(it, stream)) {
            *current = None;
        }
        drop(current);
        self.client().link().renew(&stream.via);
    }

    /// Adds how long the client waits, which the deadline of the stream does not say.
    fn timely(&self, ack: Option<v1::Ack>) -> Option<v1::Ack> {
        let timeout = self.client().settings().request_timeout;
        let wait = timeout.saturating_sub(MARGIN.min(timeout / 4)).min(MAX_WAIT);
        ack.map(|ack| v1::Ack { timeout: ack.timeout.or_else(|| wait.try_into().ok()), ..ack })
    }
}

/// One stream to one node. It ends when its last handle is dropped and all calls are answered.
#[derive(Debug)]
struct Stream {
    requests: mpsc::Sender<v1::PipeRequest>,
    waiting: Arc<Mutex<Waiting>>,
    via: Current,
}

/// Calls without an answer yet, by ID.
#[derive(Debug, Default)]
struct Waiting {
    calls: HashMap<u64, oneshot::Sender<Result<Answer, Failure>>>,
    /// How the stream ended, once it has.
    ended: Option<Failure>,
}

impl Stream {
    fn open(client: &Client) -> Arc<Self> {
        let (requests, mut queue) = mpsc::channel(PIPE_IN_FLIGHT);
        let (waiting, via) = (Arc::<Mutex<Waiting>>::default(), client.link().current());
        let (mut kv, answers) = (client.kv(&via), waiting.clone());
        tokio::spawn(async move {
            let outgoing = futures::stream::poll_fn(move |context| queue.poll_recv(context));
            let ended = match kv.pipe(outgoing).await {
                Ok(incoming) => deliver(incoming.into_inner(), &answers).await,
                Err(status) => status.into(),
            };
            let mut waiting = lock(&answers);
            for (_, call) in waiting.calls.drain() {
                let _ = call.send(Err(ended.clone())); // an abandoned call has no receiver
            }
            waiting.ended = Some(ended);
        });
        Arc::new(Self { requests, waiting, via })
    }

    async fn ask(&self, request: v1::PipeRequest) -> Result<Answer, Failure> {
        let (sender, answer) = oneshot::channel();
        let forget = Forget { waiting: &self.waiting, id: request.id };
        {
            let mut waiting = lock(&self.waiting);
            if let Some(ended) = &waiting.ended {
                return Err(ended.clone());
            }
            waiting.calls.insert(request.id, sender);
        }
        // If the stream has ended, sending fails, and `answer` says how it ended.
        let _ = self.requests.send(request).await;
        let answer = answer.await.unwrap_or_else(|_| Err(Failure::Passing("the pipe was closed".to_owned())));
        drop(forget);
        answer
    }
}

/// Removes a call from the list, however its wait ends.
struct Forget<'a> {
    waiting: &'a Mutex<Waiting>,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(self.waiting).calls.remove(&self.id);
    }
}

/// Distributes answers until the stream ends; returns how it ended.
async fn deliver(mut incoming: tonic::Streaming<v1::PipeResponse>, waiting: &Mutex<Waiting>) -> Failure {
    loop {
        match incoming.message().await {
            Ok(Some(v1::PipeResponse { id, result })) => {
                // An abandoned call is no longer in the list.
                if let Some(call) = lock(waiting).calls.remove(&id) {
                    let _ = call.send(result.ok_or(Failure::Final(Error::Answer("result"))));
                }
            }
            Ok(None) => return Failure::Passing("the node ended the pipe".to_owned()),
            Err(status) => return status.into(),
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code under these locks can leave the value half changed.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Carrier for Pipe {
    async fn send_put(&self, request: v1::PutRequest) -> Result<v1::PutResponse, Error> {
        let ack = self.timely(request.ack);
        match self.call(Operation::Put(v1::PutRequest { ack, ..request })).await? {
            Answer::Put(answer) => Ok(answer),
            _ => Err(Error::Answer("result of a put")),
        }
    }

    async fn send_get(&self, request: v1::GetRequest) -> Result<v1::GetResponse, Error> {
        match self.call(Operation::Get(request)).await? {
            Answer::Get(answer) => Ok(answer),
            _ => Err(Error::Answer("result of a get")),
        }
    }

    async fn send_exists(&self, request: v1::ExistsRequest) -> Result<v1::ExistsResponse, Error> {
        match self.call(Operation::Exists(request)).await? {
            Answer::Exists(answer) => Ok(answer),
            _ => Err(Error::Answer("result of an exists")),
        }
    }

    async fn send_delete(&self, request: v1::DeleteRequest) -> Result<v1::DeleteResponse, Error> {
        let ack = self.timely(request.ack);
        match self.call(Operation::Delete(v1::DeleteRequest { ack, ..request })).await? {
            Answer::Delete(answer) => Ok(answer),
            _ => Err(Error::Answer("result of a delete")),
        }
    }

    async fn send_touch(&self, request: v1::TouchRequest) -> Result<v1::TouchResponse, Error> {
        let ack = self.timely(request.ack);
        match self.call(Operation::Touch(v1::TouchRequest { ack, ..request })).await? {
            Answer::Touch(answer) => Ok(answer),
            _ => Err(Error::Answer("result of a touch")),
        }
    }
}
