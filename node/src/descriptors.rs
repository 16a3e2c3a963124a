//! The limit on the process's file descriptors, and limits of the ports that fit into it: a port that used up all
//! descriptors would block the other ports.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{debug, warn};

use crate::config::{ClientPortConfig, PeerPortConfig};

/// Descriptors reserved for everything but the connections that its ports accept: connections that the node opens,
/// those of the admin port, listeners and files. With a low limit the reserve is half of the limit.
const RESERVE: usize = 256;

/// Raises the process's limit on file descriptors as needed, and lowers the limits of the ports if it is too low for
/// them.
pub fn fit(client: &mut ClientPortConfig, peer: &mut PeerPortConfig) {
    let wanted = client.max_connections.saturating_add(peer.max_connections).saturating_add(RESERVE);
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
        "the limit on open files is too low for {clients} connections of clients and {peers} of peers, so fewer are \
         accepted: raise the limit (ulimit -n, LimitNOFILE), or lower clientPort.maxConnections"
    );
}

/// Raises the soft limit to the hard limit, unless the soft limit is at least `wanted`, and returns the soft limit.
fn raise(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let enough = limit.current.is_none_or(|current| current >= wanted as u64);
    let limit = if enough || limit.current == limit.maximum {
        limit
    } else {
        match setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
            Ok(()) => {
                debug!(from = limit.current, to = limit.maximum, "raised the limit on open files");
                Rlimit { current: limit.maximum, ..limit }
            }
            Err(error) => {
                warn!(%error, "could not raise the limit on open files");
                limit
            }
        }
    };
    limit.current.map_or(usize::MAX, |current| usize::try_from(current).unwrap_or(usize::MAX))
}

/// Divides what is `allowed` between the ports, in proportion to their limits, and scales the limits for each address.
fn share(client: &mut ClientPortConfig, peer: &mut PeerPortConfig, allowed: usize) {
    let left = allowed - RESERVE.min(allowed / 2);
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
    fn descriptors_are_shared_with_a_reserve() {
        // 768 are divided 4 to 1, and an address gets a quarter of each.
        assert_eq!(shared(1024), [(614, 153), (153, 38)]);
        assert_eq!(shared(200), [(80, 20), (20, 5)]);
        assert_eq!(shared(3), [(1, 1), (1, 1)]);
    }
}
