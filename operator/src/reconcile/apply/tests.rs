use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use super::*;
use crate::{
    cluster::{ValidatedCluster, validate::tests::valid},
    fake::Fake,
    objects,
    obstacle::Failure as _,
};

/// The `StatefulSet` as an API server stores it: with defaults filled in, and quantities in its own form.
fn stored() -> Value {
    let mut live = built();
    live["metadata"]["resourceVersion"] = json!("7");
    live["spec"]["revisionHistoryLimit"] = json!(10);
    live["spec"]["template"]["spec"]["dnsPolicy"] = json!("ClusterFirst");
    let container = &mut live["spec"]["template"]["spec"]["containers"][0];
    container["terminationMessagePath"] = json!("/dev/termination-log");
    container["env"][0]["valueFrom"]["fieldRef"]["apiVersion"] = json!("v1");
    container["resources"]["requests"]["cpu"] = json!("500m");
    live
}

fn built() -> Value {
    let cluster = valid("{resources: {requests: {cpu: 0.5, memory: 64Mi}}}");
    stamp(serde_json::to_value(objects::build(&cluster).stateful_set).unwrap())
}

#[test]
fn apply_ignores_defaults_of_the_api_server() {
    assert!(holds(&stored(), &built()));
}

#[test]
fn apply_sees_changes_by_others() {
    let container = "/spec/template/spec/containers/0";
    for (path, value) in [
        ("/spec/replicas".to_owned(), json!(2)),
        (format!("{container}/image"), json!("evil")),
        (format!("{container}/resources/requests/cpu"), json!("501m")),
        (format!("{container}/command"), json!(["/kvasir-node", "--config", "/etc/kvasir/node.yaml", "-x"])),
        (format!("{container}/ports"), json!([])),
        (format!("{container}/securityContext/capabilities"), json!({})),
        ("/metadata/ownerReferences".to_owned(), json!([])),
        ("/metadata/labels".to_owned(), json!({})),
    ] {
        let mut live = stored();
        *live.pointer_mut(&path).unwrap() = value;
        assert!(!holds(&live, &built()), "{path}");
    }
}

#[test]
fn apply_sees_removed_fields_by_the_hash() {
    let with = valid("{resources: {requests: {cpu: 1}, limits: {cpu: 2}}}");
    let without = valid("{resources: {requests: {cpu: 1}}}");
    let object = |cluster| stamp(serde_json::to_value(objects::build(cluster).stateful_set).unwrap());
    assert!(!holds(&object(&with), &object(&without)));
}

