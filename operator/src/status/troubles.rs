//! The condition that says what is wrong: Degraded.
//!
//! "Nothing is wrong" is said only of a cluster of which everything was looked at just now. Of what could not be looked at
//! the condition says so, and is Unknown.

use k8s_openapi::{
    api::core::v1::Pod,
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};
use kube::ResourceExt;
use kvasir_crds::{DataStatus, KvClusterStatus, MemberStatus, condition};

use super::{
    NO_MEMBER_READY, Obstacle, Sight, Trouble, Truth, Verdict, data, find,
    members::is_ready,
    pods::{self, waits_for},
    was_available,
};
use crate::{
    poll::{NodeStatus, UnjoinableStatus},
    webhook::count::{Failing, Sidecars},
};

/// How long a rollout may take until a member that is not ready counts as missing.
pub(super) const ROLLOUT_DEADLINE: SignedDuration = SignedDuration::from_mins(5);
/// How long before its end a certificate is worth a word: what renews it should have done so.
const EXPIRING: SignedDuration = SignedDuration::from_hours(14 * 24);
/// How long after it a kill for want of memory is part of the condition.
pub(super) const OOM_SHOWN: SignedDuration = SignedDuration::from_mins(10);
/// How old the API server's refusal of a pod may be to count while the pod is missing: what creates pods tries again more
/// and more seldom, every 1000 seconds in the end.
const REFUSAL_HOLDS: SignedDuration = SignedDuration::from_secs(1_200);
/// The most application pods that are named.
const MOST_NAMED: usize = 3;

/// Reason of the condition while something could not be looked at.
pub(super) const NOT_SEEN: &str = "NotSeen";
/// Reason of the condition after a kill for want of memory, and of the event.
pub(crate) const OOM_KILLED: &str = "OOMKilled";
/// Reason of the condition while members are on their way and nothing speaks against them.
const IN_PROGRESS: &str = "InProgress";
const ALL_WELL: &str = "AllWell";

