//! From what was observed of a cluster to its status.
//!
//! Pure: the same observation and the same last status give the same status, so a reconcile that sees nothing new writes nothing.
//! Knows nothing of how things were observed.

mod answers;
mod data;
mod degraded;
mod members;
mod memory;
mod observed;
mod pods;
mod progress;
mod redundancy;
mod refusals;
mod sidecars;
mod verdict;

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::ResourceExt;
use kvasir_crds::{KvCluster, KvClusterStatus, MemberStatus, SidecarStatus, condition};

pub(crate) use self::{
    data::{DATA_LOST, describe},
    redundancy::{ONE_MACHINE, SINGLE_MEMBER},
    sidecars::{OOM_KILLED, killed},
};
use self::{
    degraded::{Rest, degraded},
    members::{converged, keys, member, ordinal, versions},
    progress::{available, progressing},
    redundancy::redundant,
    verdict::{NOT_SEEN, Truth, Verdict},
};
pub use self::{
    observed::Observed,
    verdict::{find, holds},
};
use crate::{names, webhook::pods::Sidecars};

/// The status that follows from what was observed.
pub fn status(observed: &Observed) -> KvClusterStatus {
    let before = observed.cluster.status.clone().unwrap_or_default();
    let name = observed.cluster.name_any();
    let wanted = observed.cluster.spec.replicas;
    let mut pods: Vec<&Pod> = observed.pods.iter().collect();
    pods.sort_by_key(|pod| (ordinal(&pod.name_any()), pod.name_any()));
    let members: Vec<MemberStatus> = pods.iter().map(|pod| member(observed, &before, pod)).collect();
    let ready = members.iter().filter(|member| member.ready).count();
    let ready_replicas = i32::try_from(ready).unwrap_or(i32::MAX);
    let replicas = i32::try_from(members.len()).unwrap_or(i32::MAX);

    let progressing = progressing(observed, &before, replicas, ready_replicas);
    let available = available(observed, &before, ready_replicas);
    let data = data::data(observed, &before, &members);
    let rest = Rest {
        before: &before,
        pods: &pods,
        members: &members,
        data: data.as_ref(),
        progressing: &progressing,
        available: &available,
    };
    let degraded = degraded(observed, &rest);

    let generation = observed.cluster.metadata.generation.unwrap_or_default();
    // Without an answer the condition stays as it was.
    let memory = memory::bounded(observed.answers)
        .map(|(holds, reason, message)| Verdict {
            type_: condition::MEMORY_BOUNDED,
            truth: Truth::from(holds),
            reason,
            message,
        })
        .map(|verdict| verdict.condition(&before.conditions, generation, observed.now))
        .or_else(|| find(&before.conditions, condition::MEMORY_BOUNDED).cloned());
    let conditions = [available, progressing, degraded, redundant(observed)]
        .map(|verdict| verdict.condition(&before.conditions, generation, observed.now))
        .into_iter()
        .chain(memory)
        .collect();
    KvClusterStatus {
        conditions,
        observed_generation: generation,
        replicas,
        ready_replicas,
        ready: format!("{ready_replicas}/{wanted}"),
        selector: names::selector_text(&name),
        keys: members.iter().filter_map(|member| member.keys).max(),
        data,
        converged: replicas == wanted && ready_replicas == wanted && converged(observed),
        version: versions(&members),
        sidecars: sidecars(observed, &before),
        encryption: keys(observed),
        members,
    }
}

fn sidecars(observed: &Observed, before: &KvClusterStatus) -> SidecarStatus {
    let known = before.sidecars.clone();
    let Some(now) = observed.sidecars.map(Sidecars::status) else { return known };
    // The last kill stays known after its pod is gone. Otherwise an older kill would cause another event.
    SidecarStatus { oom_killed_at: now.oom_killed_at.max(known.oom_killed_at), ..now }
}

/// The status of a cluster whose objects could not be read: the last one, with conditions that are no longer known.
pub fn unknown(cluster: &KvCluster, why: &str, now: Timestamp) -> KvClusterStatus {
    let before = cluster.status.clone().unwrap_or_default();
    let generation = cluster.metadata.generation.unwrap_or_default();
    let verdict = |type_| Verdict { type_, truth: Truth::Unknown, reason: NOT_SEEN, message: why.to_owned() };
    let mut conditions = before.conditions.clone();
    for type_ in [condition::DEGRADED, condition::REDUNDANT] {
        let unknown = verdict(type_).condition(&before.conditions, generation, now);
        conditions.retain(|condition| condition.type_ != type_);
        conditions.push(unknown);
    }
    KvClusterStatus { conditions, ..before }
}

/// Whether a cluster is at rest, so that it can be reconciled less often.
pub fn is_steady(status: &KvClusterStatus) -> bool {
    status.converged && !holds(&status.conditions, condition::PROGRESSING)
}

#[cfg(test)]
mod tests;
