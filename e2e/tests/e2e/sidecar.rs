//! Sidecars: which pods get one, and how the operator reports pods that lack theirs.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt as _};
use kvasir_crds::{KvCluster, condition};
use kvasir_e2e::lab::{OPERATOR_NAMESPACE, workspace};
use kvasir_e2e::{alone, run, until};
use serde_json::json;

use crate::operator::scale_operator;

const SECRET: &str = "kvasir-webhook-cert";
const CONFIGURATION: &str = "kvasir-sidecar";

/// The sidecar of a pod, if it has one.
fn sidecar(pod: &Pod) -> Option<&Container> {
    let mut containers = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    containers.find(|container| container.name == "kvasir")
}

#[test]
fn only_a_labelled_pod_gets_a_sidecar() {
    run("inject", async |t| {
        t.cluster("demo", 1).await?;
        let labelled = t.app("labelled", Some("demo"), &t.lab.nodes[0]).await?;
        let plain = t.app("plain", None, &t.lab.nodes[0]).await?;

        let pod = labelled.pod().await?;
        let container = sidecar(&pod).context("no sidecar")?;
        ensure!(container.restart_policy.as_deref() == Some("Always"), "not a native sidecar: {container:?}");
        ensure!(container.startup_probe.is_some(), "nothing holds the application back: {container:?}");
        let address = labelled.exec(&["sh", "-c", "echo $KVASIR_ADDRESS"]).await?;
        ensure!(address.stdout.trim() == "http://127.0.0.1:7070", "{address:?}");
        labelled.kvctl_ok(&["put", "k", "v"]).await?;

        let pod = plain.pod().await?;
        let spec = pod.spec.clone().unwrap_or_default();
        ensure!(sidecar(&pod).is_none() && spec.containers.len() == 1, "{spec:?}");
        ensure!(spec.containers[0].env.iter().flatten().all(|e| e.name != "KVASIR_ADDRESS"), "{spec:?}");
        ensure!(pod.annotations().keys().all(|key| !key.contains("kvasir")), "{:?}", pod.annotations());

        until("the status to count it", async || {
            let sidecars = t.get("demo").await?.status.unwrap_or_default().sidecars;
            ensure!((sidecars.injected, sidecars.missing) == (1, 0), "{sidecars:?}");
            Ok(())
        })
        .await?;
        // kvctl has an exit code for a missing key, and `get` prints only the value.
        ensure!(labelled.kvctl_ok(&["get", "k"]).await?.trim_end_matches('\n') == "v", "more than the value");
        let missing = labelled.kvctl(&["get", "missing"]).await?;
        let unreachable = labelled.kvctl(&["--address", "127.0.0.1:9", "get", "k"]).await?;
        ensure!(missing.code != 0 && missing.code != unreachable.code && missing.stdout.is_empty(), "{missing:?}");
        Ok(())
    });
}

#[test]
fn a_job_with_a_sidecar_completes() {
    run("job", async |t| {
        t.cluster("demo", 1).await?;
        let example = workspace().join("examples/job.yaml");
        let manifest = tokio::fs::read_to_string(&example).await?;
        let mut job: Job = serde_yaml::from_str(&manifest)?;
        if let Some(pod) = job.spec.as_mut().and_then(|spec| spec.template.spec.as_mut()) {
            pod.containers[0].image = Some(t.lab.shell_image.clone());
        }
        t.api::<Job>().create(&kube::api::PostParams::default(), &job).await?;
        t.kubectl(&["wait", "--for=condition=Complete", "job/load", "--timeout=120s"]).await?;
        let pods = t.api::<Pod>().list(&ListParams::default().labels("job-name=load")).await?.items;
        ensure!(pods.len() == 1 && sidecar(&pods[0]).is_some(), "the job ran {} pods: {pods:?}", pods.len());
        // The sidecar is gone; the cluster holds what the application wrote through it.
        let member = t.member_pods("demo").await?.pop().context("there is one member")?;
        let value = t.speak_to(&member)?.get("loaded").await?.context("the job's write is lost")?;
        ensure!(value.value.as_ref() == b"yes", "{value:?}");
        Ok(())
    });
}

