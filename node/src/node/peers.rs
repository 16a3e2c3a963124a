//! Between membership, discovery and those who need to know who is there: the
//! transport, which links to every member, and the replica, which may found a
//! cluster only when nobody else is in sight.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::overview::{Overview, Sight};
use crate::engine::Engine;
use crate::membership::{MemberInfo, OriginStart};
use crate::refusals::Unjoinable;
use crate::replica::{PeerId, View};
use crate::transport::Peer;

/// How often the links are compared with what was found; they have no channel
/// of their own to tell of a change.
const LOOK: Duration = Duration::from_millis(50);

type Members = watch::Receiver<Arc<Vec<MemberInfo>>>;

/// The members as peers to be linked to.
pub(super) fn to_link(mut members: Members, stop: CancellationToken) -> watch::Receiver<Vec<Peer>> {
    let (out, peers) = watch::channel(Vec::new());
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        loop {
            let now = members.borrow_and_update().iter().map(peer).collect::<Vec<_>>();
            out.send_if_modified(|before| {
                let changed = *before != now;
                *before = now;
                changed
            });
            if members.changed().await.is_err() {
                return;
            }
        }
    }));
    peers
}

/// Keeps membership's idea of this node as the replica's: when the one begins
/// anew, so does the other.
pub(super) async fn live_on(mut identity: watch::Receiver<PeerId>, life: watch::Sender<OriginStart>) {
    while identity.changed().await.is_ok() {
        let (origin, started_ms) = {
            let id = identity.borrow_and_update();
            (id.origin, id.started_ms)
        };
        life.send_replace((origin, started_ms));
    }
}

fn peer(member: &MemberInfo) -> Peer {
    let id = &member.id;
    Peer { origin: id.origin, address: id.peer_address, name: id.name.clone() }
}

/// Keeps the engine's view of who else there is.
pub(super) async fn keep_view(engine: Arc<Engine>, overview: Overview) {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let (linked, links) = engine.linked();
        let Sight { answered, unreached, unjoinable: Unjoinable { named, strangers }, .. } = overview.sight(&linked);
        let view = View { answered, unlinked: unreached.len(), refused: named.len(), strangers: strangers.len() };
        engine.set_view(view, links);
    }
}
