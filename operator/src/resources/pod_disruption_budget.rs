//! Lets a drain of Kubernetes nodes take one member at a time.
//!
//! A single member has none: with one allowed to be gone it would say nothing, and with none a drain would never end.

use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use super::metadata;
use crate::{labels, validate::ValidatedCluster};

/// Builds the budget of a cluster with more than one member.
pub fn build(cluster: &ValidatedCluster) -> Option<PodDisruptionBudget> {
    (cluster.replicas > 1).then(|| PodDisruptionBudget {
        metadata: metadata(cluster, cluster.name.clone()),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(LabelSelector {
                match_labels: Some(labels::selector(&cluster.name)),
                ..LabelSelector::default()
            }),
            // A member that is not ready serves nothing, and holds nothing that the ready ones do not: it must not hold up a
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
    use crate::validate::tests::valid;

    #[test]
    fn only_several_members_have_a_budget() {
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
