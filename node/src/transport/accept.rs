//! Accepts connections of peers, within the limits of the peer port.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tracing::warn;

use super::Transport;
use super::secure::Side;
use crate::config::PeerPortConfig;
use crate::gate::Gate;

/// How long to wait after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Transport {
    pub(super) async fn accept(self: Arc<Self>, listener: TcpListener) {
        let PeerPortConfig { max_connections, max_connections_per_address, max_handshakes, .. } = self.options.port;
        let handshakes = Arc::new(Semaphore::new(max_handshakes));
        let gate = Gate::new(max_connections, max_connections_per_address);
        loop {
            let Ok(handshake) = handshakes.clone().acquire_owned().await else { return };
            let (stream, remote) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Most likely no file descriptor is free until another connection ends.
                    warn!(%error, "could not accept a peer's connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = gate.enter(remote.ip()) else {
                self.counters.crowded.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let transport = self.clone();
            self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(async move {
                let result = transport.connection(stream, Side::Accepted, None, || drop(handshake)).await;
                drop(permit);
                if let Err(error) = result {
                    transport.refuse(remote, &error);
                }
            }));
        }
    }
}
