mod data;
mod problems;
mod redundancy;

use k8s_openapi::{api::apps::v1::StatefulSet, apimachinery::pkg::apis::meta::v1::Time, jiff::SignedDuration};
use kvasir_crds::EncryptionStatus;
use serde_json::{Value, json};

use super::{degraded::ROLLOUT_DEADLINE, pods::REVISION, *};
use crate::{
    cluster::validate::tests::cluster,
    obstacle::Obstacle,
    reconcile::{
        poll::{
            Answers, CertificateStatus, DiscoveryStatus, FoundingStatus, KeysStatus, NodeStatus, PeerStatus, PollError,
            ReloadStatus, UnjoinableStatus,
        },
        warnings::Warning,
    },
    webhook::pods::Missing,
};

/// A cluster and what is observed of it, changed step by step like a real one.
struct World {
    cluster: KvCluster,
    obstacle: Option<Obstacle>,
    concern: Option<Obstacle>,
    set: Option<StatefulSet>,
    changed: bool,
    pods: Vec<Pod>,
    answers: Answers,
    sidecars: Option<Sidecars>,
    warnings: Vec<Warning>,
    unknown: Vec<String>,
    now: Timestamp,
}

impl World {
    fn new(spec: &str) -> Self {
        Self {
            cluster: cluster(spec),
            obstacle: None,
            concern: None,
            set: None,
            changed: false,
            pods: Vec::new(),
            answers: Answers::new(),
            sidecars: Some(Sidecars::default()),
            warnings: Vec::new(),
            unknown: Vec::new(),
            now: Timestamp::from_second(1_000).unwrap(),
        }
    }

    /// A cluster that serves with all members, and whose status says so.
    fn serving(spec: &str) -> Self {
        let mut world = Self::new(spec);
        world.roll_out();
        world.look();
        world.now += SignedDuration::from_secs(60);
        assert_eq!(world.verdict(condition::AVAILABLE), ("True".to_owned(), "MembersReady".to_owned()));
        assert_eq!(world.verdict(condition::PROGRESSING), ("False".to_owned(), "RolledOut".to_owned()));
        world
    }

    fn roll_out(&mut self) {
        let wanted = self.cluster.spec.replicas;
        self.stateful_set(wanted, "a", "a");
        self.pods = (0..wanted).map(|ordinal| pod(ordinal, true)).collect();
        self.answers = (0..wanted).map(|ordinal| (format!("demo-{ordinal}"), Ok(answer()))).collect();
    }

    fn stateful_set(&mut self, replicas: i32, current: &str, update: &str) {
        self.set = Some(object(json!({
            "metadata": { "generation": 2 },
            "spec": { "replicas": replicas, "selector": {}, "template": {} },
            "status": { "observedGeneration": 2, "replicas": replicas, "currentRevision": current, "updateRevision": update },
        })));
    }

    /// Computes the status, and keeps it for the next time.
    fn look(&mut self) -> KvClusterStatus {
        let status = status(&Observed {
            cluster: &self.cluster,
            obstacle: self.obstacle.clone(),
            concern: self.concern.clone(),
            stateful_set: self.set.as_ref(),
            changed: self.changed,
            pods: &self.pods,
            answers: &self.answers,
            sidecars: self.sidecars.as_ref(),
            warnings: &self.warnings,
            unknown: &self.unknown,
            now: self.now,
        });
        self.cluster.status = Some(status.clone());
        status
    }

    /// Status and reason of a condition in the last status.
    fn verdict(&self, type_: &str) -> (String, String) {
        let status = self.cluster.status.as_ref().unwrap();
        let condition = find(&status.conditions, type_).unwrap();
        assert_eq!(condition.observed_generation, Some(4));
        (condition.status.clone(), condition.reason.clone())
    }

    fn message(&self, type_: &str) -> String {
        find(&self.cluster.status.as_ref().unwrap().conditions, type_).unwrap().message.clone()
    }

