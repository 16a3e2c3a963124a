//! From what was seen of a cluster to what its status says.
//!
//! Pure: the same sight and the same status before give the same status, so that a reconcile which sees nothing new has
//! nothing to write. Knows nothing of how things were seen.

mod conditions;
mod data;
mod members;
mod pods;
mod redundancy;
mod troubles;

use k8s_openapi::{
    api::{apps::v1::StatefulSet, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::{Timestamp, Unit},
};
use kube::ResourceExt;
use kvasir_crds::{KvCluster, KvClusterStatus, MemberStatus, SidecarStatus, condition};

use self::{
    conditions::{available, progressing},
    members::{converged, keys, member, ordinal, versions},
    redundancy::redundant,
    troubles::{NOT_SEEN, degraded},
};
pub(crate) use self::{
    data::{DATA_LOST, describe},
    members::is_ready,
    pods::{GRACE, broken, oom_killed, waiting},
    redundancy::{ONE_MACHINE, SINGLE_MEMBER},
    troubles::{OOM_KILLED, killed},
};
use crate::{events::Warning, labels, memory, poll::Answers, webhook::count::Sidecars};

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
    /// Application pods; nothing if they could not be looked at.
    pub sidecars: Option<&'a Sidecars>,
    /// What Kubernetes says of the cluster's objects, oldest first.
    pub warnings: &'a [Warning],
    /// What could not be looked at, each in a sentence that says why.
    pub unseen: &'a [String],
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
    let members: Vec<MemberStatus> = pods.iter().map(|pod| member(sight, &before, pod)).collect();
    let ready = members.iter().filter(|member| member.ready).count();
    let ready_replicas = i32::try_from(ready).unwrap_or(i32::MAX);
    let replicas = i32::try_from(members.len()).unwrap_or(i32::MAX);

    let progressing = progressing(sight, &before, replicas, ready_replicas);
    let available = available(sight, &before, ready_replicas);
    let data = data::data(sight, &before, &members);
    let degraded = degraded(sight, &before, &pods, &members, data.as_ref(), &progressing, &available);

    let generation = sight.cluster.metadata.generation.unwrap_or_default();
    // What no member tells of is not known to have changed.
    let memory = memory::bounded(sight.answers)
        .map(|(holds, reason, message)| Verdict {
            type_: condition::MEMORY_BOUNDED,
            truth: Truth::from(holds),
            reason,
            message,
        })
        .map(|verdict| verdict.condition(&before.conditions, generation, sight.now))
        .or_else(|| find(&before.conditions, condition::MEMORY_BOUNDED).cloned());
    let conditions = [available, progressing, degraded, redundant(sight)]
        .map(|verdict| verdict.condition(&before.conditions, generation, sight.now))
        .into_iter()
        .chain(memory)
        .collect();
    KvClusterStatus {
        conditions,
        observed_generation: generation,
        replicas,
        ready_replicas,
        ready: format!("{ready_replicas}/{wanted}"),
        selector: labels::selector_text(&name),
        keys: members.iter().filter_map(|member| member.keys).max(),
        data,
        converged: replicas == wanted && ready_replicas == wanted && converged(sight),
        version: versions(&members),
        sidecars: sidecars(sight, &before),
        encryption: keys(sight),
        members,
    }
}

fn sidecars(sight: &Sight, before: &KvClusterStatus) -> SidecarStatus {
    let known = before.sidecars.clone();
    let Some(now) = sight.sidecars.map(Sidecars::status) else { return known };
    // Kills stay known after their pods are gone, or an older one would be news again.
    SidecarStatus { oom_killed_at: now.oom_killed_at.max(known.oom_killed_at), ..now }
}

/// The status of a cluster that could not be looked at: as it was, and that nothing is known of how it is now.
pub fn unseen(cluster: &KvCluster, why: &str, now: Timestamp) -> KvClusterStatus {
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

/// Something that is wrong: its reason, and what to do.
type Trouble = (&'static str, String);

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Truth {
    True,
    False,
    Unknown,
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// A condition before it is compared with what it was.
#[derive(Clone, Debug)]
struct Verdict {
    type_: &'static str,
    truth: Truth,
    reason: &'static str,
    message: String,
}

impl Verdict {
    fn condition(self, before: &[Condition], generation: i64, now: Timestamp) -> Condition {
        let status = match self.truth {
            Truth::True => "True",
            Truth::False => "False",
            Truth::Unknown => "Unknown",
        };
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

#[cfg(test)]
mod tests;
