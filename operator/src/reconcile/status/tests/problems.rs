//! Each problem that pods and events show; and that "nothing is wrong" is said only if everything was read.

use super::*;
use crate::{
    pod_status::GRACE,
    reconcile::{apply::Outcome, news, status::sidecars::OOM_SHOWN},
    webhook::pods::Failing,
};

/// A pod that is not ready, created ten minutes before the epoch's 1,060th second.
#[expect(clippy::needless_pass_by_value, reason = "every caller makes one for it")]
fn waiting_pod(ordinal: i32, status: Value) -> Pod {
    object(json!({
        "metadata": { "name": format!("demo-{ordinal}"), "creationTimestamp": "1970-01-01T00:07:40Z" },
        "spec": { "containers": [] },
        "status": status,
    }))
}

fn warning(world: &World, kind: &str, name: &str, reason: &str, message: &str) -> Warning {
    let at = world.now - SignedDuration::from_secs(1);
    Warning { kind: kind.into(), name: name.into(), reason: reason.into(), message: message.into(), at }
}

/// Adds an event that a member cannot be created.
fn refuse(world: &mut World, said: &str) {
    let message = format!("create Pod demo-2 in StatefulSet demo failed error: {said}");
    world.warnings = vec![warning(world, "StatefulSet", "demo", "FailedCreate", &message)];
}

#[test]
fn problem_of_a_refused_pod_quotes_the_api_server() {
    let quota = "pods \"demo-2\" is forbidden: exceeded quota: small, requested: pods=1, used: pods=2, limited: pods=2";
    for was_there in [true, false] {
        let mut world = if was_there { World::serving("{}") } else { World::new("{}") };
        world.roll_out();
        if !was_there {
            world.pods.clear();
            world.look();
            world.is(condition::DEGRADED, "False", "InProgress");
            world.roll_out();
        }
        world.pods.pop();
        world.look();
        refuse(&mut world, quota);
        world.look();
        world.is(condition::DEGRADED, "True", "FailedCreate");
        let message = world.message(condition::DEGRADED);
        assert!(message.contains(quota) && message.contains("Raise the ResourceQuota"), "{message}");
        // The pod exists, so the earlier event is outdated.
        world.roll_out();
        world.look();
        world.is(condition::DEGRADED, "False", "AllWell");
    }
}

#[test]
fn problem_of_refusal_needs_a_missing_pod() {
    let mut world = World::serving("{}");
    refuse(&mut world, "pods \"demo-2\" is forbidden: exceeded quota: small");
    world.pods.pop();
    world.look();
    world.is(condition::DEGRADED, "True", "MemberMissing");
    let mut world = World::serving("{}");
    world.pods.pop();
    world.look();
    refuse(&mut world, "long ago");
    world.warnings[0].at -= SignedDuration::from_mins(30);
    world.look();
    world.is(condition::DEGRADED, "True", "MemberMissing");
}

#[test]
fn problem_of_scheduling_has_a_grace_period() {
    let mut world = World::new("{}");
    world.roll_out();
    world.look();
    world.now += SignedDuration::from_secs(60);
    let since = Time(world.now);
    world.pods[2] = waiting_pod(
        2,
        json!({ "phase": "Pending", "conditions": [
            { "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "lastTransitionTime": since,
              "message": "0/3 nodes are available: 3 Insufficient memory." },
        ]}),
    );
    world.changed = true;
    world.look();
    world.is(condition::DEGRADED, "False", "InProgress");
    world.now += GRACE;
    world.look();
    world.is(condition::DEGRADED, "True", "Unschedulable");
    let message = world.message(condition::DEGRADED);
    assert!(message.contains("3 Insufficient memory") && message.contains("spec.resources"), "{message}");
}

#[test]
fn problem_of_a_pod_quotes_kubernetes() {
    let mut world = World::serving("{}");
    world.changed = true;
    world.pods[1] = waiting_pod(
        1,
        json!({ "phase": "Pending", "containerStatuses": [{
            "name": "kvasir", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "waiting": { "reason": "ContainerCreating" } },
        }]}),
    );
    world.look();
    world.is(condition::DEGRADED, "False", "InProgress");
    let mount = "MountVolume.SetUp failed for volume \"keys\": secret \"demo-keys\" not found";
    world.warnings = vec![
        warning(&world, "Pod", "demo-1", "FailedMount", mount),
        warning(&world, "Pod", "demo-1", "BackOff", "back-off"),
        warning(&world, "Pod", "other-1", "FailedMount", "of another pod"),
    ];
    world.look();
    world.is(condition::DEGRADED, "True", "MemberFailing");
    assert_eq!(world.message(condition::DEGRADED), format!("demo-1: FailedMount: {mount}"));
    // An event of an earlier pod of that name.
    world.pods[1].metadata.creation_timestamp = Some(Time(world.now));
    world.look();
    world.is(condition::DEGRADED, "False", "InProgress");
}