    fn is(&self, type_: &str, status: &str, reason: &str) {
        assert_eq!(self.verdict(type_), (status.to_owned(), reason.to_owned()), "{}", self.message(type_));
    }

    fn tell(&mut self, ordinal: i32, change: impl FnOnce(&mut NodeStatus)) {
        change(self.answers.get_mut(&format!("demo-{ordinal}")).unwrap().as_mut().unwrap());
    }
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn pod(ordinal: i32, ready: bool) -> Pod {
    let ready = if ready { "True" } else { "False" };
    object(json!({
        "metadata": { "name": format!("demo-{ordinal}") },
        "spec": { "nodeName": format!("node{ordinal}"), "containers": [] },
        "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": ready }] },
    }))
}

fn answer() -> NodeStatus {
    NodeStatus {
        origin: "ab".to_owned(),
        version: "0.1.0".to_owned(),
        phase: "ready".to_owned(),
        founding: Some(FoundingStatus { at_ms: 100 }),
        keys: 12,
        fingerprint: "f".to_owned(),
        lag_ms: Some(3),
        ..NodeStatus::default()
    }
}

#[test]
fn available_once_all_members_were_ready() {
    let mut world = World::new("{}");
    world.look();
    world.is(condition::AVAILABLE, "False", "Starting");
    world.is(condition::PROGRESSING, "True", "Starting");
    world.is(condition::DEGRADED, "False", "InProgress");
    world.roll_out();
    world.pods[2] = pod(2, false);
    let status = world.look();
    world.is(condition::AVAILABLE, "False", "Starting");
    assert_eq!((status.ready.as_str(), status.replicas, status.converged), ("2/3", 3, false));
    world.pods[2] = pod(2, true);
    let status = world.look();
    world.is(condition::AVAILABLE, "True", "MembersReady");
    world.is(condition::PROGRESSING, "False", "RolledOut");
    assert_eq!((status.ready.as_str(), status.keys, status.converged), ("3/3", Some(12), true));
    assert_eq!((status.version.as_str(), status.selector.as_str()), ("0.1.0", "kvasir.dev/member-of=demo"));
    assert_eq!(status.observed_generation, 4);
    assert!(is_steady(&status));
}

#[test]
fn available_while_one_member_serves() {
    let mut world = World::serving("{}");
    world.pods = vec![pod(0, false), pod(1, true), pod(2, false)];
    world.look();
    world.is(condition::AVAILABLE, "True", "MembersReady");
    world.is(condition::DEGRADED, "True", "MemberMissing");
    assert!(
        world.message(condition::DEGRADED).contains("demo-0 is not ready"),
        "{}",
        world.message(condition::DEGRADED)
    );
    world.pods.clear();
    world.look();
    world.is(condition::AVAILABLE, "False", "NoMemberReady");
    world.pods = vec![pod(1, true)];
    world.look();
    world.is(condition::AVAILABLE, "True", "MembersReady");
}

#[test]
fn member_being_deleted_does_not_count() {
    let mut world = World::serving("{}");
    world.cluster.spec.replicas = 2;
    world.pods[2].metadata.deletion_timestamp = Some(Time(world.now));
    let status = world.look();
    assert_eq!((status.ready.as_str(), status.replicas, status.converged), ("2/2", 3, false));
}

#[test]
fn nothing_new_is_the_same_status() {
    let mut world = World::serving("{}");
    let first = world.look();
    world.now += SignedDuration::from_hours(1);
    world.tell(1, |status| status.lag_ms = Some(420));
    assert_eq!(world.look(), first);
}

#[test]
fn condition_keeps_its_transition_time() {
    let mut world = World::serving("{}");
    let since = |world: &World, type_| {
        find(&world.cluster.status.as_ref().unwrap().conditions, type_).unwrap().last_transition_time.0.as_second()
    };
    assert_eq!(since(&world, condition::DEGRADED), 1_000);
    world.pods.pop();
    world.look();
    assert_eq!((since(&world, condition::DEGRADED), since(&world, condition::AVAILABLE)), (1_060, 1_000));
    world.now += SignedDuration::from_secs(60);
    world.pods.pop();
    world.look();
    assert_eq!(since(&world, condition::DEGRADED), 1_060, "still degraded, for more reasons");
}

