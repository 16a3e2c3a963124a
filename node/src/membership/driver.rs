//! Gives the membership protocol a socket, a clock and a task. One datagram at
//! a time goes in and out; nothing queues here.

use std::{
    borrow::Cow,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    sync::{broadcast, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Event, MemberInfo, NodeId, Refused,
    lines::{EVENTS, Lines, REFUSALS},
    swim::{Output, Swim},
    wire,
};
use crate::{
    config::SwimConfig,
    discovery::View,
    engine::wall_ms,
    refusals::{Reason, Refusals},
};

/// How many datagrams are taken in before the timers have their turn.
const DATAGRAMS_AT_ONCE: usize = 256;
/// How often a leaving node says goodbye, and how long it waits in between.
const FAREWELLS: u32 = 3;
const FAREWELL_PAUSE: Duration = Duration::from_millis(30);
/// How long [`Membership::leave`] waits at most.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long to wait after the socket failed to receive.
const RECEIVE_PAUSE: Duration = Duration::from_millis(100);

/// Events that are kept for a listener who has not taken them yet.
const EVENTS_KEPT: usize = 256;

/// What has happened since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Datagrams received, the refused ones included.
    pub datagrams_in: AtomicU64,
    /// Datagrams sent.
    pub datagrams_out: AtomicU64,
    /// Bytes received.
    pub bytes_in: AtomicU64,
    /// Bytes sent.
    pub bytes_out: AtomicU64,
    /// Datagrams dropped because they made no sense or belong elsewhere.
    pub refused: AtomicU64,
    /// The same, by [kind](Refused::KINDS).
    pub refused_by: [AtomicU64; Refused::KINDS.len()],
    /// When the last datagram came of a cluster that has this one's name and another UID, milliseconds since 1970; 0: none
    /// came.
    pub namesake_ms: AtomicU64,
    /// Datagrams that the operating system wouldn't send.
    pub send_errors: AtomicU64,
    /// Members that came.
    pub joined: AtomicU64,
    /// Members that said goodbye.
    pub left: AtomicU64,
    /// Members that were declared dead.
    pub failed: AtomicU64,
    /// How often this node was declared dead while it lived.
    pub renewed: AtomicU64,
    /// How often the protocol met something impossible.
    pub faults: AtomicU64,
}

