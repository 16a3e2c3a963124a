//! The account that members run as.

use k8s_openapi::api::core::v1::ServiceAccount;

use super::metadata;
use crate::validate::ValidatedCluster;

/// Builds the account; the pods themselves ask for its token.
pub fn build(cluster: &ValidatedCluster) -> ServiceAccount {
    ServiceAccount {
        metadata: metadata(cluster, cluster.name.clone()),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}
