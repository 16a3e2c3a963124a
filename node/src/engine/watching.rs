//! Watches of the map. Each has a bounded queue under the engine's lock; with no
//! watch the replica keeps no changes, and nothing is spent.
//!
//! A watch that wants the content first walks through the map in key order.
//! Until it is through, it is told only of changes to keys that it has passed:
//! those ahead it will read as they are then. So of one key nothing older ever
//! follows something newer, and nothing is kept for the walk.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Notify;

use super::{Engine, Inner, LIST_STEP, ReadError, Value, wall_ms};
use crate::clock::Dot;
use crate::replica::Change;

/// Watches that may be open at a time.
pub const MAX_WATCHES: usize = 1024;
/// Events that may wait for a watcher to take them ...
pub const QUEUE_EVENTS: usize = 4096;
/// ... and bytes of their keys and values.
pub const QUEUE_BYTES: usize = 8 << 20;

/// Why no watch was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The node does not serve yet.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Too many are open.
    #[error("{MAX_WATCHES} watches are open on this node, which is the limit: close some, or watch another node")]
    Crowded,
}

/// What happened to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happened {
    /// It has this value.
    Put(Value),
    /// It was deleted, by this write.
    Deleted(Dot),
    /// The value of this write came to its end.
    Expired(Dot),
}

/// Why a watch has lost its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// It was not read fast enough.
    Slow,
    /// The map was taken anew.
    Reset,
}

/// What a watch tells at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// What happened, in order.
    pub events: Vec<(Bytes, Happened)>,
    /// From here on it is told what happens; said once.
    pub live: bool,
    /// Nothing follows.
    pub lost: Option<Lost>,
}

enum Walk {
    /// Up to this key, the content was told.
    Content(Option<Bytes>),
    /// All of it was, or none was wanted; and whether that was said.
    Live { said: bool },
}

pub(super) struct Watcher {
    prefix: Bytes,
    walk: Walk,
    queue: VecDeque<(Bytes, Happened)>,
    bytes: usize,
    lost: Option<Lost>,
    waker: Arc<Notify>,
}

impl Watcher {
    fn take(&mut self, key: Bytes, happened: Happened) {
        let passed = match &self.walk {
            Walk::Live { .. } => true,
            Walk::Content(last) => last.as_ref().is_some_and(|last| key <= *last),
        };
        if self.lost.is_some() || !passed || !key.starts_with(&self.prefix) {
            return;
        }
        self.bytes += size(&key, &happened);
        self.queue.push_back((key, happened));
        if self.queue.len() > QUEUE_EVENTS || self.bytes > QUEUE_BYTES {
            self.lose(Lost::Slow);
        }
        self.waker.notify_one();
    }

    fn lose(&mut self, why: Lost) {
        self.queue = VecDeque::new();
        self.bytes = 0;
        self.lost.get_or_insert(why);
        self.waker.notify_one();
    }
}

fn size(key: &Bytes, happened: &Happened) -> usize {
    key.len() + if let Happened::Put(value) = happened { value.value.len() } else { 0 }
}

/// Tells the watchers what changed.
pub(super) fn feed(inner: &mut Inner) {
    if inner.watchers.is_empty() {
        return;
    }
    for change in inner.replica.take_changes() {
        let (key, happened) = match change {
            Change::Wrote(key, record) => {
                let happened = match record.value {
                    Some(value) => Happened::Put(Value { value, dot: record.dot, expires_ms: record.expires_ms }),
                    // A value that had come to its end where it comes from.
                    None if record.expires_ms.is_some() => Happened::Expired(record.dot),
                    None => Happened::Deleted(record.dot),
                };
                (key, happened)
            }
            Change::Expired(key, dot) => (key, Happened::Expired(dot)),
            Change::Reset => {
                inner.watchers.values_mut().for_each(|watcher| watcher.lose(Lost::Reset));
                continue;
            }
            Change::Evicted(_) | Change::Reissued(..) => continue,
        };
        for watcher in inner.watchers.values_mut() {
            watcher.take(key.clone(), happened.clone());
        }
    }
}

/// An open watch; closed when it is dropped.
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
            return Err(WatchError::Crowded);
        }
        if inner.watchers.is_empty() {
            inner.replica.watch(true);
        }
        inner.next_watch += 1;
        let (id, waker) = (inner.next_watch, Arc::new(Notify::new()));
        let watcher = Watcher {
            prefix: Bytes::copy_from_slice(prefix.as_bytes()),
            walk: if content_first { Walk::Content(None) } else { Walk::Live { said: false } },
            queue: VecDeque::new(),
            bytes: 0,
            lost: None,
            waker: waker.clone(),
        };
        inner.watchers.insert(id, watcher);
        Ok(Watch { engine: self.clone(), id, waker })
    }
}

impl Watch {
    /// What is next: waits until there is something. At most `max_events`, and
    /// not more than one above `max_bytes`.
    pub async fn next(&self, max_events: usize, max_bytes: usize) -> Told {
        loop {
            if let Some(told) = self.poll(max_events, max_bytes) {
                return told;
            }
            self.waker.notified().await;
        }
    }

    fn poll(&self, max_events: usize, max_bytes: usize) -> Option<Told> {
        let mut inner = self.engine.inner.lock();
        let Inner { watchers, replica, .. } = &mut *inner;
        // It is there until this handle is dropped.
        let watcher = watchers.get_mut(&self.id)?;
        let (mut told, mut bytes) = (Told { lost: watcher.lost, ..Told::default() }, 0);
        while told.events.len() < max_events && bytes < max_bytes {
            let Some((key, happened)) = watcher.queue.pop_front() else { break };
            bytes += size(&key, &happened);
            told.events.push((key, happened));
        }
        watcher.bytes -= bytes;
        if watcher.lost.is_some() || !told.events.is_empty() {
            return Some(told);
        }
        match &mut watcher.walk {
            Walk::Live { said: true } => None,
            Walk::Live { said } => {
                *said = true;
                Some(Told { live: true, ..told })
            }
            Walk::Content(last) => {
                let now_ms = wall_ms();
                let start = last.clone();
                let mut records: Box<dyn Iterator<Item = _>> = match &start {
                    Some(last) => Box::new(replica.store().scan(Some(last))),
                    None => Box::new(replica.store().scan_from(&watcher.prefix)),
                };
                for _ in 0..LIST_STEP {
                    if told.events.len() >= max_events || bytes >= max_bytes {
                        return Some(told);
                    }
                    let Some((key, record)) = records.next().filter(|(key, _)| key.starts_with(&watcher.prefix)) else {
                        watcher.walk = Walk::Live { said: true };
                        return Some(Told { live: true, ..told });
                    };
                    if let Some(value) = record.live(now_ms) {
                        bytes += key.len() + value.len();
                        let value = Value { value: value.clone(), dot: record.dot, expires_ms: record.expires_ms };
                        told.events.push((key.clone(), Happened::Put(value)));
                    }
                    *last = Some(key.clone());
                }
                // Nothing but what has ended: an empty message, and on it goes.
                Some(told)
            }
        }
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
