//! From what was seen of a cluster to what its status says.
//!
//! Pure: the same sight and the same status before give the same status, so that a reconcile which sees nothing new has
//! nothing to write. Knows nothing of how things were seen.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::{apps::v1::StatefulSet, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::{SignedDuration, Timestamp, Unit},
};
use kube::ResourceExt;
use kvasir_crds::{EncryptionStatus, KvCluster, KvClusterStatus, MemberStatus, condition};

use crate::{
    labels,
    poll::{Answers, NodeStatus},
    webhook::count::Sidecars,
};

/// Lag below which members that take writes count as holding the same.
const CONVERGED_LAG_MS: u64 = 2_000;
/// How long a rollout may take until a member that is not ready counts as missing.
const ROLLOUT_DEADLINE: SignedDuration = SignedDuration::from_mins(5);
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

/// How long before its end a certificate is worth a word: what renews it should have done so.
const EXPIRING: SignedDuration = SignedDuration::from_hours(14 * 24);

/// Label of a pod: which template of its `StatefulSet` it was made from.
const REVISION: &str = "controller-revision-hash";

/// Reasons of the Progressing condition.
mod progress {
    pub(super) const STARTING: &str = "Starting";
    pub(super) const SCALING: &str = "Scaling";
    pub(super) const UPDATING: &str = "Updating";
    pub(super) const DONE: &str = "RolledOut";
    pub(super) const STOPPED: &str = "Stopped";
}

/// Reason of the Available condition of a cluster that was complete once and has no ready member left.
const NO_MEMBER_READY: &str = "NoMemberReady";

/// Something that keeps the spec from being carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// One word.
    pub reason: &'static str,
    /// What to do.
    pub message: String,
}

/// What was seen of a cluster.
#[derive(Debug)]
pub struct Sight<'a> {
    /// The cluster, with its status as it was.
    pub cluster: &'a KvCluster,
    /// What keeps the spec from being carried out, if anything.
    pub obstacle: Option<Obstacle>,
    /// What somebody should mend though the spec is carried out, if anything.
    pub concern: Option<Obstacle>,
    /// The `StatefulSet` as it was before this reconcile.
    pub stateful_set: Option<&'a StatefulSet>,
    /// Whether this reconcile changed the `StatefulSet`.
    pub changed: bool,
    /// The member pods.
    pub pods: &'a [Pod],
    /// What the members say.
    pub answers: &'a Answers,
    /// Application pods.
    pub sidecars: &'a Sidecars,
    /// The time.
    pub now: Timestamp,
}

/// What the status should say.
pub fn status(sight: &Sight) -> KvClusterStatus {
    let before = sight.cluster.status.clone().unwrap_or_default();
    let name = sight.cluster.name_any();
    let wanted = sight.cluster.spec.replicas;
    let mut pods: Vec<&Pod> = sight.pods.iter().collect();
    pods.sort_by_key(|pod| (ordinal(&pod.name_any()), pod.name_any()));
    let members: Vec<MemberStatus> = pods.iter().map(|pod| member(sight, pod)).collect();
    let ready = members.iter().filter(|member| member.ready).count();
    let ready_replicas = i32::try_from(ready).unwrap_or(i32::MAX);
    let replicas = i32::try_from(members.len()).unwrap_or(i32::MAX);

    let progressing = progressing(sight, &before, replicas, ready_replicas);
    let available = available(sight, &before, ready_replicas);
    let degraded = degraded(sight, &before, &pods, &progressing, &available);

    let generation = sight.cluster.metadata.generation.unwrap_or_default();
    let conditions = [available, progressing, degraded]
        .map(|verdict| verdict.condition(&before.conditions, generation, sight.now))
        .into();
    KvClusterStatus {
        conditions,
        observed_generation: generation,
        replicas,
        ready_replicas,
        ready: format!("{ready_replicas}/{wanted}"),
        selector: labels::selector_text(&name),
        keys: members.iter().filter_map(|member| member.keys).max(),
        converged: replicas == wanted && ready_replicas == wanted && converged(sight),
        version: versions(&members),
        sidecars: sight.sidecars.status(),
        encryption: keys(sight),
        members,
    }
}

/// Whether a cluster is at rest, so that looking at it now and then is enough.
pub fn is_steady(status: &KvClusterStatus) -> bool {
    status.converged && !holds(&status.conditions, condition::PROGRESSING)
}

/// Whether a condition is there and true.
pub fn holds(conditions: &[Condition], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|condition| condition.status == "True")
}