pub(super) fn degraded(
    sight: &Sight,
    before: &KvClusterStatus,
    pods: &[&Pod],
    members: &[MemberStatus],
    data: Option<&DataStatus>,
    progressing: &Verdict,
    available: &Verdict,
) -> Verdict {
    let mut troubles: Vec<Trouble> = Vec::new();
    let mut unseen: Vec<String> = sight.unseen.to_vec();
    troubles.extend(data::trouble(sight, data));
    for Obstacle { reason, message } in sight.obstacle.iter().chain(&sight.concern) {
        troubles.push((reason, message.clone()));
    }
    for member in members {
        if let Some(Time(at)) = &member.oom_killed_at
            && sight.now.duration_since(*at) < OOM_SHOWN
        {
            troubles.push((OOM_KILLED, killed(&member.name, *at)));
        }
    }
    let name = sight.cluster.name_any();
    let overdue = find(&before.conditions, condition::PROGRESSING).is_some_and(|condition| {
        condition.status == "True" && sight.now.duration_since(condition.last_transition_time.0) > ROLLOUT_DEADLINE
    });
    let is_under_way = progressing.truth == Truth::True;
    let expected = (available.truth == Truth::True || available.reason == NO_MEMBER_READY) && !is_under_way;
    let mut complete = true;
    for ordinal in 0..sight.cluster.spec.replicas {
        let member = format!("{name}-{ordinal}");
        let pod = pods.iter().find(|pod| pod.name_any() == member);
        complete &= pod.is_some_and(|pod| is_ready(pod));
        let trouble = match pod {
            None => refused(sight, before, &member)
                .or_else(|| (expected || overdue).then(|| ("MemberMissing", format!("{member} does not exist")))),
            Some(pod) if is_ready(pod) => None,
            Some(pod) => pods::trouble(sight, pod).or_else(|| {
                (expected || overdue).then(|| ("MemberMissing", format!("{member} is not ready: {}", waits_for(pod))))
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
                let since = silent_since(members, &member).unwrap_or(sight.now);
                let message = format!("{member} has not told its status since {since}: {error}");
                // One lost answer may be chance; two in a row are trouble.
                if silent_since(&before.members, &member).is_some() {
                    troubles.push(("MemberUnreachable", message));
                } else {
                    unseen.push(message);
                }
            }
            None if is_ready(pod) => unseen.push(format!("{member} is ready and has no address to be asked at")),
            Some(Err(_)) | None => {}
        }
    }
    troubles.extend(refused_sidecars(sight));
    troubles.extend(sight.sidecars.into_iter().flat_map(|sidecars| of_sidecars(sidecars, sight.now)));

    let verdict = |truth, reason, message| Verdict { type_: condition::DEGRADED, truth, reason, message };
    if let Some((reason, _)) = troubles.first() {
        let messages: Vec<String> = troubles.iter().map(|(_, message)| message.clone()).chain(unseen).collect();
        return verdict(Truth::True, reason, messages.join("; "));
    }
    if !unseen.is_empty() {
        return verdict(Truth::Unknown, NOT_SEEN, unseen.join("; "));
    }
    if is_under_way || !complete {
        let message = "nothing is wrong so far: members are on their way, see the Progressing condition";
        return verdict(Truth::False, IN_PROGRESS, message.to_owned());
    }
    verdict(Truth::False, ALL_WELL, "nothing is wrong".to_owned())
}

fn silent_since(members: &[MemberStatus], name: &str) -> Option<Timestamp> {
    members.iter().find(|member| member.name == name)?.silent_since.as_ref().map(|time| time.0)
}

/// Why a member's pod cannot be created, in the words of the API server. A pod that is replaced is missing for a moment:
/// only one that was missing before is looked into.
fn refused(sight: &Sight, before: &KvClusterStatus, member: &str) -> Option<Trouble> {
    if before.members.iter().any(|before| before.name == member) {
        return None;
    }
    let set = sight.cluster.name_any();
    let said = sight.warnings.iter().rev().find_map(|warning| {
        let about = warning.kind == "StatefulSet" && warning.name == set;
        let recent = sight.now.duration_since(warning.at) < REFUSAL_HOLDS;
        warning.refusal().filter(|_| about && recent)
    })?;
    Some(("FailedCreate", format!("{member} cannot be created: {said}. {}", remedy_of_refusal(said))))
}

/// Application pods that cannot be created because of their sidecar.
fn refused_sidecars(sight: &Sight) -> Option<Trouble> {
    let newest = |owner: &str| sight.sidecars.and_then(|sidecars| sidecars.newest.get(owner));
    let of_sidecar = |said: &str| said.contains("kvasir");
    let (warning, said) = sight.warnings.iter().rev().find_map(|warning| {
        let others = warning.kind != "StatefulSet" || warning.name != sight.cluster.name_any();
        let recent = sight.now.duration_since(warning.at) < REFUSAL_HOLDS;
        // A pod that was created since shows that nothing is in the way any more.
        let holds = newest(&warning.name).is_none_or(|created| *created < warning.at);
        warning.refusal().filter(|said| others && recent && holds && of_sidecar(said)).map(|said| (warning, said))
    })?;
    let message = format!(
        "application pods of {} {} cannot be created with their sidecar: {said}. {}",
        warning.kind,
        warning.name,
        remedy_of_refusal(said)
    );
    Some(("SidecarFailing", message))
}

/// What to do about a refusal.
fn remedy_of_refusal(said: &str) -> &'static str {
    if said.contains("quota") {
        "Raise the ResourceQuota, or give spec.resources what the quota asks for"
    } else if said.contains("PodSecurity") {
        "The pods meet the restricted standard by themselves: see what in the namespace changes them"
    } else if said.contains("denied the request") || said.contains("ValidatingAdmissionPolicy") {
        "Change or exempt from the admission policy that refuses it"
    } else if said.contains("LimitRange") || said.contains("usage per") {
        "Bring spec.resources in line with the LimitRange"
    } else {
        "Remove what refuses it"
    }
}

