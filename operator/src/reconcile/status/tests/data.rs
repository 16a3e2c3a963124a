//! Maps that are lost, and maps that are only merged.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::*;
use crate::{
    names,
    reconcile::{apply::Outcome, news, status::data::LOSS_SHOWN},
};

/// A cluster that serves 1,000 keys of the map founded at 100 ms, each member under an origin of its own.
fn holding(spec: &str) -> World {
    let mut world = World::serving(spec);
    for ordinal in 0..world.cluster.spec.replicas {
        world.tell(ordinal, |status| {
            status.origin = format!("old-{ordinal}");
            status.keys = 1_000;
        });
    }
    world.look();
    world
}

impl World {
    /// A new process of this member, ready with a map of another epoch.
    fn begin(&mut self, ordinal: i32, founded: i64, keys: u64) {
        let founding = Some(FoundingStatus { at_ms: founded });
        let status = NodeStatus { origin: format!("new-{ordinal}"), founding, keys, ..answer() };
        self.answers.insert(format!("demo-{ordinal}"), Ok(status));
    }

    fn lost(&self) -> Option<i64> {
        self.cluster.status.as_ref().unwrap().data.as_ref().unwrap().lost.as_ref().map(|lost| lost.keys)
    }
}

fn at(ms: i64) -> MicroTime {
    MicroTime(Timestamp::from_millisecond(ms).unwrap())
}

#[test]
fn data_status_outlasts_silence() {
    let mut world = World::new("{}");
    assert_eq!(world.look().data, None, "no member reported a map");
    let mut world = holding("{}");
    let known = world.look().data.unwrap();
    assert_eq!((known.founded_at, known.keys, known.lost), (at(100), 1_000, None));
    world.pods.clear();
    world.answers.clear();
    let status = world.look();
    assert_eq!((status.keys, status.data.unwrap().keys), (None, 1_000), "no member answers");
}

#[test]
fn data_is_lost_with_its_last_holder() {
    for spec in ["{replicas: 1}", "{replicas: 2}"] {
        let mut world = holding(spec);
        let before = world.cluster.status.clone().unwrap();
        world.answers.clear();
        world.look();
        assert_eq!(world.lost(), None, "nothing is known yet");
        for ordinal in 0..world.cluster.spec.replicas {
            world.begin(ordinal, 5_000, 0);
        }
        let status = world.look();
        world.is(condition::DEGRADED, "True", "DataLost");
        let message = world.message(condition::DEGRADED);
        assert!(message.contains("1970-01-01T00:00:00.1Z") && message.contains("1000 keys"), "{message}");
        let data = status.data.clone().unwrap();
        assert_eq!((data.founded_at, data.lost.clone().unwrap().founded_at), (at(5_000), at(100)));
        let events = news::news(&world.cluster, None, Outcome::Unchanged, &before, &status, None);
        let events: Vec<_> = events.iter().filter(|notice| notice.reason == "DataLost").collect();
        assert!(events.len() == 1 && events[0].warning && events[0].note.contains("1000 keys"), "{events:?}");
        let again = world.look();
        assert!(news::news(&world.cluster, None, Outcome::Unchanged, &status, &again, None).is_empty());
    }
}

#[test]
fn data_loss_is_shown_until_acknowledged() {
    let mut world = holding("{replicas: 1}");
    world.begin(0, 5_000, 3);
    world.look();
    world.is(condition::DEGRADED, "True", "DataLost");
    world.now += LOSS_SHOWN - SignedDuration::from_secs(1);
    world.look();
    world.is(condition::DEGRADED, "True", "DataLost");
    let mut acknowledged = World { cluster: world.cluster.clone(), ..holding("{replicas: 1}") };
    acknowledged.begin(0, 5_000, 3);
    let lost = serde_json::to_value(at(100)).unwrap().as_str().unwrap().to_owned();
    for (value, shown) in [("1970-01-01T00:00:00.2Z", true), (lost.as_str(), false)] {
        let annotations = acknowledged.cluster.annotations_mut();
        annotations.insert(names::ACKNOWLEDGE_DATA_LOSS.to_owned(), value.to_owned());
        acknowledged.now = world.now;
        acknowledged.look();
        acknowledged.is(
            condition::DEGRADED,
            if shown { "True" } else { "False" },
            if shown { "DataLost" } else { "AllWell" },
        );
    }
    world.now += SignedDuration::from_secs(1);
    world.look();
    world.is(condition::DEGRADED, "False", "AllWell");
    assert_eq!(world.lost(), Some(1_000), "it stays in the status");
}

#[test]
fn data_of_an_empty_map_is_not_lost() {
    let mut world = holding("{replicas: 1}");
    world.tell(0, |status| status.keys = 0);
    world.look();
    world.begin(0, 5_000, 0);
    world.look();
    assert_eq!(world.lost(), None);
    world.is(condition::DEGRADED, "False", "AllWell");
}

#[test]
fn data_is_kept_by_one_holder() {
    let mut world = holding("{}");
    world.begin(0, 5_000, 0);
    world.begin(1, 5_000, 0);
    let data = world.look().data.unwrap();
    assert_eq!((data.founded_at, data.keys, data.lost), (at(100), 1_000, None));
}

#[test]
fn data_is_not_lost_by_a_merge() {
    let mut world = holding("{}");
    world.begin(0, 5_000, 0);
    world.look();
    // The same processes as before: the map that stays has what they held, even if keys expired since.
    for ordinal in 1..3 {
        world.tell(ordinal, |status| (status.founding, status.keys) = (Some(FoundingStatus { at_ms: 5_000 }), 990));
    }
    let data = world.look().data.unwrap();
    assert_eq!((data.founded_at, data.lost), (at(5_000), None));
}

#[test]
fn data_is_carried_by_a_rejoined_member() {
    let mut world = holding("{replicas: 2}");
    world.begin(0, 5_000, 0);
    world.begin(1, 5_000, 0);
    world.tell(1, |status| status.former_origins = vec!["older".to_owned(), "old-1".to_owned()]);
    world.look();
    assert_eq!(world.lost(), None);
}

#[test]
fn data_is_not_carried_by_a_new_member() {
    let mut world = holding("{replicas: 2}");
    // It ran before, but with the other map.
    world.begin(0, 5_000, 1_200);
    world.look();
    world.begin(1, 5_000, 1_200);
    world.look();
    assert_eq!(world.lost(), Some(1_000), "however many keys the new map has by now");
}

#[test]
fn data_loss_ends_if_the_map_turns_up() {
    let mut world = holding("{replicas: 2}");
    let silent = |world: &mut World| world.answers.insert("demo-1".to_owned(), Err(PollError::Timeout));
    world.begin(0, 5_000, 0);
    silent(&mut world);
    world.look();
    assert_eq!(world.lost(), None, "it is ready, and may hold the map");
    world.pods[1] = pod(1, false);
    world.look();
    assert_eq!(world.lost(), Some(1_000));
    // It answers again, and has merged its map in the meantime.
    world.pods[1] = pod(1, true);
    world.begin(1, 5_000, 1_000);
    world.tell(1, |status| status.origin = "old-1".to_owned());
    world.look();
    assert_eq!(world.lost(), None);
    world.is(condition::DEGRADED, "False", "AllWell");
}

#[test]
fn data_of_a_joining_member_does_not_count() {
    let mut world = holding("{replicas: 1}");
    world.begin(0, 5_000, 0);
    world.tell(0, |status| status.phase = "syncing".to_owned());
    world.look();
    assert_eq!(world.lost(), None);
}
