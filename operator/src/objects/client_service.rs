//! The Service by which clients without a sidecar reach any ready member.

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::metadata::metadata;
use crate::{
    cluster::ValidatedCluster,
    names::{self, CLIENT, CLIENT_PORT},
};

/// Builds the Service.
pub fn build(cluster: &ValidatedCluster) -> Service {
    Service {
        metadata: metadata(cluster, cluster.name.clone()),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: Some(names::selector(&cluster.name)),
            ports: Some(vec![ServicePort {
                name: Some(CLIENT.to_owned()),
                protocol: Some("TCP".to_owned()),
                port: CLIENT_PORT,
                target_port: Some(IntOrString::String(CLIENT.to_owned())),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}
