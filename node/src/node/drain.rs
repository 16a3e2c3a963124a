//! How a node shuts down, without errors for its clients and without losing a write that it acknowledged.
//!
//! 1. It reports that it is not ready, and goes on serving reads *and writes* while Kubernetes removes its address from
//!    Services. Clients cannot know better yet, so refusing them at once would be an error for them.
//! 2. It closes the listener and sends every client a GOAWAY. Calls in progress end as usual; new calls use a new
//!    connection, which the Service leads to another node.
//! 3. It refuses writes that still arrive, and waits until its peers hold its own writes, and what it has of nodes that
//!    it cannot hear.
//! 4. It ends its seat, tells the members that it leaves, and closes the links.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::Node;
use super::join::Joined;
use crate::config::Role;
use crate::engine::Phase;

/// The time, with a margin, that Kubernetes needs to remove a terminating pod's address from its Services everywhere.
const LINGER: Duration = Duration::from_millis(1500);
/// How long calls in progress may take to end: long listings, and health watches, which never end by themselves.
const HANG_UP: Duration = Duration::from_secs(2);
/// How long the farewell to peers may take.
const FAREWELL: Duration = Duration::from_millis(500);
/// How many keys of writes that no other node is known to hold are named.
const NAMED: usize = 20;
/// How long links may take to close.
const CLOSE: Duration = Duration::from_secs(1);

impl Node {
    /// Drains, leaves and ends; takes little more than `drainTimeout` at most.
    pub async fn shutdown(mut self) {
        let began = Instant::now();
        let end = began + self.drain_timeout;
        let was_ready = self.joined.engine.phase() == Phase::Ready;
        self.leaving.send_replace(true);
        info!(keys = self.joined.engine.stats().keys, "draining");

        // Only members are behind a Service. A sidecar's application has ended before the sidecar is asked to stop.
        if was_ready && self.role == Role::Member {
            sleep(LINGER.min(self.drain_timeout / 4)).await;
        }
        self.stop_api.cancel();
        let hang_up = HANG_UP.min(self.drain_timeout / 4);
        if timeout(hang_up, &mut self.api).await.is_err() {
            info!("some calls did not end within {hang_up:?} and were cut off");
            self.api.abort();
        }
        self.joined.engine.drain();
        self.hand_over(end).await;
        if !self.joined.engine.leave(FAREWELL).await {
            info!("could not announce to every peer within {FAREWELL:?} that this node leaves: they will find out");
        }

        let Self { joined: Joined { membership, transport, .. }, admin, stop, .. } = self;
        membership.leave().await;
        stop.cancel();
        if timeout(CLOSE, transport.closed()).await.is_err() {
            warn!("links to peers did not close within {CLOSE:?}");
        }
        if timeout(CLOSE, admin).await.is_err() {
            info!("admin connections did not end within {CLOSE:?} and were cut off");
        }
        info!(took_ms = began.elapsed().as_millis() as u64, "stopped");
    }

    /// Waits until the peers hold this node's writes, and logs those that they lack.
    async fn hand_over(&self, end: Instant) {
        let engine = &self.joined.engine;
        let stats = engine.stats();
        // A peer that membership has just declared dead may still receive what is on its link.
        if self.overview.peers().is_empty() && stats.linked.is_empty() {
            if stats.keys > 0 {
                warn!(keys = stats.keys, "there is no peer to hand over to: this node's data are lost");
            }
            return;
        }
        let left = engine.replicated(end.saturating_duration_since(Instant::now())).await;
        if left.on_no_peer > 0 {
            let linked = engine.stats().linked.len();
            let why = if linked == 0 { "no peer is linked" } else { "no peer acknowledged them in time" };
            let keys = engine.unreplicated_keys(NAMED);
            warn!(
                writes = left.on_no_peer,
                ?keys,
                waited = ?self.drain_timeout,
                "no peer is known to hold some of this node's writes, which may be lost: {why}; names at most {NAMED} keys"
            );
        } else if left.not_on_all > 0 {
            info!(writes = left.not_on_all, "some peers lack some of this node's writes; other peers will relay them");
        } else {
            info!("the peers hold all of this node's writes");
        }
    }
}
