//! Connections on the client port, from the first packet to HTTP/2: limits, TLS, and timeouts of idle connections. Knows
//! nothing of the calls on them.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use crate::config::ClientPortConfig;
use crate::gate::{Closed, Gate, Permit};
use crate::tls::{self, ClientPortTls};

/// How many connections may wait for the server to take them.
const WAITING: usize = 64;
/// How many bytes begin an HTTP/2 connection: the preface, and the header of a frame.
const HTTP2_BEGUN: u64 = 24 + 9;
/// How long to wait after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections on the client port that were refused or closed since the start, by reason.
#[derive(Debug, Default)]
pub struct ClientPortCounters {
    /// Too many connections are open.
    pub full: AtomicU64,
    /// Too many connections from this address are open.
    pub address_full: AtomicU64,
    /// The TLS handshake failed, or the certificate is not accepted.
    pub tls: AtomicU64,
    /// The client did not begin HTTP/2 in time.
    pub handshake: AtomicU64,
    /// The connection had no call for too long.
    pub idle: AtomicU64,
}

impl ClientPortCounters {
    /// Each reason with its count.
    pub fn read(&self) -> [(&'static str, u64); 5] {
        [
            ("full", &self.full),
            ("addressFull", &self.address_full),
            ("tls", &self.tls),
            ("handshake", &self.handshake),
            ("idle", &self.idle),
        ]
        .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
    }
}

/// The connections on the client port. Clones share their counts.
#[derive(Clone, Debug)]
pub struct Connections {
    gate: Arc<Gate>,
    counters: Arc<ClientPortCounters>,
}

impl Connections {
    /// No connections yet, with these limits.
    pub fn new(limits: &ClientPortConfig) -> Self {
        let gate = Gate::new(limits.max_connections, limits.max_connections_per_address);
        Self { gate, counters: Arc::default() }
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        self.gate.open()
    }

    /// Connections that were refused or closed.
    pub fn counters(&self) -> &ClientPortCounters {
        &self.counters
    }
}

/// What a call knows of its connection.
#[derive(Clone, Debug)]
pub(super) struct ConnectionInfo {
    /// The names in the client's certificate, if it presented one.
    pub(super) certificate: Option<Arc<[String]>>,
    pub(super) activity: Arc<Activity>,
}

/// Whether a connection has calls.
#[derive(Debug)]
pub(super) struct Activity(Mutex<Usage>);

/// Under one lock, so that a reader that sees no call also sees when the last one ended.
#[derive(Debug)]
struct Usage {
    calls: usize,
    last_end: Instant,
}

impl Activity {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Usage { calls: 0, last_end: Instant::now() })))
    }

    /// Counts a call, which ends when the returned guard is dropped.
    pub(super) fn begin(self: Arc<Self>) -> InUse {
        self.0.lock().calls += 1;
        InUse(self)
    }

    /// Since when the connection has no call; `None` while it has one.
    fn idle_since(&self) -> Option<Instant> {
        let usage = self.0.lock();
        (usage.calls == 0).then_some(usage.last_end)
    }
}

/// A call in progress.
#[derive(Debug)]
pub(super) struct InUse(Arc<Activity>);

impl Drop for InUse {
    fn drop(&mut self) {
        let mut usage = self.0.0.lock();
        usage.calls -= 1;
        usage.last_end = Instant::now();
    }
}

/// Accepts connections until `stop`.
pub(super) fn incoming(
    listener: TcpListener,
    tls: Option<ClientPortTls>,
    limits: ClientPortConfig,
    connections: Connections,
    stop: CancellationToken,
) -> ReceiverStream<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(WAITING);
    let acceptor = Acceptor { tls, limits, connections, sender };
    tokio::spawn(stop.run_until_cancelled_owned(acceptor.run(listener)));
    ReceiverStream::new(receiver)
}

struct Acceptor {
    tls: Option<ClientPortTls>,
    limits: ClientPortConfig,
    connections: Connections,
    sender: mpsc::Sender<io::Result<Connection>>,
}

