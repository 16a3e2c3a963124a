//! What a person should be told once: the events of a cluster.
//!
//! Events come of a difference between two statuses, so a cluster at rest has none. They are written directly rather than
//! by `kube`'s recorder, which folds two of one reason into one with the words of the first: "scaled from 5 to 3" would
//! then still read "scaled from 3 to 5".

use k8s_openapi::{
    api::{apps::v1::StatefulSet, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ObjectMeta, PostParams},
};
use kvasir_crds::{KvCluster, KvClusterStatus, condition};

use crate::{apply::Outcome, labels, status, webhook::count::Sidecars};

/// The longest note that the API server takes.
const LONGEST_NOTE: usize = 1024;
/// The most kills of sidecars that are told of one by one.
const MOST_KILLS: usize = 10;

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Whether it is a warning.
    pub warning: bool,
    /// One word.
    pub reason: String,
    /// A sentence.
    pub note: String,
}

/// What is to be told of a reconcile: what it did to the `StatefulSet` that was there before, and how the status changed.
pub fn notices(
    cluster: &KvCluster,
    set_before: Option<&StatefulSet>,
    outcome: Outcome,
    before: &KvClusterStatus,
    after: &KvClusterStatus,
    sidecars: Option<&Sidecars>,
) -> Vec<Notice> {
    let mut notices = Vec::new();
    let mut tell = |warning, reason: &str, note: String| {
        notices.push(Notice { warning, reason: reason.to_owned(), note });
    };
    let wanted = cluster.spec.replicas;
    let had = set_before.and_then(|set| set.spec.as_ref()).and_then(|spec| spec.replicas);
    match (outcome, had) {
        (Outcome::Created, _) => tell(false, "Created", format!("created {wanted} members")),
        (Outcome::Updated, Some(had)) if had != wanted => {
            tell(false, "Scaled", format!("scaled from {had} to {wanted} members"));
        }
        (Outcome::Updated, _) => tell(false, "Updated", "members are updated one after another".to_owned()),
        (Outcome::Unchanged, _) => {}
    }
    let was = |type_| status::holds(&before.conditions, type_);
    let is = |type_| status::holds(&after.conditions, type_);
    if is(condition::AVAILABLE) && !was(condition::AVAILABLE) {
        tell(false, "Available", format!("the cluster serves, {} members are ready", after.ready));
    }
    if was(condition::AVAILABLE) && !is(condition::AVAILABLE) {
        tell(true, "Unavailable", "no member is ready".to_owned());
    }
    if let Some(data) = &after.data
        && let Some(lost) = &data.lost
        && before.data.as_ref().and_then(|data| data.lost.as_ref()) != Some(lost)
    {
        tell(true, status::DATA_LOST, status::describe(&cluster.name_any(), data, lost));
    }
    for member in &after.members {
        let known = before.members.iter().find(|before| before.name == member.name);
        if let Some(Time(at)) = &member.oom_killed_at
            && known.and_then(|known| known.oom_killed_at.as_ref()).is_none_or(|known| known.0 < *at)
        {
            tell(true, status::OOM_KILLED, status::killed(&member.name, *at));
        }
    }
    for (pod, at) in sidecars.iter().flat_map(|sidecars| &sidecars.killed).take(MOST_KILLS) {
        if before.sidecars.oom_killed_at.as_ref().is_none_or(|known| known.0 < *at) {
            tell(true, status::OOM_KILLED, status::killed(&format!("the sidecar of {pod}"), *at));
        }
    }
    if let Some(now) = status::find(&after.conditions, condition::REDUNDANT).filter(|now| now.status == "False") {
        let then = status::find(&before.conditions, condition::REDUNDANT);
        let lasts =
            now.reason == status::SINGLE_MEMBER || (now.reason == status::ONE_MACHINE && !is(condition::PROGRESSING));
        // Of what passes with a start or a rollout, only that redundancy was lost is worth an event.
        if was(condition::REDUNDANT) || (lasts && then.is_none_or(|then| then.reason != now.reason)) {
            tell(true, "NotRedundant", now.message.clone());
        }
    }
    let unbounded = |status: &KvClusterStatus| {
        let condition = status::find(&status.conditions, condition::MEMORY_BOUNDED).cloned();
        condition.filter(|condition| condition.status == "False")
    };
    if let Some(now) = unbounded(after)
        && unbounded(before).is_none_or(|then| then.reason != now.reason)
    {
        tell(true, &now.reason, now.message);
    }
    let degraded = |status: &KvClusterStatus| status::find(&status.conditions, condition::DEGRADED).cloned();
    if let Some(now) = degraded(after) {
        let same = degraded(before).is_some_and(|then| then.status == now.status && then.reason == now.reason);
        // Of these there is an event each time.
        let told = [status::DATA_LOST, status::OOM_KILLED].contains(&now.reason.as_str());
        if now.status == "True" && !same && !told {
            tell(true, &now.reason, now.message);
        } else if now.status == "False" && was(condition::DEGRADED) {
            tell(false, "Recovered", now.message);
        }
    }
    notices
}

/// Writes one event.
pub async fn publish(client: &Client, cluster: &KvCluster, notice: &Notice) -> Result<(), kube::Error> {
    let namespace = cluster.namespace().unwrap_or_default();
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    api.create(&PostParams::default(), &event(cluster, notice, Timestamp::now())).await.map(drop)
}

fn event(cluster: &KvCluster, notice: &Notice, now: Timestamp) -> Event {
    let mut note = notice.note.clone();
    if note.len() > LONGEST_NOTE {
        let end = (0..=LONGEST_NOTE - "…".len()).rev().find(|end| note.is_char_boundary(*end)).unwrap_or_default();
        note.truncate(end);
        note.push('…');
    }
    Event {
        metadata: ObjectMeta {
            namespace: cluster.namespace(),
            // The reason keeps two of one moment apart.
            name: Some(format!(
                "{}.{:x}.{}",
                cluster.name_any(),
                now.as_nanosecond(),
                notice.reason.to_ascii_lowercase()
            )),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        type_: Some(if notice.warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(notice.reason.clone()),
        action: Some("Reconcile".to_owned()),
        note: Some(note),
        regarding: Some(cluster.object_ref(&())),
        reporting_controller: Some(format!("kvasir.dev/{}", labels::OPERATOR)),
        reporting_instance: Some(labels::OPERATOR.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{api::apps::v1::StatefulSetSpec, apimachinery::pkg::apis::meta::v1::Condition};

    use super::*;
    use crate::validate::tests::cluster;

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
        let notices = notices(&cluster("{replicas: 3}"), Some(&set), outcome, before, after, None);
        notices.into_iter().map(|notice| notice.reason).collect()
    }

    #[test]
    fn a_cluster_at_rest_has_no_events() {
        let well = with(&[("Available", "True", "MembersReady"), ("Degraded", "False", "AllWell")]);
        assert!(reasons(Outcome::Unchanged, 3, &well, &well).is_empty());
        let ill = with(&[("Available", "True", "MembersReady"), ("Degraded", "True", "NodeFull")]);
        assert!(reasons(Outcome::Unchanged, 3, &ill, &ill).is_empty());
    }

    #[test]
    fn what_happened_is_told_once() {
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

    #[test]
    fn a_long_note_is_cut_where_a_character_ends() {
        let notice = Notice { warning: true, reason: "Long".to_owned(), note: "ä".repeat(LONGEST_NOTE) };
        let note = event(&cluster("{}"), &notice, Timestamp::UNIX_EPOCH).note.unwrap();
        assert!(note.len() <= LONGEST_NOTE && note.ends_with("ä…"), "{}", note.len());
    }
}