#[test]
fn status_shows_scaling_as_progress() {
    let mut world = World::serving("{}");
    world.cluster.spec.replicas = 5;
    world.changed = true;
    world.look();
    world.is(condition::PROGRESSING, "True", "Scaling");
    world.changed = false;
    world.stateful_set(5, "a", "a");
    world.pods.push(pod(3, false));
    let status = world.look();
    world.is(condition::PROGRESSING, "True", "Scaling");
    world.is(condition::DEGRADED, "False", "InProgress");
    world.is(condition::AVAILABLE, "True", "MembersReady");
    assert!(!is_steady(&status));
    world.roll_out();
    world.look();
    world.is(condition::PROGRESSING, "False", "RolledOut");
    world.cluster.spec.replicas = 3;
    world.changed = true;
    world.look();
    world.is(condition::PROGRESSING, "True", "Scaling");
}

#[test]
fn updating_is_progress_until_the_last_member_is_back() {
    let mut world = World::serving("{}");
    world.changed = true;
    world.look();
    world.is(condition::PROGRESSING, "True", "Updating");
    world.changed = false;
    world.stateful_set(3, "a", "b");
    world.pods[2] = pod(2, false);
    world.look();
    world.is(condition::PROGRESSING, "True", "Updating");
    world.is(condition::DEGRADED, "False", "InProgress");
    world.stateful_set(3, "b", "b");
    world.look();
    world.is(condition::PROGRESSING, "True", "Updating");
    world.pods[2] = pod(2, true);
    world.look();
    world.is(condition::PROGRESSING, "False", "RolledOut");
}

#[test]
fn status_reports_an_overdue_rollout() {
    let mut world = World::new("{}");
    world.look();
    world.roll_out();
    world.pods[2] = object(json!({
        "metadata": { "name": "demo-2" },
        "status": { "conditions": [{ "type": "PodScheduled", "status": "False", "message": "0/1 nodes are available" }] },
    }));
    world.look();
    world.is(condition::DEGRADED, "False", "InProgress");
    world.now += ROLLOUT_DEADLINE + SignedDuration::from_secs(1);
    world.look();
    world.is(condition::DEGRADED, "True", "MemberMissing");
    assert_eq!(world.message(condition::DEGRADED), "demo-2 is not ready: 0/1 nodes are available");
}

#[test]
fn status_reports_a_failing_container_at_once() {
    let mut world = World::new("{}");
    world.roll_out();
    world.pods[1] = object(json!({
        "metadata": { "name": "demo-1" },
        "status": { "containerStatuses": [{
            "name": "kvasir", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "waiting": { "reason": "ImagePullBackOff", "message": "no such image" } },
        }] },
    }));
    world.look();
    world.is(condition::DEGRADED, "True", "MemberFailing");
    assert_eq!(world.message(condition::DEGRADED), "demo-1: ImagePullBackOff: no such image");
    // The StatefulSet waits for it even after the image was fixed.
    world.stateful_set(3, "a", "b");
    world.pods[1].labels_mut().insert(REVISION.to_owned(), "a".to_owned());
    world.look();
    assert!(world.message(condition::DEGRADED).contains("delete this pod"), "{}", world.message(condition::DEGRADED));
}