#[test]
fn init_containers_fail_too() {
    let mut world = World::serving("{}");
    world.pods[1] = waiting_pod(
        1,
        json!({ "initContainerStatuses": [{
            "name": "mesh", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "waiting": { "reason": "ErrImagePull", "message": "no such image" } },
        }]}),
    );
    world.look();
    assert_eq!(world.message(condition::DEGRADED), "demo-1: ErrImagePull: no such image");
}

#[test]
fn problem_of_a_crash_has_its_message() {
    let mut world = World::serving("{}");
    world.pods[1] = waiting_pod(
        1,
        json!({ "containerStatuses": [{
            "name": "kvasir", "image": "", "imageID": "", "ready": false, "restartCount": 4,
            "state": { "waiting": { "reason": "CrashLoopBackOff" } },
            "lastState": { "terminated": { "exitCode": 137, "reason": "OOMKilled", "message": "no room" } },
        }]}),
    );
    world.look();
    let message = world.message(condition::DEGRADED);
    assert!(
        message.contains("ended 4 times, last with exit code 137 (OOMKilled) and the message \"no room\""),
        "{message}"
    );
}

/// A member that runs again after it was killed for lack of memory.
fn killed(world: &World, ordinal: i32, ago: SignedDuration) -> Pod {
    let mut pod = pod(ordinal, true);
    pod.metadata.creation_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    pod.status.as_mut().unwrap().container_statuses = Some(vec![object(json!({
        "name": "kvasir", "image": "", "imageID": "", "ready": true, "restartCount": 1, "state": { "running": {} },
        "lastState": { "terminated": { "exitCode": 137, "reason": "OOMKilled", "finishedAt": Time(world.now - ago) } },
    }))]);
    pod
}

#[test]
fn problem_of_memory_is_one_event() {
    let mut world = World::serving("{}");
    let before = world.cluster.status.clone().unwrap();
    world.pods[1] = killed(&world, 1, SignedDuration::from_secs(5));
    let status = world.look();
    world.is(condition::DEGRADED, "True", "OOMKilled");
    assert!(world.message(condition::DEGRADED).contains("limits.memory"), "{}", world.message(condition::DEGRADED));
    let events = |before: &KvClusterStatus, after: &KvClusterStatus| {
        let events = news::news(&cluster("{}"), None, Outcome::Unchanged, before, after, None);
        events.into_iter().filter(|notice| notice.warning).map(|notice| notice.reason).collect::<Vec<_>>()
    };
    assert_eq!(events(&before, &status), ["OOMKilled"]);
    let later = world.look();
    assert!(events(&status, &later).is_empty());
    world.now += SignedDuration::from_secs(60);
    world.pods[1] = killed(&world, 1, SignedDuration::from_secs(5));
    let second = world.look();
    assert_eq!(events(&later, &second), ["OOMKilled"], "another kill");
    // The kill stays known after the container ended in another way.
    let containers = world.pods[1].status.as_mut().unwrap().container_statuses.as_mut().unwrap();
    containers[0].last_state = None;
    world.look();
    world.is(condition::DEGRADED, "True", "OOMKilled");
    world.now += OOM_SHOWN;
    world.look();
    world.is(condition::DEGRADED, "False", "AllWell");
}

#[test]
fn problem_of_a_killed_sidecar_is_one_event() {
    let mut world = World::serving("{}");
    let before = world.cluster.status.clone().unwrap();
    let at = world.now - SignedDuration::from_secs(5);
    let sidecars = Sidecars { injected: 1, killed: vec![("shop-1".to_owned(), at)], ..Sidecars::default() };
    world.sidecars = Some(sidecars.clone());
    let status = world.look();
    world.is(condition::DEGRADED, "True", "OOMKilled");
    assert!(world.message(condition::DEGRADED).starts_with("the sidecar of shop-1 was killed"));
    let events = |before: &KvClusterStatus, after: &KvClusterStatus| {
        news::news(&cluster("{}"), None, Outcome::Unchanged, before, after, Some(&sidecars)).len()
    };
    assert_eq!((events(&before, &status), events(&status, &world.look())), (1, 0));
    world.sidecars = Some(Sidecars::default());
    assert!(world.look().sidecars.oom_killed_at.is_some(), "or an older one would be news");
}

#[test]
fn failing_sidecars_are_named_up_to_three() {
    let mut world = World::serving("{}");
    let failing = (0..5).map(|n| Failing { name: format!("shop-{n}"), why: "ErrImagePull".to_owned() }).collect();
    world.sidecars = Some(Sidecars { injected: 9, failing, ..Sidecars::default() });
    assert_eq!(world.look().sidecars.failing, 5);
    world.is(condition::DEGRADED, "True", "SidecarFailing");
    let message = world.message(condition::DEGRADED);
    assert!(message.contains("shop-2: ErrImagePull; and 2 more") && !message.contains("shop-3"), "{message}");
}

