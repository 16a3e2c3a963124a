//! The condition that says what is wrong: Degraded.
//!
//! "Nothing is wrong" is said only if everything could be read just now. Otherwise the condition is Unknown and says what could
//! not be read.

use k8s_openapi::{
    api::core::v1::Pod,
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};
use kube::ResourceExt;
use kvasir_crds::{DataStatus, KvClusterStatus, MemberStatus, condition};

use super::{
    answers, data,
    observed::Observed,
    pods, refusals, sidecars,
    verdict::{NO_MEMBER_READY, NOT_SEEN, Problem, Truth, Verdict, find, was_available},
};
use crate::{obstacle::Obstacle, pod_status::is_ready};

/// How long a rollout may take before a member that is not ready counts as missing.
pub(super) const ROLLOUT_DEADLINE: SignedDuration = SignedDuration::from_mins(5);

/// Reason of the condition while members start and nothing is known to be wrong.
const IN_PROGRESS: &str = "InProgress";
const ALL_WELL: &str = "AllWell";

/// What the rest of the status says, which this condition builds on.
pub(super) struct Rest<'a> {
    pub(super) before: &'a KvClusterStatus,
    pub(super) pods: &'a [&'a Pod],
    pub(super) members: &'a [MemberStatus],
    pub(super) data: Option<&'a DataStatus>,
    pub(super) progressing: &'a Verdict,
    pub(super) available: &'a Verdict,
}

pub(super) fn degraded(observed: &Observed, rest: &Rest) -> Verdict {
    let mut problems: Vec<Problem> = Vec::new();
    let mut unknown: Vec<String> = observed.unknown.to_vec();
    problems.extend(data::problem(observed, rest.data));
    for Obstacle { reason, message } in observed.obstacle.iter().chain(&observed.concern) {
        problems.push((reason, message.clone()));
    }
    problems.extend(rest.members.iter().filter_map(|member| recently_killed(member, observed.now)));
    problems.extend(missing_members(observed, rest));
    for pod in rest.pods {
        from_answer(observed, rest, pod, &mut problems, &mut unknown);
    }
    problems.extend(refusals::of_sidecars(observed));
    problems.extend(observed.sidecars.into_iter().flat_map(|found| sidecars::problems(found, observed.now)));

    let verdict = |truth, reason, message| Verdict { type_: condition::DEGRADED, truth, reason, message };
    if let Some((reason, _)) = problems.first() {
        let messages: Vec<String> = problems.iter().map(|(_, message)| message.clone()).chain(unknown).collect();
        return verdict(Truth::True, reason, messages.join("; "));
    }
    if !unknown.is_empty() {
        return verdict(Truth::Unknown, NOT_SEEN, unknown.join("; "));
    }
    if rest.progressing.truth == Truth::True || !is_complete(observed, rest) {
        let message = "nothing is wrong so far: members are starting, see the Progressing condition";
        return verdict(Truth::False, IN_PROGRESS, message.to_owned());
    }
    verdict(Truth::False, ALL_WELL, "nothing is wrong".to_owned())
}

fn recently_killed(member: &MemberStatus, now: Timestamp) -> Option<Problem> {
    let Time(at) = member.oom_killed_at.as_ref()?;
    (now.duration_since(*at) < sidecars::OOM_SHOWN).then(|| (sidecars::OOM_KILLED, sidecars::killed(&member.name, *at)))
}

/// The names of the members that there should be, each with its pod.
fn expected<'a>(observed: &Observed, rest: &Rest<'a>) -> impl Iterator<Item = (String, Option<&'a Pod>)> {
    let (cluster, pods) = (observed.cluster.name_any(), rest.pods);
    (0..observed.cluster.spec.replicas).map(move |ordinal| {
        let member = format!("{cluster}-{ordinal}");
        let pod = pods.iter().find(|pod| pod.name_any() == member).copied();
        (member, pod)
    })
}

fn is_complete(observed: &Observed, rest: &Rest) -> bool {
    expected(observed, rest).all(|(_, pod)| pod.is_some_and(is_ready))
}

/// Members that do not exist or are not ready, unless that is part of a start or rollout within its time.
fn missing_members(observed: &Observed, rest: &Rest) -> Vec<Problem> {
    // A cluster whose spec was never carried out may have no pods, which the obstacle explains.
    if observed.obstacle.is_some() && !was_available(rest.before) {
        return Vec::new();
    }
    let overdue = find(&rest.before.conditions, condition::PROGRESSING).is_some_and(|condition| {
        let since = condition.last_transition_time.0;
        condition.status == "True" && observed.now.duration_since(since) > ROLLOUT_DEADLINE
    });
    let started = rest.available.truth == Truth::True || rest.available.reason == NO_MEMBER_READY;
    let at_rest = started && rest.progressing.truth != Truth::True;
    let missing = |message: String| (at_rest || overdue).then_some(("MemberMissing", message));
    expected(observed, rest)
        .filter_map(|(member, pod)| match pod {
            None => refusals::of_member(observed, rest.before, &member)
                .or_else(|| missing(format!("{member} does not exist"))),
            Some(pod) if is_ready(pod) => None,
            Some(pod) => pods::problem(observed, pod)
                .or_else(|| missing(format!("{member} is not ready: {}", pods::waits_for(pod)))),
        })
        .collect()
}

/// What the answer of a member says, or that a ready member gives none.
fn from_answer(observed: &Observed, rest: &Rest, pod: &Pod, problems: &mut Vec<Problem>, unknown: &mut Vec<String>) {
    let member = pod.name_any();
    match observed.answers.get(&member) {
        Some(Ok(status)) => problems.extend(answers::problems(&member, status, observed.now)),
        Some(Err(error)) if is_ready(pod) => {
            let since = silent_since(rest.members, &member).unwrap_or(observed.now);
            let message = format!("{member} has not reported its status since {since}: {error}");
            // One lost answer may be an accident; two in a row are a problem.
            if silent_since(&rest.before.members, &member).is_some() {
                problems.push(("MemberUnreachable", message));
            } else {
                unknown.push(message);
            }
        }
        None if is_ready(pod) => {
            unknown.push(format!("{member} is ready but has no address at which it can be polled"));
        }
        Some(Err(_)) | None => {}
    }
}

fn silent_since(members: &[MemberStatus], name: &str) -> Option<Timestamp> {
    members.iter().find(|member| member.name == name)?.silent_since.as_ref().map(|time| time.0)
}