#[test]
fn status_has_no_recovery_between_crashes() {
    let mut world = World::serving("{}");
    let crashed = |restarts: i32, state: Value| -> Pod {
        let mut pod = pod(1, false);
        pod.status.as_mut().unwrap().container_statuses = Some(vec![object(json!({
            "name": "kvasir", "image": "", "imageID": "", "ready": false, "restartCount": restarts,
            "state": state, "lastState": { "terminated": { "exitCode": 2 } },
        }))]);
        pod
    };
    world.pods[1] = crashed(1, json!({ "running": {} }));
    world.look();
    world.is(condition::DEGRADED, "True", "MemberMissing");
    world.pods[1] = crashed(3, json!({ "waiting": { "reason": "CrashLoopBackOff" } }));
    world.look();
    world.is(condition::DEGRADED, "True", "MemberFailing");
    world.pods[1] = crashed(4, json!({ "running": {} }));
    world.look();
    world.is(condition::DEGRADED, "True", "MemberFailing");
    assert!(world.message(condition::DEGRADED).contains("demo-1: it ended 4 times, last with exit code 2"));
    // Also during the first start.
    let mut world = World::new("{}");
    world.roll_out();
    world.pods[1] = crashed(4, json!({ "running": {} }));
    world.look();
    world.is(condition::DEGRADED, "True", "MemberFailing");
}

#[test]
fn status_shows_the_obstacle() {
    let obstacle = Obstacle { reason: "InvalidSpec", message: "set kubernetes".to_owned() };
    let mut world = World::new("{}");
    world.obstacle = Some(obstacle.clone());
    world.look();
    world.is(condition::AVAILABLE, "False", "InvalidSpec");
    world.is(condition::PROGRESSING, "False", "Stopped");
    world.is(condition::DEGRADED, "True", "InvalidSpec");
    assert_eq!(world.message(condition::DEGRADED), "set kubernetes");
    // The members go on serving.
    let mut world = World::serving("{}");
    world.obstacle = Some(obstacle);
    world.look();
    world.is(condition::AVAILABLE, "True", "MembersReady");
    world.is(condition::DEGRADED, "True", "InvalidSpec");
}

#[test]
fn members_complain_by_name() {
    let mut world = World::serving("{}");
    world.tell(1, |status| status.full = true);
    world.look();
    world.is(condition::DEGRADED, "True", "NodeFull");
    assert!(world.message(condition::DEGRADED).starts_with("demo-1 is full"));
    world.tell(1, |status| status.full = false);
    world.tell(2, |status| {
        let error = Some("forbidden".to_owned());
        status.discovery = vec![DiscoveryStatus { provider: "kubernetes".to_owned(), error }];
    });
    world.look();
    world.is(condition::DEGRADED, "True", "DiscoveryFailing");
    assert_eq!(world.message(condition::DEGRADED), "demo-2 cannot find peers by kubernetes: forbidden");
}

/// A rollout that stops at a pod that cannot talk to the others says why at once.
#[test]
fn status_names_refused_peers() {
    let mut world = World::serving("{replicas: 3}");
    world.pods[2] = pod(2, false);
    world.stateful_set(3, "a", "b");
    let refused = |name: Option<&str>, last: u8| UnjoinableStatus {
        address: format!("10.0.0.{last}:7071"),
        name: name.map(Into::into),
        why: "it speaks version 1".to_owned(),
    };
    world.tell(2, |status| {
        status.phase = "joining".to_owned();
        status.unjoinable = vec![refused(Some("demo-0"), 1), refused(None, 2)];
    });
    world.look();
    world.is(condition::DEGRADED, "True", "PeersRefused");
    let said = "demo-2 cannot talk to demo-0 (10.0.0.1:7071): it speaks version 1, 10.0.0.2:7071: it speaks version 1, \
                and is not ready before it can";
    assert_eq!(world.message(condition::DEGRADED), said);
    // As the other members see it, which go on.
    world.tell(2, |status| status.unjoinable.clear());
    world.tell(0, |status| status.unjoinable = (1..9).map(|last| refused(None, last)).collect());
    world.look();
    let said = world.message(condition::DEGRADED);
    assert!(
        said.starts_with("demo-0 cannot talk to 10.0.0.1:7071: ")
            && said.ends_with("10.0.0.3:7071: it speaks version 1, …"),
        "{said}"
    );
}