/// The condition of a type.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// A condition before it is compared with what it was.
#[derive(Clone, Debug)]
struct Verdict {
    type_: &'static str,
    holds: bool,
    reason: &'static str,
    message: String,
}

impl Verdict {
    fn condition(self, before: &[Condition], generation: i64, now: Timestamp) -> Condition {
        let status = if self.holds { "True" } else { "False" };
        let since = find(before, self.type_)
            .filter(|before| before.status == status)
            .map_or_else(|| Time(whole_seconds(now)), |before| before.last_transition_time.clone());
        Condition {
            type_: self.type_.to_owned(),
            status: status.to_owned(),
            reason: self.reason.to_owned(),
            message: self.message,
            observed_generation: Some(generation),
            last_transition_time: since,
        }
    }
}

/// The API server stores whole seconds.
fn whole_seconds(time: Timestamp) -> Timestamp {
    time.round(Unit::Second).unwrap_or(time)
}

fn was_available(before: &KvClusterStatus) -> bool {
    find(&before.conditions, condition::AVAILABLE)
        .is_some_and(|available| available.status == "True" || available.reason == NO_MEMBER_READY)
}

fn available(sight: &Sight, before: &KvClusterStatus, ready: i32) -> Verdict {
    let verdict = |holds, reason, message| Verdict { type_: condition::AVAILABLE, holds, reason, message };
    let wanted = sight.cluster.spec.replicas;
    if was_available(before) {
        return if ready > 0 {
            verdict(true, "MembersReady", "members are ready and serve".to_owned())
        } else {
            verdict(false, NO_MEMBER_READY, "no member is ready: see the Degraded condition".to_owned())
        };
    }
    match &sight.obstacle {
        Some(Obstacle { reason, message }) => verdict(false, reason, message.clone()),
        None if ready >= wanted => verdict(true, "MembersReady", "members are ready and serve".to_owned()),
        None => verdict(
            false,
            progress::STARTING,
            format!("{ready} of {wanted} members are ready; the cluster serves once all were"),
        ),
    }
}

fn progressing(sight: &Sight, before: &KvClusterStatus, replicas: i32, ready: i32) -> Verdict {
    let verdict = |holds, reason, message| Verdict { type_: condition::PROGRESSING, holds, reason, message };
    let wanted = sight.cluster.spec.replicas;
    if let Some(obstacle) = &sight.obstacle {
        return verdict(false, progress::STOPPED, obstacle.message.clone());
    }
    let complete = replicas == wanted && ready == wanted;
    let spec = sight.stateful_set.and_then(|set| set.spec.as_ref());
    let observed = sight.stateful_set.and_then(|set| set.status.as_ref());
    let scaled = spec.and_then(|spec| spec.replicas).is_some_and(|live| live != wanted);
    let updating = sight.stateful_set.is_some_and(|set| {
        let generation = observed.and_then(|status| status.observed_generation);
        let revisions = observed.map(|status| (&status.current_revision, &status.update_revision));
        generation < set.metadata.generation
            || revisions.is_some_and(|(current, update)| update.is_some() && current != update)
    });
    let earlier = find(&before.conditions, condition::PROGRESSING)
        .filter(|condition| condition.status == "True")
        .map(|condition| condition.reason.as_str());
    let reason = if !was_available(before) && !complete {
        progress::STARTING
    } else if scaled {
        progress::SCALING
    } else if sight.changed || (updating && earlier != Some(progress::SCALING)) {
        progress::UPDATING
    } else {
        match earlier {
            Some(progress::SCALING) if !complete => progress::SCALING,
            Some(progress::UPDATING) if !complete => progress::UPDATING,
            _ => progress::DONE,
        }
    };
    let message = match reason {
        progress::DONE => "nothing is under way".to_owned(),
        progress::SCALING => format!("scaling to {wanted} members: {replicas} exist, {ready} are ready"),
        progress::UPDATING => format!("updating members one after another: {ready} of {wanted} are ready"),
        _ => format!("{ready} of {wanted} members are ready"),
    };
    verdict(reason != progress::DONE, reason, message)
}

