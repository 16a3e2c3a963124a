//! Starts the driver, and the handle by which the rest of the node follows it.

use std::{sync::Arc, time::Duration};

use tokio::{
    net::UdpSocket,
    sync::{broadcast, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Event, MemberInfo, MembershipCounters, NodeId, Seal,
    driver::{Driver, Inputs, OriginStart, Outputs},
    swim::Swim,
    wire,
};
use crate::{config::SwimConfig, discovery::View, refusals::Refusals};

/// How long [`Membership::leave`] waits at most.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Events that are kept for a slow listener.
const EVENTS_KEPT: usize = 256;

/// How membership works.
pub struct MembershipOptions<'a> {
    /// The cluster's name. Datagrams of other clusters are refused.
    pub cluster: &'a str,
    /// The cluster's UID; may be empty.
    pub cluster_uid: &'a str,
    /// The intervals of the protocol.
    pub timing: SwimConfig,
    /// How far a node's start may be ahead of this node's clock.
    pub max_clock_skew: Duration,
    /// Encrypts datagrams, if there is one.
    pub seal: Option<Arc<dyn Seal>>,
    /// The version of the protocol; only tests use another one than [`VERSION`](super::wire::VERSION).
    pub version: u8,
    /// Records the peers that cannot be talked to.
    pub refusals: Arc<Refusals>,
}

/// The handle of a running membership.
#[derive(Debug)]
pub struct Membership {
    members: watch::Receiver<Arc<Vec<MemberInfo>>>,
    me: watch::Receiver<NodeId>,
    process: watch::Sender<OriginStart>,
    events: broadcast::Sender<Event>,
    counters: Arc<MembershipCounters>,
    leave: oneshot::Sender<()>,
    pub(super) task: JoinHandle<()>,
}

impl Membership {
    /// Joins the cluster as `me`, through the peers that `discovery` finds. Ends with [`leave`](Self::leave), or without
    /// telling the other nodes when `stop` is cancelled.
    pub fn start(
        me: NodeId,
        socket: UdpSocket,
        discovery: watch::Receiver<Arc<View>>,
        options: MembershipOptions<'_>,
        stop: CancellationToken,
    ) -> Self {
        let MembershipOptions { cluster, cluster_uid, timing, max_clock_skew, seal, version, refusals } = options;
        let envelope = wire::envelope(cluster, cluster_uid, version);
        let (process, resets) = watch::channel((me.origin, me.started_ms));
        let (members_out, members) = watch::channel(Arc::default());
        let (me_out, me_in) = watch::channel(me.clone());
        let events = broadcast::Sender::new(EVENTS_KEPT);
        let counters = Arc::<MembershipCounters>::default();
        let (leave, leave_requested) = oneshot::channel();
        let swim = Swim::new(me, envelope, timing, max_clock_skew, rand::random());
        let outputs = Outputs { members: members_out, me: me_out, events: events.clone() };
        let driver = Driver::new(swim, socket, seal, refusals, Arc::clone(&counters), outputs);
        let task = tokio::spawn(driver.run(Inputs { discovery, resets, leave_requested, stop }));
        Self { members, me: me_in, process, events, counters, leave, task }
    }

    /// The other members, eldest first.
    pub fn members(&self) -> watch::Receiver<Arc<Vec<MemberInfo>>> {
        self.members.clone()
    }

    /// This node, with its current origin and generation.
    pub fn me(&self) -> watch::Receiver<NodeId> {
        self.me.clone()
    }

    /// Subscribe here for changes of the cluster.
    pub fn events(&self) -> broadcast::Sender<Event> {
        self.events.clone()
    }

    /// Report a reset of this node here.
    pub fn process(&self) -> watch::Sender<OriginStart> {
        self.process.clone()
    }

    /// Counts since the start.
    pub fn counters(&self) -> Arc<MembershipCounters> {
        Arc::clone(&self.counters)
    }

    /// Tells the other nodes that this one leaves, and ends.
    pub async fn leave(self) {
        if self.leave.send(()).is_err() {
            debug!("membership had ended before it was asked to leave");
            return;
        }
        match timeout(LEAVE_TIMEOUT, self.task).await {
            Ok(Ok(())) => info!("left the cluster"),
            Ok(Err(error)) => warn!(%error, "membership ended without leaving: other nodes will report a failure"),
            Err(_) => warn!("could not leave within {LEAVE_TIMEOUT:?}: other nodes will report a failure"),
        }
    }
}
