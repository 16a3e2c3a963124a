//! Watches of the API server, independent of each other, and whether each is up.
//!
//! A failed watch delays no other one: each has its own back-off, short enough that the operator is up to date within seconds
//! of the API server's return. After a failure a watch starts with a new list, so no change is missed; a complete list proves
//! that the watch is up. Knows nothing of what is watched, or why.

use std::{collections::BTreeMap, fmt::Debug, sync::Arc, time::Duration};

use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use kube::{Api, Resource};
use kube_runtime::watcher::{self, Event, watcher};
use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout};

use super::{error::ApiError, retry::Retry};

/// Back-off of a failed watch. The longest wait plus a connection and a list must fit into five seconds.
const RETRY: Retry = Retry { first: Duration::from_millis(250), longest: Duration::from_secs(2) };
/// The API server ends a watch after this many seconds, and the watch is renewed. So a server that holds a connection and sends
/// nothing, not even bookmarks, goes unnoticed for no longer than this.
const RENEWED_AFTER: u32 = 60;
/// Time limit for each page of a list.
const LIST_LIMIT: Duration = Duration::from_secs(30);
/// If a watch is broken for this long, the operator is not ready.
pub const BROKEN_AFTER: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

/// Whether one watch is up.
#[derive(Clone, Copy, Debug)]
struct Standing {
    /// Whether it was ever up.
    heard: bool,
    /// Since when it is broken; `None` while it is up.
    silent_since: Option<Instant>,
}

/// All watches of this process; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Watches {
    standing: Arc<Mutex<BTreeMap<&'static str, Standing>>>,
    up: Family<KindLabel, Gauge>,
}

impl Watches {
    /// Registers the metric.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "kvasir_operator_watch_up",
            "Whether the watch for this kind of object is up: 1, or 0 while it is broken",
            self.up.clone(),
        );
    }

    /// A new watch, which is not up before its first list. It counts until it is dropped.
    pub fn begin(&self, kind: &'static str) -> Watch {
        self.standing.lock().insert(kind, Standing { heard: false, silent_since: Some(Instant::now()) });
        self.up.get_or_create(&KindLabel { kind }).set(0);
        Watch { watches: self.clone(), kind, failures: 0, heard_at: None }
    }

    /// The broken watches, in words: those that were never up, and those that are broken for [`BROKEN_AFTER`].
    pub fn broken(&self) -> Option<String> {
        let standing = self.standing.lock();
        let broken: Vec<String> = standing
            .iter()
            .filter_map(|(kind, standing)| {
                let silent = standing.silent_since?.elapsed();
                (!standing.heard || silent > BROKEN_AFTER)
                    .then(|| format!("the watch of {kind} is broken for {} s", silent.as_secs()))
            })
            .collect();
        (!broken.is_empty()).then(|| broken.join(", "))
    }
}

/// One watch among [`Watches`].
#[derive(Debug)]
pub struct Watch {
    watches: Watches,
    kind: &'static str,
    failures: u32,
    heard_at: Option<Instant>,
}

impl Watch {
    /// Notes that the watch is up: a list is complete.
    pub fn heard(&mut self) {
        let before = self.watches.standing.lock().insert(self.kind, Standing { heard: true, silent_since: None });
        self.watches.up.get_or_create(&KindLabel { kind: self.kind }).set(1);
        if let Some(Standing { heard: true, silent_since: Some(since) }) = before {
            let seconds = since.elapsed().as_secs();
            tracing::info!(kind = self.kind, seconds, "a watch of the API server is up again");
        }
        self.heard_at = Some(Instant::now());
    }

    /// Notes that the watch is broken, and returns how long to wait before the next try.
    pub fn lost(&mut self, error: &str) -> Duration {
        let since = {
            let mut standing = self.watches.standing.lock();
            let standing = standing.entry(self.kind).or_insert(Standing { heard: false, silent_since: None });
            *standing.silent_since.get_or_insert_with(Instant::now)
        };
        self.watches.up.get_or_create(&KindLabel { kind: self.kind }).set(0);
        // Otherwise a watch that fails right after each successful list would request list after list.
        if self.heard_at.take().is_some_and(|at| at.elapsed() > RETRY.longest) {
            self.failures = 0;
        }
        let wait = RETRY.jittered(self.failures);
        // A watch that expired, or whose API server restarts, usually works at the next try.
        if self.failures == 1 {
            tracing::warn!(kind = self.kind, error, "a watch of the API server is broken, retrying");
        } else {
            let seconds = since.elapsed().as_secs();
            tracing::debug!(kind = self.kind, error, seconds, "a watch of the API server is broken, retrying");
        }
        self.failures = self.failures.saturating_add(1);
        wait
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.watches.standing.lock().remove(self.kind);
        self.watches.up.remove(&KindLabel { kind: self.kind });
    }
}

struct Watching<K> {
    api: Api<K>,
    config: watcher::Config,
    watch: Watch,
    stream: Option<BoxStream<'static, watcher::Result<Event<K>>>>,
    listed: bool,
}

/// The changes of the objects of a kind, without end. Errors are handled here: every item is an event.
pub fn events<K>(
    api: Api<K>,
    config: watcher::Config,
    watch: Watch,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = config.timeout(RENEWED_AFTER);
    let watching = Watching { api, config, watch, stream: None, listed: false };
    stream::unfold(watching, |mut watching| async move {
        loop {
            let Watching { api, config, watch, stream, listed } = &mut watching;
            let open = stream.get_or_insert_with(|| watcher(api.clone(), config.clone()).boxed());
            // A watch may be silent while nothing changes; a list may not.
            let next = if *listed { Ok(open.next().await) } else { timeout(LIST_LIMIT, open.next()).await };
            let error = match next {
                Ok(Some(Ok(event))) => {
                    match &event {
                        Event::InitDone => {
                            *listed = true;
                            watch.heard();
                        }
                        Event::Init => *listed = false,
                        Event::InitApply(_) | Event::Apply(_) | Event::Delete(_) => {}
                    }
                    return Some((Ok(event), watching));
                }
                Ok(Some(Err(error))) => words(error),
                Ok(None) => "it ended".to_owned(),
                Err(_) => format!("no list within {} s", LIST_LIMIT.as_secs()),
            };
            (*stream, *listed) = (None, false);
            let wait = watch.lost(&error);
            sleep(wait).await;
        }
    })
}

fn words(error: watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => ApiError::from(error).to_string(),
        watcher::Error::WatchError(status) => ApiError::from(kube::Error::Api(status)).to_string(),
        error @ watcher::Error::NoResourceVersion => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
