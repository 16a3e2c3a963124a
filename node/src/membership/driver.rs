//! Drives the membership protocol with a socket, a clock and a task. Handles one datagram at a time, without queues.

use std::{
    borrow::Cow,
    fmt::Display,
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    sync::{broadcast, oneshot, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Event, MemberInfo, MembershipCounters, NodeId, Refused, Seal,
    log_limit::{EVENTS, LogLimit, REFUSALS},
    reasons::{self, REFLECTED},
    swim::{Output, Swim},
};
use crate::{
    discovery::View,
    refusals::{Reason, Refusals},
    wall_clock::wall_ms,
};

/// How many datagrams are received before timers fire.
const DATAGRAMS_AT_ONCE: usize = 256;
/// How many times a node says that it leaves, and the pause in between.
const FAREWELLS: u32 = 3;
const FAREWELL_PAUSE: Duration = Duration::from_millis(30);
/// How long to wait after the socket failed to receive.
const RECEIVE_PAUSE: Duration = Duration::from_millis(100);
/// The longest datagram that is received, encrypted or not.
const MAX_RECEIVED: usize = 1280;

/// The process that a node is: the origin of its writes, and when it started in milliseconds since 1970. A reset changes
/// both.
pub type OriginStart = (u64, u64);

/// What the rest of the node tells membership.
pub(super) struct Inputs {
    pub(super) discovery: watch::Receiver<Arc<View>>,
    pub(super) resets: watch::Receiver<OriginStart>,
    pub(super) leave_requested: oneshot::Receiver<()>,
    pub(super) stop: CancellationToken,
}

/// Where membership reports.
pub(super) struct Outputs {
    pub(super) members: watch::Sender<Arc<Vec<MemberInfo>>>,
    pub(super) me: watch::Sender<NodeId>,
    pub(super) events: broadcast::Sender<Event>,
}

pub(super) struct Driver {
    swim: Swim,
    started: Instant,
    socket: UdpSocket,
    seal: Option<Arc<dyn Seal>>,
    refusals: Arc<Refusals>,
    counters: Arc<MembershipCounters>,
    outputs: Outputs,
    log_limit: LogLimit,
    /// Whether the last receive on the socket succeeded.
    receiving: bool,
}

impl Driver {
    pub(super) fn new(
        swim: Swim,
        socket: UdpSocket,
        seal: Option<Arc<dyn Seal>>,
        refusals: Arc<Refusals>,
        counters: Arc<MembershipCounters>,
        outputs: Outputs,
    ) -> Self {
        let (started, log_limit) = (Instant::now(), LogLimit::default());
        Self { swim, started, socket, seal, refusals, counters, outputs, log_limit, receiving: true }
    }

    pub(super) async fn run(mut self, inputs: Inputs) {
        let Inputs { mut discovery, mut resets, mut leave_requested, stop } = inputs;
        let mut buffer = [0; MAX_RECEIVED + 1];
        let mut discovering = true;
        let mut may_reset = true;
        // A handle that is dropped is not a request to leave.
        let mut may_leave = true;
        self.set_addresses(&discovery.borrow_and_update().clone());
        loop {
            let deadline = self.started + self.swim.deadline();
            tokio::select! {
                () = stop.cancelled() => return,
                requested = &mut leave_requested, if may_leave => match requested {
                    Ok(()) => return self.leave().await,
                    Err(_) => may_leave = false,
                },
                changed = discovery.changed(), if discovering => match changed {
                    Ok(()) => self.set_addresses(&discovery.borrow_and_update().clone()),
                    Err(_) => discovering = false,
                },
                changed = resets.changed(), if may_reset => match changed {
                    Ok(()) => {
                        let (origin, started_ms) = *resets.borrow_and_update();
                        if self.swim.reset(self.started.elapsed(), origin, started_ms) {
                            self.outputs.me.send_replace(self.swim.me().clone());
                        }
                        self.act().await;
                    }
                    Err(_) => may_reset = false,
                },
                received = self.socket.recv_from(&mut buffer) => self.received(&buffer, received).await,
                () = sleep_until(deadline) => {}
            }
            self.receive_pending(&mut buffer).await;
            self.swim.tick(self.started.elapsed(), wall_ms());
            self.act().await;
        }
    }

    /// Handles the datagrams that have arrived. After a pause of this process these go before the timers, so that no member
    /// that has answered becomes a suspect.
    async fn receive_pending(&mut self, buffer: &mut [u8]) {
        for _ in 0..DATAGRAMS_AT_ONCE {
            match self.socket.try_recv_from(buffer) {
                Ok(received) => self.received(buffer, Ok(received)).await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    self.received(buffer, Err(error)).await;
                    break;
                }
            }
        }
    }

    fn set_addresses(&mut self, view: &View) {
        self.swim.set_addresses(self.started.elapsed(), view.addresses.keys().copied());
    }

    async fn received(&mut self, buffer: &[u8], received: io::Result<(usize, SocketAddr)>) {
        let (length, from) = match received {
            Ok(received) => received,
            Err(error) => {
                if std::mem::replace(&mut self.receiving, false) {
                    warn!(%error, "cannot receive membership datagrams; will keep trying");
                }
                return sleep(RECEIVE_PAUSE).await;
            }
        };
        self.receiving = true;
        self.counters.datagrams_in.fetch_add(1, Relaxed);
        self.counters.bytes_in.fetch_add(length as u64, Relaxed);
        let opened = match &self.seal {
            None => Cow::Borrowed(&buffer[..length]),
            Some(seal) => match seal.open(&buffer[..length]) {
                Ok(datagram) => Cow::Owned(datagram),
                Err((kind, reason)) => {
                    if kind == REFLECTED {
                        self.refusals.is_own(from);
                    }
                    return self.refuse(from, Refused::UNOPENED, kind, reasons::of_kind(kind), &reason);
                }
            },
        };
        let wall_ms = wall_ms();
        match self.swim.datagram(self.started.elapsed(), wall_ms, &opened) {
            Ok(()) if from != self.swim.me().peer_address && self.swim.is_own(&opened) => self.refusals.is_own(from),
            Ok(()) => {}
            Err(refused) => {
                let kind = refused.kind();
                self.refuse(from, kind, Refused::KINDS[kind], reasons::of_refused(&refused, from), &refused);
                if matches!(refused, Refused::OtherUid) {
                    self.counters.other_uid_ms.store(wall_ms, Relaxed);
                }
            }
        }
        self.act().await;
    }

    /// Counts and reports a refused datagram. Peers send from the address at which they listen, so a reason that concerns a
    /// peer is recorded for the peer at `from`.
    fn refuse(
        &mut self,
        from: SocketAddr,
        counter: usize,
        kind: &'static str,
        reason: Option<Reason>,
        message: &dyn Display,
    ) {
        self.counters.refused.fetch_add(1, Relaxed);
        self.counters.refused_by[counter].fetch_add(1, Relaxed);
        if let Some(reason) = reason {
            self.refusals.note(from, None, reason, &format!("its datagrams are refused: {message}"));
        } else if let Some(omitted) = self.log_limit.permit(self.started.elapsed(), kind, from, REFUSALS) {
            let omitted = (omitted > 0).then_some(omitted);
            warn!(%from, reason = %message, omitted, "refused a membership datagram");
        }
    }

    async fn leave(mut self) {
        self.swim.leave(self.started.elapsed());
        self.act().await;
        for _ in 1..FAREWELLS {
            sleep(FAREWELL_PAUSE).await;
            self.swim.farewell(self.started.elapsed());
            self.act().await;
        }
    }

    /// Carries out what the protocol asks for.
    async fn act(&mut self) {
        while let Some(output) = self.swim.output() {
            match output {
                Output::Send(to, datagram) => match self.socket.send_to(&self.sealed(datagram), to).await {
                    Ok(length) => {
                        self.counters.datagrams_out.fetch_add(1, Relaxed);
                        self.counters.bytes_out.fetch_add(length as u64, Relaxed);
                    }
                    // The protocol tolerates lost datagrams.
                    Err(error) => {
                        self.counters.send_errors.fetch_add(1, Relaxed);
                        debug!(%to, %error, "could not send a membership datagram");
                    }
                },
                Output::Event(event) => self.report(event),
                Output::Members(members) => {
                    self.outputs.members.send_replace(members);
                }
                Output::Fault(error) => {
                    self.counters.faults.fetch_add(1, Relaxed);
                    warn!(%error, "unexpected error of the membership protocol, which continues");
                }
            }
        }
    }

    fn sealed(&self, datagram: Vec<u8>) -> Vec<u8> {
        match &self.seal {
            Some(seal) => seal.seal(&datagram),
            None => datagram,
        }
    }

    fn report(&mut self, event: Event) {
        let (counter, what, id) = match &event {
            Event::Joined(id) => (&self.counters.joined, "member joined", id),
            Event::Left(id) => (&self.counters.left, "member left", id),
            Event::Failed(id) => (&self.counters.failed, "member failed", id),
            Event::Renewed(id) => (&self.counters.renewed, "was declared dead by others, and has rejoined", id),
        };
        counter.fetch_add(1, Relaxed);
        if let Some(omitted) = self.log_limit.permit(self.started.elapsed(), what, id.peer_address, EVENTS) {
            info!(
                name = id.name,
                origin = %format_args!("{:016x}", id.origin),
                role = id.role.as_str(),
                address = %id.peer_address,
                omitted = (omitted > 0).then_some(omitted),
                "{what}"
            );
        }
        // An error means that there are no listeners.
        let _ = self.outputs.events.send(event.clone());
        match event {
            Event::Renewed(me) => {
                self.outputs.me.send_replace(me);
            }
            Event::Joined(id) => self.warn_of_duplicate(&id),
            Event::Left(_) | Event::Failed(_) => {}
        }
    }

    /// Warns if another process has this node's name.
    fn warn_of_duplicate(&mut self, id: &NodeId) {
        let me = self.swim.me();
        if me.name != id.name || me.origin == id.origin {
            return;
        }
        // A duplicate that keeps restarting is logged a few times only.
        if self.log_limit.permit(self.started.elapsed(), "duplicate", id.peer_address, EVENTS).is_some() {
            warn!(
                name = id.name,
                address = %id.peer_address,
                "another process has this node's name: while both run, the later one is refused; give each its own"
            );
        }
    }
}
