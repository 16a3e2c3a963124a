//! Continuous observation of a node: which life it is in, and what a watch of all keys reports.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvasir_proto::v1;
use kvasir_proto::v1::cluster_client::ClusterClient;
use kvasir_proto::v1::kv_client::KvClient;
use tonic::transport::Channel;

use crate::history::{Entry, History, Record, Version, What, text, version};
use crate::node::{channel, status};

/// How often a node is asked which life it is in.
const LOOK: Duration = Duration::from_millis(50);
/// A node that is silent for this long is asked again, on a new connection.
const PATIENCE: Duration = Duration::from_millis(700);
/// This process slept this much longer than intended.
const STALL: Duration = Duration::from_millis(400);

/// Records the lives of a node, forever.
pub(crate) async fn lives(node: usize, history: History) {
    let mut cluster = ClusterClient::new(channel(node));
    loop {
        let begin = history.now();
        match status(&mut cluster, PATIENCE).await {
            Some(status) => {
                let life = format!("{}/{}", status.member.unwrap_or_default().origin, status.returns);
                history.add(Record::Life { node, life, begin, end: history.now() });
            }
            None => cluster = ClusterClient::new(channel(node)),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Records when this process itself was delayed, forever.
pub(crate) async fn stalls(history: History) {
    loop {
        let (begin, slept) = (history.now(), tokio::time::Instant::now());
        tokio::time::sleep(LOOK).await;
        if slept.elapsed() > LOOK + STALL {
            history.add(Record::Stalled { begin, end: history.now() });
        }
    }
}

/// The content of a node according to its watch.
#[derive(Clone, Default)]
pub(crate) struct Watched(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    live: bool,
    map: BTreeMap<String, (Version, String)>,
}

impl Watched {
    /// The content, if a watch is open and has delivered all of it.
    pub(crate) fn entries(&self) -> Option<Vec<Entry>> {
        let state = self.lock();
        let entry = |(key, (version, value)): (&String, &(Version, String))| Entry {
            key: key.clone(),
            value: value.clone(),
            version: *version,
        };
        state.live.then(|| state.map.iter().map(entry).collect())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().expect("no thread panics with the lock")
    }

    /// Watches a node, forever.
    pub(crate) async fn keep(self, node: usize, history: History) {
        loop {
            // How a watch ends does not matter: what it reported must be right.
            let _ = self.watch(node, &history).await;
            *self.lock() = State::default();
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn watch(&self, node: usize, history: &History) -> Result<(), tonic::Status> {
        static STREAMS: AtomicU64 = AtomicU64::new(0);
        let stream = STREAMS.fetch_add(1, Ordering::Relaxed);
        let mut kv: KvClient<Channel> = KvClient::new(channel(node)).max_decoding_message_size(64 << 20);
        let request = v1::WatchRequest { content_first: true, ..v1::WatchRequest::default() };
        let mut messages = kv.watch(request).await?.into_inner();
        while let Some(message) = messages.message().await? {
            let at = history.now();
            if message.lost() != v1::WatchLost::No {
                break;
            }
            let mut state = self.lock();
            for event in message.events {
                let what = match event.kind() {
                    v1::WatchKind::Put => What::Put(text(&event.value)),
                    v1::WatchKind::Delete => What::Deleted,
                    v1::WatchKind::Expire => What::Expired,
                    v1::WatchKind::Unspecified => panic!("an event of no kind"),
                };
                let (key, version) = (event.key, version(event.version));
                match &what {
                    What::Put(value) => state.map.insert(key.clone(), (version, value.clone())),
                    What::Deleted | What::Expired => state.map.remove(&key),
                };
                history.add(Record::Watched { stream, node, at, key, version, what });
            }
            state.live |= message.live;
        }
        Ok(())
    }
}
