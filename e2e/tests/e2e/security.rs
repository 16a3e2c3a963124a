//! What keeps others out: encryption between nodes, TLS and access on the client port, and what is said when a Secret is missing.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams, PostParams};
use kvasir_client::{Client, Credentials, PutOptions, RetryPolicy};
use kvasir_crds::{EncryptionStatus, condition};
use kvasir_e2e::lab::workspace;
use kvasir_e2e::trial::{ip, restarts};
use kvasir_e2e::{Trial, run, until, within};
use serde_json::json;
use tempfile::NamedTempFile;

/// A key that the test makes, in base64.
const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
/// How long a kubelet may take to bring a changed Secret to its pods.
const KUBELET: Duration = Duration::from_mins(3);

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
        let first = encryption(t, "members to speak of one key", |now| now.settled && now.keys.len() == 1).await?;

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
        // The operator does not ask the sidecar, which may have its file later than the members.
        sidecar_has(t, &second.keys).await?;
        write(t, &format!("{cookie}\nkeys: [{KEY}, {made}]")).await?;
        let third =
            encryption(t, "the new key to be the first", |now| now.settled && now.primary != first.primary).await?;
        ensure!(third.keys.len() == 2, "{third:?}");
        sidecar_has(t, &third.keys).await?;
        write(t, &format!("{cookie}\nkeys: [{KEY}]")).await?;
        encryption(t, "the old key to be gone", |now| now.settled && now.keys == [third.primary.clone()]).await?;

        // After the last step everyone still hears everyone, and nobody was restarted for it.
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
fn a_secret_that_is_missing_or_makes_no_sense_is_told() {
    run("no-secret", async |t| {
        let spec = json!({ "replicas": 1, "encryption": { "secretRef": { "name": "mine" } } });
        t.ask_for_cluster("demo", spec).await?;
        degraded(t, "EncryptionSecretMissing", "there is no Secret mine").await?;
        ensure!(t.member_pods("demo").await?.is_empty(), "a member was started without its keys");
        let secret = |text: &str| Secret {
            data: Some([("peers.yaml".to_owned(), ByteString(text.into()))].into()),
            metadata: kube::api::ObjectMeta { name: Some("mine".to_owned()), ..Default::default() },
            ..Secret::default()
        };
        t.api::<Secret>().create(&PostParams::default(), &secret("cookie: c\nkeys: [short]")).await?;
        degraded(t, "EncryptionSecretMalformed", "key 0 is not base64 of 32 bytes").await?;
        let sound = secret(&format!("cookie: c\nkeys: [{KEY}]"));
        t.api::<Secret>().patch("mine", &PatchParams::default(), &Patch::Merge(&sound)).await?;
        t.settled("demo", 1).await?;
        encryption(t, "the member to have the key", |now| now.settled && now.keys.len() == 1).await?;

        // What would cut members off from each other cannot be asked for.
        for (patch, message) in [
            (json!({ "spec": { "encryption": null } }), "leave encryption as it is"),
            (json!({ "spec": { "encryption": { "secretRef": { "name": "other" } } } }), "leave encryption as it is"),
            (json!({ "spec": { "tls": { "operator": {}, "peers": true } } }), "give one of encryption and tls.peers"),
        ] {
            let error = t.kubectl(&["patch", "kvcluster/demo", "--type=merge", "-p", &patch.to_string()]).await.err();
            let error = error.with_context(|| format!("{patch} was taken"))?;
            ensure!(format!("{error:#}").contains(message), "{patch}: {error:#}");
        }
        // TLS for clients is no such thing.
        let tls = json!({ "spec": { "tls": { "operator": {} } } });
        t.kubectl(&["patch", "kvcluster/demo", "--type=merge", "-p", &tls.to_string()]).await?;
        Ok(())
    });
}

