//! Who the clients of members are and what they may do: tokens, certificates, `ServiceAccounts`, and the rules.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Pod, Secret, ServiceAccount};
use kube::ResourceExt as _;
use kube::api::DeleteParams;
use kvasir_client::{Client, Credentials, Error, PutOptions, RetryPolicy};
use kvasir_crds::condition;
use kvasir_e2e::lab::{RELEASE, command, workspace};
use kvasir_e2e::trial::ip;
use kvasir_e2e::{Trial, run, until, within};
use kvasir_testing::authority::Authority;
use serde_json::json;
use tempfile::TempDir;

use crate::security::{KUBELET, degraded, processes, secret, sound, text};

const TOKEN: &str = "a-token-of-the-test-app";

#[test]
fn clients_speak_tls_and_may_do_what_the_rules_say() {
    run("access", async |t| {
        let folder = tempfile::tempdir()?;
        let authority = Authority::new("authority of the test");
        let issued = authority.issue_for_days("ops", &[], 30);
        let (certificate, key) = (folder.path().join("ops.crt"), folder.path().join("ops.key"));
        tokio::fs::write(&certificate, issued.certificate).await?;
        tokio::fs::write(&key, issued.key).await?;
        secret(t, "demo-tokens", &[("tokens.yaml", &format!("app: {TOKEN}"))]).await?;
        secret(t, "clients", &[("ca.crt", &authority.pem)]).await?;
        let rules = |prefix: &str| {
            json!([
                { "subjects": ["token:app"], "prefix": prefix, "verbs": ["read", "write"] },
                { "subjects": ["cert:ops"], "verbs": ["admin"] },
            ])
        };
        let access = json!({
            "tokensSecret": { "name": "demo-tokens", "key": "tokens.yaml" },
            "clientCaSecret": { "name": "clients", "key": "ca.crt" },
            "rules": rules("app/"),
        });
        let spec = json!({ "replicas": 2, "tls": { "operator": {} }, "access": access });
        t.ask_for_cluster("demo", spec).await?;
        t.settled("demo", 2).await?;

        let member = t.member_pods("demo").await?.pop().context("there are members")?;
        let trusting = trusting(t, &member, "demo-tls", &folder).await?;
        let with_token = |token: &str| client(&member, trusting.clone().token(token)?);
        let app = with_token(TOKEN)?;
        app.put("app/k", "v", PutOptions::default()).await?;
        refused(app.put("other/k", "v", PutOptions::default()).await, "PermissionDenied")?;
        refused(app.status().await, "PermissionDenied")?;
        refused(client(&member, trusting.clone())?.get("app/k").await, "Unauthenticated")?;
        refused(with_token("some-other-token-of-a-stranger")?.get("app/k").await, "Unauthenticated")?;
        ensure!(t.speak_to(&member)?.get("app/k").await.is_err(), "a member answers without TLS");
        let ops = client(&member, trusting.clone().certificate(certificate, key))?;
        ops.status().await?;
        refused(ops.get("app/k").await, "PermissionDenied")?;

        // Changed rules reach members without a restart.
        let before = processes(t).await?;
        let patch = json!({ "spec": { "access": { "rules": rules("other/") } } });
        t.kubectl(&["patch", "kvcluster/demo", "--type=merge", "-p", &patch.to_string()]).await?;
        within(KUBELET, "the new rules to hold", async || {
            app.put("other/k", "v", PutOptions::default()).await?;
            Ok(())
        })
        .await?;
        refused(app.put("app/k", "w", PutOptions::default()).await, "PermissionDenied")?;
        // So does a changed token, and the old one is refused.
        let tokens = json!({ "stringData": { "tokens.yaml": "app: the-next-token-of-the-app" } });
        t.kubectl(&["patch", "secret/demo-tokens", "--type=merge", "-p", &tokens.to_string()]).await?;
        let next = with_token("the-next-token-of-the-app")?;
        within(KUBELET, "the new token to be known", async || {
            next.put("other/k", "w", PutOptions::default()).await?;
            Ok(())
        })
        .await?;
        refused(app.get("other/k").await, "Unauthenticated")?;
        ensure!(before == processes(t).await?, "a change of rules or tokens restarted a member");
        Ok(())
    });
}

/// A client with a `ServiceAccount`'s token has the rights of that `ServiceAccount`, for as long as Kubernetes accepts the token.
#[test]
fn access_service_account_tokens() {
    run("accounts", async |t| {
        // Cluster-scoped objects are not deleted with the test's namespace.
        let binding = format!("kvasir-{}-demo", t.namespace);
        let unbind = ["delete", "clusterrolebinding", &binding, "--ignore-not-found"];
        command("kubectl", &unbind).await?;
        let outcome = by_service_accounts(t, &binding).await;
        command("kubectl", &unbind).await?;
        outcome
    });
}

