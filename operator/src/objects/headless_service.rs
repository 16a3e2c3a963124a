//! The Service by which members find each other, ready or not.
//!
//! A member becomes ready only after it has found the others, so this Service must not wait for readiness. Sidecars look up the
//! same name.

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::metadata::metadata;
use crate::{
    cluster::ValidatedCluster,
    names::{self, CLIENT, CLIENT_PORT, PEER, PEER_PORT, PEER_UDP},
};

/// Builds the Service.
pub fn build(cluster: &ValidatedCluster) -> Service {
    let port = |name: &str, protocol: &str, port: i32| ServicePort {
        name: Some(name.to_owned()),
        protocol: Some(protocol.to_owned()),
        port,
        target_port: Some(IntOrString::String(name.to_owned())),
        ..ServicePort::default()
    };
    Service {
        metadata: metadata(cluster, names::headless_service(&cluster.name)),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(names::selector(&cluster.name)),
            ports: Some(vec![
                port(CLIENT, "TCP", CLIENT_PORT),
                port(PEER, "TCP", PEER_PORT),
                port(PEER_UDP, "UDP", PEER_PORT),
            ]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::validate::tests::valid;

    #[test]
    fn headless_service_has_members_not_ready() {
        let service = build(&valid("{}"));
        let spec = service.spec.unwrap();
        assert_eq!(service.metadata.name.as_deref(), Some("demo-peers"));
        assert_eq!(spec.publish_not_ready_addresses, Some(true));
        assert_eq!(spec.cluster_ip.as_deref(), Some("None"));
        let names: Vec<_> = spec.ports.unwrap().into_iter().filter_map(|port| port.name).collect();
        assert_eq!(names, ["client", "peer", "peer-udp"]);
    }
}
