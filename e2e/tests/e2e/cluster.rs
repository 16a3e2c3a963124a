//! The life of a `KvCluster` as kubectl shows it: created, described, scaled, refused, deleted.

use anyhow::ensure;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt;
use kube::api::ListParams;
use kvasir_e2e::lab::workspace;
use kvasir_e2e::trial::held;
use kvasir_e2e::{alone, run, until};
use serde_json::json;

use crate::operator::{OWNED, owned};

#[test]
fn applied_it_becomes_available_and_its_columns_tell() {
    run("apply", async |t| {
        let example = workspace().join("examples/cluster.yaml");
        t.kubectl(&["apply", "-f", &example.to_string_lossy()]).await?;
        t.kubectl(&["wait", "--for=condition=Available", "kvcluster/demo", "--timeout=180s"]).await?;
        t.settled("demo", 3).await?;

        let keys = t.fill("demo", 7).await?;
        t.all_hold("demo", &keys).await?;
        let version = env!("CARGO_PKG_VERSION");
        until("the columns to show 7 keys", async || {
            let table = t.kubectl(&["get", "kvc"]).await?;
            let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
            ensure!(lines.len() == 2, "{table}");
            ensure!(lines[0] == ["NAME", "READY", "KEYS", "CONVERGED", "VERSION", "AGE"], "{table}");
            ensure!(lines[1][..5] == ["demo", "3/3", "7", "true", version], "{table}");
            Ok(())
        })
        .await?;

        let cluster = t.get("demo").await?;
        let generation = cluster.metadata.generation;
        let status = cluster.status.clone().unwrap_or_default();
        ensure!(Some(status.observed_generation) == generation, "{}", json!(status));
        // Not at the first attempt: members are queried one after the other, and an answer may have been late.
        until("members and conditions of a cluster with nothing in progress", async || {
            let status = t.get("demo").await?.status.unwrap_or_default();
            let names: Vec<&str> = status.members.iter().map(|member| member.name.as_str()).collect();
            ensure!(names == ["demo-0", "demo-1", "demo-2"], "{names:?}");
            let equal = status.members.iter().all(|m| m.ready && m.synced && m.keys == Some(7));
            ensure!(equal, "{}", json!(status.members));
            let rest = [("Available", "True"), ("Progressing", "False"), ("Degraded", "False"), ("Redundant", "True")];
            for (kind, wanted) in rest {
                let condition = status.conditions.iter().find(|condition| condition.type_ == kind);
                ensure!(
                    condition.is_some_and(|c| c.status == wanted && c.observed_generation == generation),
                    "{condition:?}"
                );
            }
            Ok(())
        })
        .await?;
        // `kubectl describe` shows each event of the creation once.
        let events = t.api::<Event>().list(&ListParams::default()).await?.items;
        let of_cluster = |event: &&Event| event.regarding.as_ref().is_some_and(|it| it.uid == cluster.metadata.uid);
        let reasons: Vec<&str> = events.iter().filter(of_cluster).filter_map(|event| event.reason.as_deref()).collect();
        for reason in ["Created", "Available"] {
            ensure!(reasons.iter().filter(|shown| **shown == reason).count() == 1, "not {reason} once: {reasons:?}");
        }
        Ok(())
    });
}

#[test]
fn scaled_up_and_down_no_key_is_lost() {
    run("scale", async |t| {
        t.cluster("demo", 3).await?;
        let keys = t.fill("demo", 300).await?;
        for replicas in [5, 3] {
            t.kubectl(&["scale", "kvcluster/demo", &format!("--replicas={replicas}")]).await?;
            t.settled("demo", replicas).await?;
            t.all_hold("demo", &keys).await?;
        }
        // Members that stay do not wait for those that left.
        for pod in t.member_pods("demo").await? {
            let client = t.speak_to(&pod)?;
            until("the members to be three", async || {
                let members = client.members().await?;
                ensure!(members.len() == 3, "{members:?}");
                Ok(())
            })
            .await?;
        }
        Ok(())
    });
}

