//! What the engine keeps of a watch: how far it has walked, and its bounded queue.
//!
//! A watch that wants the content first walks through the map in key order. During the walk it receives changes only of
//! keys that it has passed: the walk will read the keys ahead with their changes. So an older state of a key never
//! follows a newer one, and the walk needs no copy of the map.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Notify;

use super::scan::{LIST_STEP, live};
use super::types::Value;
use crate::clock::Dot;
use crate::replica::{Change, Replica};
use crate::wall_clock::wall_ms;

/// How many events a watch may have in its queue ...
pub const QUEUE_EVENTS: usize = 4096;
/// ... and how many bytes of keys and values.
pub const QUEUE_BYTES: usize = 8 << 20;

/// What happened to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyEvent {
    /// The key has this value.
    Put(Value),
    /// The key was deleted by this write.
    Deleted(Dot),
    /// The value of this write reached its end.
    Expired(Dot),
}

/// Why a watch missed events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The client read too slowly.
    Slow,
    /// The map was replaced as a whole.
    Reset,
}

/// Events of a watch that are delivered together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// What happened, in order.
    pub events: Vec<(Bytes, KeyEvent)>,
    /// Whether the content is complete, and only changes follow. Set once.
    pub live: bool,
    /// Why events are missing; if set, nothing follows.
    pub lost: Option<Lost>,
}

/// How far a watch has walked through the content.
enum Walk {
    /// Up to and including this key.
    Content(Option<Bytes>),
    /// To the end, or no content was wanted; and whether that was reported.
    Live { reported: bool },
}

pub(super) struct Watcher {
    prefix: Bytes,
    walk: Walk,
    queue: VecDeque<(Bytes, KeyEvent)>,
    bytes: usize,
    lost: Option<Lost>,
    waker: Arc<Notify>,
}

impl Watcher {
    /// A watch of the keys under `prefix` that opens now; `waker` is notified when something is due.
    pub(super) fn new(prefix: Bytes, content_first: bool, waker: Arc<Notify>) -> Self {
        let walk = if content_first { Walk::Content(None) } else { Walk::Live { reported: false } };
        Self { prefix, walk, queue: VecDeque::new(), bytes: 0, lost: None, waker }
    }

    /// Queues an event, if it is for this watch.
    fn push(&mut self, key: Bytes, event: KeyEvent) {
        let passed = match &self.walk {
            Walk::Live { .. } => true,
            Walk::Content(last) => last.as_ref().is_some_and(|last| key <= *last),
        };
        if self.lost.is_some() || !passed || !key.starts_with(&self.prefix) {
            return;
        }
        self.bytes += size(&key, &event);
        self.queue.push_back((key, event));
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

    /// What is due, if anything is.
    pub(super) fn poll(&mut self, replica: &Replica, max_events: usize, max_bytes: usize) -> Option<Batch> {
        let (mut batch, mut bytes) = (Batch { lost: self.lost, ..Batch::default() }, 0);
        while batch.events.len() < max_events && bytes < max_bytes {
            let Some((key, event)) = self.queue.pop_front() else { break };
            bytes += size(&key, &event);
            batch.events.push((key, event));
        }
        self.bytes -= bytes;
        if self.lost.is_some() || !batch.events.is_empty() {
            return Some(batch);
        }
        match &mut self.walk {
            Walk::Live { reported: true } => None,
            Walk::Live { reported } => {
                *reported = true;
                Some(Batch { live: true, ..batch })
            }
            Walk::Content(_) => Some(self.next_content(replica, max_events, max_bytes)),
        }
    }

    /// The next part of the content.
    fn next_content(&mut self, replica: &Replica, max_events: usize, max_bytes: usize) -> Batch {
        let Walk::Content(last) = &mut self.walk else { return Batch::default() };
        let (mut batch, mut bytes) = (Batch::default(), 0);
        let now_ms = wall_ms();
        let start = last.clone();
        let mut records: Box<dyn Iterator<Item = _>> = match &start {
            Some(last) => Box::new(replica.store().scan(Some(last))),
            None => Box::new(replica.store().scan_from(&self.prefix)),
        };
        for _ in 0..LIST_STEP {
            if batch.events.len() >= max_events || bytes >= max_bytes {
                break;
            }
            let Some((key, record)) = records.next().filter(|(key, _)| key.starts_with(&self.prefix)) else {
                self.walk = Walk::Live { reported: true };
                batch.live = true;
                break;
            };
            if let Some(value) = live(record, now_ms) {
                bytes += key.len() + value.value.len();
                batch.events.push((key.clone(), KeyEvent::Put(value)));
            }
            *last = Some(key.clone());
        }
        // May be empty, if the step met only records without a live value: the next poll continues behind them.
        batch
    }
}

fn size(key: &Bytes, event: &KeyEvent) -> usize {
    key.len() + if let KeyEvent::Put(value) = event { value.value.len() } else { 0 }
}

/// Passes the replica's changes to the watchers.
pub(super) fn feed(watchers: &mut BTreeMap<u64, Watcher>, replica: &mut Replica) {
    if watchers.is_empty() {
        return;
    }
    for change in replica.take_changes() {
        let (key, event) = match change {
            Change::Wrote(key, record) => {
                let event = match record.value {
                    Some(value) => KeyEvent::Put(Value { value, dot: record.dot, expires_ms: record.expires_ms }),
                    // The value had already reached its end at the node that sent the record.
                    None if record.expires_ms.is_some() => KeyEvent::Expired(record.dot),
                    None => KeyEvent::Deleted(record.dot),
                };
                (key, event)
            }
            Change::Expired(key, dot) => (key, KeyEvent::Expired(dot)),
            Change::Reset => {
                for watcher in watchers.values_mut() {
                    watcher.lose(Lost::Reset);
                }
                continue;
            }
            Change::Evicted(_) | Change::Reissued(..) => continue,
        };
        for watcher in watchers.values_mut() {
            watcher.push(key.clone(), event.clone());
        }
    }
}