#[test]
fn a_pod_without_its_sidecar_is_counted_and_warned() {
    alone("missing", async |t| {
        t.cluster("demo", 1).await?;
        scale_operator(t, 0).await?;
        let outcome = t.app("forlorn", Some("demo"), &t.lab.nodes[0]).await;
        scale_operator(t, 1).await?;
        let app = outcome.context("the webhook did not fail open")?;
        ensure!(sidecar(&app.pod().await?).is_none(), "the pod has a sidecar although the operator did not run");

        until("status.sidecars to count it", async || {
            let sidecars = t.get("demo").await?.status.unwrap_or_default().sidecars;
            ensure!((sidecars.injected, sidecars.missing) == (0, 1), "{sidecars:?}");
            Ok(())
        })
        .await?;
        let uid = app.pod().await?.uid();
        until("a warning event on the pod", async || {
            let events = t.api::<Event>().list(&ListParams::default()).await?.items;
            let warning = events.iter().find(|event| {
                event.regarding.as_ref().is_some_and(|pod| pod.uid == uid)
                    && event.reason.as_deref() == Some("SidecarMissing")
            });
            let warning = warning.with_context(|| format!("none among {} events", events.len()))?;
            ensure!(warning.type_.as_deref() == Some("Warning"), "{warning:?}");
            Ok(())
        })
        .await?;
        t.api::<Pod>().delete("forlorn", &DeleteParams::default()).await?;
        until("the count to fall", async || {
            let sidecars = t.get("demo").await?.status.unwrap_or_default().sidecars;
            ensure!(sidecars.missing == 0, "{sidecars:?}");
            Ok(())
        })
        .await
    });
}

#[test]
fn cluster_made_again_refuses_an_old_sidecar() {
    run("again", async |t| {
        t.cluster("demo", 3).await?;
        let app = t.app("app", Some("demo"), &t.lab.nodes[0]).await?;
        app.kvctl_ok(&["put", "k", "old"]).await?;
        let first = t.get("demo").await?.uid();
        t.api::<KvCluster>().delete("demo", &DeleteParams::default()).await?;
        until("the cluster and its members to be gone", async || {
            ensure!(t.api::<KvCluster>().get_opt("demo").await?.is_none(), "the KvCluster is still there");
            let members = ListParams::default().labels("kvasir.dev/member-of=demo");
            let members = t.api::<Pod>().list(&members).await?.items;
            ensure!(members.is_empty(), "{} members are still there", members.len());
            Ok(())
        })
        .await?;

        t.cluster("demo", 3).await?;
        ensure!(t.get("demo").await?.uid() != first, "it is the same object");
        until("the status to name the old sidecar's pod", async || {
            let status = t.get("demo").await?.status.unwrap_or_default();
            let sidecars = status.sidecars;
            ensure!((sidecars.injected, sidecars.missing, sidecars.stale) == (0, 0, 1), "{sidecars:?}");
            let degraded = status.conditions.iter().find(|of| of.type_ == condition::DEGRADED);
            let degraded = degraded.context("no condition Degraded")?;
            ensure!(degraded.status == "True" && degraded.reason == "SidecarsStale", "{degraded:?}");
            ensure!(degraded.message.contains("app"), "{degraded:?}");
            Ok(())
        })
        .await?;
        until("the old sidecar to say what it is", async || {
            let status = t.node_status("app").await?;
            ensure!(status["stale"] == true && status["clusterUid"] == json!(first), "{status}");
            Ok(())
        })
        .await?;
        // The stale sidecar keeps its entries, and no member takes them.
        ensure!(app.kvctl_ok(&["get", "k"]).await?.trim_end() == "old", "the sidecar lost its map");
        t.all_hold("demo", &BTreeMap::new()).await?;

        // Created again, the pod belongs to the new cluster.
        t.api::<Pod>().delete("app", &DeleteParams::default()).await?;
        until("the pod to be gone", async || {
            ensure!(t.api::<Pod>().get_opt("app").await?.is_none(), "it is still there");
            Ok(())
        })
        .await?;
        let app = t.app("app", Some("demo"), &t.lab.nodes[0]).await?;
        app.kvctl_ok(&["put", "k", "new"]).await?;
        t.all_hold("demo", &BTreeMap::from([("k".to_owned(), b"new".to_vec())])).await?;
        until("nothing to be wrong", async || {
            let status = t.get("demo").await?.status.unwrap_or_default();
            ensure!((status.sidecars.injected, status.sidecars.stale) == (1, 0), "{:?}", status.sidecars);
            let degraded = status.conditions.iter().find(|of| of.type_ == condition::DEGRADED);
            ensure!(degraded.is_some_and(|degraded| degraded.status == "False"), "{degraded:?}");
            Ok(())
        })
        .await
    });
}