#[test]
fn clients_speak_tls_and_may_do_what_the_rules_say() {
    run("access", async |t| {
        let tokens = Secret {
            string_data: Some([("tokens.yaml".to_owned(), "app: a-token-of-the-test-app".to_owned())].into()),
            metadata: kube::api::ObjectMeta { name: Some("demo-tokens".to_owned()), ..Default::default() },
            ..Secret::default()
        };
        t.api::<Secret>().create(&PostParams::default(), &tokens).await?;
        let rules = |prefix: &str| json!([{ "subjects": ["token:app"], "prefix": prefix, "verbs": ["read", "write"] }]);
        let access = json!({ "tokensSecret": { "name": "demo-tokens", "key": "tokens.yaml" }, "rules": rules("app/") });
        let spec = json!({ "replicas": 2, "tls": { "operator": {} }, "access": access });
        t.ask_for_cluster("demo", spec).await?;
        t.settled("demo", 2).await?;

        let authorities = text(&t.api::<Secret>().get("demo-tls").await?, "ca.crt")?;
        let mut file = NamedTempFile::new()?;
        file.write_all(authorities.as_bytes())?;
        let member = t.member_pods("demo").await?.pop().context("there are members")?;
        let client = |token: Option<&str>| -> Result<Client> {
            let trusting = Credentials::default().ca_file(file.path()).server_name(format!(
                "{}.demo-peers.{}.svc",
                member.name_any(),
                t.namespace
            ));
            let credentials = token.map_or(Ok(trusting.clone()), |token| trusting.clone().token(token))?;
            let address = format!("https://{}:7070", ip(&member)?);
            Ok(Client::builder(address).retry(RetryPolicy::none()).credentials(credentials).build()?)
        };
        let app = client(Some("a-token-of-the-test-app"))?;
        app.put("app/k", "v", PutOptions::default()).await?;
        let elsewhere = app.put("other/k", "v", PutOptions::default()).await;
        refused(elsewhere.err(), "PermissionDenied")?;
        refused(client(None)?.get("app/k").await.err(), "Unauthenticated")?;
        refused(client(Some("some-other-token-of-whom"))?.get("app/k").await.err(), "Unauthenticated")?;
        ensure!(t.speak_to(&member)?.get("app/k").await.is_err(), "a member answers without TLS");

        // A change of the rules reaches members without a restart.
        let before = processes(t).await?;
        let patch = json!({ "spec": { "access": { "rules": rules("other/") } } });
        t.kubectl(&["patch", "kvcluster/demo", "--type=merge", "-p", &patch.to_string()]).await?;
        within(KUBELET, "the new rules to hold", async || {
            app.put("other/k", "v", PutOptions::default()).await?;
            Ok(())
        })
        .await?;
        ensure!(before == processes(t).await?, "a change of rules restarted a member");
        Ok(())
    });
}

#[test]
fn nodes_know_each_other_by_certificates_of_the_operator() {
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
        // Members have no right to Secrets but by their mounts.
        let account = format!("--as=system:serviceaccount:{}:demo", t.namespace);
        for (resource, right) in [("pods", true), ("secrets", false)] {
            let may = t.kubectl(&["auth", "can-i", "get", resource, &account]).await;
            ensure!(may.is_ok_and(|said| said.trim() == "yes") == right, "get {resource}");
        }
        Ok(())
    });
}

#[test]
fn what_cannot_keep_anybody_out_is_refused() {
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

async fn example(t: &Trial, name: &str) -> Result<()> {
    let file = workspace().join(format!("examples/security/{name}.yaml"));
    t.kubectl(&["apply", "-f", &file.to_string_lossy()]).await.map(drop)
}

/// Puts another file of keys into the cluster's Secret.
async fn write(t: &Trial, file: &str) -> Result<()> {
    let patch = json!({ "stringData": { "peers.yaml": file } });
    t.api::<Secret>().patch("demo-encryption", &PatchParams::default(), &Patch::Merge(&patch)).await?;
    Ok(())
}

/// Waits for a status that speaks of such keys.
async fn encryption(t: &Trial, what: &str, fits: impl Fn(&EncryptionStatus) -> bool) -> Result<EncryptionStatus> {
    within(KUBELET, what, async || {
        let status = t.get("demo").await?.status.unwrap_or_default();
        let now = status.encryption.clone().with_context(|| format!("no keys: {}", json!(status)))?;
        ensure!(fits(&now), "{}", json!(status));
        Ok(now)
    })
    .await
}

/// Waits until the sidecar of the application has these keys, in this order.
async fn sidecar_has(t: &Trial, keys: &[String]) -> Result<()> {
    let path = format!("/api/v1/namespaces/{}/pods/app:7072/proxy/status", t.namespace);
    within(KUBELET, "the sidecar to have the keys of the members", async || {
        let status: serde_json::Value = serde_json::from_str(&t.kubectl(&["get", "--raw", &path]).await?)?;
        ensure!(status["encryption"]["keys"] == json!(keys), "{}", status["encryption"]);
        Ok(())
    })
    .await
}

/// Waits for a Degraded condition.
async fn degraded(t: &Trial, reason: &str, message: &str) -> Result<()> {
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

/// The members and how often they were restarted.
async fn processes(t: &Trial) -> Result<Vec<(String, Option<String>, i32)>> {
    let pods: Vec<Pod> = t.member_pods("demo").await?;
    Ok(pods.iter().map(|pod| (pod.name_any(), pod.uid(), restarts(pod))).collect())
}

fn text(secret: &Secret, key: &str) -> Result<String> {
    let ByteString(bytes) = secret.data.as_ref().and_then(|data| data.get(key)).with_context(|| format!("no {key}"))?;
    Ok(String::from_utf8(bytes.clone())?)
}

fn refused(error: Option<kvasir_client::Error>, code: &str) -> Result<()> {
    let error = error.context("a call went through that should not")?;
    ensure!(format!("{error:?}").contains(code), "{error:?} is not {code}");
    Ok(())
}
