//! Why a member's pod is not ready, according to Kubernetes.

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::ResourceExt;

use super::{observed::Observed, verdict::Problem};
use crate::pod_status::{GRACE, broken, containers, waiting};

/// Warnings about states that pass, or that only repeat what the container statuses say.
const UNTELLING: [&str; 4] = ["BackOff", "Unhealthy", "FailedScheduling", "Failed"];

/// Label of a pod: the revision of the `StatefulSet` template that it was created from.
pub(super) const REVISION: &str = "controller-revision-hash";

/// Why a member will not become ready by itself; `None` if it may.
pub(super) fn problem(observed: &Observed, pod: &Pod) -> Option<Problem> {
    let member = pod.name_any();
    if let Some(why) = failing(pod) {
        return Some(("MemberFailing", remedy(observed, pod, format!("{member}: {why}"))));
    }
    if let Some(why) = unscheduled(pod, observed.now) {
        let message = format!(
            "{member} has no place on any Kubernetes node: {why}. Add or free nodes, or ask for less in spec.resources"
        );
        return Some(("Unschedulable", remedy(observed, pod, message)));
    }
    let created = pod.creation_timestamp()?.0;
    let waits = observed.now.duration_since(created) >= GRACE && !runs(pod);
    let said = observed.warnings.iter().rev().find(|warning| {
        let about = warning.kind == "Pod" && warning.name == member && warning.at >= created;
        about && !UNTELLING.contains(&warning.reason.as_str())
    });
    said.filter(|_| waits)
        .map(|said| ("MemberFailing", remedy(observed, pod, format!("{member}: {}: {}", said.reason, said.message))))
}

/// Why a pod's container does not run, if time alone does not fix it.
fn failing(pod: &Pod) -> Option<String> {
    containers(pod).find_map(broken)
}

/// A `StatefulSet` never replaces a pod that fails to start, even if its template was fixed since then. A person has to delete
/// the pod.
fn remedy(observed: &Observed, pod: &Pod, trouble: String) -> String {
    let wanted =
        observed.stateful_set.and_then(|set| set.status.as_ref()).and_then(|status| status.update_revision.as_ref());
    match (wanted, pod.labels().get(REVISION)) {
        (Some(wanted), Some(has)) if wanted != has => {
            format!("{trouble} (delete this pod, so that it is created again from the current spec)")
        }
        _ => trouble,
    }
}

/// Whether a container of the pod was started.
fn runs(pod: &Pod) -> bool {
    containers(pod).any(|container| container.state.as_ref().is_some_and(|state| state.running.is_some()))
}

/// Why the scheduler cannot place a pod, once it had time to try.
fn unscheduled(pod: &Pod, now: Timestamp) -> Option<String> {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let unscheduled = conditions.into_iter().find(|one| one.type_ == "PodScheduled" && one.status == "False")?;
    let since = unscheduled.last_transition_time.as_ref().map(|time| time.0);
    let since = since.or_else(|| pod.creation_timestamp().map(|time| time.0))?;
    (now.duration_since(since) >= GRACE)
        .then(|| unscheduled.message.clone().unwrap_or_else(|| "it is not scheduled".to_owned()))
}

/// What a pod that is not ready waits for, in a few words.
pub(super) fn waits_for(pod: &Pod) -> String {
    if pod.metadata.deletion_timestamp.is_some() {
        return "it is being deleted".to_owned();
    }
    let status = pod.status.as_ref();
    if status.and_then(|status| status.phase.as_deref()) == Some("Failed") {
        let said = status.and_then(|status| status.message.clone().or_else(|| status.reason.clone()));
        return said.unwrap_or_else(|| "its containers ended".to_owned());
    }
    let conditions = || pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    if let Some(unscheduled) = conditions().find(|one| one.type_ == "PodScheduled" && one.status == "False") {
        return unscheduled.message.clone().unwrap_or_else(|| "it is not scheduled".to_owned());
    }
    let waiting = containers(pod).find_map(waiting);
    waiting.map_or_else(|| "it joins, or cannot reach its peers".to_owned(), |(reason, _)| reason.to_owned())
}
