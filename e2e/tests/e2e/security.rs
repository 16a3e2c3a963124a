//! Encryption and certificates between nodes, and what the operator reports when a Secret is missing.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kvasir_client::PutOptions;
use kvasir_crds::{EncryptionStatus, condition};
use kvasir_e2e::lab::workspace;
use kvasir_e2e::trial::restarts;
use kvasir_e2e::{Trial, run, until, within};
use kvasir_testing::authority::{Authority, Issued};
use serde_json::json;

use crate::access::{client, trusting};

/// A key made by the test, in base64.
const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
/// How long a kubelet may take to update a changed Secret in its pods.
pub(crate) const KUBELET: Duration = Duration::from_mins(3);

#[test]
fn keys_are_exchanged_while_members_and_sidecars_run() {
    run("encryption", async |t| {
        example(t, "encryption").await?;
        t.kubectl(&["wait", "--for=condition=Available", "kvcluster/demo", "--timeout=180s"]).await?;
        t.settled("demo", 3).await?;
        let keys = t.fill("demo", 20).await?;
        t.all_hold("demo", &keys).await?;
        let app = t.app("app", Some("demo"), &t.lab.nodes[0]).await?;
        ensure!(app.kvctl_ok(&["get", "key-0000"]).await?.trim_end() == "value of 0", "the sidecar has another value");
        let first = encryption(t, "members to report one key", |now| now.settled && now.keys.len() == 1).await?;

        let secret: Secret = t.api::<Secret>().get("demo-encryption").await?;
        ensure!(secret.owner_references().iter().any(|owner| owner.name == "demo"), "{:?}", secret.metadata);
        let file = text(&secret, "peers.yaml")?;
        let made = file.lines().find_map(|line| line.strip_prefix("- ")).context("no key in the Secret")?;
        let cookie = file.lines().find(|line| line.starts_with("cookie:")).context("no cookie in the Secret")?;
        let before = processes(t).await?;

        write(t, &format!("{cookie}\nkeys: [{made}, {KEY}]")).await?;
        let second = encryption(t, "a second key", |now| now.settled && now.keys.len() == 2).await?;
        ensure!(second.primary == first.primary, "{second:?}");
        app.kvctl_ok(&["put", "between", "1"]).await?;
        // The operator does not ask the sidecar, which may receive its file later than the members.
        sidecar_has(t, &second.keys).await?;
        write(t, &format!("{cookie}\nkeys: [{KEY}, {made}]")).await?;
        let third =
            encryption(t, "the new key to be the first", |now| now.settled && now.primary != first.primary).await?;
        ensure!(third.keys.len() == 2, "{third:?}");
        sidecar_has(t, &third.keys).await?;
        write(t, &format!("{cookie}\nkeys: [{KEY}]")).await?;
        encryption(t, "the old key to be gone", |now| now.settled && now.keys == [third.primary.clone()]).await?;

        // After the last step all nodes still reach each other, and none was restarted.
        app.kvctl_ok(&["put", "after", "2"]).await?;
        let member = t.member_pods("demo").await?.pop().context("there are members")?;
        let client = t.speak_to(&member)?;
        until("the sidecar's write to come to a member", async || {
            client.get("after").await?.context("not yet")?;
            Ok(())
        })
        .await?;
        ensure!(before == processes(t).await?, "pods changed: {before:?} {:?}", processes(t).await?);
        Ok(())
    });
}

#[test]
fn a_missing_or_invalid_secret_is_reported() {
    run("no-secret", async |t| {
        let spec = json!({ "replicas": 1, "encryption": { "secretRef": { "name": "mine" } } });
        t.ask_for_cluster("demo", spec).await?;
        degraded(t, "EncryptionSecretMissing", "there is no Secret mine").await?;
        ensure!(t.member_pods("demo").await?.is_empty(), "a member was started without its keys");
        secret(t, "mine", &[("peers.yaml", "cookie: c\nkeys: [short]")]).await?;
        degraded(t, "EncryptionSecretMalformed", "key 0 is not base64 of 32 bytes").await?;
        secret(t, "mine", &[("peers.yaml", &format!("cookie: c\nkeys: [{KEY}]"))]).await?;
        t.settled("demo", 1).await?;
        encryption(t, "the member to have the key", |now| now.settled && now.keys.len() == 1).await?;

        // A change that would cut members off from each other is refused.
        for (patch, message) in [
            (json!({ "spec": { "encryption": null } }), "leave encryption as it is"),
            (json!({ "spec": { "encryption": { "secretRef": { "name": "other" } } } }), "leave encryption as it is"),
            (json!({ "spec": { "tls": { "operator": {}, "peers": true } } }), "give one of encryption and tls.peers"),
        ] {
            let error = t.kubectl(&["patch", "kvcluster/demo", "--type=merge", "-p", &patch.to_string()]).await.err();
            let error = error.with_context(|| format!("{patch} was taken"))?;
            ensure!(format!("{error:#}").contains(message), "{patch}: {error:#}");
        }
        // TLS for clients is accepted: it does not cut members off.
        let tls = json!({ "spec": { "tls": { "operator": {} } } });
        t.kubectl(&["patch", "kvcluster/demo", "--type=merge", "-p", &tls.to_string()]).await?;
        Ok(())
    });
}

