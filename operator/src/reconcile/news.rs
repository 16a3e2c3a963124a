//! What changed from one status to the next, as events.
//!
//! Pure. Events follow from a difference of two statuses, so a cluster at rest has none.

use k8s_openapi::{api::apps::v1::StatefulSet, apimachinery::pkg::apis::meta::v1::Time};
use kube::ResourceExt;
use kvasir_crds::{KvCluster, KvClusterStatus, condition};

use super::{
    apply::Outcome,
    notice::Notice,
    status::{self, find, holds},
};
use crate::webhook::pods::Sidecars;

/// The most kills of sidecars that get an event each.
const MOST_KILLS: usize = 10;

fn normal(reason: &str, note: impl Into<String>) -> Notice {
    Notice { warning: false, reason: reason.to_owned(), note: note.into() }
}

fn warning(reason: &str, note: impl Into<String>) -> Notice {
    Notice { warning: true, reason: reason.to_owned(), note: note.into() }
}

/// The events of a reconcile: from what it did to the earlier `StatefulSet`, and from how the status changed.
pub(super) fn news(
    cluster: &KvCluster,
    set_before: Option<&StatefulSet>,
    outcome: Outcome,
    before: &KvClusterStatus,
    after: &KvClusterStatus,
    sidecars: Option<&Sidecars>,
) -> Vec<Notice> {
    let mut news = Vec::new();
    news.extend(of_members(cluster, set_before, outcome));
    news.extend(of_availability(before, after));
    news.extend(of_data(cluster, before, after));
    news.extend(of_kills(before, after, sidecars));
    news.extend(of_redundancy(before, after));
    news.extend(of_memory(before, after));
    news.extend(of_degradation(before, after));
    news
}

fn of_members(cluster: &KvCluster, set_before: Option<&StatefulSet>, outcome: Outcome) -> Option<Notice> {
    let wanted = cluster.spec.replicas;
    let had = set_before.and_then(|set| set.spec.as_ref()).and_then(|spec| spec.replicas);
    match (outcome, had) {
        (Outcome::Created, _) => Some(normal("Created", format!("created {wanted} members"))),
        (Outcome::Updated, Some(had)) if had != wanted => {
            Some(normal("Scaled", format!("scaled from {had} to {wanted} members")))
        }
        (Outcome::Updated, _) => Some(normal("Updated", "members are updated one after another")),
        (Outcome::Unchanged, _) => None,
    }
}

fn of_availability(before: &KvClusterStatus, after: &KvClusterStatus) -> Option<Notice> {
    let holds = |status: &KvClusterStatus| holds(&status.conditions, condition::AVAILABLE);
    match (holds(before), holds(after)) {
        (false, true) => Some(normal("Available", format!("the cluster serves, {} members are ready", after.ready))),
        (true, false) => Some(warning("Unavailable", "no member is ready")),
        (true, true) | (false, false) => None,
    }
}

fn of_data(cluster: &KvCluster, before: &KvClusterStatus, after: &KvClusterStatus) -> Option<Notice> {
    let data = after.data.as_ref()?;
    let lost = data.lost.as_ref()?;
    let known = before.data.as_ref().and_then(|data| data.lost.as_ref()) == Some(lost);
    (!known).then(|| warning(status::DATA_LOST, status::describe(&cluster.name_any(), data, lost)))
}

fn of_kills(before: &KvClusterStatus, after: &KvClusterStatus, sidecars: Option<&Sidecars>) -> Vec<Notice> {
    let mut kills = Vec::new();
    for member in &after.members {
        let known = before.members.iter().find(|before| before.name == member.name);
        if let Some(Time(at)) = &member.oom_killed_at
            && known.and_then(|known| known.oom_killed_at.as_ref()).is_none_or(|known| known.0 < *at)
        {
            kills.push(warning(status::OOM_KILLED, status::killed(&member.name, *at)));
        }
    }
    for (pod, at) in sidecars.into_iter().flat_map(|sidecars| &sidecars.killed).take(MOST_KILLS) {
        if before.sidecars.oom_killed_at.as_ref().is_none_or(|known| known.0 < *at) {
            kills.push(warning(status::OOM_KILLED, status::killed(&format!("the sidecar of {pod}"), *at)));
        }
    }
    kills
}

fn of_redundancy(before: &KvClusterStatus, after: &KvClusterStatus) -> Option<Notice> {
    let now = find(&after.conditions, condition::REDUNDANT).filter(|now| now.status == "False")?;
    let then = find(&before.conditions, condition::REDUNDANT);
    let progressing = holds(&after.conditions, condition::PROGRESSING);
    let lasts = now.reason == status::SINGLE_MEMBER || (now.reason == status::ONE_MACHINE && !progressing);
    // If the end of a start or rollout may remove the cause, there is an event only for redundancy that was lost.
    let was = holds(&before.conditions, condition::REDUNDANT);
    (was || (lasts && then.is_none_or(|then| then.reason != now.reason)))
        .then(|| warning("NotRedundant", now.message.clone()))
}

