//! Dials peers: a task for each peer, which keeps a link to it up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::frame::FrameError;
use super::refusals::LinkError;
use super::secure::Side;
use super::{LinkTarget, Transport};

/// How long the process with the larger origin waits to be dialled.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// The pause between two attempts to dial the same peer.
pub const REDIAL: Duration = Duration::from_millis(500);
/// The least pause between two attempts, when links change quickly.
const LEAST_PAUSE: Duration = Duration::from_millis(20);

impl Transport {
    /// Keeps a task for each peer that should be linked.
    pub(super) async fn dial(self: Arc<Self>, mut targets: watch::Receiver<Vec<LinkTarget>>) {
        let mut dialling: BTreeMap<u64, (LinkTarget, CancellationToken)> = BTreeMap::new();
        loop {
            let wanted = targets.borrow_and_update().clone();
            dialling.retain(|_, (target, stop)| {
                let keep = wanted.contains(target);
                if !keep {
                    stop.cancel();
                }
                keep
            });
            for target in wanted {
                dialling.entry(target.origin).or_insert_with(|| {
                    let stop = self.stop.child_token();
                    let task = self.clone().keep_linked(target.clone());
                    self.tasks.spawn(stop.clone().run_until_cancelled_owned(task));
                    (target, stop)
                });
            }
            if targets.changed().await.is_err() {
                return;
            }
        }
    }

    /// Dials a peer repeatedly while no link to it is up.
    async fn keep_linked(self: Arc<Self>, target: LinkTarget) {
        let mut since = Instant::now();
        loop {
            let (linked, dials_first) = (self.is_linked(target.origin), self.engine.origin() < target.origin);
            if linked {
                since = Instant::now();
            }
            // A link whose key is no longer the primary one is replaced while it is up, so that replication never
            // pauses.
            let due = if linked {
                dials_first && self.is_outdated(target.origin)
            } else {
                dials_first || since.elapsed() >= PATIENCE
            };
            if due {
                match self.dial_once(&target).await {
                    Dialled::Ended(Ok(())) => {}
                    Dialled::Ended(Err(error)) => {
                        debug!(peer = target.name, address = %target.address, %error, "no link");
                        if !matches!(error, LinkError::Frame(FrameError::Io(_)) | LinkError::Slow(_)) {
                            self.refuse(target.address, &error);
                        }
                    }
                    Dialled::Outdated => continue,
                    Dialled::Stopped => return,
                }
            }
            let _ = timeout(REDIAL, self.changed.notified()).await;
            tokio::time::sleep(LEAST_PAUSE).await;
        }
    }

    /// Dials a peer, and returns when the link ended, or must be replaced by one with another key.
    async fn dial_once(self: &Arc<Self>, target: &LinkTarget) -> Dialled {
        // Read before the connection chooses its key, so that a change in between is noticed.
        let key = self.keys().map(|keys| keys.now().primary().id);
        let limit = self.options.port.handshake_timeout;
        let stream = match timeout(limit, TcpStream::connect(target.address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Dialled::Ended(Err(FrameError::from(error).into())),
            Err(_) => return Dialled::Ended(Err(LinkError::Slow(limit))),
        };
        // The connection has a task of its own, so that a link survives the removal of its peer from the targets.
        let (transport, name) = (self.clone(), Some(target.name.clone()));
        let task = async move { transport.connection(stream, Side::Dialled, name, || ()).await };
        tokio::select! {
            ended = self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(task)) => match ended {
                Ok(Some(result)) => Dialled::Ended(result),
                _ => Dialled::Stopped,
            },
            () = self.outdated(key) => Dialled::Outdated,
        }
    }
}

/// What became of a dialled connection.
enum Dialled {
    /// The connection failed, or the link ended.
    Ended(Result<(), LinkError>),
    /// The link is up, but its key is no longer the primary one.
    Outdated,
    /// The node shuts down.
    Stopped,
}
