//! The operator itself: it writes nothing when there is nothing to do, does no harm when it restarts, and leaves the
//! clusters when it is uninstalled.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::GroupVersionKind;
use kube::{Api, ResourceExt as _};
use kvasir_crds::KvCluster;
use kvasir_e2e::lab::{OPERATOR, OPERATOR_NAMESPACE, RELEASE, command, workspace};
use kvasir_e2e::trial::restarts;
use kvasir_e2e::{Trial, alone, audit, run, until, within};

/// The kinds of objects that the operator creates for a cluster of several members.
pub(crate) const OWNED: [&str; 7] =
    ["ServiceAccount", "Role", "RoleBinding", "ConfigMap", "Service", "StatefulSet", "PodDisruptionBudget"];

/// Without a change for this long, the objects are stable: far longer than the operator takes to react to its own
/// writes.
const SETTLED: Duration = Duration::from_secs(5);
/// How long nothing may happen.
const QUIET: Duration = Duration::from_secs(30);

/// Every object that the operator created for a cluster, as `Kind/name`, with its resourceVersion.
pub(crate) async fn owned(t: &Trial, cluster: &str) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for kind in OWNED {
        let group = match kind {
            "Role" | "RoleBinding" => "rbac.authorization.k8s.io",
            "StatefulSet" => "apps",
            "PodDisruptionBudget" => "policy",
            _ => "",
        };
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind));
        let api: Api<DynamicObject> = Api::namespaced_with(t.lab.client.clone(), &t.namespace, &resource);
        let selector = format!("kvasir.dev/member-of={cluster}");
        for object in api.list(&ListParams::default().labels(&selector)).await? {
            let version = object.resource_version().context("an object without a resourceVersion")?;
            all.insert(format!("{kind}/{}", object.name_any()), version);
        }
    }
    Ok(all)
}

#[test]
fn with_nothing_to_do_it_writes_nothing() {
    alone("quiet", async |t| {
        let begin = audit::mark().await?;
        t.cluster("demo", 3).await?;
        t.fill("demo", 20).await?;
        let status = |cluster: &KvCluster| cluster.status.clone().unwrap_or_default();
        until("the status to count the keys", async || {
            let status = status(&t.get("demo").await?);
            ensure!(
                status.keys == Some(20) && status.members.iter().all(|m| m.keys == Some(20)),
                "{:?}",
                status.members
            );
            Ok(())
        })
        .await?;
        let look = async || -> Result<BTreeMap<String, String>> {
            let mut all = owned(t, "demo").await?;
            let cluster = t.get("demo").await?;
            all.insert("KvCluster/demo".into(), cluster.resource_version().context("no resourceVersion")?);
            Ok(all)
        };
        // The watch events of the last write, and of the test's own changes, are over when nothing changes for a while.
        until("the objects to stop changing", async || {
            let before = look().await?;
            tokio::time::sleep(SETTLED).await;
            ensure!(before == look().await?, "they still change");
            Ok(())
        })
        .await?;
        let (before, mark) = (look().await?, audit::mark().await?);
        ensure!(before.len() >= OWNED.len() + 2, "the operator made too little: {before:?}");
        let status_before = status(&t.get("demo").await?);
        tokio::time::sleep(QUIET).await;
        let after = look().await?;
        ensure!(
            before == after,
            "changed:\n{before:?}\n{after:?}\n{status_before:?}\n{:?}",
            status(&t.get("demo").await?)
        );

        let (Some(begin), Some(mark)) = (begin, mark) else {
            eprintln!("quiet: this cluster keeps no audit log; only the resourceVersions were compared");
            return Ok(());
        };
        let user = format!("system:serviceaccount:{OPERATOR_NAMESPACE}:{OPERATOR}");
        let ours = |write: &audit::Write| {
            // The leader renews its Lease in any case.
            write.user == user
                && write.resource != "leases"
                && [&t.namespace, OPERATOR_NAMESPACE, ""].contains(&&*write.namespace)
        };
        let made = audit::since(begin).await?;
        ensure!(
            made.iter().filter(|w| ours(w)).count() > OWNED.len(),
            "the audit log misses the operator's writes: {made:?}"
        );
        let written: Vec<_> = audit::since(mark).await?.into_iter().filter(ours).collect();
        ensure!(written.is_empty(), "written in {} s with nothing to do: {written:?}", QUIET.as_secs());
        Ok(())
    });
}

