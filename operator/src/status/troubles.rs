//! The condition that says what is wrong: Degraded.

use k8s_openapi::{
    api::core::v1::Pod,
    jiff::{SignedDuration, Timestamp},
};
use kube::ResourceExt;
use kvasir_crds::{KvClusterStatus, condition};

use super::{
    NO_MEMBER_READY, Obstacle, Sight, Verdict, find,
    members::is_ready,
    pods::{failing, remedy, waits_for},
    was_available,
};
use crate::poll::NodeStatus;

/// How long a rollout may take until a member that is not ready counts as missing.
pub(super) const ROLLOUT_DEADLINE: SignedDuration = SignedDuration::from_mins(5);
/// How long before its end a certificate is worth a word: what renews it should have done so.
const EXPIRING: SignedDuration = SignedDuration::from_hours(14 * 24);

pub(super) fn degraded(
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
