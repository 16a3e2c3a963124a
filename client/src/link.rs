//! The connection to a node, and its replacement by another. Knows nothing of the calls made over it.

use crate::Error;
use crate::credentials::Credentials;
use std::sync::{Mutex, PoisonError};
use tonic::transport::{Channel, Endpoint};

/// One connection at a time, shared by all calls.
///
/// A tonic channel keeps its connection as long as the connection stays up. Behind a Kubernetes Service such a connection
/// leads to the same node forever, even if that node only answers that it is draining. So a call that failed drops the
/// channel; the next call connects again, and the Service picks a node that is ready.
#[derive(Debug)]
pub(crate) struct Link {
    /// Without certificates, which are read again for each connection.
    endpoint: Endpoint,
    credentials: Credentials,
    current: Mutex<Current>,
}

/// A channel and its number in the sequence of channels.
#[derive(Debug, Clone)]
pub(crate) struct Current {
    pub(crate) channel: Channel,
    generation: u64,
}

impl Link {
    pub(crate) fn new(endpoint: Endpoint, credentials: Credentials) -> Result<Self, Error> {
        let channel = credentials.apply(endpoint.clone())?.connect_lazy();
        Ok(Self { endpoint, credentials, current: Mutex::new(Current { channel, generation: 0 }) })
    }

    pub(crate) fn current(&self) -> Current {
        self.lock().clone()
    }

    /// Replaces `failed`, unless another call that failed on the same channel has done so. Calls in progress on the old
    /// channel end there.
    pub(crate) fn renew(&self, failed: &Current) {
        let mut current = self.lock();
        if current.generation == failed.generation {
            // If the files are not usable now, keep the old channel, which reconnects by itself.
            let channel = match self.credentials.apply(self.endpoint.clone()) {
                Ok(endpoint) => endpoint.connect_lazy(),
                Err(_) => failed.channel.clone(),
            };
            *current = Current { channel, generation: failed.generation + 1 };
        }
    }

    /// Takes over a connection that the builder made.
    pub(crate) fn adopt(&self, channel: Channel) {
        let mut current = self.lock();
        *current = Current { channel, generation: current.generation + 1 };
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Current> {
        // Every write replaces the whole value, so a panic cannot have left it half written.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::{Credentials, Link};
    use tonic::transport::Endpoint;

    #[tokio::test]
    async fn link_is_renewed_once_for_many_failures() {
        let link = Link::new(Endpoint::from_static("http://127.0.0.1:1"), Credentials::default()).unwrap();
        let (first, also_first) = (link.current(), link.current());
        link.renew(&first);
        let second = link.current();
        link.renew(&also_first);
        assert_eq!(second.generation, 1);
        assert_eq!(link.current().generation, 1, "a call that failed on an old channel must not drop the new one");
    }
}