#[test]
fn problem_of_refused_application_pods() {
    let mut world = World::serving("{}");
    let said =
        "Error creating: pods \"shop-5d-x\" is forbidden: failed quota: q: must specify limits.memory for: kvasir";
    world.warnings = vec![warning(&world, "ReplicaSet", "shop-5d", "FailedCreate", said)];
    world.look();
    world.is(condition::DEGRADED, "True", "SidecarFailing");
    let message = world.message(condition::DEGRADED);
    assert!(message.contains("ReplicaSet shop-5d") && message.contains("must specify limits.memory"), "{message}");
    // A pod was created since then.
    let newest = [("shop-5d".to_owned(), world.now)].into();
    world.sidecars = Some(Sidecars { injected: 1, newest, ..Sidecars::default() });
    world.look();
    world.is(condition::DEGRADED, "False", "AllWell");
    // Refusals without a sidecar do not count.
    world.sidecars = Some(Sidecars::default());
    world.warnings = vec![warning(&world, "ReplicaSet", "web-1", "FailedCreate", "Error creating: exceeded quota: q")];
    world.look();
    world.is(condition::DEGRADED, "False", "AllWell");
}

#[test]
fn problem_of_silence_needs_two_lost_answers() {
    let mut world = World::serving("{}");
    world.tell(1, |status| status.origin = "o1".to_owned());
    world.look();
    world.answers.insert("demo-1".to_owned(), Err(PollError::Timeout));
    let status = world.look();
    world.is(condition::DEGRADED, "Unknown", "NotSeen");
    let since = Timestamp::from_second(1_060).unwrap();
    assert_eq!(status.members[1].silent_since.as_ref().unwrap().0, since);
    assert!(world.message(condition::DEGRADED).contains(&since.to_string()), "{}", world.message(condition::DEGRADED));
    assert_eq!((status.members[1].keys, status.keys, status.converged), (None, Some(12), false));
    assert_eq!(status.members[1].origin.as_deref(), Some("o1"), "as last reported");
    world.now += SignedDuration::from_secs(10);
    let status = world.look();
    world.is(condition::DEGRADED, "True", "MemberUnreachable");
    world.now += SignedDuration::from_secs(10);
    assert_eq!(world.look(), status, "the moment, and not how long ago");
    world.answers.insert("demo-1".to_owned(), Ok(answer()));
    assert_eq!(world.look().members[1].silent_since, None);
    world.is(condition::DEGRADED, "False", "AllWell");
}

#[test]
fn degraded_is_unknown_if_something_is() {
    let mut world = World::serving("{}");
    world.sidecars = Some(Sidecars { injected: 4, ..Sidecars::default() });
    world.look();
    world.sidecars = None;
    world.unknown = vec!["cannot list the pods".to_owned()];
    assert_eq!(world.look().sidecars.injected, 4, "as last seen");
    world.is(condition::DEGRADED, "Unknown", "NotSeen");
    assert_eq!(world.message(condition::DEGRADED), "cannot list the pods");
    // A problem is reported even if something else is unknown.
    world.tell(1, |status| status.full = true);
    world.look();
    world.is(condition::DEGRADED, "True", "NodeFull");
    assert!(world.message(condition::DEGRADED).ends_with("; cannot list the pods"));
}

#[test]
fn status_is_unknown_if_objects_cannot_be_read() {
    let mut world = World::serving("{}");
    let before = world.look();
    let unknown = unknown(&world.cluster, "cannot read Pods of demo: forbidden", world.now);
    world.cluster.status = Some(unknown.clone());
    world.is(condition::DEGRADED, "Unknown", "NotSeen");
    world.is(condition::REDUNDANT, "Unknown", "NotSeen");
    world.is(condition::AVAILABLE, "True", "MembersReady");
    assert_eq!((unknown.keys, unknown.members), (before.keys, before.members));
    world.now += SignedDuration::from_secs(60);
    let again = super::super::unknown(&world.cluster, "cannot read Pods of demo: forbidden", world.now);
    assert_eq!(Some(&again), world.cluster.status.as_ref(), "nothing new is not written again");
}

#[test]
fn problem_of_redundancy_is_one_event() {
    let events = |before: &KvClusterStatus, after: &KvClusterStatus| {
        let events = news::news(&cluster("{}"), None, Outcome::Unchanged, before, after, None);
        events.into_iter().filter(|notice| notice.reason == "NotRedundant").count()
    };
    let mut world = World::serving("{}");
    let well = world.look();
    world.pods.truncate(1);
    let one = world.look();
    assert_eq!((events(&well, &one), events(&one, &world.look())), (1, 0));
    let mut single = World::serving("{replicas: 1}");
    let status = single.look();
    assert_eq!((events(&KvClusterStatus::default(), &status), events(&status, &single.look())), (1, 0));
    // A start passes through these reasons.
    let mut starting = World::new("{}");
    starting.pods = vec![pod(0, true)];
    let status = starting.look();
    assert_eq!(events(&KvClusterStatus::default(), &status), 0);
}