/// What is put around each datagram on its way: encryption.
pub trait Seal: Send + Sync {
    /// Puts it around a datagram of at most [`MAX_DATAGRAM`](super::MAX_DATAGRAM) bytes.
    fn seal(&self, datagram: &[u8]) -> Vec<u8>;
    /// Takes it off. An error has the kind of the refusal and the reason.
    fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, (&'static str, String)>;
}

/// The longest datagram taken, sealed or not.
const MAX_TAKEN: usize = 1280;

/// One life of a node: the origin of its writes, and when it began,
/// milliseconds since 1970.
pub type Life = (u64, u64);

/// This node's membership, for as long as it runs.
#[derive(Debug)]
pub struct Membership {
    members: watch::Receiver<Arc<Vec<MemberInfo>>>,
    me: watch::Receiver<NodeId>,
    life: watch::Sender<Life>,
    events: broadcast::Sender<Event>,
    counters: Arc<Counters>,
    goodbye: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Membership {
    /// The other members, eldest first.
    pub fn members(&self) -> watch::Receiver<Arc<Vec<MemberInfo>>> {
        self.members.clone()
    }

    /// This node, in its present life and generation.
    pub fn me(&self) -> watch::Receiver<NodeId> {
        self.me.clone()
    }

    /// Where to listen to what happens to members.
    pub fn events(&self) -> broadcast::Sender<Event> {
        self.events.clone()
    }

    /// Where to say that this node has begun another life.
    pub fn life(&self) -> watch::Sender<Life> {
        self.life.clone()
    }

    /// What has happened since the start.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Tells the others that this node leaves, and ends.
    pub async fn leave(self) {
        if self.goodbye.send(()).is_err() {
            debug!("membership had ended before it was told to leave");
            return;
        }
        match timeout(LEAVE_TIMEOUT, self.task).await {
            Ok(Ok(())) => info!("left the cluster"),
            Ok(Err(error)) => warn!(%error, "membership ended without a goodbye: the others will see a failure"),
            Err(_) => warn!("could not say goodbye within {LEAVE_TIMEOUT:?}: the others will see a failure"),
        }
    }
}

/// What membership must know.
pub struct Options<'a> {
    /// The cluster's name; datagrams of other clusters are refused.
    pub cluster: &'a str,
    /// Which of the clusters of that name it is; empty if there is no telling them apart.
    pub cluster_uid: &'a str,
    /// How members are probed.
    pub timing: SwimConfig,
    /// How far ahead of this node's clock a node may say it started.
    pub max_clock_skew: Duration,
    /// What is put around each datagram; without one they go as they are.
    pub seal: Option<Arc<dyn Seal>>,
    /// The version of the protocol that is spoken: [`VERSION`](super::wire::VERSION), but in tests.
    pub version: u8,
    /// Where peers that cannot be talked to are noted.
    pub refusals: Arc<Refusals>,
}

/// Joins the cluster as `me`, by `socket`, with whoever `discovery` finds. Ends
/// when told to [leave](Membership::leave), or without a word when `stop` is
/// cancelled.
pub fn start(
    me: NodeId,
    socket: UdpSocket,
    discovery: watch::Receiver<Arc<View>>,
    options: Options<'_>,
    stop: CancellationToken,
) -> Membership {
    let Options { cluster, cluster_uid, timing, max_clock_skew, seal, version, refusals } = options;
    let envelope = wire::envelope(cluster, cluster_uid, version);
    let (life, lives) = watch::channel((me.origin, me.started_ms));
    let (members_out, members) = watch::channel(Arc::default());
    let (me_out, me_in) = watch::channel(me.clone());
    let events = broadcast::Sender::new(EVENTS_KEPT);
    let counters = Arc::new(Counters::default());
    let (goodbye, told_to_leave) = oneshot::channel();
    let driver = Driver {
        swim: Swim::new(me, envelope, timing, max_clock_skew, rand::random()),
        started: Instant::now(),
        socket,
        members: members_out,
        me: me_out,
        events: events.clone(),
        counters: Arc::clone(&counters),
        lines: Lines::default(),
        seal,
        refusals,
        receiving: true,
    };
    let task = tokio::spawn(driver.run(discovery, lives, told_to_leave, stop));
    Membership { members, me: me_in, life, events, counters, goodbye, task }
}

/// What a seal calls a datagram of this node's own.
const REFLECTED: &str = "reflected";

/// What is the matter with a peer whose datagram was not opened for this; `None` of what need not come from a peer.
fn unsealed(kind: &str) -> Option<Reason> {
    match kind {
        "plaintext" => Some(Reason::Plaintext),
        "version" => Some(Reason::Version),
        "key" => Some(Reason::Key),
        "stale" => Some(Reason::Clock),
        _ => None,
    }
}

/// What is the matter with the peer at `from` whose datagram was refused for this; `None` of what need not come from a peer.
fn unjoinable(refused: &Refused, from: SocketAddr) -> Option<Reason> {
    match refused {
        Refused::Encrypted => Some(Reason::Encrypted),
        Refused::Version { .. } => Some(Reason::Version),
        Refused::Cluster | Refused::OtherUid => Some(Reason::Cluster),
        Refused::Ahead { address, .. } => (*address == from).then_some(Reason::Clock),
        Refused::Foreign
        | Refused::TooLong
        | Refused::Impostor
        | Refused::Origin { .. }
        | Refused::Full
        | Refused::TooMany
        | Refused::Malformed(_) => None,
    }
}

struct Driver {
    swim: Swim,
    started: Instant,
    socket: UdpSocket,
    members: watch::Sender<Arc<Vec<MemberInfo>>>,
    me: watch::Sender<NodeId>,
    events: broadcast::Sender<Event>,
    counters: Arc<Counters>,
    lines: Lines,
    seal: Option<Arc<dyn Seal>>,
    refusals: Arc<Refusals>,
    /// Whether the socket's last receive worked.
    receiving: bool,
}

impl Driver {
    async fn run(
        mut self,
        mut discovery: watch::Receiver<Arc<View>>,
        mut lives: watch::Receiver<Life>,
        mut told_to_leave: oneshot::Receiver<()>,
        stop: CancellationToken,
    ) {
        let mut buffer = [0; MAX_TAKEN + 1];
        let mut discovering = true;
        let mut may_change = true;
        // Goodbye is said only when asked for: a handle that is dropped is no request.
        let mut may_leave = true;
        self.look_at(&discovery.borrow_and_update().clone());
        loop {
            let deadline = self.started + self.swim.deadline();
            tokio::select! {
                () = stop.cancelled() => return,
                told = &mut told_to_leave, if may_leave => match told {
                    Ok(()) => return self.leave().await,
                    Err(_) => may_leave = false,
                },
                changed = discovery.changed(), if discovering => match changed {
                    Ok(()) => self.look_at(&discovery.borrow_and_update().clone()),
                    Err(_) => discovering = false,
                },
                changed = lives.changed(), if may_change => match changed {
                    Ok(()) => {
                        let (origin, started_ms) = *lives.borrow_and_update();
                        if self.swim.reset(self.started.elapsed(), origin, started_ms) {
                            self.me.send_replace(self.swim.me().clone());
                        }
                        self.act().await;
                    }
                    Err(_) => may_change = false,
                },
                received = self.socket.recv_from(&mut buffer) => self.received(&buffer, received).await,
                () = sleep_until(deadline) => {}
            }
            // What came in while this process stood still is heard before
            // anyone is suspected of not having answered.
            for _ in 0..DATAGRAMS_AT_ONCE {
                match self.socket.try_recv_from(&mut buffer) {
                    Ok(received) => self.received(&buffer, Ok(received)).await,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => {
                        self.received(&buffer, Err(error)).await;
                        break;
                    }
                }
            }
            self.swim.tick(self.started.elapsed(), wall_ms());
            self.act().await;
        }
    }

