//! How many files and connections the system lets the process have open, and
//! limits of the ports that fit into it: a port that lets in more than that
//! would leave nothing to the others.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{debug, warn};

use crate::config::{ClientPortConfig, PeerPortConfig};

/// What a node has open beside the connections that its ports let in: those it
/// opens itself, the admin port's, listeners and files. Where little is allowed
/// at all, half of that.
const BESIDE: usize = 256;

/// Lets the process open as many as the system allows, and lowers the limits of
/// the ports if that is too little for them.
pub fn fit(client: &mut ClientPortConfig, peer: &mut PeerPortConfig) {
    let wanted = client.max_connections.saturating_add(peer.max_connections).saturating_add(BESIDE);
    let allowed = raise(wanted);
    if allowed >= wanted {
        return;
    }
    let (clients, peers) = (client.max_connections, peer.max_connections);
    share(client, peer, allowed);
    warn!(
        allowed,
        wanted,
        clients = client.max_connections,
        peers = peer.max_connections,
        "the system lets this process open too few files for {clients} connections of clients and {peers} of peers: \
         raise the limit (ulimit -n, LimitNOFILE), or lower clientPort.maxConnections; fewer are let in until then"
    );
}

/// Raises the soft limit to the hard one, unless it is `wanted` already, and
/// returns what is allowed then.
fn raise(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let enough = limit.current.is_none_or(|current| current >= wanted as u64);
    let limit = if enough || limit.current == limit.maximum {
        limit
    } else {
        match setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
            Ok(()) => {
                debug!(from = limit.current, to = limit.maximum, "raised how many files may be open");
                Rlimit { current: limit.maximum, ..limit }
            }
            Err(error) => {
                warn!(%error, "could not raise how many files may be open");
                limit
            }
        }
    };
    limit.current.map_or(usize::MAX, |current| usize::try_from(current).unwrap_or(usize::MAX))
}

/// Gives both ports their part of what is `allowed`, and each address its part of that.
fn share(client: &mut ClientPortConfig, peer: &mut PeerPortConfig, allowed: usize) {
    let left = allowed - BESIDE.min(allowed / 2);
    let both = client.max_connections + peer.max_connections;
    for (max, per_address) in [
        (&mut client.max_connections, &mut client.max_connections_per_address),
        (&mut peer.max_connections, &mut peer.max_connections_per_address),
    ] {
        let lowered = (left * *max / both).max(1);
        *per_address = (*per_address.min(max) * lowered / *max).max(1);
        *max = lowered;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(allowed: usize) -> [(usize, usize); 2] {
        let (mut client, mut peer) = (ClientPortConfig::DEFAULT, PeerPortConfig::DEFAULT);
        share(&mut client, &mut peer, allowed);
        [
            (client.max_connections, client.max_connections_per_address),
            (peer.max_connections, peer.max_connections_per_address),
        ]
    }

    #[test]
    fn what_the_system_allows_is_shared_out_and_something_is_left_for_the_rest() {
        // Of 768: four parts and one, and a quarter of each to an address.
        assert_eq!(shared(1024), [(614, 153), (153, 38)]);
        assert_eq!(shared(200), [(80, 20), (20, 5)]);
        assert_eq!(shared(3), [(1, 1), (1, 1)]);
    }
}