impl Acceptor {
    async fn run(self, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, remote)) => self.accepted(stream, remote),
                Err(error) => {
                    // Most likely no file descriptor is free until another connection ends.
                    warn!(%error, "could not accept a client's connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Hands a connection to the server, once TLS is established, if the gate admits it.
    fn accepted(&self, stream: TcpStream, remote: SocketAddr) {
        let counters = &self.connections.counters;
        let permit = match self.connections.gate.enter(remote.ip()) {
            Ok(permit) => permit,
            Err(closed) => {
                let counter = match closed {
                    Closed::Full => &counters.full,
                    Closed::AddressFull => &counters.address_full,
                };
                if counter.fetch_add(1, Ordering::Relaxed) == 0 {
                    warn!(%remote, ?closed, "refused a client's connection; further refusals are only counted");
                }
                return;
            }
        };
        let keepalive = TcpKeepalive::new().with_time(self.limits.keepalive_interval.max(Duration::from_secs(1)));
        if let Err(error) = stream.set_nodelay(true).and_then(|()| SockRef::from(&stream).set_tcp_keepalive(&keepalive))
        {
            debug!(%remote, %error, "a client's connection has ended");
            return;
        }
        let (tls, sender, counters) = (self.tls.clone(), self.sender.clone(), counters.clone());
        let deadline = Instant::now() + self.limits.handshake_timeout;
        let idle_timeout = self.limits.idle_timeout;
        // The number of these tasks is bounded by the gate.
        tokio::spawn(async move {
            let Some(wire) = establish(stream, remote, tls, deadline, &counters).await else { return };
            let connection = Connection::new(wire, remote, permit, deadline, idle_timeout, counters);
            // Fails after the server has ended.
            let _ = sender.send(Ok(connection)).await;
        });
    }
}

/// Establishes TLS, if it is configured. `None` if that fails.
async fn establish(
    stream: TcpStream,
    remote: SocketAddr,
    tls: Option<ClientPortTls>,
    deadline: Instant,
    counters: &ClientPortCounters,
) -> Option<Wire> {
    let Some(tls) = tls else { return Some(Wire::Plain(stream)) };
    match timeout_at(deadline, tls.accept(stream)).await {
        Ok(Ok(stream)) => Some(Wire::Tls(Box::new(stream))),
        Ok(Err(error)) => {
            if counters.tls.fetch_add(1, Ordering::Relaxed) == 0 {
                warn!(%remote, %error, "TLS with a client failed; further failures are only counted");
            }
            debug!(%remote, %error, "TLS with a client failed");
            None
        }
        Err(_) => {
            counters.handshake.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}

enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// An accepted connection, which fails when its timeouts pass.
pub(super) struct Connection {
    wire: Wire,
    info: ConnectionInfo,
    counters: Arc<ClientPortCounters>,
    idle_timeout: Option<Duration>,
    /// How many bytes were read, counted until HTTP/2 has begun.
    read: u64,
    /// When to check the timeouts next; `None`: never.
    check: Option<Pin<Box<Sleep>>>,
    _permit: Permit,
}

impl Connection {
    fn new(
        wire: Wire,
        remote: SocketAddr,
        permit: Permit,
        deadline: Instant,
        idle_timeout: Option<Duration>,
        counters: Arc<ClientPortCounters>,
    ) -> Self {
        let certificate = match &wire {
            Wire::Plain(_) => None,
            Wire::Tls(stream) => stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(tls::names),
        };
        debug!(%remote, ?certificate, "a client has connected");
        Self {
            wire,
            info: ConnectionInfo { certificate: certificate.map(Into::into), activity: Activity::new() },
            counters,
            idle_timeout,
            read: 0,
            check: Some(Box::pin(sleep_until(deadline))),
            _permit: permit,
        }
    }

    /// Fails if the client did not begin HTTP/2 in time, or had no call for too long.
    fn poll_timeouts(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while let Some(check) = &mut self.check {
            if check.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            if self.read < HTTP2_BEGUN {
                self.counters.handshake.fetch_add(1, Ordering::Relaxed);
                self.check = None;
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no HTTP/2 in time"));
            }
            let Some(idle_timeout) = self.idle_timeout else {
                self.check = None;
                return Ok(());
            };
            let now = Instant::now();
            let due = self.info.activity.idle_since().unwrap_or(now) + idle_timeout;
            if due <= now {
                self.counters.idle.fetch_add(1, Ordering::Relaxed);
                self.check = None;
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no call for too long"));
            }
            self.check = Some(Box::pin(sleep_until(due)));
        }
        Ok(())
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = out.filled().len();
        let polled = match &mut this.wire {
            Wire::Plain(stream) => Pin::new(stream).poll_read(cx, out),
            Wire::Tls(stream) => Pin::new(stream).poll_read(cx, out),
        };
        if this.read < HTTP2_BEGUN {
            this.read += (out.filled().len() - before) as u64;
        }
        if polled.is_pending() {
            this.poll_timeouts(cx)?;
        }
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.wire {
            Wire::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Wire::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.wire {
            Wire::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Wire::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.wire {
            Wire::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Wire::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.wire {
            Wire::Plain(stream) => stream.is_write_vectored(),
            Wire::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.wire {
            Wire::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Wire::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_is_idle_after_its_last_call() {
        let activity = Activity::new();
        assert!(activity.idle_since().is_some(), "no call has begun");
        let (one, other) = (activity.clone().begin(), activity.clone().begin());
        drop(one);
        assert_eq!(activity.idle_since(), None, "the other call is in progress");
        let ending = Instant::now();
        drop(other);
        assert!(activity.idle_since().is_some_and(|since| since >= ending));
    }
}
