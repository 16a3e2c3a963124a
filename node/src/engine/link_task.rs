//! The task that carries a link: what the engine keeps of the task, and what the task gets from the engine.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::replica::LinkId;

/// How often a link of a leaving node must have nothing to send before everything is on its way: the first time the
/// last message was taken, the second time it was written.
pub(super) const IDLE_UNTIL_SENT: u32 = 2;

/// What the engine keeps of the task that carries a link.
pub(super) struct LinkTask {
    pub(super) waker: Arc<Notify>,
    pub(super) gone: CancellationToken,
    /// How often the link had nothing to send since the node began to leave.
    pub(super) idle: u32,
}

/// A link that is up, for the task that carries it.
pub struct LinkHandle {
    /// The link's ID in the replica.
    pub id: LinkId,
    /// Notified when there may be something to send.
    pub waker: Arc<Notify>,
    /// Cancelled when the connection must be closed: a newer link replaced this one, or the node rejoined.
    pub gone: CancellationToken,
}
