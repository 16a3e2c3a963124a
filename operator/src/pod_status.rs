//! Reads the status of pods and containers, for members and for sidecars alike.
//!
//! Knows nothing of clusters.

use k8s_openapi::{
    api::core::v1::{ContainerStatus, Pod},
    jiff::{SignedDuration, Timestamp},
};

/// Waiting reasons that do not pass with time alone.
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

/// Restarts after which a container that is not ready counts as failing. Fewer may be an accident.
const CRASHES: i32 = 3;
/// Longest part of a container's termination message that is repeated, in characters.
const LAST_WORDS: usize = 200;
/// How long a pod may wait to be scheduled, or for its volumes, before that is a problem.
pub const GRACE: SignedDuration = SignedDuration::from_secs(10);

/// Whether a pod is ready and stays: a pod that is being deleted does not count, ready or not.
pub fn is_ready(pod: &Pod) -> bool {
    if pod.metadata.deletion_timestamp.is_some() {
        return false;
    }
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The statuses of a pod's init containers and containers.
pub fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.iter();
    status.flat_map(|status| status.init_container_statuses.iter().chain(&status.container_statuses).flatten())
}

/// Why a container does not run, if time alone does not fix it.
pub fn broken(container: &ContainerStatus) -> Option<String> {
    if let Some((reason, message)) = waiting(container)
        && FAILING.contains(&reason)
    {
        let said = if message.is_empty() { reason.to_owned() } else { format!("{reason}: {message}") };
        return Some(match (reason, ending(container)) {
            ("CrashLoopBackOff", Some(ending)) => format!("{said}; {ending}"),
            _ => said,
        });
    }
    // Between two back-offs such a container runs for a moment, which is no recovery.
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
    let words = words.map(|words| format!(" and the message \"{words}\"")).unwrap_or_default();
    (container.restart_count > 0)
        .then(|| format!("it ended {} times{code}{reason}{words}: see its logs", container.restart_count))
}

/// When the container of this name was last killed because it was out of memory.
pub fn oom_killed(containers: &[ContainerStatus], name: &str) -> Option<Timestamp> {
    let states = containers.iter().filter(|container| container.name == name);
    let states = states.flat_map(|container| [&container.state, &container.last_state]).flatten();
    let ends = states.filter_map(|state| state.terminated.as_ref());
    ends.filter(|end| end.reason.as_deref() == Some("OOMKilled"))
        .filter_map(|end| Some(end.finished_at.as_ref()?.0))
        .max()
}

/// Why a container waits: reason and message.
pub fn waiting(container: &ContainerStatus) -> Option<(&str, &str)> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    Some((waiting.reason.as_deref()?, waiting.message.as_deref().unwrap_or_default()))
}