#[test]
fn an_invalid_spec_is_refused_with_what_to_do() {
    run("invalid", async |t| {
        let cases = [
            (json!({ "replicas": 0 }), "set replicas to a number from 1 to 64"),
            (json!({ "replicas": 65 }), "set replicas to a number from 1 to 64"),
            (json!({ "syncInterval": "soon" }), "write syncInterval as whole numbers with a unit"),
            (json!({ "syncInterval": "5ms" }), "set syncInterval to at least 100ms and at most 60s"),
            (json!({ "syncInterval": "2m" }), "set syncInterval to at least 100ms and at most 60s"),
            (json!({ "maxMemory": "plenty" }), "write maxMemory as a quantity such as 256Mi"),
            (json!({ "maxMemory": "10Ki" }), "set maxMemory to at least 1Mi"),
            (
                json!({ "maxMemory": "256Mi", "resources": { "limits": { "memory": "128Mi" } } }),
                "set maxMemory at least 24Mi lower than resources.limits.memory",
            ),
            (
                json!({ "resources": { "limits": { "memory": "32Mi" } } }),
                "set resources.limits.memory to at least 50Mi",
            ),
            (json!({ "image": "two words" }), "set image to a reference such as"),
            (json!({ "joinTimeout": "2m" }), "set joinTimeout to at most 90s"),
            (json!({ "discovery": {} }), "give at least one of kubernetes, nats, dns and static"),
            (json!({ "discovery": { "nats": { "server": ["nats://me:secret@a:4222"] } } }), "write every server as"),
            (json!({ "discovery": { "nats": { "server": ["nats://a:4222"], "subject": "a.>" } } }), "write subject as"),
            (json!({ "discovery": { "nats": { "server": ["nats://a:4222"], "timeout": "soon" } } }), "set timeout to"),
            (
                json!({ "discovery": { "nats": { "server": ["nats://a:4222"], "user": "kvasir" } } }),
                "give user and passwordSecret together",
            ),
            (json!({ "discovery": { "dns": { "domainName": "_peer._tcp.a", "port": 7071 } } }), "leave out port"),
            (json!({ "discovery": { "static": { "hosts": ["fd00::1:7071"] } } }), "write every host as"),
        ];
        for (spec, message) in cases {
            match t.ask_for_cluster("bad", spec.clone()).await {
                Ok(_) => anyhow::bail!("{spec} was taken"),
                Err(error) => ensure!(format!("{error:#}").contains(message), "{spec}: {error:#}"),
            }
        }
        match t.ask_for_cluster("0bad", json!({ "replicas": 1 })).await {
            Ok(_) => anyhow::bail!("the name 0bad was taken"),
            Err(error) => ensure!(format!("{error:#}").contains("choose a metadata.name"), "{error:#}"),
        }
        // The same call with a valid spec succeeds, so the specs were the reason for the refusals.
        t.ask_for_cluster("good", json!({ "replicas": 1, "syncInterval": "500ms", "discovery": { "kubernetes": {} } }))
            .await?;
        Ok(())
    });
}

#[test]
fn deleted_it_takes_everything_with_it() {
    run("delete", async |t| {
        t.cluster("demo", 2).await?;
        // Everything exists first, so an empty list at the end means that it was deleted.
        let before = owned(t, "demo").await?;
        for kind in OWNED {
            ensure!(before.keys().any(|object| object.starts_with(&format!("{kind}/"))), "no {kind} in {before:?}");
        }
        t.kubectl(&["delete", "kvcluster/demo", "--wait=true", "--timeout=60s"]).await?;
        until("every owned object to be gone", async || {
            let left = owned(t, "demo").await?;
            let pods = t.api::<Pod>().list(&ListParams::default()).await?.items;
            let pods: Vec<String> = pods.iter().map(ResourceExt::name_any).collect();
            ensure!(left.is_empty() && pods.is_empty(), "{left:?} {pods:?}");
            Ok(())
        })
        .await
    });
}

#[test]
fn a_service_serves_only_ready_members() {
    alone("services", async |t| {
        t.cluster("demo", 2).await?;
        let service: Service = t.api().get("demo").await?;
        let spec = service.spec.unwrap_or_default();
        ensure!(spec.publish_not_ready_addresses != Some(true), "clients would be sent to members that are not ready");
        ensure!(spec.ports.iter().flatten().any(|p| p.name.as_deref() == Some("client") && p.port == 7070), "{spec:?}");
        let peers: Service = t.api().get("demo-peers").await?;
        let peers = peers.spec.unwrap_or_default();
        ensure!(peers.cluster_ip.as_deref() == Some("None"), "{peers:?}");
        ensure!(
            peers.publish_not_ready_addresses == Some(true),
            "members could not find each other before they are ready"
        );

        let client = t.speak_to_service("demo").await?;
        client.put("through-the-service", "yes", kvasir_client::PutOptions::default()).await?;
        for pod in t.member_pods("demo").await? {
            let client = t.speak_to(&pod)?;
            until("the key at every member", async || {
                ensure!(held(&client).await?.contains_key("through-the-service"), "not at {}", pod.name_any());
                Ok(())
            })
            .await?;
        }
        Ok(())
    });
}