fn degraded(
    sight: &Sight,
    before: &KvClusterStatus,
    pods: &[&Pod],
    progressing: &Verdict,
    available: &Verdict,
) -> Verdict {
    let mut troubles: Vec<(&'static str, String)> = Vec::new();
    for Obstacle { reason, message } in sight.obstacle.iter().chain(&sight.concern) {
        troubles.push((reason, message.clone()));
    }
    let name = sight.cluster.name_any();
    let overdue = find(&before.conditions, condition::PROGRESSING).is_some_and(|condition| {
        condition.status == "True" && sight.now.duration_since(condition.last_transition_time.0) > ROLLOUT_DEADLINE
    });
    let expected = (available.holds || available.reason == NO_MEMBER_READY) && !progressing.holds;
    for ordinal in 0..sight.cluster.spec.replicas {
        let member = format!("{name}-{ordinal}");
        let trouble = match pods.iter().find(|pod| pod.name_any() == member) {
            None => (expected || overdue).then(|| ("MemberMissing", format!("{member} does not exist"))),
            Some(pod) if is_ready(pod) => None,
            Some(pod) => failing(pod)
                .map(|why| ("MemberFailing", remedy(sight, pod, format!("{member}: {why}"))))
                .or_else(|| {
                    (expected || overdue)
                        .then(|| ("MemberMissing", format!("{member} is not ready: {}", waits_for(pod))))
                }),
        };
        // A cluster whose spec cannot be carried out may have no pods, and no more is to be said of that.
        if sight.obstacle.is_none() || was_available(before) {
            troubles.extend(trouble);
        }
    }
    for pod in pods {
        let member = pod.name_any();
        match sight.answers.get(&member) {
            Some(Ok(status)) => troubles.extend(complaints(&member, status, sight.now)),
            Some(Err(error)) if is_ready(pod) => {
                // One lost answer is no news; two in a row are.
                let silent_before =
                    before.members.iter().any(|before| before.name == member && before.ready && before.keys.is_none());
                if silent_before {
                    troubles.push(("MemberUnreachable", format!("{member} does not tell its status: {error}")));
                }
            }
            Some(Err(_)) | None => {}
        }
    }
    if !sight.sidecars.missing.is_empty() {
        let names: Vec<_> = sight.sidecars.missing.iter().take(3).map(|pod| pod.name.as_str()).collect();
        let more = if sight.sidecars.missing.len() > 3 { ", …" } else { "" };
        troubles.push((
            "SidecarsMissing",
            format!(
                "{} application pods have no sidecar, delete them so that they are made anew: {}{more}",
                sight.sidecars.missing.len(),
                names.join(", ")
            ),
        ));
    }
    if !sight.sidecars.stale.is_empty() {
        let names: Vec<_> = sight.sidecars.stale.iter().take(3).map(String::as_str).collect();
        let more = if sight.sidecars.stale.len() > 3 { ", …" } else { "" };
        troubles.push((
            "SidecarsStale",
            format!(
                "{} application pods have the sidecar of an earlier KvCluster of this name, with its data; the members refuse \
                 it. Delete these pods, so that they are created again: {}{more}",
                sight.sidecars.stale.len(),
                names.join(", ")
            ),
        ));
    }
    let holds = !troubles.is_empty();
    let reason = troubles.first().map_or("AllWell", |(reason, _)| reason);
    let message = if holds {
        troubles.into_iter().map(|(_, message)| message).collect::<Vec<_>>().join("; ")
    } else {
        "nothing is wrong".to_owned()
    };
    Verdict { type_: condition::DEGRADED, holds, reason, message }
}

fn complaints(member: &str, status: &NodeStatus, now: Timestamp) -> Vec<(&'static str, String)> {
    let mut complaints = Vec::new();
    if status.full {
        complaints.push((
            "NodeFull",
            format!(
                "{member} is full and refuses writes: delete keys, or raise spec.maxMemory ({} bytes now)",
                status.max_memory_bytes
            ),
        ));
    }
    for discovery in &status.discovery {
        if let Some(error) = &discovery.error {
            complaints
                .push(("DiscoveryFailing", format!("{member} cannot find peers by {}: {error}", discovery.provider)));
        }
    }
    for (usage, certificate) in &status.certificates {
        let end = certificate.not_after_ms.and_then(|end| Timestamp::from_millisecond(end).ok());
        // The moment and not how long it is until then, which would be news at every look.
        if let Some(end) = end.filter(|end| end.duration_since(now) < EXPIRING) {
            let message = format!("the certificate of {member} for {usage} ends at {end}: see what should renew it");
            complaints.push(("CertificateExpiring", message));
        }
    }
    for (what, reload) in &status.reloads {
        if let Some(error) = &reload.error {
            let message = format!("{member} goes on with what it had, as it cannot use its files for {what}: {error}");
            complaints.push(("ReloadFailing", message));
        }
    }
    complaints
}

fn answer<'a>(sight: &'a Sight, pod: &Pod) -> Option<&'a NodeStatus> {
    sight.answers.get(&pod.name_any()).and_then(|answer| answer.as_ref().ok())
}