fn of_memory(before: &KvClusterStatus, after: &KvClusterStatus) -> Option<Notice> {
    let unbounded = |status: &KvClusterStatus| {
        let condition = find(&status.conditions, condition::MEMORY_BOUNDED).cloned();
        condition.filter(|condition| condition.status == "False")
    };
    let now = unbounded(after)?;
    unbounded(before).is_none_or(|then| then.reason != now.reason).then(|| warning(&now.reason, now.message))
}

fn of_degradation(before: &KvClusterStatus, after: &KvClusterStatus) -> Option<Notice> {
    let now = find(&after.conditions, condition::DEGRADED)?;
    let then = find(&before.conditions, condition::DEGRADED);
    let same = then.is_some_and(|then| then.status == now.status && then.reason == now.reason);
    // For these reasons there is an event for each occurrence.
    let reported = [status::DATA_LOST, status::OOM_KILLED].contains(&now.reason.as_str());
    if now.status == "True" && !same && !reported {
        Some(warning(&now.reason, now.message.clone()))
    } else if now.status == "False" && then.is_some_and(|then| then.status == "True") {
        Some(normal("Recovered", now.message.clone()))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{api::apps::v1::StatefulSetSpec, apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};

    use super::*;
    use crate::cluster::validate::tests::cluster;

    fn with(conditions: &[(&str, &str, &str)]) -> KvClusterStatus {
        KvClusterStatus {
            ready: "3/3".to_owned(),
            conditions: conditions
                .iter()
                .map(|(type_, status, reason)| Condition {
                    type_: (*type_).to_owned(),
                    status: (*status).to_owned(),
                    reason: (*reason).to_owned(),
                    message: "why".to_owned(),
                    observed_generation: None,
                    last_transition_time: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH),
                })
                .collect(),
            ..KvClusterStatus::default()
        }
    }

    fn reasons(outcome: Outcome, had: i32, before: &KvClusterStatus, after: &KvClusterStatus) -> Vec<String> {
        let set = StatefulSet {
            spec: Some(StatefulSetSpec { replicas: Some(had), ..StatefulSetSpec::default() }),
            ..StatefulSet::default()
        };
        let news = news(&cluster("{replicas: 3}"), Some(&set), outcome, before, after, None);
        news.into_iter().map(|notice| notice.reason).collect()
    }

    #[test]
    fn news_of_a_cluster_at_rest_are_empty() {
        let well = with(&[("Available", "True", "MembersReady"), ("Degraded", "False", "AllWell")]);
        assert!(reasons(Outcome::Unchanged, 3, &well, &well).is_empty());
        let ill = with(&[("Available", "True", "MembersReady"), ("Degraded", "True", "NodeFull")]);
        assert!(reasons(Outcome::Unchanged, 3, &ill, &ill).is_empty());
    }

    #[test]
    fn news_have_each_change_once() {
        let new = KvClusterStatus::default();
        let well = with(&[("Available", "True", "MembersReady"), ("Degraded", "False", "AllWell")]);
        let ill = with(&[("Available", "True", "MembersReady"), ("Degraded", "True", "MemberMissing")]);
        let dead = with(&[("Available", "False", "NoMemberReady"), ("Degraded", "True", "MemberMissing")]);
        assert_eq!(reasons(Outcome::Created, 3, &new, &new), ["Created"]);
        assert_eq!(reasons(Outcome::Updated, 5, &well, &well), ["Scaled"]);
        assert_eq!(reasons(Outcome::Updated, 3, &well, &well), ["Updated"]);
        assert_eq!(reasons(Outcome::Unchanged, 3, &new, &well), ["Available"]);
        assert_eq!(reasons(Outcome::Unchanged, 3, &well, &ill), ["MemberMissing"]);
        assert_eq!(reasons(Outcome::Unchanged, 3, &ill, &dead), ["Unavailable"]);
        assert_eq!(reasons(Outcome::Unchanged, 3, &ill, &well), ["Recovered"]);
        let unlimited = with(&[("MemoryBounded", "False", "MemoryUnlimited")]);
        let tight = with(&[("MemoryBounded", "False", "MemoryLimitLow")]);
        let bounded = with(&[("MemoryBounded", "True", "Bounded")]);
        assert_eq!(reasons(Outcome::Unchanged, 3, &new, &unlimited), ["MemoryUnlimited"]);
        assert_eq!(reasons(Outcome::Unchanged, 3, &unlimited, &tight), ["MemoryLimitLow"]);
        for (before, after) in [(&unlimited, &unlimited), (&unlimited, &bounded), (&new, &bounded)] {
            assert!(reasons(Outcome::Unchanged, 3, before, after).is_empty());
        }
    }
}
