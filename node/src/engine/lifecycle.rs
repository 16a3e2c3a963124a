//! The life of the node in its cluster: founding, evictions, rejoining, the loss of its name, draining and leaving.

use std::sync::atomic::Ordering;
use std::time::Duration;

use kvasir_proto::peer::v1::{SeatState, Stranger};
use tokio::sync::{broadcast, watch};
use tracing::{info, warn};

use super::link_task::IDLE_UNTIL_SENT;
use super::{Engine, Evicted, FORMER_ORIGINS_KEPT, Inner, Phase, TICK};
use crate::replica::{MAX_ENDED, Namesake, PeerId, View};
use crate::wall_clock::wall_ms;

/// Writes of this node that peers lack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unreplicated {
    /// Writes that all peers may lack.
    pub on_no_peer: usize,
    /// Writes that at least one peer may lack.
    pub not_on_all: usize,
}

impl Engine {
    /// The current phase.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Changes of the phase.
    pub fn subscribe_phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Sets what discovery and membership know, which readiness depends on. The view is ignored as soon as links
    /// change: `link_changes` is the figure of [`Self::linked`] for which the view was computed.
    pub fn set_view(&self, view: View, link_changes: u64) {
        let mut inner = self.inner.lock();
        (inner.view, inner.view_links) = (view, link_changes);
    }

    /// See [`Replica::founders`](crate::replica::Replica::founders).
    pub fn founders(&self) -> Option<(usize, usize)> {
        self.inner.lock().replica.founders()
    }

    /// Changes how many voters the cluster should have.
    pub fn set_voters(&self, voters: usize) {
        self.inner.lock().replica.set_voters(voters);
    }

    /// This node as it introduces itself to peers.
    pub fn id(&self) -> PeerId {
        self.inner.lock().replica.id()
    }

    /// The origin of this node's writes. It changes when the node rejoins.
    pub fn origin(&self) -> u64 {
        self.inner.lock().replica.origin()
    }

    /// Changes of [`Self::id`].
    pub fn subscribe_identity(&self) -> watch::Receiver<PeerId> {
        self.identity.subscribe()
    }

    /// The process that holds this node's name, once this node must end because of it.
    pub fn subscribe_dismissal(&self) -> watch::Receiver<Option<Namesake>> {
        self.dismissed.subscribe()
    }

    /// The process that holds this node's name, according to the peers.
    pub fn namesake(&self) -> Option<Namesake> {
        self.inner.lock().replica.namesake()
    }

    /// Evictions of other nodes from now on.
    pub fn evictions(&self) -> broadcast::Receiver<Evicted> {
        self.evictions.subscribe()
    }

    /// Reports new evictions. One node counts the votes of a majority; the others see the result in the roster.
    pub(super) fn report_evictions(&self, inner: &mut Inner) {
        let Inner { replica, evicted, was_ready, .. } = inner;
        for (origin, seat) in replica.seats().filter(|(_, seat)| seat.state == SeatState::Evicted) {
            if evicted.insert(origin) && *was_ready {
                info!(name = seat.name, origin = format!("{origin:016x}"), "a node was evicted by a majority");
                self.evicted.fetch_add(1, Ordering::Relaxed);
                // Fails if there is no listener.
                let _ = self.evictions.send(Evicted { name: seat.name.clone(), origin, voter: seat.voter });
            }
        }
        if evicted.len() > MAX_ENDED {
            evicted.retain(|origin| replica.seats().any(|(seat, _)| seat == *origin));
        }
        *was_ready |= replica.is_ready();
    }

    /// Follows a reset of the replica, which has a new origin and has dropped all its links.
    pub(super) fn on_rejoin(&self, inner: &mut Inner) {
        inner.link_changes += 1;
        for link in std::mem::take(&mut inner.links).into_values() {
            link.gone.cancel();
        }
        let (before, id) = (inner.origin, inner.replica.id());
        inner.origin = id.origin;
        if inner.former_origins.len() == FORMER_ORIGINS_KEPT {
            inner.former_origins.pop_front();
        }
        inner.former_origins.push_back(before);
        let (why, entries) = (inner.replica.ended_because(), inner.replica.brought());
        warn!(
            before = format!("{before:016x}"),
            origin = format!("{:016x}", id.origin),
            entries,
            "rejoins with a new origin: {}; entries that no member holds will be reissued",
            rejoin_reason(why)
        );
        self.identity.send_replace(id);
    }

    /// Another process holds the node's name: this node hands over its backlog, and then ends.
    pub(super) fn on_name_lost(&self, inner: &mut Inner, holder: Namesake) {
        let writes = inner.replica.brought();
        if !std::mem::replace(&mut inner.name_lost, true) && writes > 0 {
            warn!(
                holder = format!("{:016x}", holder.origin),
                writes,
                "another process took this node's name while it was cut off: ends after it reissued the writes that no \
                 member holds"
            );
        }
        if inner.replica.is_dismissed() {
            self.dismissed.send_if_modified(|dismissed| dismissed.replace(holder).is_none());
        }
    }

    /// Refuses writes from now on.
    pub fn drain(&self) {
        let mut inner = self.inner.lock();
        inner.draining = true;
        inner.replica.drain();
        self.after(&mut inner);
    }

    /// Waits until every linked peer holds the own writes that are still in the log, and what this node holds of nodes
    /// that it cannot hear; see [`Replica::uncovered`](crate::replica::Replica::uncovered). Returns what peers still
    /// lack, which is nothing unless `deadline` passed.
    pub async fn replicated(&self, deadline: Duration) -> Unreplicated {
        let end = tokio::time::Instant::now() + deadline;
        loop {
            let left = {
                let inner = self.inner.lock();
                let (on_no_peer, not_on_all) = inner.replica.uncovered();
                Unreplicated { on_no_peer, not_on_all: if inner.links.is_empty() { 0 } else { not_on_all } }
            };
            if left == Unreplicated::default() || tokio::time::Instant::now() >= end {
                return left;
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Keys of own writes that no peer is known to hold, each once; at most `max` of them.
    pub fn unreplicated_keys(&self, max: usize) -> Vec<String> {
        let inner = self.inner.lock();
        let mut keys: Vec<String> = Vec::new();
        for key in inner.replica.uncovered_keys().map(String::from_utf8_lossy) {
            if keys.len() >= max {
                break;
            }
            if !keys.iter().any(|known| *known == key) {
                keys.push(key.into_owned());
            }
        }
        keys
    }

    /// Ends this node's seat, so that peers need not wait for its attestations. Returns whether that was sent to all of
    /// them within `limit`.
    pub async fn leave(&self, limit: Duration) -> bool {
        {
            let mut inner = self.inner.lock();
            inner.leaving = true;
            inner.replica.leave(wall_ms());
            self.after(&mut inner);
        }
        let sent = async {
            while self.inner.lock().links.values().any(|link| link.idle < IDLE_UNTIL_SENT) {
                tokio::time::sleep(TICK).await;
            }
        };
        tokio::time::timeout(limit, sent).await.is_ok()
    }
}

const fn rejoin_reason(why: Stranger) -> &'static str {
    match why {
        Stranger::No => "its seat was ended before it held anything",
        Stranger::Ended => "its seat was ended by the other nodes",
        Stranger::Foreign => "the map of the other nodes has another epoch",
        Stranger::Behind => {
            "no node that takes part sponsored it, so it may lack deletes that the other nodes have already collected"
        }
    }
}