fn member(sight: &Sight, pod: &Pod) -> MemberStatus {
    let answer = answer(sight, pod);
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    MemberStatus {
        name: pod.name_any(),
        ready: is_ready(pod),
        synced: answer.is_some_and(|status| status.phase == "ready"),
        keys: answer.map(|status| number(status.keys)),
        // Whole seconds, and none up to two: between two heartbeats a lag rises and falls, which is no news.
        lag_ms: answer
            .and_then(|status| status.lag_ms)
            .map(|lag| number(if lag < 2000 { 0 } else { lag / 1000 * 1000 })),
        version: answer.map(|status| status.version.clone()),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        origin: answer.map(|status| status.origin.clone()),
        found_by: answer.and_then(|status| found_by(sight, &status.origin)),
    }
}

/// The ways by which the others found this process.
fn found_by(sight: &Sight, origin: &str) -> Option<String> {
    let others = sight.pods.iter().filter_map(|pod| answer(sight, pod)).flat_map(|status| &status.peers);
    let ways: BTreeSet<_> = others.filter(|peer| peer.origin == origin).filter_map(|p| p.found_by.as_deref()).collect();
    (!ways.is_empty()).then(|| ways.into_iter().collect::<Vec<_>>().join(","))
}

/// The keys of those members that answer; settled once all that should be there do, and say the same.
fn keys(sight: &Sight) -> Option<EncryptionStatus> {
    let answers: Vec<_> = sight.pods.iter().filter_map(|pod| answer(sight, pod)?.encryption.as_ref()).collect();
    let (first, others) = answers.split_first()?;
    let primaries: BTreeSet<_> = answers.iter().map(|keys| keys.primary.as_str()).collect();
    let on_all = first.keys.iter().filter(|key| others.iter().all(|other| other.keys.contains(key)));
    Some(EncryptionStatus {
        primary: primaries.into_iter().collect::<Vec<_>>().join(","),
        keys: on_all.cloned().collect(),
        settled: i32::try_from(answers.len()).is_ok_and(|count| count == sight.cluster.spec.replicas)
            && others.iter().all(|other| other == first),
    })
}

fn converged(sight: &Sight) -> bool {
    let Some(answers) = sight.pods.iter().map(|pod| answer(sight, pod)).collect::<Option<Vec<_>>>() else {
        return false;
    };
    let fingerprints: BTreeSet<_> = answers.iter().map(|status| status.fingerprint.as_str()).collect();
    answers.iter().all(|status| status.phase == "ready")
        && (fingerprints.len() <= 1
            || answers.iter().all(|status| status.lag_ms.is_some_and(|lag| lag < CONVERGED_LAG_MS)))
}

fn versions(members: &[MemberStatus]) -> String {
    let versions: BTreeSet<_> = members.iter().filter_map(|member| member.version.as_deref()).collect();
    versions.into_iter().collect::<Vec<_>>().join(",")
}

fn ordinal(name: &str) -> Option<u32> {
    name.rsplit_once('-').and_then(|(_, number)| number.parse().ok())
}

/// A pod on its way out is no member to count on, ready or not.
fn is_ready(pod: &Pod) -> bool {
    if pod.metadata.deletion_timestamp.is_some() {
        return false;
    }
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Why a member's container does not run, if time alone does not mend it.
fn failing(pod: &Pod) -> Option<String> {
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

fn waiting(pod: &Pod) -> Option<(&str, &str)> {
    let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let waiting = containers.into_iter().find_map(|container| container.state.as_ref()?.waiting.as_ref())?;
    Some((waiting.reason.as_deref()?, waiting.message.as_deref().unwrap_or_default()))
}

fn waits_for(pod: &Pod) -> String {
    if pod.metadata.deletion_timestamp.is_some() {
        return "it is being deleted".to_owned();
    }
    let conditions = || pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    if let Some(unscheduled) = conditions().find(|one| one.type_ == "PodScheduled" && one.status == "False") {
        return unscheduled.message.clone().unwrap_or_else(|| "it is not scheduled".to_owned());
    }
    waiting(pod).map_or_else(|| "it joins, or cannot reach its peers".to_owned(), |(reason, _)| reason.to_owned())
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
