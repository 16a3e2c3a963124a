//! How a node goes: nobody who uses it should notice, and nothing that it
//! acknowledged should go with it.
//!
//! 1. It says that it is no longer ready, and lingers: it goes on taking reads
//!    *and writes* while Kubernetes takes its address out of the Services.
//!    Refusing them at once would fail clients that cannot know better yet.
//! 2. It closes the listener and tells every connected client to go elsewhere
//!    (GOAWAY). Calls under way end as usual; new ones go to a new connection,
//!    which the Service leads to another node.
//! 3. It refuses writes that still come, and waits until its peers hold its own, and what it has of those whom it
//!    cannot hear.
//! 4. It gives up its seat, tells the members that it leaves, and closes the links.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::Node;
use crate::config::Role;
use crate::engine::Phase;

/// How long Kubernetes takes, with some to spare, to take a terminating pod's
/// address out of its Services on every machine.
const LINGER: Duration = Duration::from_millis(1500);
/// Calls under way get this long to end: long listings, and health watches,
/// which never end by themselves.
const HANG_UP: Duration = Duration::from_secs(2);
/// The peers get this long to hear that nothing more is to come.
const FAREWELL: Duration = Duration::from_millis(500);
/// So many keys of writes that nobody else is known to hold are named.
const NAMED: usize = 20;
/// Links get this long to close.
const CLOSE: Duration = Duration::from_secs(1);

impl Node {
    /// Drains, leaves and ends; see the module. Takes about `drainTimeout` at most.
    pub async fn shutdown(mut self) {
        let began = Instant::now();
        let end = began + self.drain_timeout;
        let was_ready = self.engine.phase() == Phase::Ready;
        self.leaving.send_replace(true);
        info!(keys = self.engine.stats().keys, "draining: was told to stop");

        // Only members are behind a Service; a sidecar's application has ended
        // before the sidecar is told to.
        if was_ready && self.role == Role::Member {
            sleep(LINGER.min(self.drain_timeout / 4)).await;
        }
        self.stop_api.cancel();
        let hang_up = HANG_UP.min(self.drain_timeout / 4);
        if timeout(hang_up, &mut self.api).await.is_err() {
            info!("some calls did not end within {hang_up:?} and were cut off");
            self.api.abort();
        }
        self.engine.drain();
        self.hand_over(end).await;
        if !self.engine.leave(FAREWELL).await {
            info!("not every peer could be told within {FAREWELL:?} that this node leaves: they will find out");
        }

        let Self { membership, transport, admin, stop, .. } = self;
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

    /// Waits until the peers hold this node's writes, and says which they do not.
    async fn hand_over(&self, end: Instant) {
        let stats = self.engine.stats();
        // A peer that was given up on a moment ago may still take what is on its link.
        if self.overview.peers().is_empty() && stats.linked.is_empty() {
            if stats.keys > 0 {
                warn!(keys = stats.keys, "no peer is there to hand over to: what this node holds goes with it");
            }
            return;
        }
        let left = self.engine.replicated(end.saturating_duration_since(Instant::now())).await;
        if left.on_no_peer > 0 {
            let linked = self.engine.stats().linked.len();
            let why = if linked == 0 { "no peer is linked" } else { "no peer said in time that it holds them" };
            let keys = self.engine.unreplicated_keys(NAMED);
            warn!(
                writes = left.on_no_peer,
                ?keys,
                waited = ?self.drain_timeout,
                "no peer is known to hold some of this node's writes, which may be lost: {why}; of the keys, at most \
                 {NAMED} are named"
            );
        } else if left.not_on_all > 0 {
            info!(
                writes = left.not_on_all,
                "some peers do not hold all of this node's writes yet; others will pass them on"
            );
        } else {
            info!("the peers hold all of this node's writes");
        }
    }
}
