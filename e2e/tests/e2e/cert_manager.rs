//! Node certificates from cert-manager, whose controllers issue and renew them.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use kube::{Api, ResourceExt as _};
use kvasir_client::PutOptions;
use kvasir_e2e::lab::{OPERATOR, OPERATOR_NAMESPACE};
use kvasir_e2e::{Trial, audit, run, until, within};
use serde_json::{Value, json};

use crate::access::{client, trusting};
use crate::security::{KUBELET, degraded, example, processes};

/// An authority created by cert-manager, with the name that the example uses.
const AUTHORITY: &str = r"
apiVersion: cert-manager.io/v1
kind: Issuer
metadata: {name: self-signed}
spec: {selfSigned: {}}
---
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: authority}
spec:
  isCA: true
  commonName: authority of the test
  secretName: authority
  privateKey: {algorithm: ECDSA, size: 256}
  issuerRef: {name: self-signed}
---
apiVersion: cert-manager.io/v1
kind: Issuer
metadata: {name: authority}
spec: {ca: {secretName: authority}}
";
/// The Certificate that the operator creates, and its Secret.
const CERTIFICATE: &str = "demo-issued-tls";

#[test]
fn cert_manager_certificates_are_used_and_renewed() {
    run("cert-manager", async |t| {
        if !t.lab.cert_manager().await? {
            eprintln!("cert-manager: this cluster has none, and only the throwaway one can start it; not tested here");
            return Ok(());
        }
        let begin = audit::mark().await?;
        example(t, "cert-manager").await?;
        degraded(t, "CertificatePending", CERTIFICATE).await?;
        ensure!(t.member_pods("demo").await?.is_empty(), "a member was started without its certificate");
        let file = tempfile::NamedTempFile::new()?;
        tokio::fs::write(file.path(), AUTHORITY).await?;
        t.kubectl(&["apply", "-f", &file.path().to_string_lossy()]).await?;
        t.settled("demo", 3).await?;
        t.kubectl(&["wait", "--for=condition=Available", "kvcluster/demo", "--timeout=60s"]).await?;

        // Clients use TLS with each member; members use mutual TLS with each other and with the sidecar.
        let folder = tempfile::tempdir()?;
        let members = t.member_pods("demo").await?;
        let mut clients = Vec::new();
        for member in &members {
            clients.push(client(member, trusting(t, member, CERTIFICATE, &folder).await?)?);
        }
        clients[0].put("k", "before", PutOptions::default()).await?;
        let app = t.app("app", Some("demo"), &t.lab.nodes[0]).await?;
        ensure!(app.kvctl_ok(&["get", "k"]).await?.trim_end() == "before", "the sidecar has another value");
        ensure!(t.speak_to(&members[0])?.get("k").await.is_err(), "a member answers without TLS");
        let first = certificate(t).await?;
        let nodes: Vec<_> = members.iter().map(kube::ResourceExt::name_any).chain(["app".to_owned()]).collect();
        in_force(t, &nodes, ends_at(&first)?).await?;

        // A renewal, requested as `cmctl renew` does it.
        let before = processes(t).await?;
        let renew = json!([{ "op": "add", "path": "/status/conditions/-", "value": {
            "type": "Issuing", "status": "True", "reason": "ManuallyTriggered", "message": "by the test",
            "lastTransitionTime": Timestamp::now().to_string(),
        } }]);
        let patch = ["patch", "certificate", CERTIFICATE, "--subresource=status", "--type=json", "-p"];
        t.kubectl(&[&patch[..], &[&renew.to_string()]].concat()).await?;
        let second = until("cert-manager to renew the certificate", async || {
            let now = certificate(t).await?;
            let status = &now.data["status"];
            // Each is written by a different controller, the expiry last.
            ensure!(status["revision"].as_i64() == Some(2) && ends_at(&now)? > ends_at(&first)?, "{status}");
            Ok(now)
        })
        .await?;
        in_force(t, &nodes, ends_at(&second)?).await?;
        for (member, put) in members.iter().zip(["a", "b", "c"]) {
            let client = client(member, trusting(t, member, CERTIFICATE, &folder).await?)?;
            client.put(put, "after", PutOptions::default()).await?;
            until(&format!("what {} took to come to the sidecar", member.name_any()), async || {
                app.kvctl_ok(&["get", put]).await.map(drop)
            })
            .await?;
        }
        ensure!(before == processes(t).await?, "pods changed: {before:?} {:?}", processes(t).await?);

        // The operator applied all of this only once.
        ensure!(second.metadata.generation == Some(1), "the Certificate was changed: {:?}", second.metadata);
        if let Some(begin) = begin {
            let operator = format!("system:serviceaccount:{OPERATOR_NAMESPACE}:{OPERATOR}");
            let mut written = audit::since(begin).await?;
            written.retain(|of| {
                of.user == operator
                    && of.namespace == t.namespace
                    && ["certificates", "secrets"].contains(&&*of.resource)
            });
            ensure!(written.len() == 1, "{written:?}");
        }
        Ok(())
    });
}

async fn certificate(t: &Trial) -> Result<DynamicObject> {
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("cert-manager.io", "v1", "Certificate"));
    let api: Api<DynamicObject> = Api::namespaced_with(t.lab.client.clone(), &t.namespace, &kind);
    Ok(api.get(CERTIFICATE).await?)
}

/// Expiry of the certificate according to cert-manager, in milliseconds since 1970.
fn ends_at(certificate: &DynamicObject) -> Result<i64> {
    let status = &certificate.data["status"];
    let text = status["notAfter"].as_str().with_context(|| format!("no end: {status}"))?;
    Ok(text.parse::<Timestamp>()?.as_millisecond())
}

/// Waits until these nodes use a certificate with this expiry: members for clients and peers, a sidecar for peers
/// alone.
async fn in_force(t: &Trial, nodes: &[String], end: i64) -> Result<()> {
    for node in nodes {
        let uses: &[&str] = if node == "app" { &["peer"] } else { &["client", "peer"] };
        let wanted: BTreeMap<&str, Value> = uses.iter().map(|of| (*of, json!({ "notAfterMs": end }))).collect();
        within(KUBELET, &format!("{node} to have the certificate in force"), async || {
            let status = t.node_status(node).await?;
            ensure!(status["certificates"] == json!(wanted), "{} {wanted:?}", status["certificates"]);
            Ok(())
        })
        .await?;
    }
    Ok(())
}
