//! Watches of the API server, each for itself, and whether they hear anything.
//!
//! One watch's failure delays no other: each has its own back-off, short enough that the operator is back within seconds
//! of the API server's return. After a failure a watch begins with a new list, so whatever changed meanwhile is seen, and
//! a list that arrived is the proof that the watch hears again. Knows nothing of what is watched, or why.

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

use crate::{api_error::ApiError, retry::Retry};

/// Until a watch that failed begins again. The longest wait, a connection and a list are to fit in five seconds.
const RETRY: Retry = Retry { first: Duration::from_millis(250), longest: Duration::from_secs(2) };
/// The API server ends a watch after so many seconds, and it is renewed. It is also how long a server that holds a
/// connection and sends nothing, not even bookmarks, can go unnoticed.
const RENEWED_AFTER: u32 = 60;
/// How long each part of a list may take.
const LIST_LIMIT: Duration = Duration::from_secs(30);
/// An operator that has heard nothing of some kind for this long is not ready.
pub const DEAF_AFTER: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

/// Whether one watch hears.
#[derive(Clone, Copy, Debug)]
struct Standing {
    /// Whether it ever did.
    heard: bool,
    /// Since when it does not; nothing while it does.
    silent_since: Option<Instant>,
}

/// All watches of this process; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Watches {
    standing: Arc<Mutex<BTreeMap<&'static str, Standing>>>,
    up: Family<KindLabel, Gauge>,
}

impl Watches {
    /// Adds the metric to those that are served.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "kvasir_operator_watch_up",
            "Whether the operator hears of changes of this kind of object: 1, or 0 while the watch is broken",
            self.up.clone(),
        );
    }

    /// A watch that has heard nothing yet. It counts until it is dropped.
    pub fn begin(&self, kind: &'static str) -> Watch {
        self.standing.lock().insert(kind, Standing { heard: false, silent_since: Some(Instant::now()) });
        self.up.get_or_create(&KindLabel { kind }).set(0);
        Watch { watches: self.clone(), kind, failures: 0, heard_at: None }
    }

    /// Which watches are deaf, in words: those that never heard anything, and those that have not for [`DEAF_AFTER`].
    pub fn deaf(&self) -> Option<String> {
        let standing = self.standing.lock();
        let deaf: Vec<String> = standing
            .iter()
            .filter_map(|(kind, standing)| {
                let silent = standing.silent_since?.elapsed();
                (!standing.heard || silent > DEAF_AFTER)
                    .then(|| format!("heard nothing of {kind} for {} s", silent.as_secs()))
            })
            .collect();
        (!deaf.is_empty()).then(|| deaf.join(", "))
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
    /// Everything there is was heard of.
    pub fn heard(&mut self) {
        let before = self.watches.standing.lock().insert(self.kind, Standing { heard: true, silent_since: None });
        self.watches.up.get_or_create(&KindLabel { kind: self.kind }).set(1);
        if let Some(Standing { heard: true, silent_since: Some(since) }) = before {
            let seconds = since.elapsed().as_secs();
            tracing::info!(kind = self.kind, seconds, "a watch of the API server hears again");
        }
        self.heard_at = Some(Instant::now());
    }

    /// The watch is broken; gives how long to wait before the next try.
    pub fn lost(&mut self, error: &str) -> Duration {
        let since = {
            let mut standing = self.watches.standing.lock();
            let standing = standing.entry(self.kind).or_insert(Standing { heard: false, silent_since: None });
            *standing.silent_since.get_or_insert_with(Instant::now)
        };
        self.watches.up.get_or_create(&KindLabel { kind: self.kind }).set(0);
        // A watch whose lists succeed and that then fails at once must not ask for list after list.
        if self.heard_at.take().is_some_and(|at| at.elapsed() > RETRY.longest) {
            self.failures = 0;
        }
        let wait = RETRY.jittered(self.failures);
        // A watch that expired, or met an API server that restarts, is usually back at the next try.
        if self.failures == 1 {
            tracing::warn!(kind = self.kind, error, "a watch of the API server is broken, trying again");
        } else {
            let seconds = since.elapsed().as_secs();
            tracing::debug!(kind = self.kind, error, seconds, "a watch of the API server is broken, trying again");
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

/// What happens to the objects of a kind, for ever. Errors are handled here: every item is an event.
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
            // A watch may be silent for as long as nothing changes; a list may not.
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
#[path = "watches_tests.rs"]
mod tests;