#[test]
fn the_webhook_s_lost_certificate_is_replaced() {
    alone("certificate", async |t| {
        t.cluster("demo", 1).await?;
        let secrets: Api<Secret> = Api::namespaced(t.lab.client.clone(), OPERATOR_NAMESPACE);
        let old = secrets.get(SECRET).await.context("the operator keeps no certificate")?;
        ensure!(old.data.as_ref().is_some_and(|data| !data.is_empty()), "the Secret is empty");
        secrets.delete(SECRET, &DeleteParams::default()).await?;
        let new = until("another certificate", async || {
            let new = secrets.get(SECRET).await?;
            ensure!(new.uid() != old.uid() && new.data.as_ref().is_some_and(|data| !data.is_empty()), "not yet");
            Ok(new)
        })
        .await?;
        // The API server trusts the new one, and the webhook serves it.
        let configurations: Api<MutatingWebhookConfiguration> = Api::all(t.lab.client.clone());
        let authority =
            new.data.as_ref().and_then(|data| data.get("ca.crt")).context("no ca.crt in the Secret")?.clone();
        until("the webhook configuration to trust it", async || {
            let configuration = configurations.get(CONFIGURATION).await?;
            let bundle =
                configuration.webhooks.iter().flatten().find_map(|webhook| webhook.client_config.ca_bundle.clone());
            ensure!(bundle.is_some_and(|bundle| contains(&bundle.0, &authority.0)), "another bundle");
            Ok(())
        })
        .await?;
        let mut tries = 0;
        until("a pod to get its sidecar", async || {
            tries += 1;
            let app = t.start_app(&format!("labelled-{tries}"), Some("demo"), &t.lab.nodes[0]).await?;
            ensure!(sidecar(&app.pod().await?).is_some(), "{} has none", app.name);
            Ok(())
        })
        .await
    });
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    let part = part.trim_ascii();
    text.windows(part.len()).any(|window| window == part)
}

#[test]
fn a_sidecar_makes_no_use_of_the_application_s_rights() {
    run("rights", async |t| {
        t.cluster("demo", 1).await?;
        let app = t.app("app", Some("demo"), &t.lab.nodes[0]).await?;
        app.kvctl_ok(&["put", "k", "v"]).await?;
        let pod = app.pod().await?;
        let account = pod.spec.and_then(|spec| spec.service_account_name).context("a pod without ServiceAccount")?;
        let who = format!("--as=system:serviceaccount:{}:{account}", t.namespace);
        let may = t.kubectl(&["auth", "can-i", "list", "pods", &who]).await;
        ensure!(
            may.as_ref().is_err_and(|refusal| format!("{refusal:#}").contains(": no")),
            "the application may list pods: {may:?}"
        );
        Ok(())
    });
}