#[test]
fn memory_bounded_is_kept_while_no_member_answers() {
    let mut world = World::new("{}");
    world.look();
    assert!(find(&world.cluster.status.as_ref().unwrap().conditions, condition::MEMORY_BOUNDED).is_none());
    world.roll_out();
    world.look();
    world.is(condition::MEMORY_BOUNDED, "False", "MemoryUnlimited");
    world.is(condition::DEGRADED, "False", "AllWell");
    (0..3).for_each(|ordinal| world.tell(ordinal, |status| status.max_memory_bytes = 1 << 20));
    world.look();
    world.is(condition::MEMORY_BOUNDED, "True", "Bounded");
    world.answers.clear();
    world.look();
    world.is(condition::MEMORY_BOUNDED, "True", "Bounded");
}

#[test]
fn member_status_has_its_providers() {
    let mut world = World::serving("{}");
    for number in 0..3 {
        world.tell(number, |status| status.origin = format!("o{number}"));
    }
    let saw =
        |origin: &str, way: Option<&str>| PeerStatus { origin: origin.to_owned(), found_by: way.map(str::to_owned) };
    world.tell(0, |status| status.peers = vec![saw("o1", Some("nats")), saw("o2", None), saw("gone", Some("dns"))]);
    world.tell(2, |status| status.peers = vec![saw("o1", Some("dns")), saw("o0", Some("nats"))]);
    let found_by = |world: &mut World| world.look().members.into_iter().map(|m| m.found_by).collect::<Vec<_>>();
    assert_eq!(found_by(&mut world), [Some("nats".to_owned()), Some("dns,nats".to_owned()), None]);
}

#[test]
fn pods_without_their_sidecar_are_counted_and_named() {
    let mut world = World::serving("{}");
    let missing = vec![Missing { name: "shop-1".to_owned(), ..Missing::default() }];
    world.sidecars = Some(Sidecars { injected: 2, missing, ..Sidecars::default() });
    let status = world.look();
    assert_eq!((status.sidecars.injected, status.sidecars.missing), (2, 1));
    world.is(condition::DEGRADED, "True", "SidecarsMissing");
    assert!(world.message(condition::DEGRADED).contains("shop-1"));
}

#[test]
fn status_names_sidecars_of_an_earlier_cluster() {
    let mut world = World::serving("{}");
    let stale = ["shop-1", "shop-2", "shop-3", "shop-4"].map(str::to_owned).to_vec();
    world.sidecars = Some(Sidecars { injected: 2, stale, ..Sidecars::default() });
    let status = world.look();
    assert_eq!((status.sidecars.injected, status.sidecars.missing, status.sidecars.stale), (2, 0, 4));
    world.is(condition::DEGRADED, "True", "SidecarsStale");
    let message = world.message(condition::DEGRADED);
    assert!(message.contains("4 application pods") && message.contains("shop-1, shop-2, shop-3, …"), "{message}");
}

#[test]
fn converged_is_equal_or_close_behind() {
    let mut world = World::serving("{}");
    assert!(world.look().converged);
    world.tell(1, |status| status.fingerprint = "g".to_owned());
    assert!(world.look().converged, "differs, 3 ms behind");
    world.tell(2, |status| status.lag_ms = Some(2_000));
    assert!(!world.look().converged, "differs, 2 s behind");
    world.tell(2, |status| status.lag_ms = None);
    assert!(!world.look().converged, "differs, cannot tell how far");
    world.tell(1, |status| status.fingerprint = "f".to_owned());
    assert!(world.look().converged, "equal");
    world.tell(0, |status| status.phase = "syncing".to_owned());
    assert!(!world.look().converged, "not synced");
}

#[test]
fn members_stand_in_the_order_of_their_numbers() {
    let mut world = World::serving("{replicas: 12}");
    world.pods.reverse();
    world.tell(1, |status| "0.2.0".clone_into(&mut status.version));
    let status = world.look();
    assert_eq!(status.members[2].name, "demo-2");
    assert_eq!(status.members[11].name, "demo-11");
    assert_eq!(status.version, "0.1.0,0.2.0");
}