#[test]
fn peers_authenticate_by_the_operator_s_certificates() {
    run("peer-tls", async |t| {
        t.ask_for_cluster("demo", json!({ "replicas": 3, "tls": { "operator": {}, "client": false, "peers": true } }))
            .await?;
        t.settled("demo", 3).await?;
        let keys = t.fill("demo", 20).await?;
        t.all_hold("demo", &keys).await?;
        let app = t.app("app", Some("demo"), &t.lab.nodes[0]).await?;
        ensure!(app.kvctl_ok(&["get", "key-0001"]).await?.trim_end() == "value of 1", "the sidecar has another value");
        for pod in t.member_pods("demo").await?.into_iter().chain([app.pod().await?]) {
            ensure!(
                !json!(pod.spec).to_string().contains("ca.key"),
                "the authority's key is mounted in {}",
                pod.name_any()
            );
        }
        // Members read Secrets only through their mounts.
        let account = format!("--as=system:serviceaccount:{}:demo", t.namespace);
        for (resource, right) in [("pods", true), ("secrets", false)] {
            let may = t.kubectl(&["auth", "can-i", "get", resource, &account]).await;
            ensure!(may.is_ok_and(|said| said.trim() == "yes") == right, "get {resource}");
        }
        Ok(())
    });
}

#[test]
fn the_operator_s_authority_rotates_without_downtime() {
    run("authority", async |t| {
        t.ask_for_cluster("demo", json!({ "replicas": 3, "tls": { "operator": {}, "client": false, "peers": true } }))
            .await?;
        t.settled("demo", 3).await?;
        let app = t.app("app", Some("demo"), &t.lab.nodes[0]).await?;
        let members = t.member_pods("demo").await?;
        let nodes: Vec<_> = members.iter().map(kube::ResourceExt::name_any).chain([app.name.clone()]).collect();
        let of_secret = async |part: &str| text(&t.api::<Secret>().get("demo-tls").await?, part);
        let (authority, certificate) = (of_secret("ca.crt").await?, of_secret("tls.crt").await?);
        let (before, taken) = (processes(t).await?, reloads(t, &nodes).await?);

        // An authority whose key is lost signs no more: a second authority is added, and signs nothing yet.
        change(t, "demo-tls", &[("ca.key", "")]).await?;
        let both = until("a second authority", async || {
            let now = of_secret("ca.crt").await?;
            ensure!(now.ends_with(&authority) && now.len() > authority.len(), "{now}");
            Ok(now)
        })
        .await?;
        ensure!(of_secret("tls.crt").await? == certificate, "the new authority signed before all nodes trust it");
        let known = taken_again(t, &nodes, &taken).await?;
        // A corrupt certificate is replaced by one of the new authority. Nodes keep their old one until they receive
        // it.
        let ends = ends(t, &nodes).await?;
        change(t, "demo-tls", &[("tls.crt", "")]).await?;
        until("another certificate", async || {
            let now = of_secret("tls.crt").await?;
            ensure!(!now.is_empty() && now != certificate, "{now}");
            Ok(())
        })
        .await?;
        ensure!(of_secret("ca.crt").await? == both, "the authorities changed with the certificate");
        taken_again(t, &nodes, &known).await?;
        within(KUBELET, "all nodes to show the new certificate", async || {
            let now = self::ends(t, &nodes).await?;
            ensure!(now.iter().zip(&ends).all(|(now, before)| now > before), "{now:?} {ends:?}");
            Ok(())
        })
        .await?;
        ensure!(before == processes(t).await?, "pods changed: {before:?} {:?}", processes(t).await?);

        // A restarted member links to all others, and writes spread in every direction.
        t.api::<Pod>().delete("demo-0", &DeleteParams::default()).await?;
        until("another demo-0", async || {
            let now = t.member_pods("demo").await?;
            ensure!(now.len() == 3 && now[0].uid() != members[0].uid(), "it is the same");
            Ok(())
        })
        .await?;
        t.settled("demo", 3).await?;
        let mut keys = t.fill("demo", 20).await?;
        app.kvctl_ok(&["put", "of-the-sidecar", "v"]).await?;
        keys.insert("of-the-sidecar".to_owned(), b"v".to_vec());
        t.all_hold("demo", &keys).await?;
        sound(t).await
    });
}

