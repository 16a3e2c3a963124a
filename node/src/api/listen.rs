//! Connections on the client port, from the first packet to HTTP/2: who is let
//! in, TLS, and when one is given up on that does nothing. Knows nothing of
//! what is called over them.

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
use crate::gate::{Closed, Gate, Place};
use crate::tls::{self, ClientPortTls};

/// Connections that wait for the server to take them.
const WAITING: usize = 64;
/// How an HTTP/2 connection begins: 24 bytes, and the header of a frame.
const BEGUN: u64 = 24 + 9;
/// How long to wait after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections that were refused or given up on, by reason, since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Too many are open.
    pub full: AtomicU64,
    /// Too many are open from its address.
    pub address_full: AtomicU64,
    /// TLS could not be spoken, or the certificate is no good.
    pub tls: AtomicU64,
    /// It did not come to HTTP/2 in time.
    pub handshake: AtomicU64,
    /// It had no call for too long.
    pub idle: AtomicU64,
}

impl Counters {
    /// Each reason and its figure.
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

/// The client port's connections, for figures.
#[derive(Clone, Debug)]
pub struct Connections {
    gate: Arc<Gate>,
    counters: Arc<Counters>,
}

impl Connections {
    /// With these limits.
    pub fn new(limits: &ClientPortConfig) -> Self {
        let gate = Gate::new(limits.max_connections, limits.max_connections_per_address);
        Self { gate, counters: Arc::default() }
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.gate.inside()
    }

    /// What was refused.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// What a call knows of the connection that it came by.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// The names in the client's certificate, if it showed one.
    pub(super) certificate: Option<Arc<[String]>>,
    pub(super) activity: Arc<Activity>,
}

/// Whether a connection is used.
#[derive(Debug)]
pub(super) struct Activity(Mutex<Calls>);

/// Under one lock: who sees that there is no call also sees when the last one
/// ended.
#[derive(Debug)]
struct Calls {
    under_way: usize,
    last: Instant,
}

impl Activity {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Calls { under_way: 0, last: Instant::now() })))
    }

    /// A call has begun; it ends when what is returned is dropped.
    pub(super) fn begin(self: Arc<Self>) -> Busy {
        self.0.lock().under_way += 1;
        Busy(self)
    }

    /// Since when there was no call; `None` while there is one.
    fn idle_since(&self) -> Option<Instant> {
        let calls = self.0.lock();
        (calls.under_way == 0).then_some(calls.last)
    }
}

/// A call under way.
#[derive(Debug)]
pub(super) struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        let mut calls = self.0.0.lock();
        calls.under_way -= 1;
        calls.last = Instant::now();
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
    let accept = accept(listener, tls, limits, connections, sender);
    tokio::spawn(stop.run_until_cancelled_owned(accept));
    ReceiverStream::new(receiver)
}

async fn accept(
    listener: TcpListener,
    tls: Option<ClientPortTls>,
    limits: ClientPortConfig,
    connections: Connections,
    sender: mpsc::Sender<io::Result<Connection>>,
) {
    loop {
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: others must end first.
                warn!(%error, "could not accept a client's connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let place = match connections.gate.enter(remote.ip()) {
            Ok(place) => place,
            Err(closed) => {
                let counter = match closed {
                    Closed::Full => &connections.counters.full,
                    Closed::AddressFull => &connections.counters.address_full,
                };
                if counter.fetch_add(1, Ordering::Relaxed) == 0 {
                    warn!(%remote, ?closed, "refused a client's connection; more are only counted");
                }
                continue;
            }
        };
        let keepalive = TcpKeepalive::new().with_time(limits.keepalive_interval.max(Duration::from_secs(1)));
        if let Err(error) = stream.set_nodelay(true).and_then(|()| SockRef::from(&stream).set_tcp_keepalive(&keepalive))
        {
            debug!(%remote, %error, "a client's connection has gone");
            continue;
        }
        let (tls, sender, counters) = (tls.clone(), sender.clone(), connections.counters.clone());
        let deadline = Instant::now() + limits.handshake_timeout;
        let secure = async move {
            let wire = match tls {
                None => Wire::Plain(stream),
                Some(tls) => match timeout_at(deadline, tls.accept(stream)).await {
                    Ok(Ok(stream)) => Wire::Tls(Box::new(stream)),
                    Ok(Err(error)) => {
                        if counters.tls.fetch_add(1, Ordering::Relaxed) == 0 {
                            warn!(%remote, %error, "TLS with a client failed; more are only counted");
                        }
                        debug!(%remote, %error, "TLS with a client failed");
                        return;
                    }
                    Err(_) => {
                        counters.handshake.fetch_add(1, Ordering::Relaxed);
                        return;
                    }
                },
            };
            // It fails when the server has ended.
            let _ =
                sender.send(Ok(Connection::new(wire, remote, place, deadline, limits.idle_timeout, counters))).await;
        };
        // Bounded by the gate, which each of them has passed.
        tokio::spawn(secure);
    }
}

enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// An accepted connection.
pub(super) struct Connection {
    wire: Wire,
    peer: Peer,
    counters: Arc<Counters>,
    idle_timeout: Option<Duration>,
    /// Bytes that were read, up to where HTTP/2 has begun.
    read: u64,
    /// When to look whether the connection is used; never, without.
    look: Option<Pin<Box<Sleep>>>,
    _place: Place,
}

impl Connection {
    fn new(
        wire: Wire,
        remote: SocketAddr,
        place: Place,
        deadline: Instant,
        idle_timeout: Option<Duration>,
        counters: Arc<Counters>,
    ) -> Self {
        let certificate = match &wire {
            Wire::Plain(_) => None,
            Wire::Tls(stream) => stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(tls::names),
        };
        debug!(%remote, ?certificate, "a client has connected");
        Self {
            wire,
            peer: Peer { certificate: certificate.map(Into::into), activity: Activity::new() },
            counters,
            idle_timeout,
            read: 0,
            look: Some(Box::pin(sleep_until(deadline))),
            _place: place,
        }
    }

    /// Gives up on a connection that does not come to HTTP/2, or is not used.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while let Some(look) = &mut self.look {
            if look.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            if self.read < BEGUN {
                self.counters.handshake.fetch_add(1, Ordering::Relaxed);
                self.look = None;
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no HTTP/2 in time"));
            }
            let Some(idle_timeout) = self.idle_timeout else {
                self.look = None;
                return Ok(());
            };
            let now = Instant::now();
            let due = self.peer.activity.idle_since().unwrap_or(now) + idle_timeout;
            if due <= now {
                self.counters.idle.fetch_add(1, Ordering::Relaxed);
                self.look = None;
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no call for too long"));
            }
            self.look = Some(Box::pin(sleep_until(due)));
        }
        Ok(())
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
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
        if this.read < BEGUN {
            this.read += (out.filled().len() - before) as u64;
        }
        if polled.is_pending() {
            this.poll_patience(cx)?;
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
    fn a_connection_is_idle_from_the_end_of_its_last_call() {
        let activity = Activity::new();
        assert!(activity.idle_since().is_some(), "none has begun");
        let (one, other) = (activity.clone().begin(), activity.clone().begin());
        drop(one);
        assert_eq!(activity.idle_since(), None, "the other one is under way");
        let ending = Instant::now();
        drop(other);
        assert!(activity.idle_since().is_some_and(|since| since >= ending));
    }
}
