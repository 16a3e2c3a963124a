//! The engine as the transport uses it: links come up and go down, and messages pass.

use std::sync::Arc;

use kvasir_proto::peer::v1::Message;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::link_task::{LinkHandle, LinkTask};
use super::{Engine, Inner};
use crate::replica::{LinkId, PeerId, Violation};
use crate::wall_clock::wall_ms;

impl Engine {
    /// The origins of the linked processes, and a figure that rises with each change of links, for [`Self::set_view`].
    pub fn linked(&self) -> (Vec<u64>, u64) {
        let inner = self.inner.lock();
        (inner.replica.linked().collect(), inner.link_changes)
    }

    /// Adds a link to a peer, to which this node introduced itself with the origin `me`. Returns `None` if the origin
    /// has changed since: the handshake must be repeated.
    pub fn link_up(&self, me: u64, peer: PeerId) -> Option<LinkHandle> {
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
        Some(LinkHandle { id, waker, gone })
    }

    /// Drops a link whose connection ended.
    pub fn link_down(&self, link: LinkId) {
        let mut inner = self.inner.lock();
        inner.replica.link_down(link);
        inner.link_changes += 1;
        inner.links.remove(&link);
        self.after(&mut inner);
    }

    /// Processes a message. On an error the link must be closed.
    pub fn receive(&self, link: LinkId, message: Message) -> Result<(), Violation> {
        let mut inner = self.inner.lock();
        let result = inner.replica.receive(link, message, wall_ms());
        self.after(&mut inner);
        drop(inner);
        self.wakeups.notify();
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
}
