//! Watches as gRPC streams. A message is built only when the transport asks for it, so events for a slow client wait in
//! the engine's bounded queue.

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use kvasir_proto::v1::{WatchEvent, WatchKind, WatchLost, WatchRequest, WatchResponse};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::calls::{Calls, version};
use super::errors::of_watch;
use super::identify::denied;
use super::{LIST_MESSAGE_BYTES, LIST_MESSAGE_ENTRIES, limits, text};
use crate::config::Verb;
use crate::engine::{Batch, KeyEvent, Lost, Watch};
use crate::wall_clock::wall_ms;

struct WatchStream {
    watch: Watch,
    keys_only: bool,
    stop: CancellationToken,
    done: bool,
}

/// Opens a watch, which ends when `stop` is cancelled.
pub(super) fn watch(
    calls: &Calls,
    request: &WatchRequest,
    stop: CancellationToken,
) -> Result<BoxStream<'static, Result<WatchResponse, Status>>, Status> {
    limits::prefix(&request.prefix, &calls.limits)?;
    calls.caller.may_all(Verb::Watch, &request.prefix).map_err(denied)?;
    let watch = calls.engine.watch(&request.prefix, request.content_first).map_err(of_watch)?;
    let watching = WatchStream { watch, keys_only: request.keys_only, stop, done: false };
    Ok(stream::unfold(watching, async |mut watching| {
        if watching.done {
            return None;
        }
        let message = watching.next().await;
        watching.done = !matches!(&message, Ok(message) if message.lost() == WatchLost::No);
        Some((message, watching))
    })
    .boxed())
}

impl WatchStream {
    async fn next(&mut self) -> Result<WatchResponse, Status> {
        let batch = tokio::select! {
            batch = self.watch.next(LIST_MESSAGE_ENTRIES, LIST_MESSAGE_BYTES) => batch,
            () = self.stop.cancelled() => return Ok(WatchResponse { lost: WatchLost::Draining.into(), ..WatchResponse::default() }),
        };
        let Batch { events, live, lost } = batch;
        let now_ms = wall_ms();
        let events =
            events.into_iter().map(|(key, event)| self.event(&key, event, now_ms)).collect::<Result<_, _>>()?;
        let lost = match lost {
            None => WatchLost::No,
            Some(Lost::Slow) => WatchLost::Slow,
            Some(Lost::Reset) => WatchLost::Reset,
        };
        Ok(WatchResponse { events, live, lost: lost.into() })
    }

    fn event(&self, key: &Bytes, event: KeyEvent, now_ms: u64) -> Result<WatchEvent, Status> {
        let (kind, value, dot, ttl) = match event {
            KeyEvent::Put(value) => {
                let ttl = limits::remaining(value.expires_ms, now_ms);
                let bytes = if self.keys_only { Bytes::new() } else { value.value };
                (WatchKind::Put, bytes, value.dot, ttl)
            }
            KeyEvent::Deleted(dot) => (WatchKind::Delete, Bytes::new(), dot, None),
            KeyEvent::Expired(dot) => (WatchKind::Expire, Bytes::new(), dot, None),
        };
        Ok(WatchEvent { kind: kind.into(), key: text(key)?, value, version: Some(version(dot)), ttl })
    }
}