async fn by_service_accounts(t: &Trial, binding: &str) -> Result<()> {
    let examples = workspace().join("examples/security");
    let cluster = tokio::fs::read_to_string(examples.join("access.yaml")).await?;
    let ours = cluster.replace("serviceaccount:default/app", &format!("serviceaccount:{}/app", t.namespace));
    let ours = ours.replace("{audiences: [kvasir]}", "{audiences: [kvasir], reviewTtl: 1s}");
    ensure!(ours.matches(&t.namespace).count() == 1 && ours.contains("1s"), "the example has changed: {cluster}");
    secret(t, "demo-tokens", &[("tokens.yaml", &format!("app: {TOKEN}"))]).await?;
    apply(t, &ours).await?;
    t.settled("demo", 3).await?;
    let member = t.member_pods("demo").await?.pop().context("there are members")?;
    let folder = tempfile::tempdir()?;
    let trusting = trusting(t, &member, "demo-tls", &folder).await?;
    let with_token = |token: &str| client(&member, trusting.clone().token(token.trim())?);

    // Without the right to review tokens, the cluster's conditions report what to do.
    t.kubectl(&["create", "serviceaccount", "other"]).await?;
    let app = tokio::fs::read_to_string(examples.join("client.yaml")).await?;
    apply(t, &app.replace("kvasir.dev/shell:0.1.0", &t.lab.shell_image)).await?;
    let audience = ["--audience", "kvasir"];
    let token = async |account: &str, words: &[&str]| t.kubectl(&[&["create", "token", account], words].concat()).await;
    let of_app = with_token(&token("app", &audience).await?)?;
    refused(of_app.get("app/k").await, "Unavailable")?;
    let role = format!("{RELEASE}-token-review");
    degraded(t, "TokenReviewForbidden", &role).await?;
    with_token(TOKEN)?.put("app/k", "v", PutOptions::default()).await.context("tokens of the Secret need no review")?;
    let conditions = t.get("demo").await?.status.unwrap_or_default().conditions;
    let degraded = conditions.iter().find(|of| of.type_ == condition::DEGRADED).context("no condition Degraded")?;
    let (_, advice) =
        degraded.message.split_once("kubectl ").with_context(|| format!("no command: {}", degraded.message))?;
    let advice: Vec<_> = advice.split_whitespace().collect();
    ensure!(advice.contains(&binding), "{advice:?}");
    command("kubectl", &advice).await?;

    // The token that the kubelet mounts for an application.
    t.kubectl(&["wait", "--for=condition=Ready", "pod/app", "--timeout=120s"]).await?;
    until("members to know the application", async || {
        let said = t.exec("app", "app", &["kvctl", "put", "app/k", "of the pod"]).await?;
        ensure!(said.code == 0, "{said:?}");
        Ok(())
    })
    .await?;
    let elsewhere = t.exec("app", "app", &["kvctl", "put", "other/k", "v"]).await?;
    ensure!(elsewhere.code != 0 && elsewhere.stderr.contains("PermissionDenied"), "{elsewhere:?}");
    let value = of_app.get("app/k").await?.context("what the application wrote is gone")?;
    ensure!(value.value.as_ref() == b"of the pod", "{value:?}");
    // Another account is authenticated and has no rights; a token for another audience, or a forged one, is refused.
    refused(with_token(&token("other", &audience).await?)?.get("app/k").await, "PermissionDenied")?;
    refused(with_token(&token("app", &[]).await?)?.get("app/k").await, "Unauthenticated")?;
    refused(with_token("eyJhbGciOiJub25lIn0.e30.")?.get("app/k").await, "Unauthenticated")?;
    sound(t).await?;
    // A deleted account's tokens become invalid.
    let accounts = t.api::<ServiceAccount>();
    accounts.delete("app", &DeleteParams::default()).await?;
    until("the token of a deleted account to be of no use", async || {
        refused(of_app.get("app/k").await, "Unauthenticated")
    })
    .await
}

async fn apply(t: &Trial, manifest: &str) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    tokio::fs::write(file.path(), manifest).await?;
    t.kubectl(&["apply", "-f", &file.path().to_string_lossy()]).await.map(drop)
}

/// Trusts the authorities in a Secret, which are written into the folder.
pub(crate) async fn trusting(t: &Trial, member: &Pod, secret: &str, folder: &TempDir) -> Result<Credentials> {
    let file = folder.path().join("ca.crt");
    tokio::fs::write(&file, text(&t.api::<Secret>().get(secret).await?, "ca.crt")?).await?;
    let name = format!("{}.demo-peers.{}.svc", member.name_any(), t.namespace);
    Ok(Credentials::default().ca_file(file).server_name(name))
}

/// A client of one member over TLS, without retries.
pub(crate) fn client(member: &Pod, credentials: Credentials) -> Result<Client> {
    let address = format!("https://{}:7070", ip(member)?);
    Ok(Client::builder(address).retry(RetryPolicy::none()).credentials(credentials).build()?)
}

fn refused<T>(answer: Result<T, Error>, code: &str) -> Result<()> {
    let error = answer.err().context("a call went through that should not")?;
    ensure!(format!("{error:?}").contains(code), "{error:?} is not {code}");
    Ok(())
}