#[test]
fn how_far_an_exchange_of_keys_is_can_be_read() {
    let mut world = World::serving("{encryption: {generate: true}}");
    assert_eq!(world.look().encryption, None, "no member speaks of keys");
    let keys = |keys: &[&str]| {
        Some(KeysStatus { primary: keys[0].to_owned(), keys: keys.iter().map(|key| (*key).to_owned()).collect() })
    };
    let said = |world: &mut World| {
        let EncryptionStatus { primary, keys, settled } = world.look().encryption.unwrap();
        (primary, keys.join(" "), settled)
    };
    let is = |primary: &str, keys: &str, settled| (primary.to_owned(), keys.to_owned(), settled);
    for ordinal in 0..3 {
        world.tell(ordinal, |status| status.encryption = keys(&["old"]));
    }
    assert_eq!(said(&mut world), is("old", "old", true));
    world.tell(0, |status| status.encryption = keys(&["old", "new"]));
    assert_eq!(said(&mut world), is("old", "old", false), "the second step would cut two members off");
    for ordinal in 1..3 {
        world.tell(ordinal, |status| status.encryption = keys(&["old", "new"]));
    }
    assert_eq!(said(&mut world), is("old", "old new", true));
    world.tell(1, |status| status.encryption = keys(&["new", "old"]));
    assert_eq!(said(&mut world), is("new,old", "old new", false));
    for ordinal in [0, 2] {
        world.tell(ordinal, |status| status.encryption = keys(&["new", "old"]));
    }
    assert_eq!(said(&mut world), is("new", "new old", true));
    world.answers.insert("demo-2".to_owned(), Err(PollError::Timeout));
    assert_eq!(said(&mut world), is("new", "new old", false), "who does not answer may have anything");
}

#[test]
fn status_reports_unusable_files() {
    let mut world = World::serving("{}");
    let failing = ReloadStatus { error: Some("keys: key 0 is all zeros".to_owned()) };
    world.tell(1, |status| _ = status.reloads.insert("encryption".to_owned(), failing));
    world.tell(2, |status| _ = status.reloads.insert("tls".to_owned(), ReloadStatus::default()));
    world.look();
    world.is(condition::DEGRADED, "True", "ReloadFailing");
    let message = world.message(condition::DEGRADED);
    assert!(message.contains("demo-1") && message.contains("all zeros") && !message.contains("demo-2"), "{message}");
}

#[test]
fn status_reports_an_expiring_certificate_once() {
    let mut world = World::serving("{tls: {operator: {}}}");
    let end = world.now + SignedDuration::from_hours(15 * 24);
    let certificate = CertificateStatus { not_after_ms: Some(end.as_millisecond()) };
    world.tell(1, |status| _ = status.certificates.insert("client".to_owned(), certificate));
    world.tell(2, |status| _ = status.certificates.insert("peer".to_owned(), CertificateStatus::default()));
    world.look();
    world.is(condition::DEGRADED, "False", "AllWell");
    world.now += SignedDuration::from_hours(25);
    let status = world.look();
    world.is(condition::DEGRADED, "True", "CertificateExpiring");
    let message = world.message(condition::DEGRADED);
    assert!(message.contains("demo-1 for client") && !message.contains("demo-2"), "{message}");
    world.now += SignedDuration::from_hours(24);
    assert_eq!(world.look(), status);
}

#[test]
fn status_shows_a_concern_without_an_obstacle() {
    let mut world = World::serving("{access: {serviceAccounts: {}}}");
    world.concern = Some(Obstacle { reason: "TokenReviewForbidden", message: "fix it".to_owned() });
    world.look();
    world.is(condition::DEGRADED, "True", "TokenReviewForbidden");
    world.is(condition::AVAILABLE, "True", "MembersReady");
    world.is(condition::PROGRESSING, "False", "RolledOut");
}
