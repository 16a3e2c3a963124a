//! Watches of the map. Each has a bounded queue under the engine's lock. Without a watch the replica records no
//! changes, and watches cost nothing.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Notify;

use super::watcher::{Batch, Watcher};
use super::{Engine, Inner, ReadError};

/// How many watches may be open at a time.
pub const MAX_WATCHES: usize = 1024;

/// Why a watch was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The node does not serve yet.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Too many watches are open.
    #[error("{MAX_WATCHES} watches are open on this node, which is the limit: close some, or watch another node")]
    TooMany,
}

/// An open watch; dropping it closes it.
pub struct Watch {
    engine: Arc<Engine>,
    id: u64,
    waker: Arc<Notify>,
}

impl Engine {
    /// Opens a watch of the keys under `prefix`.
    pub fn watch(self: &Arc<Self>, prefix: &str, content_first: bool) -> Result<Watch, WatchError> {
        let mut inner = self.inner.lock();
        self.readable(&inner)?;
        if inner.watchers.len() >= MAX_WATCHES {
            return Err(WatchError::TooMany);
        }
        if inner.watchers.is_empty() {
            inner.replica.watch(true);
        }
        inner.next_watch += 1;
        let (id, waker) = (inner.next_watch, Arc::new(Notify::new()));
        let watcher = Watcher::new(Bytes::copy_from_slice(prefix.as_bytes()), content_first, waker.clone());
        inner.watchers.insert(id, watcher);
        Ok(Watch { engine: self.clone(), id, waker })
    }
}

impl Watch {
    /// Waits for the next events: at most `max_events`, and at most one event beyond `max_bytes`.
    pub async fn next(&self, max_events: usize, max_bytes: usize) -> Batch {
        loop {
            if let Some(batch) = self.poll(max_events, max_bytes) {
                return batch;
            }
            self.waker.notified().await;
        }
    }

    fn poll(&self, max_events: usize, max_bytes: usize) -> Option<Batch> {
        let mut inner = self.engine.inner.lock();
        let Inner { watchers, replica, .. } = &mut *inner;
        // The watcher exists until this handle is dropped.
        watchers.get_mut(&self.id)?.poll(replica, max_events, max_bytes)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut inner = self.engine.inner.lock();
        inner.watchers.remove(&self.id);
        if inner.watchers.is_empty() {
            inner.replica.watch(false);
        }
    }
}
