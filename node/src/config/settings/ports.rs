//! Settings of the client port, the peer port and the membership protocol.

use super::layers::settings;
use crate::config::DurationText;

settings! {
    /// Limits of the client port.
    ClientPortSettings {
        /// How many connections may be open; more are refused [default: 4096]
        #[arg(id = "client_max_connections", long = "client-port-max-connections", env = "KVASIR_CLIENT_PORT_MAX_CONNECTIONS", value_name = "NUMBER")]
        max_connections: usize,
        /// How many connections one address may have open [default: 1024]
        #[arg(id = "client_max_connections_per_address", long = "client-port-max-connections-per-address", env = "KVASIR_CLIENT_PORT_MAX_CONNECTIONS_PER_ADDRESS", value_name = "NUMBER")]
        max_connections_per_address: usize,
        /// How many calls one connection may have in progress; more wait [default: 256]
        #[arg(long = "client-port-max-streams", env = "KVASIR_CLIENT_PORT_MAX_STREAMS", value_name = "NUMBER")]
        max_streams: usize,
        /// How large the headers of a call may be [default: 16384]
        #[arg(long = "client-port-max-header-bytes", env = "KVASIR_CLIENT_PORT_MAX_HEADER_BYTES", value_name = "BYTES")]
        max_header_bytes: usize,
        /// How long the TLS and HTTP/2 handshakes of a connection may take [default: 10s]
        #[arg(id = "client_handshake_timeout", long = "client-port-handshake-timeout", env = "KVASIR_CLIENT_PORT_HANDSHAKE_TIMEOUT", value_name = "DURATION")]
        handshake_timeout: DurationText,
        /// How long a connection may have no call before it is closed; 0s means forever [default: 1h]
        #[arg(long = "client-port-idle-timeout", env = "KVASIR_CLIENT_PORT_IDLE_TIMEOUT", value_name = "DURATION")]
        idle_timeout: DurationText,
        /// How long a connection may be silent before the node sends a ping [default: 20s]
        #[arg(long = "client-port-keepalive-interval", env = "KVASIR_CLIENT_PORT_KEEPALIVE_INTERVAL", value_name = "DURATION")]
        keepalive_interval: DurationText,
        /// How long the answer to a ping may take [default: 10s]
        #[arg(long = "client-port-keepalive-timeout", env = "KVASIR_CLIENT_PORT_KEEPALIVE_TIMEOUT", value_name = "DURATION")]
        keepalive_timeout: DurationText,
    }
}

settings! {
    /// Limits of the peer port.
    PeerPortSettings {
        /// How many inbound connections may be open; more are refused [default: 1024]
        #[arg(id = "peer_max_connections", long = "peer-port-max-connections", env = "KVASIR_PEER_PORT_MAX_CONNECTIONS", value_name = "NUMBER")]
        max_connections: usize,
        /// How many inbound connections one address may have open [default: 256]
        #[arg(id = "peer_max_connections_per_address", long = "peer-port-max-connections-per-address", env = "KVASIR_PEER_PORT_MAX_CONNECTIONS_PER_ADDRESS", value_name = "NUMBER")]
        max_connections_per_address: usize,
        /// How many inbound connections may be in the handshake; more wait [default: 64]
        #[arg(long = "peer-port-max-handshakes", env = "KVASIR_PEER_PORT_MAX_HANDSHAKES", value_name = "NUMBER")]
        max_handshakes: usize,
        /// How long a handshake may take [default: 5s]
        #[arg(id = "peer_handshake_timeout", long = "peer-port-handshake-timeout", env = "KVASIR_PEER_PORT_HANDSHAKE_TIMEOUT", value_name = "DURATION")]
        handshake_timeout: DurationText,
    }
}

settings! {
    /// The membership protocol (SWIM), which finds out which nodes are alive.
    SwimSettings {
        /// How often the node probes one member; with one or two others 7/3 of this, with three 7/5 [default: 200ms]
        #[arg(long = "swim-probe-period", env = "KVASIR_SWIM_PROBE_PERIOD", value_name = "DURATION")]
        probe_period: DurationText,
        /// How long the node waits for the answer before it asks other members to probe [default: 80ms]
        #[arg(long = "swim-probe-timeout", env = "KVASIR_SWIM_PROBE_TIMEOUT", value_name = "DURATION")]
        probe_timeout: DurationText,
        /// How long a suspect has to refute the suspicion before it is declared dead [default: 1200ms]
        #[arg(long = "swim-suspicion", env = "KVASIR_SWIM_SUSPICION", value_name = "DURATION")]
        suspicion: DurationText,
        /// How often the node gossips, as long as it has updates to pass on [default: 100ms]
        #[arg(long = "swim-gossip-period", env = "KVASIR_SWIM_GOSSIP_PERIOD", value_name = "DURATION")]
        gossip_period: DurationText,
        /// How often the node asks a member for all members that it knows [default: 10s]
        #[arg(long = "swim-exchange-period", env = "KVASIR_SWIM_EXCHANGE_PERIOD", value_name = "DURATION")]
        exchange_period: DurationText,
        /// How often the node contacts some of the failed nodes again [default: 5s]
        #[arg(long = "swim-retry-period", env = "KVASIR_SWIM_RETRY_PERIOD", value_name = "DURATION")]
        retry_period: DurationText,
        /// How often the node announces itself to addresses that no member has [default: 2s]
        #[arg(long = "swim-announce-period", env = "KVASIR_SWIM_ANNOUNCE_PERIOD", value_name = "DURATION")]
        announce_period: DurationText,
        /// How long dead nodes are remembered, so that old updates cannot revive them [default: 1h]
        #[arg(long = "swim-forget-after", env = "KVASIR_SWIM_FORGET_AFTER", value_name = "DURATION")]
        forget_after: DurationText,
        /// How many members are asked to probe a member that did not answer [default: 3]
        #[arg(long = "swim-indirect-probes", env = "KVASIR_SWIM_INDIRECT_PROBES", value_name = "NUMBER")]
        indirect_probes: usize,
        /// How many members a round of gossip goes to [default: 3]
        #[arg(long = "swim-gossip-fanout", env = "KVASIR_SWIM_GOSSIP_FANOUT", value_name = "NUMBER")]
        gossip_fanout: usize,
        /// How many times one node passes on an update [default: 10]
        #[arg(long = "swim-transmissions", env = "KVASIR_SWIM_TRANSMISSIONS", value_name = "NUMBER")]
        transmissions: usize,
    }
}
