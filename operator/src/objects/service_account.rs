//! The `ServiceAccount` of members.

use k8s_openapi::api::core::v1::ServiceAccount;

use super::metadata::metadata;
use crate::cluster::ValidatedCluster;

/// Builds the `ServiceAccount`; pods request its token themselves.
pub fn build(cluster: &ValidatedCluster) -> ServiceAccount {
    ServiceAccount {
        metadata: metadata(cluster, cluster.name.clone()),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}
