//! The condition Redundant: whether one failure can lose keys.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kvasir_crds::condition;

use super::{
    data::founded,
    members::CONVERGED_LAG_MS,
    observed::Observed,
    verdict::{NO_MEMBER_READY, NOT_SEEN, Truth, Verdict},
};
use crate::{pod_status::is_ready, reconcile::poll::NodeStatus};

/// The spec asks for one member, which can never be redundant.
pub(crate) const SINGLE_MEMBER: &str = "SingleMember";
/// All members that hold the keys are on one Kubernetes node.
pub(crate) const ONE_MACHINE: &str = "OneMachine";
const ONE_MEMBER_READY: &str = "OneMemberReady";
const NOT_CONVERGED: &str = "NotConverged";
const REDUNDANT: &str = "Redundant";

/// Whether any one pod or Kubernetes node may fail without the loss of a key. Members count, but not sidecars, whose pods end
/// with their application.
pub(super) fn redundant(observed: &Observed) -> Verdict {
    let verdict = |truth, reason, message: String| Verdict { type_: condition::REDUNDANT, truth, reason, message };
    if observed.cluster.spec.replicas == 1 {
        let message = "there is one member: all keys are lost when its pod is replaced, by a rollout or a drain for example. Set \
                       spec.replicas to 2 or more to keep them";
        return verdict(Truth::False, SINGLE_MEMBER, message.to_owned());
    }
    let ready: Vec<&Pod> = observed.pods.iter().filter(|pod| is_ready(pod)).collect();
    match ready.as_slice() {
        [] => {
            return verdict(Truth::False, NO_MEMBER_READY, "no member is ready: see the Degraded condition".to_owned());
        }
        [only] => {
            let message = format!("only {} is ready: all keys are lost if it fails now", only.name_any());
            return verdict(Truth::False, ONE_MEMBER_READY, message);
        }
        _ => {}
    }
    let machine = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
    let machines: BTreeSet<String> = ready.iter().map(|pod| machine(pod)).collect();
    if machines.len() == 1 {
        let machine = machines.first().map(String::as_str).unwrap_or_default();
        let message = format!(
            "all {} ready members are on the Kubernetes node {machine}: all keys are gone if it fails. Add a node or make \
             room on another one, then delete one of the pods so that it is scheduled there",
            ready.len()
        );
        return verdict(Truth::False, ONE_MACHINE, message);
    }
    let holders: Vec<(&Pod, &NodeStatus)> = ready
        .iter()
        .filter_map(|pod| Some((*pod, observed.answer(pod)?)))
        .filter(|(_, it)| it.phase == "ready")
        .collect();
    let alike = |status: &NodeStatus, pod: &Pod| {
        let same = |other: &NodeStatus| founded(other) == founded(status) && other.fingerprint == status.fingerprint;
        holders.iter().any(|(other, it)| machine(other) != machine(pod) && same(it))
    };
    let foundings: BTreeSet<_> = holders.iter().map(|(_, status)| founded(status)).collect();
    let close = |status: &NodeStatus| foundings.len() <= 1 && status.lag_ms.is_some_and(|lag| lag < CONVERGED_LAG_MS);
    let safe: BTreeSet<String> = holders
        .iter()
        .filter(|(pod, status)| close(status) || alike(status, pod))
        .map(|(pod, _)| machine(pod))
        .collect();
    if safe.len() >= 2 {
        let message = format!("members on {} Kubernetes nodes hold every key", safe.len());
        return verdict(Truth::True, REDUNDANT, message);
    }
    // Members that do not answer may hold everything.
    if ready.iter().any(|pod| observed.answer(pod).is_none()) {
        let message = "ready members do not report what they hold: see the Degraded condition".to_owned();
        return verdict(Truth::Unknown, NOT_SEEN, message);
    }
    let message = "members do not hold the same keys: the last writes of a member are lost if it fails now. They catch up by \
                   themselves; see status.members for how far they are";
    verdict(Truth::False, NOT_CONVERGED, message.to_owned())
}
