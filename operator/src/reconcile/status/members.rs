//! The status of each member, and what follows from all of them.

use std::collections::BTreeSet;

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Time};
use kube::ResourceExt;
use kvasir_crds::{EncryptionStatus, KvClusterStatus, MemberStatus};

use super::{data::founded, observed::Observed, verdict::whole_seconds};
use crate::{
    names::CONTAINER,
    pod_status::{is_ready, oom_killed},
};

/// Members with a lag below this count as converged while they take writes.
pub(super) const CONVERGED_LAG_MS: u64 = 2_000;

pub(super) fn member(observed: &Observed, before: &KvClusterStatus, pod: &Pod) -> MemberStatus {
    let answer = observed.answer(pod);
    let before = before.members.iter().find(|member| member.name == pod.name_any());
    let silent = is_ready(pod) && answer.is_none();
    let silent_since =
        before.and_then(|before| before.silent_since.clone()).or(Some(Time(whole_seconds(observed.now))));
    let containers = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    // A kill is remembered until the pod is replaced, even if its container ended in another way since then.
    let killed_before = before.and_then(|before| before.oom_killed_at.clone());
    let killed_before = killed_before.filter(|at| pod.creation_timestamp().is_some_and(|created| created <= *at));
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    MemberStatus {
        name: pod.name_any(),
        ready: is_ready(pod),
        synced: answer.is_some_and(|status| status.phase == "ready"),
        keys: answer.map(|status| number(status.keys)),
        // In whole seconds, and 0 below two: between two heartbeats a lag rises and falls, which must not change the status.
        lag_ms: answer
            .and_then(|status| status.lag_ms)
            .map(|lag| number(if lag < 2000 { 0 } else { lag / 1000 * 1000 })),
        version: answer.map(|status| status.version.clone()),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        origin: answer.map_or_else(|| before.and_then(|it| it.origin.clone()), |status| Some(status.origin.clone())),
        founded_at: answer.map_or_else(|| before.and_then(|it| it.founded_at.clone()), founded),
        silent_since: silent_since.filter(|_| silent),
        oom_killed_at: oom_killed(containers, CONTAINER).map(Time).max(killed_before),
        found_by: answer.and_then(|status| found_by(observed, &status.origin)),
    }
}

/// The discovery providers by which the other members found this process.
fn found_by(observed: &Observed, origin: &str) -> Option<String> {
    let others = observed.pods.iter().filter_map(|pod| observed.answer(pod)).flat_map(|status| &status.peers);
    let ways: BTreeSet<_> = others.filter(|peer| peer.origin == origin).filter_map(|p| p.found_by.as_deref()).collect();
    (!ways.is_empty()).then(|| ways.into_iter().collect::<Vec<_>>().join(","))
}

/// The keys of the members that answer. They are settled once all expected members answer with the same keys.
pub(super) fn keys(observed: &Observed) -> Option<EncryptionStatus> {
    let answers: Vec<_> = observed.pods.iter().filter_map(|pod| observed.answer(pod)?.encryption.as_ref()).collect();
    let (first, others) = answers.split_first()?;
    let primaries: BTreeSet<_> = answers.iter().map(|keys| keys.primary.as_str()).collect();
    let on_all = first.keys.iter().filter(|key| others.iter().all(|other| other.keys.contains(key)));
    Some(EncryptionStatus {
        primary: primaries.into_iter().collect::<Vec<_>>().join(","),
        keys: on_all.cloned().collect(),
        settled: i32::try_from(answers.len()).is_ok_and(|count| count == observed.cluster.spec.replicas)
            && others.iter().all(|other| other == first),
    })
}

pub(super) fn converged(observed: &Observed) -> bool {
    let Some(answers) = observed.pods.iter().map(|pod| observed.answer(pod)).collect::<Option<Vec<_>>>() else {
        return false;
    };
    let fingerprints: BTreeSet<_> = answers.iter().map(|status| status.fingerprint.as_str()).collect();
    answers.iter().all(|status| status.phase == "ready")
        && (fingerprints.len() <= 1
            || answers.iter().all(|status| status.lag_ms.is_some_and(|lag| lag < CONVERGED_LAG_MS)))
}

pub(super) fn versions(members: &[MemberStatus]) -> String {
    let versions: BTreeSet<_> = members.iter().filter_map(|member| member.version.as_deref()).collect();
    versions.into_iter().collect::<Vec<_>>().join(",")
}

pub(super) fn ordinal(name: &str) -> Option<u32> {
    name.rsplit_once('-').and_then(|(_, number)| number.parse().ok())
}
