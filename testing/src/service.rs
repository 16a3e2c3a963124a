//! A stand-in for a Kubernetes Service: forwards connections.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Forwards each new connection to the current backend, and leaves open connections where they are, as kube-proxy does
/// for a Service.
pub struct Service {
    /// Where it listens.
    pub address: SocketAddr,
    backend: Arc<Mutex<SocketAddr>>,
    connections: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Service {
    /// A Service in front of this backend.
    pub async fn before(backend: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let backend = Arc::new(Mutex::new(backend));
        let connections = Arc::new(AtomicU64::new(0));
        let (to, count) = (backend.clone(), connections.clone());
        let task = tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let to = *to.lock().unwrap();
                tokio::spawn(async move {
                    if let Ok(mut node) = TcpStream::connect(to).await {
                        // Either end may close at any time, which is what the tests are about.
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut node).await;
                    }
                });
            }
        });
        Self { address, backend, connections, task }
    }

    /// Sends further connections to another backend.
    pub fn point_to(&self, backend: SocketAddr) {
        *self.backend.lock().unwrap() = backend;
    }

    /// How many connections it accepted.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }
}
