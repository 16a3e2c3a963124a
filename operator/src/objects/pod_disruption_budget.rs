//! Lets a drain of Kubernetes nodes evict one member at a time.
//!
//! A single member has no budget: one that allows an eviction would be void, and one that does not would block a drain forever.

use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use super::metadata::metadata;
use crate::{cluster::ValidatedCluster, names};

/// Builds the budget of a cluster with more than one member.
pub fn build(cluster: &ValidatedCluster) -> Option<PodDisruptionBudget> {
    (cluster.replicas > 1).then(|| PodDisruptionBudget {
        metadata: metadata(cluster, cluster.name.clone()),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(LabelSelector {
                match_labels: Some(names::selector(&cluster.name)),
                ..LabelSelector::default()
            }),
            // A member that is not ready serves nothing, and holds nothing that the ready ones do not, so it must not block a
            // drain.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::validate::tests::valid;

    #[test]
    fn budget_needs_several_members() {
        assert_eq!(build(&valid("{replicas: 1}")), None);
        let spec = build(&valid("{replicas: 2}")).unwrap().spec.unwrap();
        assert_eq!(spec.max_unavailable, Some(IntOrString::Int(1)));
    }

    #[test]
    fn budget_lets_unready_members_go() {
        let spec = build(&valid("{replicas: 3}")).unwrap().spec.unwrap();
        assert_eq!(spec.unhealthy_pod_eviction_policy.as_deref(), Some("AlwaysAllow"));
    }
}