#[test]
fn apply_sees_added_rights_not_added_containers() {
    let resources = objects::build(&valid("{}"));
    let role = serde_json::to_value(&resources.role).unwrap();
    let mut more = role.clone();
    more["rules"].as_array_mut().unwrap().push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
    assert!(holds(&role, &role) && !holds(&more, &role));
    let binding = serde_json::to_value(&resources.role_binding).unwrap();
    let mut more = binding.clone();
    more["subjects"].as_array_mut().unwrap().push(json!({"kind": "User", "name": "eve"}));
    assert!(holds(&binding, &binding) && !holds(&more, &binding));
    let mut more = stored();
    more["spec"]["template"]["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "mesh"}));
    assert!(holds(&more, &built()));
}

#[test]
fn apply_recognises_its_own_objects() {
    let cluster = valid("{}");
    let ours = objects::build(&cluster).config_map;
    assert!(is_ours(&ours, &cluster.owner));
    let mut orphan = ours.clone();
    orphan.metadata.owner_references = None;
    assert!(is_ours(&orphan, &cluster.owner), "left behind by kubectl delete --cascade=orphan");
    assert!(!is_ours(&ConfigMap::default(), &cluster.owner), "made by hand");
    let mut theirs = ours.clone();
    theirs.metadata.owner_references.as_mut().unwrap()[0].uid = "u-0".to_owned();
    assert!(!is_ours(&theirs, &cluster.owner), "of an earlier KvCluster of that name");
}

/// A cluster whose objects all exist at an API server, with what it takes to apply them.
struct Bench {
    fake: Fake,
    cluster: ValidatedCluster,
}

impl Bench {
    async fn new(spec: &str) -> Self {
        let bench = Self { fake: Fake::default(), cluster: valid(spec) };
        let mut applied = bench.apply().await;
        assert!(applied.failure().is_none() && applied.stateful_set == Outcome::Created, "{applied:?}");
        for kind in PLURALS {
            let mut object = bench.live(kind);
            // As the object is some time after an apply.
            object["metadata"]["uid"] = json!(format!("u-{kind}"));
            bench.fake.put(kind, object);
        }
        bench
    }

    fn name(plural: &str) -> &str {
        if plural == "services" { "demo-peers" } else { "demo" }
    }

    fn live(&self, plural: &str) -> Value {
        self.fake.object(plural, Self::name(plural)).unwrap_or_else(|| panic!("there are no {plural}"))
    }

    /// Another client changes an object.
    fn edit(&self, plural: &str, change: impl FnOnce(&mut Value)) {
        let mut object = self.live(plural);
        change(&mut object);
        self.fake.put(plural, object);
    }

    async fn apply(&self) -> Applied {
        self.apply_as(&objects::build(&self.cluster)).await
    }

    async fn apply_as(&self, desired: &ClusterObjects) -> Applied {
        let client = self.fake.client();
        let live = crate::reconcile::fetch::live(&client, "shop", "demo").await.unwrap();
        apply(&client, &Metrics::default(), &self.cluster.owner, desired, &live, Members::Apply).await
    }
}

/// One object of each kind.
const PLURALS: [&str; 7] =
    ["serviceaccounts", "roles", "rolebindings", "configmaps", "services", "statefulsets", "poddisruptionbudgets"];

/// The events on objects that were overwritten or replaced.
fn said(applied: &Applied) -> Vec<&str> {
    applied.notices.iter().map(|notice| notice.note.as_str()).collect()
}

#[tokio::test]
async fn apply_repairs_a_service_port_edited_by_hand() {
    let bench = Bench::new("{}").await;
    bench.edit("services", |service| {
        service["spec"]["ports"][1]["port"] = json!(7171);
        service["spec"]["clusterIPs"] = json!(["None"]);
        service["metadata"]["managedFields"] = json!([{"manager": "kubectl-edit", "operation": "Update"}]);
    });
    let mut applied = bench.apply().await;
    assert!(applied.failure().is_none(), "{applied:?}");
    let [note] = said(&applied)[..] else { panic!("{applied:?}") };
    assert!(note.starts_with("overwrote Service demo-peers, ") && note.contains("Duplicate value"), "{note}");
    let service = bench.live("services");
    assert_eq!(service["metadata"]["uid"], "u-services", "it is the same object, with the same address");
    assert_eq!(service["spec"]["clusterIPs"], json!(["None"]));
    let ports: Vec<_> = service["spec"]["ports"].as_array().unwrap().iter().map(|port| &port["port"]).collect();
    assert_eq!(ports, [7070, 7071, 7071]);
    let managers = service["metadata"]["managedFields"].to_string();
    assert!(
        !managers.contains("kvasir-operator-overwrite"),
        "what the update owns could never be taken away: {managers}"
    );
    assert_eq!(bench.apply().await.notices, [], "once");
}

#[tokio::test]
async fn apply_replaces_what_cannot_be_changed() {
    for plural in ["rolebindings", "configmaps", "services", "roles", "serviceaccounts", "poddisruptionbudgets"] {
        let bench = Bench::new("{}").await;
        bench.edit(plural, |object| object["metadata"]["labels"] = json!({"immutable": "true"}));
        bench.edit(plural, |object| object["metadata"]["annotations"] = json!({}));
        // The owner reference stays, or the object would not be recognised.
        bench.fake.rule(move |method, kind, live, _| {
            let fixed = live.is_some_and(|live| live["metadata"]["labels"]["immutable"] == "true");
            (*method == http::Method::PATCH && kind == plural && fixed).then(|| "field is immutable".to_owned())
        });
        let mut applied = bench.apply().await;
        assert!(applied.failure().is_none(), "{plural}: {applied:?}");
        let [note] = said(&applied)[..] else { panic!("{plural}: {applied:?}") };
        assert!(note.starts_with("replaced ") && note.ends_with(": field is immutable"), "{note}");
        let object = bench.live(plural);
        assert_eq!(object["metadata"]["uid"], "u-new", "{plural}");
        assert_eq!(object["metadata"]["labels"][names::MEMBER_OF], "demo", "{plural}");
        assert_eq!(bench.apply().await.notices, [], "{plural}: once");
    }
}

#[tokio::test]
async fn apply_does_not_delete_what_it_could_not_create() {
    let bench = Bench::new("{}").await;
    bench.edit("services", |service| service["spec"]["selector"] = json!({}));
    bench.fake.rule(|_, kind, _, _| (kind == "services").then(|| "the policy says no".to_owned()));
    let mut applied = bench.apply().await;
    let error = applied.failure().expect("it is not in place");
    assert_eq!(error.reason(), "ApplyFailed");
    assert_eq!(error.to_string(), "cannot apply Service demo-peers: the policy says no");
    assert_eq!(bench.live("services")["metadata"]["uid"], "u-services");
    assert_eq!(bench.fake.count(&http::Method::DELETE, ""), 0);
}

#[tokio::test]
async fn apply_carries_on_after_failures() {
    let bench = Bench::new("{}").await;
    // Two objects that are refused, one that another owner has, and two that others changed.
    bench.edit("roles", |role| role["rules"] = json!([]));
    bench.edit("services", |service| service["spec"]["selector"] = json!({}));
    bench.edit("serviceaccounts", |account| account["metadata"]["ownerReferences"][0]["uid"] = json!("u-other"));
    bench.edit("poddisruptionbudgets", |budget| budget["spec"]["maxUnavailable"] = json!(3));
    bench.edit("statefulsets", |set| set["spec"]["replicas"] = json!(1));
    bench.fake.rule(|_, kind, _, _| ["roles", "services"].contains(&kind).then(|| format!("no {kind} today")));
    let mut applied = bench.apply().await;
    assert_eq!(applied.stateful_set, Outcome::Updated);
    assert_eq!(bench.live("poddisruptionbudgets")["spec"]["maxUnavailable"], 1);
    assert_eq!(bench.live("statefulsets")["spec"]["replicas"], 3);
    let error = applied.failure().expect("three are not in place");
    assert_eq!(error.reason(), "NameTaken", "the first");
    let text = error.to_string();
    for part in ["ServiceAccount demo exists and belongs", "Role demo: no roles today", "demo-peers: no services today"]
    {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains("Status {") && !text.contains("Some("), "no Rust in conditions: {text}");
}

#[tokio::test]
async fn apply_keeps_the_rest_while_members_may_not_start() {
    let bench = Bench::new("{}").await;
    bench.edit("poddisruptionbudgets", |budget| budget["spec"]["maxUnavailable"] = json!(3));
    bench.edit("statefulsets", |set| set["spec"]["replicas"] = json!(1));
    let client = bench.fake.client();
    let live = crate::reconcile::fetch::live(&client, "shop", "demo").await.unwrap();
    let desired = objects::build(&bench.cluster);
    let (owner, members) = (&bench.cluster.owner, Members::LeaveAlone);
    let mut applied = apply(&client, &Metrics::default(), owner, &desired, &live, members).await;
    assert!(applied.failure().is_none() && applied.stateful_set == Outcome::Unchanged);
    assert_eq!(bench.live("poddisruptionbudgets")["spec"]["maxUnavailable"], 1);
    assert_eq!(bench.live("statefulsets")["spec"]["replicas"], 1);
}

#[tokio::test]
async fn apply_keeps_pods_of_a_stateful_set_it_replaces() {
    let fixed = |method: &http::Method, kind: &str, live: Option<&Value>, _: &Value| {
        let other = live.is_some_and(|live| live["spec"]["serviceName"] == "other");
        (*method == http::Method::PATCH && kind == "statefulsets" && other).then(|| "updates are forbidden".to_owned())
    };
    let bench = Bench::new("{}").await;
    bench.fake.rule(fixed);
    bench.edit("statefulsets", |set| set["spec"]["serviceName"] = json!("other"));
    let mut applied = bench.apply().await;
    assert!(applied.failure().is_none(), "{applied:?}");
    assert!(said(&applied)[0].starts_with("replaced StatefulSet demo"), "{applied:?}");
    // The fake deletes it only with orphaned pods; nothing is applied while it is being deleted.
    let going = bench.live("statefulsets");
    assert_eq!(going["metadata"]["finalizers"], json!(["orphan"]));
    assert_eq!(going["spec"]["serviceName"], "other");
    let mut held_back = bench.apply().await;
    let error = held_back.failure().expect("it was deleted long ago").to_string();
    assert!(error.contains("finalizers hold it (orphan)"), "{error}");
    assert_eq!(bench.live("statefulsets"), going);

    // A StatefulSet whose pods the new one would not adopt stays.
    let bench = Bench::new("{}").await;
    bench.fake.rule(fixed);
    bench.edit("statefulsets", |set| {
        set["spec"]["serviceName"] = json!("other");
        set["spec"]["selector"] = json!({"matchLabels": {"app": "other"}});
    });
    let mut applied = bench.apply().await;
    let error = applied.failure().expect("it is not in place").to_string();
    assert_eq!(error, "cannot apply StatefulSet demo: updates are forbidden");
    assert!(bench.live("statefulsets")["metadata"]["deletionTimestamp"].is_null());
}

#[tokio::test]
async fn apply_restarts_no_pod_without_its_config_map() {
    let bench = Bench::new("{}").await;
    let hash = |set: &Value| set["spec"]["template"]["metadata"]["annotations"][names::CONFIG_HASH].clone();
    let before = hash(&bench.live("statefulsets"));
    let other = objects::build(&valid("{maxMemory: 32Mi, replicas: 4}"));
    bench.fake.rule(|_, kind, _, _| (kind == "configmaps").then(|| "no".to_owned()));
    let mut applied = bench.apply_as(&other).await;
    assert!(applied.failure().is_some());
    let set = bench.live("statefulsets");
    assert_eq!((&set["spec"]["replicas"], hash(&set)), (&json!(4), before.clone()));
    bench.fake.rule(|_, _, _, _| None);
    let mut applied = bench.apply_as(&other).await;
    assert!(applied.failure().is_none());
    assert_ne!(hash(&bench.live("statefulsets")), before);
}
