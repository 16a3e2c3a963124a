//! Connects membership and discovery with the parts that depend on them: the transport links to every member, and the
//! replica may found a cluster only if it knows of no other node.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::engine::Engine;
use crate::membership::{MemberInfo, OriginStart};
use crate::overview::{Observed, Overview};
use crate::refusals::Unjoinable;
use crate::replica::{PeerId, View};
use crate::transport::LinkTarget;

/// How often links are compared with what was found. Polled, because links have no channel that announces changes.
const LOOK: Duration = Duration::from_millis(50);

type Members = watch::Receiver<Arc<Vec<MemberInfo>>>;

/// The members as peers to link to.
pub(super) fn link_targets(mut members: Members, stop: CancellationToken) -> watch::Receiver<Vec<LinkTarget>> {
    let (out, targets) = watch::channel(Vec::new());
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        loop {
            let now = members.borrow_and_update().iter().map(target).collect::<Vec<_>>();
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
    targets
}

fn target(member: &MemberInfo) -> LinkTarget {
    let id = &member.id;
    LinkTarget { origin: id.origin, address: id.peer_address, name: id.name.clone() }
}

/// Keeps membership's identity of this node equal to the replica's: when the replica rejoins, membership does too.
pub(super) async fn follow_identity(mut identity: watch::Receiver<PeerId>, process: watch::Sender<OriginStart>) {
    while identity.changed().await.is_ok() {
        let (origin, started_ms) = {
            let id = identity.borrow_and_update();
            (id.origin, id.started_ms)
        };
        process.send_replace((origin, started_ms));
    }
}

/// Keeps the engine's view of the other nodes current.
pub(super) async fn keep_view(engine: Arc<Engine>, overview: Overview) {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let (linked, link_changes) = engine.linked();
        let Observed { answered, unreached, unjoinable: Unjoinable { named, strangers } } = overview.observed(&linked);
        let view = View { answered, unlinked: unreached.len(), refused: named.len(), strangers: strangers.len() };
        engine.set_view(view, link_changes);
    }
}