    fn look_at(&mut self, view: &View) {
        self.swim.set_addresses(self.started.elapsed(), view.addresses.keys().copied());
    }

    async fn received(&mut self, buffer: &[u8], received: io::Result<(usize, SocketAddr)>) {
        let (length, from) = match received {
            Ok(received) => received,
            Err(error) => {
                if std::mem::replace(&mut self.receiving, false) {
                    warn!(%error, "cannot receive membership datagrams; will go on trying");
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
                    return self.refuse(from, Refused::UNOPENED, kind, unsealed(kind), &reason);
                }
            },
        };
        let wall_ms = wall_ms();
        match self.swim.datagram(self.started.elapsed(), wall_ms, &opened) {
            Ok(()) if from != self.swim.me().peer_address && self.swim.is_own(&opened) => self.refusals.is_own(from),
            Ok(()) => {}
            Err(refused) => {
                let kind = refused.kind();
                self.refuse(from, kind, Refused::KINDS[kind], unjoinable(&refused, from), &refused);
                if matches!(refused, Refused::OtherUid) {
                    self.counters.namesake_ms.store(wall_ms, Relaxed);
                }
            }
        }
        self.act().await;
    }

    /// Counts a datagram that was refused, and says so. Peers send their datagrams from where they listen, so `what`, if
    /// it is the matter with a peer, is the matter with the one at that address.
    fn refuse(
        &mut self,
        from: SocketAddr,
        place: usize,
        kind: &'static str,
        what: Option<Reason>,
        reason: &dyn std::fmt::Display,
    ) {
        self.counters.refused.fetch_add(1, Relaxed);
        self.counters.refused_by[place].fetch_add(1, Relaxed);
        if let Some(what) = what {
            self.refusals.note(from, None, what, &format!("its datagrams are refused: {reason}"));
        } else if let Some(unsaid) = self.lines.may(self.started.elapsed(), kind, from, REFUSALS) {
            let unsaid = (unsaid > 0).then_some(unsaid);
            warn!(%from, %reason, unsaid, "refused a membership datagram");
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

    /// Does what the protocol asks for.
    async fn act(&mut self) {
        while let Some(output) = self.swim.output() {
            match output {
                Output::Send(to, datagram) => match self.socket.send_to(&self.sealed(datagram), to).await {
                    Ok(length) => {
                        self.counters.datagrams_out.fetch_add(1, Relaxed);
                        self.counters.bytes_out.fetch_add(length as u64, Relaxed);
                    }
                    // A datagram that could not be sent is like one that got lost on its way.
                    Err(error) => {
                        self.counters.send_errors.fetch_add(1, Relaxed);
                        debug!(%to, %error, "could not send a membership datagram");
                    }
                },
                Output::Event(event) => self.tell(event),
                Output::Members(members) => {
                    self.members.send_replace(members);
                }
                Output::Fault(error) => {
                    self.counters.faults.fetch_add(1, Relaxed);
                    warn!(%error, "the membership protocol stumbled and went on");
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

    fn tell(&mut self, event: Event) {
        let (counter, what, id) = match &event {
            Event::Joined(id) => (&self.counters.joined, "member joined", id),
            Event::Left(id) => (&self.counters.left, "member left", id),
            Event::Failed(id) => (&self.counters.failed, "member failed", id),
            Event::Renewed(id) => (&self.counters.renewed, "was declared dead by others, and has come back", id),
        };
        counter.fetch_add(1, Relaxed);
        if let Some(unsaid) = self.lines.may(self.started.elapsed(), what, id.peer_address, EVENTS) {
            info!(
                name = id.name,
                origin = %format_args!("{:016x}", id.origin),
                role = id.role.as_str(),
                address = %id.peer_address,
                unsaid = (unsaid > 0).then_some(unsaid),
                "{what}"
            );
        }
        // Nobody may be listening.
        let _ = self.events.send(event.clone());
        match event {
            Event::Renewed(me) => {
                self.me.send_replace(me);
            }
            Event::Joined(id) => {
                let namesake = |other: &NodeId| other.name == id.name && other.origin != id.origin;
                // One that is started again and again is logged a few times, and then counted.
                if namesake(self.swim.me())
                    && self.lines.may(self.started.elapsed(), "namesake", id.peer_address, EVENTS).is_some()
                {
                    warn!(
                        name = id.name,
                        address = %id.peer_address,
                        "another process has this node's name: while both run, the later one is refused; give each its own"
                    );
                }
            }
            Event::Left(_) | Event::Failed(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::Role;

    struct Node {
        membership: Membership,
        address: SocketAddr,
        stop: CancellationToken,
    }

    fn view(seeds: &[SocketAddr]) -> watch::Receiver<Arc<View>> {
        let addresses: BTreeMap<_, _> = seeds.iter().map(|seed| (*seed, "static")).collect();
        watch::channel(Arc::new(View { addresses, providers: Vec::new() })).1
    }

    /// Long enough for a machine that is busy with other work.
    const PATIENCE: Duration = Duration::from_mins(1);

    async fn node(name: &str, seeds: &[SocketAddr]) -> Node {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        node_at(name, socket, seeds, SwimConfig::LAN)
    }

    fn node_at(name: &str, socket: UdpSocket, seeds: &[SocketAddr], swim: SwimConfig) -> Node {
        let address = socket.local_addr().unwrap();
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let me = NodeId::new(name, rand::random(), Role::Member, address, since_1970.as_millis() as u64);
        let stop = CancellationToken::new();
        let options = Options {
            cluster: "test",
            cluster_uid: "",
            timing: swim,
            max_clock_skew: Duration::from_secs(10),
            seal: None,
            version: wire::VERSION,
            refusals: Arc::default(),
        };
        let membership = start(me, socket, view(seeds), options, stop.clone());
        Node { membership, address, stop }
    }

    /// Waits until it sees these. How long that takes is held by the simulation, whose clock does not depend on the machine.
    async fn sees(node: &Node, names: &[&str]) {
        let mut members = node.membership.members();
        let all =
            |members: &Arc<Vec<MemberInfo>>| members.iter().map(|it| it.id.name.as_str()).eq(names.iter().copied());
        timeout(PATIENCE, members.wait_for(all))
            .await
            .unwrap_or_else(|_| panic!("{:?} is not {names:?}", node.membership.members().borrow()))
            .unwrap();
    }

    #[tokio::test]
    async fn three_nodes_on_real_sockets_join_leave_and_die() {
        let a = node("a", &[]).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
        let b = node("b", &[a.address]).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
        let c = node("c", &[a.address]).await;
        for (node, others) in [(&a, ["b", "c"]), (&b, ["a", "c"]), (&c, ["a", "b"])] {
            sees(node, &others).await;
        }

        b.membership.leave().await;
        // By its goodbye: nobody was declared dead.
        sees(&a, &["c"]).await;
        sees(&c, &["a"]).await;
        assert_eq!(a.membership.counters().left.load(Relaxed), 1);
        assert_eq!(a.membership.counters().failed.load(Relaxed), 0);

        c.stop.cancel();
        sees(&a, &[]).await;
        assert_eq!(a.membership.counters().failed.load(Relaxed), 1);
        assert_eq!(a.membership.counters().left.load(Relaxed), 1);
        assert_eq!(a.membership.counters().faults.load(Relaxed), 0);
    }

    #[tokio::test]
    async fn a_restart_at_the_same_address_replaces_the_old_life_at_once() {
        // Nobody is declared dead within this test: only being replaced ends the old life.
        let swim = SwimConfig { suspicion: 10 * PATIENCE, ..SwimConfig::LAN };
        let bind = async || UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let a = node_at("a", bind().await, &[], swim);
        tokio::time::sleep(Duration::from_millis(2)).await;
        let b = node_at("b", bind().await, &[a.address], swim);
        sees(&a, &["b"]).await;
        let old = b.membership.me().borrow().origin;
        b.stop.cancel();
        b.membership.task.await.unwrap();
        let socket = UdpSocket::bind(b.address).await.unwrap();
        let b = node_at("b", socket, &[a.address], swim);
        let mut members = a.membership.members();
        let replaced = members.wait_for(|members| members.len() == 1 && members[0].id.origin != old);
        timeout(PATIENCE, replaced).await.unwrap().unwrap();
        assert_eq!(a.membership.counters().failed.load(Relaxed), 1);
        sees(&b, &["a"]).await;
    }

    #[tokio::test]
    async fn garbage_is_counted_and_does_no_harm() {
        let a = node("a", &[]).await;
        let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mine = wire::envelope("test", "", wire::VERSION);
        let mut other_version = mine.to_vec();
        other_version[4] = 9;
        let garbage: [Vec<u8>; 7] = [
            Vec::new(),
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            vec![0; 1400],
            wire::envelope("other", "", wire::VERSION).to_vec(),
            mine.to_vec(),
            [&mine[..], &[0xff; 200]].concat(),
            other_version,
        ];
        for datagram in &garbage {
            stranger.send_to(datagram, a.address).await.unwrap();
        }
        let b = node("b", &[a.address]).await;
        sees(&a, &["b"]).await;
        sees(&b, &["a"]).await;
        assert_eq!(a.membership.counters().refused.load(Relaxed), garbage.len() as u64);
    }
}