fn of_sidecars(sidecars: &Sidecars, now: Timestamp) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    let recent: Vec<_> = sidecars.killed.iter().filter(|(_, at)| now.duration_since(*at) < OOM_SHOWN).collect();
    if let Some((pod, at)) = recent.first() {
        let others = recent.len() - 1;
        let more = if others > 0 { format!(", and {others} other sidecars were") } else { String::new() };
        troubles.push((OOM_KILLED, format!("{}{more}", killed(&format!("the sidecar of {pod}"), *at))));
    }
    if !sidecars.failing.is_empty() {
        let named: Vec<_> =
            sidecars.failing.iter().take(MOST_NAMED).map(|Failing { name, why }| format!("{name}: {why}")).collect();
        let others = sidecars.failing.len() - named.len();
        let more = if others > 0 { format!("; and {others} more") } else { String::new() };
        troubles.push((
            "SidecarFailing",
            format!("{} sidecars do not run, and their pods wait: {}{more}", sidecars.failing.len(), named.join("; ")),
        ));
    }
    if !sidecars.missing.is_empty() {
        let names: Vec<_> = sidecars.missing.iter().take(MOST_NAMED).map(|pod| pod.name.as_str()).collect();
        let more = if sidecars.missing.len() > MOST_NAMED { ", …" } else { "" };
        troubles.push((
            "SidecarsMissing",
            format!(
                "{} application pods have no sidecar, delete them so that they are made anew: {}{more}",
                sidecars.missing.len(),
                names.join(", ")
            ),
        ));
    }
    if !sidecars.stale.is_empty() {
        let names: Vec<_> = sidecars.stale.iter().take(MOST_NAMED).map(String::as_str).collect();
        let more = if sidecars.stale.len() > MOST_NAMED { ", …" } else { "" };
        troubles.push((
            "SidecarsStale",
            format!(
                "{} application pods have the sidecar of an earlier KvCluster of this name, with its data; the members refuse \
                 it. Delete these pods, so that they are created again: {}{more}",
                sidecars.stale.len(),
                names.join(", ")
            ),
        ));
    }
    troubles
}

/// That a node was killed for want of memory, and what to do.
pub(crate) fn killed(what: &str, at: Timestamp) -> String {
    format!(
        "{what} was killed at {at} for want of memory: raise spec.resources.limits.memory, or lower spec.maxMemory so that \
         writes are refused before the limit"
    )
}

fn complaints(member: &str, status: &NodeStatus, now: Timestamp) -> Vec<Trouble> {
    let mut complaints = Vec::new();
    if status.full {
        complaints.push((
            "NodeFull",
            format!(
                "{member} is full and refuses writes: delete keys, or raise spec.maxMemory, or where that is unset \
                 spec.resources.limits.memory ({} bytes for entries now)",
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
    complaints.extend(unjoinable(member, status));
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

/// Peers that are named at most, of those that a member cannot talk to.
const UNJOINABLE_SHOWN: usize = 3;

/// What a member says of peers that it cannot talk to.
fn unjoinable(member: &str, status: &NodeStatus) -> Option<Trouble> {
    let whom = |UnjoinableStatus { address, name, why }: &UnjoinableStatus| match name {
        Some(name) => format!("{name} ({address}): {why}"),
        None => format!("{address}: {why}"),
    };
    let shown: Vec<_> = status.unjoinable.iter().take(UNJOINABLE_SHOWN).map(whom).collect();
    let more = if status.unjoinable.len() > shown.len() { ", …" } else { "" };
    (!shown.is_empty()).then(|| {
        let waits = if status.phase == "ready" { "" } else { ", and is not ready before it can" };
        ("PeersRefused", format!("{member} cannot talk to {}{more}{waits}", shown.join(", ")))
    })
}
