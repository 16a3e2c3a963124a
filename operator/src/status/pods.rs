//! What a member's pod itself says of why it is not ready.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::Sight;

/// What a container waits for that time alone does not mend.
const FAILING: [&str; 6] = [
    "CrashLoopBackOff",
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
];

/// Restarts from which on a member that is not ready counts as failing. Fewer are an accident.
const CRASHES: i32 = 3;

/// Label of a pod: which template of its `StatefulSet` it was made from.
pub(super) const REVISION: &str = "controller-revision-hash";

/// Why a member's container does not run, if time alone does not mend it.
pub(super) fn failing(pod: &Pod) -> Option<String> {
    if let Some((reason, message)) = waiting(pod)
        && FAILING.contains(&reason)
    {
        return Some(if message.is_empty() { reason.to_owned() } else { format!("{reason}: {message}") });
    }
    // Between two waits such a container runs for a moment: that is no recovery.
    let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    containers.into_iter().find(|container| !container.ready && container.restart_count >= CRASHES).map(|container| {
        let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        let code = last.map(|last| format!(", last with exit code {}", last.exit_code)).unwrap_or_default();
        format!("it ended {} times{code}: see its logs", container.restart_count)
    })
}

/// A `StatefulSet` waits for a failing pod for ever, also when its template was mended since: that takes a person.
pub(super) fn remedy(sight: &Sight, pod: &Pod, trouble: String) -> String {
    let wanted =
        sight.stateful_set.and_then(|set| set.status.as_ref()).and_then(|status| status.update_revision.as_ref());
    match (wanted, pod.labels().get(REVISION)) {
        (Some(wanted), Some(has)) if wanted != has => {
            format!("{trouble} (delete this pod: it is made anew as the spec says now)")
        }
        _ => trouble,
    }
}

fn waiting(pod: &Pod) -> Option<(&str, &str)> {
    let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let waiting = containers.into_iter().find_map(|container| container.state.as_ref()?.waiting.as_ref())?;
    Some((waiting.reason.as_deref()?, waiting.message.as_deref().unwrap_or_default()))
}

pub(super) fn waits_for(pod: &Pod) -> String {
    if pod.metadata.deletion_timestamp.is_some() {
        return "it is being deleted".to_owned();
    }
    let conditions = || pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    if let Some(unscheduled) = conditions().find(|one| one.type_ == "PodScheduled" && one.status == "False") {
        return unscheduled.message.clone().unwrap_or_else(|| "it is not scheduled".to_owned());
    }
    waiting(pod).map_or_else(|| "it joins, or cannot reach its peers".to_owned(), |(reason, _)| reason.to_owned())
}
