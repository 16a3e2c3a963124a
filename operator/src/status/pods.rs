//! What a pod itself says of why it is not ready.

use k8s_openapi::{
    api::core::v1::{ContainerStatus, Pod},
    jiff::{SignedDuration, Timestamp},
};
use kube::ResourceExt;

use super::{Sight, Trouble};

/// What a container waits for that time alone does not mend.
const FAILING: [&str; 12] = [
    "CrashLoopBackOff",
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "ImageInspectError",
    "InvalidImageName",
    "RegistryUnavailable",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "PreCreateHookError",
    "PostStartHookError",
];

/// Restarts from which on a container that is not ready counts as failing. Fewer are an accident.
const CRASHES: i32 = 3;
/// The most of a container's last words that is repeated.
const LAST_WORDS: usize = 200;
/// How long a pod may wait for its place or its volumes before that is trouble.
pub(crate) const GRACE: SignedDuration = SignedDuration::from_secs(10);
/// Warnings that tell of a passing moment or only repeat what the containers say.
const UNTELLING: [&str; 4] = ["BackOff", "Unhealthy", "FailedScheduling", "Failed"];

/// Label of a pod: which template of its `StatefulSet` it was made from.
pub(super) const REVISION: &str = "controller-revision-hash";

/// Why a member that is not ready will not become so by itself, if it will not.
pub(super) fn trouble(sight: &Sight, pod: &Pod) -> Option<Trouble> {
    let member = pod.name_any();
    if let Some(why) = failing(pod) {
        return Some(("MemberFailing", remedy(sight, pod, format!("{member}: {why}"))));
    }
    if let Some(why) = unscheduled(pod, sight.now) {
        let message = format!(
            "{member} has no place on any Kubernetes node: {why}. Add or free nodes, or ask for less in spec.resources"
        );
        return Some(("Unschedulable", remedy(sight, pod, message)));
    }
    let created = pod.creation_timestamp()?.0;
    let waits = sight.now.duration_since(created) >= GRACE && !runs(pod);
    let said = sight.warnings.iter().rev().find(|warning| {
        let about = warning.kind == "Pod" && warning.name == member && warning.at >= created;
        about && !UNTELLING.contains(&warning.reason.as_str())
    });
    said.filter(|_| waits)
        .map(|said| ("MemberFailing", remedy(sight, pod, format!("{member}: {}: {}", said.reason, said.message))))
}

/// Why a pod's container does not run, if time alone does not mend it.
pub(crate) fn failing(pod: &Pod) -> Option<String> {
    containers(pod).find_map(broken)
}

/// Why this container does not run, if time alone does not mend it.
pub(crate) fn broken(container: &ContainerStatus) -> Option<String> {
    if let Some((reason, message)) = waiting(container)
        && FAILING.contains(&reason)
    {
        let said = if message.is_empty() { reason.to_owned() } else { format!("{reason}: {message}") };
        return Some(match (reason, ending(container)) {
            ("CrashLoopBackOff", Some(ending)) => format!("{said}; {ending}"),
            _ => said,
        });
    }
    // Between two waits such a container runs for a moment: that is no recovery.
    (!container.ready && container.restart_count >= CRASHES).then(|| ending(container)).flatten()
}

/// How often and how a container ended.
fn ending(container: &ContainerStatus) -> Option<String> {
    let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let code = last.map(|last| format!(", last with exit code {}", last.exit_code)).unwrap_or_default();
    let reason =
        last.and_then(|last| last.reason.as_deref()).filter(|reason| !matches!(*reason, "Error" | "Completed"));
    let reason = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    let words = last.and_then(|last| last.message.as_deref()).map(str::trim).filter(|message| !message.is_empty());
    let words: Option<String> = words.map(|message| message.chars().take(LAST_WORDS).collect());
    let words = words.map(|words| format!(" and the words \"{words}\"")).unwrap_or_default();
    (container.restart_count > 0)
        .then(|| format!("it ended {} times{code}{reason}{words}: see its logs", container.restart_count))
}

/// When a container of this name was last killed for want of memory.
pub(crate) fn oom_killed(containers: &[ContainerStatus], name: &str) -> Option<Timestamp> {
    let states = containers.iter().filter(|container| container.name == name);
    let states = states.flat_map(|container| [&container.state, &container.last_state]).flatten();
    let ends = states.filter_map(|state| state.terminated.as_ref());
    ends.filter(|end| end.reason.as_deref() == Some("OOMKilled"))
        .filter_map(|end| Some(end.finished_at.as_ref()?.0))
        .max()
}

/// A `StatefulSet` waits for a failing pod for ever, also when its template was mended since: that takes a person.
fn remedy(sight: &Sight, pod: &Pod, trouble: String) -> String {
    let wanted =
        sight.stateful_set.and_then(|set| set.status.as_ref()).and_then(|status| status.update_revision.as_ref());
    match (wanted, pod.labels().get(REVISION)) {
        (Some(wanted), Some(has)) if wanted != has => {
            format!("{trouble} (delete this pod: it is made anew as the spec says now)")
        }
        _ => trouble,
    }
}

fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.iter();
    status.flat_map(|status| status.init_container_statuses.iter().chain(&status.container_statuses).flatten())
}

/// Whether a container of the pod was started.
fn runs(pod: &Pod) -> bool {
    containers(pod).any(|container| container.state.as_ref().is_some_and(|state| state.running.is_some()))
}

/// What a container waits for, and the message with it.
pub(crate) fn waiting(container: &ContainerStatus) -> Option<(&str, &str)> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    Some((waiting.reason.as_deref()?, waiting.message.as_deref().unwrap_or_default()))
}

/// Why the scheduler has no place for a pod, once it had time to find one.
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
