//! The engine towards the transport: links come up and go, messages pass, and
//! the node may have to become another one.

use std::sync::Arc;
use std::time::Duration;

use kvasir_proto::peer::v1::{Message, Stranger};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Engine, FORMER_ORIGINS_KEPT, Inner, TICK, wall_ms};
use crate::replica::{LinkId, Namesake, PeerId, Violation};

/// How often a link must have had nothing to send until what was due when the
/// node left is on its way: the first time it is all there, the second time it
/// was written.
const IDLE_UNTIL_TOLD: u32 = 2;

/// What the engine keeps of the task that carries a link.
pub(super) struct LinkTask {
    pub(super) waker: Arc<Notify>,
    gone: CancellationToken,
    /// How often it had nothing to send since the node left.
    idle: u32,
}

/// A link that is up.
pub struct Linked {
    /// Its name.
    pub id: LinkId,
    /// Fires when there may be something to send.
    pub waker: Arc<Notify>,
    /// Cancelled once the link is up no more: a newer one replaced it, or the
    /// node began anew. The connection must be closed then.
    pub gone: CancellationToken,
}

impl Engine {
    /// A connection to a peer is up, to which this node is the process `me`.
    /// `None` if it is that no more: the peer must be told anew.
    pub fn link_up(&self, me: u64, peer: PeerId) -> Option<Linked> {
        let mut inner = self.inner.lock();
        if inner.replica.origin() != me {
            return None;
        }
        let id = inner.replica.link_up(peer);
        inner.link_changes += 1;
        let Inner { links, replica, .. } = &mut *inner;
        links.retain(|&id, link| {
            let stays = replica.is_up(id);
            if !stays {
                link.gone.cancel();
            }
            stays
        });
        let (waker, gone) = (Arc::new(Notify::new()), CancellationToken::new());
        links.insert(id, LinkTask { waker: waker.clone(), gone: gone.clone(), idle: 0 });
        self.after(&mut inner);
        Some(Linked { id, waker, gone })
    }

    /// The connection ended.
    pub fn link_down(&self, link: LinkId) {
        let mut inner = self.inner.lock();
        inner.replica.link_down(link);
        inner.link_changes += 1;
        inner.links.remove(&link);
        self.after(&mut inner);
    }

    /// Takes a message. On an error the link must be closed.
    pub fn receive(&self, link: LinkId, message: Message) -> Result<(), Violation> {
        let mut inner = self.inner.lock();
        let result = inner.replica.receive(link, message, wall_ms());
        self.after(&mut inner);
        drop(inner);
        self.heard.tell();
        result
    }

    /// The next message to send, if there is one.
    pub fn poll_send(&self, link: LinkId) -> Option<Message> {
        let mut inner = self.inner.lock();
        let message = inner.replica.poll_send(link, wall_ms());
        if inner.leaving
            && message.is_none()
            && let Some(task) = inner.links.get_mut(&link)
        {
            task.idle = task.idle.saturating_add(1);
        }
        message
    }

    /// This node as its peers are to know it.
    pub fn id(&self) -> PeerId {
        self.inner.lock().replica.id()
    }

    /// The process that this node's writes are of: another one after the node
    /// has begun anew.
    pub fn origin(&self) -> u64 {
        self.inner.lock().replica.origin()
    }

    /// Changes of [`Self::id`].
    pub fn subscribe_identity(&self) -> watch::Receiver<PeerId> {
        self.identity.subscribe()
    }

    /// The replica has taken another origin, and dropped all its links.
    pub(super) fn began_anew(&self, inner: &mut Inner) {
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
            "began anew: {}; what no member has of its entries will be issued again",
            reason(why)
        );
        self.identity.send_replace(id);
    }

    /// The node's name is another's: it has to hand over what it brings, and to end.
    pub(super) fn see_refusal(&self, inner: &mut Inner, holder: Namesake) {
        let writes = inner.replica.brought();
        if !std::mem::replace(&mut inner.refused, true) && writes > 0 {
            warn!(
                holder = format!("{:016x}", holder.origin),
                writes,
                "another process took this node's name while it was cut off: what no member has of its writes will be \
                 reissued, then it ends"
            );
        }
        if inner.replica.is_dismissed() {
            self.dismissed.send_if_modified(|dismissed| dismissed.replace(holder).is_none());
        }
    }

    /// The process that has this node's name, once this node is to end for it.
    pub fn subscribe_dismissal(&self) -> watch::Receiver<Option<Namesake>> {
        self.dismissed.subscribe()
    }

    /// The process that has this node's name, as far as the peers say.
    pub fn namesake(&self) -> Option<Namesake> {
        self.inner.lock().replica.namesake()
    }

    /// This node goes: its peers need not wait for its word. Returns whether
    /// all of them were told within `limit`.
    pub async fn leave(&self, limit: Duration) -> bool {
        {
            let mut inner = self.inner.lock();
            inner.leaving = true;
            inner.replica.leave(wall_ms());
            self.after(&mut inner);
        }
        let told = async {
            while self.inner.lock().links.values().any(|link| link.idle < IDLE_UNTIL_TOLD) {
                tokio::time::sleep(TICK).await;
            }
        };
        tokio::time::timeout(limit, told).await.is_ok()
    }
}

const fn reason(why: Stranger) -> &'static str {
    match why {
        Stranger::No => "its seat was ended before it held anything",
        Stranger::Ended => "its seat was ended by the others",
        Stranger::Foreign => "the others' map goes back to another founding",
        Stranger::Behind => "nobody who takes part let it in, so it may lack deletes that the others no longer have",
    }
}
