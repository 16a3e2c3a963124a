//! Events of a cluster, for people.
//!
//! They are written directly and not by `kube`'s recorder, which merges two events of one reason under the note of the first:
//! "scaled from 5 to 3" would then still read "scaled from 3 to 5". Knows nothing of the reasons for an event.

use k8s_openapi::{api::events::v1::Event, apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ObjectMeta, PostParams},
};
use kvasir_crds::KvCluster;

use crate::names;

/// The longest note that the API server accepts.
const LONGEST_NOTE: usize = 1024;

/// An event to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Whether it is a warning.
    pub warning: bool,
    /// One word.
    pub reason: String,
    /// A sentence.
    pub note: String,
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
            // The reason distinguishes two events of the same moment.
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
        reporting_controller: Some(format!("kvasir.dev/{}", names::OPERATOR)),
        reporting_instance: Some(names::OPERATOR.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::validate::tests::cluster;

    #[test]
    fn notice_is_cut_between_characters() {
        let notice = Notice { warning: true, reason: "Long".to_owned(), note: "ä".repeat(LONGEST_NOTE) };
        let note = event(&cluster("{}"), &notice, Timestamp::UNIX_EPOCH).note.unwrap();
        assert!(note.len() <= LONGEST_NOTE && note.ends_with("ä…"), "{}", note.len());
    }
}
