//! Pods that the API server refuses to create, and what to do.

use k8s_openapi::jiff::SignedDuration;
use kube::ResourceExt;
use kvasir_crds::KvClusterStatus;

use super::{observed::Observed, verdict::Problem};

/// How long a refusal counts while the pod is missing. Controllers retry at growing intervals of up to 1000 seconds.
const REFUSAL_HOLDS: SignedDuration = SignedDuration::from_secs(1_200);

/// Why a member's pod cannot be created, in the words of the API server. A pod that is being replaced is missing for a moment, so
/// only a pod that was missing before counts.
pub(super) fn of_member(observed: &Observed, before: &KvClusterStatus, member: &str) -> Option<Problem> {
    if before.members.iter().any(|before| before.name == member) {
        return None;
    }
    let set = observed.cluster.name_any();
    let why = observed.warnings.iter().rev().find_map(|warning| {
        let about = warning.kind == "StatefulSet" && warning.name == set;
        let recent = observed.now.duration_since(warning.at) < REFUSAL_HOLDS;
        warning.refusal().filter(|_| about && recent)
    })?;
    Some(("FailedCreate", format!("{member} cannot be created: {why}. {}", remedy(why))))
}

/// Application pods that cannot be created because of their sidecar.
pub(super) fn of_sidecars(observed: &Observed) -> Option<Problem> {
    let newest = |owner: &str| observed.sidecars.and_then(|sidecars| sidecars.newest.get(owner));
    let of_sidecar = |why: &str| why.contains("kvasir");
    let (warning, why) = observed.warnings.iter().rev().find_map(|warning| {
        let others = warning.kind != "StatefulSet" || warning.name != observed.cluster.name_any();
        let recent = observed.now.duration_since(warning.at) < REFUSAL_HOLDS;
        // A pod that was created since then shows that the cause is gone.
        let holds = newest(&warning.name).is_none_or(|created| *created < warning.at);
        warning.refusal().filter(|why| others && recent && holds && of_sidecar(why)).map(|why| (warning, why))
    })?;
    let message = format!(
        "application pods of {} {} cannot be created with their sidecar: {why}. {}",
        warning.kind,
        warning.name,
        remedy(why)
    );
    Some(("SidecarFailing", message))
}

/// What to do about a refusal.
fn remedy(why: &str) -> &'static str {
    if why.contains("quota") {
        "Raise the ResourceQuota, or set in spec.resources what the quota requires"
    } else if why.contains("PodSecurity") {
        "The pods meet the restricted standard by themselves: find out what in the namespace changes them"
    } else if why.contains("denied the request") || why.contains("ValidatingAdmissionPolicy") {
        "Change the admission policy that refuses the pod, or exempt the pod from it"
    } else if why.contains("LimitRange") || why.contains("usage per") {
        "Bring spec.resources in line with the LimitRange"
    } else {
        "Remove the cause of the refusal"
    }
}