#[test]
fn its_restart_restarts_no_member() {
    alone("operator-restart", async |t| {
        t.cluster("demo", 3).await?;
        let look = async || -> Result<Vec<(String, Option<String>, i32)>> {
            let pods = t.member_pods("demo").await?;
            Ok(pods.iter().map(|pod| (pod.name_any(), pod.uid(), restarts(pod))).collect())
        };
        let (pods, objects) = (look().await?, owned(t, "demo").await?);
        restart_operator().await?;
        // A new leader has taken over once it acts on a change. This change affects no existing member.
        t.kubectl(&["patch", "kvcluster/demo", "--type=merge", "-p", r#"{"spec":{"replicas":4}}"#]).await?;
        t.settled("demo", 4).await?;
        t.kubectl(&["scale", "kvcluster/demo", "--replicas=3"]).await?;
        t.settled("demo", 3).await?;
        ensure!(pods == look().await?, "members changed: {pods:?} {:?}", look().await?);
        let unchanged = |map: &BTreeMap<String, String>| {
            let mut map = map.clone();
            // These objects contain the number of members; members read it from the ConfigMap.
            let counts = ["StatefulSet/", "PodDisruptionBudget/", "ConfigMap/"];
            map.retain(|object, _| !counts.iter().any(|kind| object.starts_with(kind)));
            map
        };
        let after = owned(t, "demo").await?;
        ensure!(unchanged(&objects) == unchanged(&after), "objects changed:\n{objects:?}\n{after:?}");
        Ok(())
    });
}

#[test]
fn uninstalled_it_leaves_clusters_and_their_kind() {
    alone("uninstall", async |t| {
        t.cluster("demo", 2).await?;
        let keys = t.fill("demo", 10).await?;
        let outcome = async {
            command("helm", &["uninstall", RELEASE, "-n", OPERATOR_NAMESPACE, "--wait"]).await?;
            t.kubectl(&["get", "crd", "kvclusters.kvasir.dev"]).await?;
            ensure!(t.get("demo").await?.metadata.deletion_timestamp.is_none(), "the KvCluster is going");
            t.all_hold("demo", &keys).await
        }
        .await;
        // On success and on failure, the following tests need the operator.
        t.lab.install_operator().await?;
        outcome?;
        // And it continues its work.
        t.kubectl(&["scale", "kvcluster/demo", "--replicas=3"]).await?;
        t.settled("demo", 3).await?;
        t.all_hold("demo", &keys).await
    });
}

#[test]
fn an_upgrade_of_the_chart_brings_its_definition() {
    alone("upgrade", async |t| {
        // The chart as it was before KvClusters had a short name.
        let old = tempfile::tempdir()?;
        let chart = workspace().join("charts/kvasir");
        let words = ["-R", &chart.to_string_lossy(), &old.path().to_string_lossy()];
        command("cp", &words).await?;
        let file = old.path().join("kvasir/templates/crd.yaml");
        let now = tokio::fs::read_to_string(&file).await?;
        let then = now.replace("    shortNames:\n    - kvc\n", "");
        ensure!(then != now, "the definition has no short name");
        tokio::fs::write(&file, then).await?;

        t.cluster("demo", 1).await?;
        let names = async || t.kubectl(&["get", "crd", "kvclusters.kvasir.dev", "-o", "jsonpath={.spec.names}"]).await;
        let outcome = async {
            t.lab.install_operator_of(&old.path().join("kvasir"), &[]).await?;
            let before = names().await?;
            ensure!(!before.contains("kvc\""), "the old chart did not take the short name away: {before}");
            anyhow::Ok(())
        }
        .await;
        // On success and on failure, the following tests need the current chart.
        t.lab.install_operator().await?;
        outcome?;
        let after = names().await?;
        ensure!(after.contains("[\"kvc\"]"), "the new chart left the old definition: {after}");
        // The cluster survived both.
        t.settled("demo", 1).await
    });
}

#[test]
fn a_namespaced_operator_has_no_rights_elsewhere() {
    alone("single", async |t| {
        let only = format!("operator.watchNamespace={}", t.namespace);
        let who = format!("--as=system:serviceaccount:{OPERATOR_NAMESPACE}:{OPERATOR}");
        let outcome = async {
            let chart = workspace().join("charts/kvasir");
            t.lab.install_operator_of(&chart, &["--set", &only]).await?;
            t.cluster("demo", 2).await?;
            let app = t.app("app", Some("demo"), &t.lab.nodes[0]).await?;
            app.kvctl_ok(&["put", "k", "v"]).await?;
            for (verb, resource) in [("create", "services"), ("get", "secrets")] {
                let elsewhere = ["auth", "can-i", verb, resource, "-n", "default", &who];
                let may = command("kubectl", &elsewhere).await;
                ensure!(
                    may.as_ref().is_err_and(|refusal| format!("{refusal:#}").contains(": no")),
                    "it may {verb} {resource} in another namespace: {may:?}"
                );
            }
            anyhow::Ok(())
        }
        .await;
        t.lab.install_operator().await?;
        outcome
    });
}

/// How long the API server is away: longer than any back-off.
const OUTAGE: Duration = Duration::from_secs(74);
/// How soon the operator must act once the API server is back; it takes five seconds on an idle machine.
const BACK: Duration = Duration::from_secs(20);

#[test]
fn operator_acts_soon_after_an_api_outage() {
    alone("api-outage", async |t| {
        t.cluster("demo", 3).await?;
        if !t.lab.control(&["kill", "kube-apiserver"]).await? {
            eprintln!("api-outage: only the throwaway cluster can stop its API server; not tested here");
            return Ok(());
        }
        tokio::time::sleep(OUTAGE).await;
        t.lab.control(&["start", "kube-apiserver"]).await?;
        // After a long outage these components wait for minutes. In a real cluster they lose their leases and are
        // restarted.
        for component in ["kube-scheduler", "kube-controller-manager"] {
            t.lab.control(&["restart", component]).await?;
        }
        // Requested as soon as the API server accepts it.
        until("the API server to take a change", async || {
            t.kubectl(&["patch", "kvcluster/demo", "--type=merge", "-p", r#"{"spec":{"replicas":4}}"#]).await
        })
        .await?;
        let began = Instant::now();
        within(BACK, "the operator to act on it", async || {
            let set = t.api::<StatefulSet>().get("demo").await?;
            let replicas = set.spec.and_then(|spec| spec.replicas);
            ensure!(replicas == Some(4), "the StatefulSet has {replicas:?} replicas");
            Ok(())
        })
        .await?;
        eprintln!(
            "api-outage: the operator acted {:.1} s after the API server's return",
            began.elapsed().as_secs_f64()
        );
        t.settled("demo", 4).await
    });
}

#[test]
fn service_port_edited_by_hand_is_repaired() {
    run("service-port", async |t| {
        t.cluster("demo", 2).await?;
        let services = t.api::<Service>();
        let before = services.get("demo").await?;
        let edit = r#"[{"op":"replace","path":"/spec/ports/0/port","value":7171}]"#;
        t.kubectl(&["patch", "service/demo", "--type=json", "-p", edit]).await?;
        t.kubectl(&["delete", "poddisruptionbudget/demo"]).await?;
        until("the port to be what it was", async || {
            let spec = services.get("demo").await?.spec.unwrap_or_default();
            let ports: Vec<_> = spec.ports.iter().flatten().map(|port| port.port).collect();
            ensure!(ports == [7070], "{ports:?}");
            Ok(())
        })
        .await?;
        until("the budget to be back", async || Ok(t.api::<PodDisruptionBudget>().get("demo").await?)).await?;
        let after = services.get("demo").await?;
        let address = |service: &Service| service.spec.as_ref().and_then(|spec| spec.cluster_ip.clone());
        ensure!(
            after.uid() == before.uid() && address(&after) == address(&before),
            "the Service was replaced, with its address"
        );
        until("an event that says so", async || {
            let words = ["get", "events", "--field-selector=reason=Replaced", "-o", "jsonpath={.items[*].message}"];
            let said = t.kubectl(&words).await?;
            ensure!(said.contains("Service demo"), "{said:?}");
            Ok(())
        })
        .await?;
        t.settled("demo", 2).await
    });
}

#[test]
fn role_binding_that_cannot_be_changed_is_replaced() {
    run("role-binding", async |t| {
        t.cluster("demo", 2).await?;
        let bindings = t.api::<RoleBinding>();
        let mut other = bindings.get("demo").await?;
        bindings.delete("demo", &DeleteParams::default()).await?;
        // The operator may recreate it first: then there is nothing to test, and it is deleted once more.
        other.metadata.resource_version = None;
        other.metadata.uid = None;
        other.metadata.managed_fields = None;
        other.role_ref.name = "other".into();
        until("a binding to another role", async || match bindings.create(&PostParams::default(), &other).await {
            Ok(_) => Ok(()),
            Err(error) => {
                bindings.delete("demo", &DeleteParams::default()).await?;
                Err(error.into())
            }
        })
        .await?;
        until("the binding to be what it was", async || {
            let role = bindings.get("demo").await?.role_ref.name;
            ensure!(role == "demo", "it binds {role}");
            Ok(())
        })
        .await?;
        t.settled("demo", 2).await
    });
}

/// The leader according to the Lease.
async fn leader(t: &Trial) -> Result<Option<String>> {
    let leases: Api<Lease> = Api::namespaced(t.lab.client.clone(), OPERATOR_NAMESPACE);
    Ok(leases.get(OPERATOR).await?.spec.and_then(|spec| spec.holder_identity))
}

async fn generation(t: &Trial) -> Result<Option<i64>> {
    Ok(t.api::<StatefulSet>().get("demo").await?.metadata.generation)
}

#[test]
fn operators_agree_on_one_leader() {
    alone("leader", async |t| {
        t.cluster("demo", 2).await?;
        let before = generation(t).await?;
        scale_operator(t, 2).await?;
        let outcome = async {
            let first = leader(t).await?.context("no operator leads")?;
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                ensure!(leader(t).await? == Some(first.clone()), "the Lease changed hands with both alive");
            }
            // When the leader ends, the other operator takes over at once and acts.
            command("kubectl", &["-n", OPERATOR_NAMESPACE, "delete", "pod", &first, "--wait=false"]).await?;
            until("another leader", async || {
                let now = leader(t).await?;
                ensure!(now.as_ref().is_some_and(|now| *now != first), "{now:?} leads");
                Ok(())
            })
            .await?;
            ensure!(generation(t).await? == before, "the StatefulSet was written in between");
            t.kubectl(&["scale", "kvcluster/demo", "--replicas=3"]).await?;
            t.settled("demo", 3).await
        }
        .await;
        // On success and on failure, the following tests have one operator.
        scale_operator(t, 1).await?;
        outcome
    });
}

#[test]
fn operator_rollout_writes_no_stateful_set() {
    alone("operator-rollout", async |t| {
        t.cluster("demo", 2).await?;
        let before = generation(t).await?;
        for _ in 0..2 {
            restart_operator().await?;
        }
        // The remaining operator leads and has reconciled everything.
        t.kubectl(&["annotate", "kvcluster/demo", "example.org/seen=1"]).await?;
        until("a leader among the pods that are there", async || {
            let leader = leader(t).await?.context("no operator leads")?;
            command("kubectl", &["-n", OPERATOR_NAMESPACE, "get", "pod", &leader]).await
        })
        .await?;
        tokio::time::sleep(Duration::from_secs(15)).await;
        ensure!(generation(t).await? == before, "{before:?} became {:?}", generation(t).await?);
        Ok(())
    });
}

#[test]
fn drain_takes_members_that_were_never_ready() {
    alone("drain-unready", async |t| {
        // An image without the node's program: its containers start and end, and no member becomes ready.
        t.ask_for_cluster("demo", serde_json::json!({ "replicas": 3, "image": t.lab.shell_image })).await?;
        let pod = until("a member that crashes", async || {
            let pods = t.member_pods("demo").await?;
            let crashed = pods.into_iter().find(|pod| {
                pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running") && restarts(pod) > 0
            });
            crashed.context("no member has crashed and runs again yet")
        })
        .await?;
        until("the budget", async || Ok(t.api::<PodDisruptionBudget>().get("demo").await?)).await?;
        let node = pod.spec.and_then(|spec| spec.node_name).context("it runs nowhere")?;
        let selector = "--pod-selector=kvasir.dev/member-of=demo";
        let words = ["drain", &node, selector, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s"];
        let drained = command("kubectl", &words).await;
        command("kubectl", &["uncordon", &node]).await?;
        drained.map(drop)
    });
}

/// Restarts the operator and waits until the new pod is ready and the old one is gone.
async fn restart_operator() -> Result<()> {
    let deployment = format!("deployment/{OPERATOR}");
    command("kubectl", &["-n", OPERATOR_NAMESPACE, "rollout", "restart", &deployment]).await?;
    command("kubectl", &["-n", OPERATOR_NAMESPACE, "rollout", "status", &deployment, "--timeout=120s"]).await?;
    Ok(())
}

/// Scales the operator to this many replicas, and waits for them.
pub(crate) async fn scale_operator(t: &Trial, replicas: u32) -> Result<()> {
    let words =
        ["-n", OPERATOR_NAMESPACE, "scale", &format!("deployment/{OPERATOR}"), &format!("--replicas={replicas}")];
    command("kubectl", &words).await?;
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(t.lab.client.clone(), OPERATOR_NAMESPACE);
    let selector = ListParams::default().labels("app.kubernetes.io/name=kvasir-operator");
    until(&format!("{replicas} operators"), async || {
        let pods = pods.list(&selector).await?.items;
        let ready = pods.iter().filter(|pod| kvasir_e2e::trial::is_ready(pod)).count();
        ensure!(pods.len() == replicas as usize && ready == pods.len(), "{ready} of {} are ready", pods.len());
        Ok(())
    })
    .await
}