#[test]
fn own_certificates_are_awaited_and_their_end_shown() {
    run("own-certificate", async |t| {
        t.ask_for_cluster("demo", json!({ "replicas": 1, "tls": { "secretRef": { "name": "mine" } } })).await?;
        degraded(t, "TlsSecretMissing", "there is no Secret mine").await?;
        ensure!(t.member_pods("demo").await?.is_empty(), "a member was started without its certificate");
        let authority = Authority::new("authority of the test");
        let put = async |days: u32| {
            let name = format!("*.demo-peers.{}.svc", t.namespace);
            let Issued { certificate, key } = authority.issue_for_days("own", &[&name], days);
            secret(t, "mine", &[("tls.crt", &certificate), ("tls.key", &key), ("ca.crt", &authority.pem)]).await
        };
        put(10).await?;
        t.settled("demo", 1).await?;
        degraded(t, "CertificateExpiring", "demo-0").await?;
        let before = processes(t).await?;
        let folder = tempfile::tempdir()?;
        let member = t.member_pods("demo").await?.pop().context("there is one member")?;
        let credentials = trusting(t, &member, "mine", &folder).await?;
        client(&member, credentials.clone())?.put("k", "v", PutOptions::default()).await?;
        put(90).await?;
        within(KUBELET, "the new certificate to be in force", async || sound(t).await).await?;
        client(&member, credentials)?.get("k").await?.context("the key is gone")?;
        ensure!(before == processes(t).await?, "another certificate restarted the member");
        Ok(())
    });
}

#[test]
fn a_secret_that_protects_nothing_is_refused() {
    run("insecure", async |t| {
        let tokens = json!({ "name": "s", "key": "k" });
        let rule = |subject: &str, verb: &str| json!({ "tokensSecret": tokens, "rules": [{ "subjects": [subject], "verbs": [verb] }] });
        let cases = [
            (json!({ "encryption": {} }), "give exactly one of secretRef and generate: true"),
            (
                json!({ "encryption": { "generate": true, "secretRef": { "name": "s" } } }),
                "give exactly one of secretRef and generate: true",
            ),
            (json!({ "tls": {} }), "give exactly one of operator: {}, secretRef and issuerRef"),
            (json!({ "tls": { "operator": {}, "client": false } }), "leave tls out"),
            (
                json!({ "encryption": { "generate": true }, "tls": { "operator": {}, "peers": true } }),
                "give one of encryption and tls.peers",
            ),
            (json!({ "access": {} }), "give at least one of tokensSecret, clientCaSecret and serviceAccounts"),
            (json!({ "access": { "clientCaSecret": tokens } }), "set tls on the client port"),
            (json!({ "access": { "serviceAccounts": { "reviewTtl": "11m" } } }), "set reviewTtl to"),
            (json!({ "access": rule("user:eve", "read") }), "write every subject as"),
            (json!({ "access": rule("*", "own") }), "give verbs of"),
        ];
        for (spec, message) in cases {
            match t.ask_for_cluster("bad", spec.clone()).await {
                Ok(_) => anyhow::bail!("{spec} was taken"),
                Err(error) => ensure!(format!("{error:#}").contains(message), "{spec}: {error:#}"),
            }
        }
        Ok(())
    });
}

pub(crate) async fn example(t: &Trial, name: &str) -> Result<()> {
    let file = workspace().join(format!("examples/security/{name}.yaml"));
    t.kubectl(&["apply", "-f", &file.to_string_lossy()]).await.map(drop)
}

/// Writes another key file into the cluster's Secret.
async fn write(t: &Trial, file: &str) -> Result<()> {
    change(t, "demo-encryption", &[("peers.yaml", file)]).await
}

