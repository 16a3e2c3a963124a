//! The second step of a start: the keys, certificates, tokens and rules that protect the ports. All are loaded before
//! the node contacts a peer, and reloaded when their files change.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::NodeError;
use crate::auth::Auth;
use crate::config::Config;
use crate::encryption::Keys;
use crate::encryption::datagram::Sealer;
use crate::reload::Reloads;
use crate::tls::{ClientPortTls, Clients, Expiries, PeerTls};
use crate::transport::Protection;

/// What protects the ports of a node.
pub(super) struct Protected {
    /// How links are protected.
    pub(super) links: Protection,
    /// Encrypts datagrams, if the node has keys.
    pub(super) sealer: Option<Arc<Sealer>>,
    /// TLS on the client port.
    pub(super) tls: Option<ClientPortTls>,
    /// Which clients may do what.
    pub(super) auth: Auth,
    pub(super) reloads: Reloads,
    pub(super) expiries: Expiries,
}

impl Protected {
    pub(super) fn load(config: &Config, client: SocketAddr, stop: &CancellationToken) -> Result<Self, NodeError> {
        let (reloads, expiries) = (Reloads::default(), Expiries::default());
        let failed = |setting| move |why| NodeError::Security { setting, why };
        let keys = config.encryption.as_ref().map(|from| Keys::start(from, &reloads, stop.clone()));
        let keys = keys.transpose().map_err(NodeError::Encryption)?;
        let peer_tls = config.peer_tls.as_ref().map(|from| PeerTls::start(from, &reloads, &expiries, stop.clone()));
        let links = match (&keys, peer_tls.transpose().map_err(failed("peerTls"))?) {
            (Some(keys), _) => Protection::Keys(keys.clone()),
            (None, Some(tls)) => Protection::Tls(tls),
            (None, None) => Protection::None,
        };
        // A client needs no certificate if `auth` offers another way to identify itself.
        let clients = if config.auth.is_some() { Clients::May } else { Clients::Must };
        let tls = config.tls.as_ref();
        let tls = tls.map(|from| ClientPortTls::start(from, clients, &reloads, &expiries, stop.clone()));
        let tls = tls.transpose().map_err(failed("tls"))?;
        let (rules, rules_file) = (config.access.clone(), config.access_file.clone());
        let auth = Auth::start(config.auth.as_ref(), rules, rules_file, &reloads, stop).map_err(failed("auth"))?;
        warn_of_open_ports(config, client);
        let sealer = keys.map(|keys| Arc::new(Sealer::new(keys, config.max_clock_skew)));
        Ok(Self { links, sealer, tls, auth, reloads, expiries })
    }
}

/// Warns once of what the network can see or do on the ports.
fn warn_of_open_ports(config: &Config, client: SocketAddr) {
    if !client.ip().to_canonical().is_loopback() {
        if config.auth.is_none() {
            warn!(address = %client, "every client that reaches the client port may do everything: set auth");
        } else if config.tls.is_none() {
            warn!(address = %client, "tokens and values cross the client port in the clear: set tls");
        }
    }
    if config.peer_tls.is_some() {
        warn!(
            "peerTls protects only links: membership datagrams (UDP) are neither encrypted nor authenticated, and a host that \
             reaches the peer port can make members look dead; restrict access to that port, or use encryption instead"
        );
    }
}
