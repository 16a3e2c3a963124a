//! The first step of a start: the sockets.

use std::net::SocketAddr;

use tokio::net::{TcpListener, UdpSocket};

use super::NodeError;
use crate::config::Config;

/// The addresses that a node listens on: as configured, with port 0 replaced by the port that was assigned.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// gRPC.
    pub client: SocketAddr,
    /// Replication (TCP) and membership (UDP).
    pub peer: SocketAddr,
    /// HTTP.
    pub admin: SocketAddr,
}

/// The sockets of a node. All are bound before anything runs, so a node that lacks a port contacts no peer.
pub(super) struct Sockets {
    pub(super) client: TcpListener,
    pub(super) peer_tcp: TcpListener,
    pub(super) peer_udp: UdpSocket,
    pub(super) admin: TcpListener,
    pub(super) addresses: Addresses,
}

impl Sockets {
    pub(super) async fn bind(config: &Config) -> Result<Self, NodeError> {
        let failed = |setting, address| move |source| NodeError::Bind { setting, address, source };
        let tcp = async |setting, address| {
            let listener = TcpListener::bind(address).await.map_err(failed(setting, address))?;
            let bound = listener.local_addr().map_err(failed(setting, address))?;
            Ok::<_, NodeError>((listener, bound))
        };
        let (client, client_at) = tcp("clientAddress", config.client_address).await?;
        let (peer_tcp, peer_at) = tcp("peerAddress", config.peer_address).await?;
        let (admin, admin_at) = tcp("adminAddress", config.admin_address).await?;
        let peer_udp = UdpSocket::bind(peer_at).await.map_err(failed("peerAddress", peer_at))?;
        let addresses = Addresses { client: client_at, peer: peer_at, admin: admin_at };
        Ok(Self { client, peer_tcp, peer_udp, admin, addresses })
    }
}