/// Creates a Secret with this content.
pub(crate) async fn secret(t: &Trial, name: &str, content: &[(&str, &str)]) -> Result<()> {
    if t.api::<Secret>().get_opt(name).await?.is_none() {
        let empty = json!({ "metadata": { "name": name } });
        t.api::<Secret>().create(&PostParams::default(), &serde_json::from_value(empty)?).await?;
    }
    change(t, name, content).await
}

/// Replaces the content of an existing Secret.
async fn change(t: &Trial, name: &str, content: &[(&str, &str)]) -> Result<()> {
    let content: BTreeMap<&str, &str> = content.iter().copied().collect();
    let patch = json!({ "stringData": content });
    t.api::<Secret>().patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    Ok(())
}

/// Waits until the status reports these keys.
async fn encryption(t: &Trial, what: &str, fits: impl Fn(&EncryptionStatus) -> bool) -> Result<EncryptionStatus> {
    within(KUBELET, what, async || {
        let status = t.get("demo").await?.status.unwrap_or_default();
        let now = status.encryption.clone().with_context(|| format!("no keys: {}", json!(status)))?;
        ensure!(fits(&now), "{}", json!(status));
        Ok(now)
    })
    .await
}

/// A number from each node's status.
async fn figures(t: &Trial, nodes: &[String], pointer: &str) -> Result<Vec<u64>> {
    let mut all = Vec::new();
    for node in nodes {
        let status = t.node_status(node).await?;
        let figure = status.pointer(pointer).and_then(serde_json::Value::as_u64);
        all.push(figure.with_context(|| format!("{node}: {status}"))?);
    }
    Ok(all)
}

/// How often each node has reloaded the files of its links.
async fn reloads(t: &Trial, nodes: &[String]) -> Result<Vec<u64>> {
    figures(t, nodes, "/reloads/peerTls/times").await
}

/// Waits until each node has reloaded its files since then.
async fn taken_again(t: &Trial, nodes: &[String], then: &[u64]) -> Result<Vec<u64>> {
    within(KUBELET, "all nodes to take what is in the Secret", async || {
        let now = reloads(t, nodes).await?;
        ensure!(now.iter().zip(then).all(|(now, then)| now > then), "{now:?} {then:?}");
        Ok(now)
    })
    .await
}

/// Expiry of the certificates that nodes use between each other, in milliseconds since 1970.
async fn ends(t: &Trial, nodes: &[String]) -> Result<Vec<u64>> {
    figures(t, nodes, "/certificates/peer/notAfterMs").await
}

/// Waits until the application's sidecar has these keys, in this order.
async fn sidecar_has(t: &Trial, keys: &[String]) -> Result<()> {
    within(KUBELET, "the sidecar to have the keys of the members", async || {
        let status = t.node_status("app").await?;
        ensure!(status["encryption"]["keys"] == json!(keys), "{}", status["encryption"]);
        Ok(())
    })
    .await
}

/// Waits for a Degraded condition.
pub(crate) async fn degraded(t: &Trial, reason: &str, message: &str) -> Result<()> {
    until(&format!("Degraded with {reason}"), async || {
        let status = t.get("demo").await?.status.unwrap_or_default();
        let found = status.conditions.iter().find(|of| of.type_ == condition::DEGRADED);
        let found = found.context("no condition Degraded")?;
        let fits = found.status == "True" && found.reason == reason && found.message.contains(message);
        ensure!(fits, "{}", json!(status));
        Ok(())
    })
    .await
}

/// Waits until nothing is degraded.
pub(crate) async fn sound(t: &Trial) -> Result<()> {
    until("nothing to be degraded", async || {
        let status = t.get("demo").await?.status.unwrap_or_default();
        let found = status.conditions.iter().find(|of| of.type_ == condition::DEGRADED);
        ensure!(found.is_some_and(|of| of.status == "False"), "{}", json!(status));
        Ok(())
    })
    .await
}

/// The members and their restart counts.
pub(crate) async fn processes(t: &Trial) -> Result<Vec<(String, Option<String>, i32)>> {
    let pods: Vec<Pod> = t.member_pods("demo").await?;
    Ok(pods.iter().map(|pod| (pod.name_any(), pod.uid(), restarts(pod))).collect())
}

pub(crate) fn text(secret: &Secret, key: &str) -> Result<String> {
    let ByteString(bytes) = secret.data.as_ref().and_then(|data| data.get(key)).with_context(|| format!("no {key}"))?;
    Ok(String::from_utf8(bytes.clone())?)
}
