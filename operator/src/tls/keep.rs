//! Sees that the certificate of a cluster's nodes is there and in order, and has it made where the operator is asked to.

use k8s_openapi::{ByteString, api::core::v1::Secret, jiff::Timestamp};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{NodeTls, Source, names, peer_name};
use crate::{
    api_error::ApiError,
    apply,
    certs::{
        self, CertError, Purpose,
        secret::{self, AUTHORITIES, CERTIFICATE, KEY, SecretError},
    },
    labels,
    metrics::Metrics,
    validate::ValidatedCluster,
};

/// How long a certificate of cert-manager lives, and how long before its end it is renewed: when two thirds are over.
const LIFE: &str = "2160h0m0s";
const RENEW_BEFORE: &str = "720h0m0s";

/// Why nodes cannot have their certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Nobody made the Secret.
    #[error("spec.tls: there is no Secret {0}: make it, with tls.crt and tls.key, and ca.crt for peers")]
    Missing(String),
    /// cert-manager has not made it.
    #[error("spec.tls: cert-manager has not filled Secret {0} yet: see `kubectl describe certificate {0}`")]
    Pending(String),
    /// It holds something else.
    #[error("spec.tls: Secret {secret} cannot be used: {why}")]
    Malformed {
        /// Name of the Secret.
        secret: String,
        /// What is wrong.
        why: String,
    },
    /// Something of that name is there and is not ours to change.
    #[error("spec.tls: {kind} {name} belongs to something else: delete it, or give the KvCluster another name")]
    NameTaken {
        /// Kind of the object.
        kind: &'static str,
        /// Name of the object.
        name: String,
    },
    /// The operator's own certificates could not be kept.
    #[error("spec.tls: {0}")]
    Keep(#[from] SecretError),
    /// The API server said no.
    #[error("spec.tls: cannot {verb} {kind} {name}, check that {hint} and that the operator may: {source}")]
    Request {
        /// What was tried.
        verb: &'static str,
        /// Kind of the object.
        kind: &'static str,
        /// Name of the object.
        name: String,
        /// What may be missing.
        hint: &'static str,
        /// What the API server said.
        source: ApiError,
    },
}

impl TlsError {
    /// One word for conditions and events.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing(_) => "TlsSecretMissing",
            Self::Pending(_) => "CertificatePending",
            Self::Malformed { .. } => "TlsSecretMalformed",
            Self::NameTaken { .. } => "NameTaken",
            Self::Keep(_) | Self::Request { .. } => "TlsFailed",
        }
    }

    /// Whether trying again may help, without anybody mending anything.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Keep(_) | Self::Request { .. })
    }
}

/// Sees to the certificate of a cluster.
pub async fn keep(client: &Client, metrics: &Metrics, cluster: &ValidatedCluster) -> Result<(), TlsError> {
    let Some(tls) = &cluster.tls else { return Ok(()) };
    let api: Api<Secret> = Api::namespaced(client.clone(), &cluster.namespace);
    let now = Timestamp::now().as_second();
    if let Source::Issuer { name, kind, group } = &tls.source {
        let issuer = json!({ "name": name, "kind": kind, "group": group });
        certificate(client, metrics, cluster, tls, &issuer).await?;
    }
    let found = api.get_opt(&tls.secret).await.map_err(|source| TlsError::Request {
        verb: "read",
        kind: "Secret",
        name: tls.secret.clone(),
        hint: "the API server answers",
        source: ApiError::from(source),
    })?;
    match (&tls.source, found) {
        (Source::Operator, found) => {
            if found.is_some_and(|secret| !apply::is_ours(&secret, &cluster.owner)) {
                return Err(TlsError::NameTaken { kind: "Secret", name: tls.secret.clone() });
            }
            let names = names(&cluster.name, &cluster.namespace);
            secret::stored(&api, empty(cluster, tls), Purpose::Nodes, &names, now).await?;
            Ok(())
        }
        (Source::Secret, None) => Err(TlsError::Missing(tls.secret.clone())),
        (Source::Issuer { .. }, None) => Err(TlsError::Pending(tls.secret.clone())),
        (Source::Secret | Source::Issuer { .. }, Some(secret)) => {
            judge(&secret, cluster, tls, now).map_err(|why| TlsError::Malformed { secret: tls.secret.clone(), why })
        }
    }
}

/// The operator's Secret before it is filled.
fn empty(cluster: &ValidatedCluster, tls: &NodeTls) -> Secret {
    let mut empty = secret::empty(&tls.secret);
    empty.metadata.labels = Some(labels::all(&cluster.name));
    empty.metadata.owner_references = Some(vec![cluster.owner.clone()]);
    empty
}

/// Whether nodes can use what is there at `now`, in seconds since 1970; if not, why.
fn judge(secret: &Secret, cluster: &ValidatedCluster, tls: &NodeTls, now: i64) -> Result<(), String> {
    let part = |name: &str| {
        secret.data.as_ref().and_then(|data| data.get(name)).is_some_and(|ByteString(part)| !part.is_empty())
    };
    let wanted = [CERTIFICATE, KEY].into_iter().chain(tls.peers.then_some(AUTHORITIES));
    if let Some(missing) = wanted.into_iter().find(|name| !part(name)) {
        return Err(format!("it has no {missing}"));
    }
    let stored = secret::read(secret).ok_or("it is empty")?;
    certs::certified_key(&stored).map_err(|error| match error {
        CertError::Use(why) => format!("{CERTIFICATE} and {KEY} are no certificate with its key: {why}"),
        CertError::Make(why) => why.to_string(),
    })?;
    let leaf = certs::leaf(&stored.certificate).ok_or_else(|| format!("{CERTIFICATE} is no certificate"))?;
    if now > leaf.validity.end {
        return Err(format!("the certificate in {CERTIFICATE} has ended: put a new one there"));
    }
    if tls.peers {
        if !certs::are_certificates(&stored.authorities) {
            return Err(format!("{AUTHORITIES} holds no certificate of an authority"));
        }
        let name = peer_name(&cluster.name, &cluster.namespace);
        if !leaf.names.contains(&name) {
            return Err(format!("its certificate does not have the name {name}, by which peers know each other"));
        }
    }
    Ok(())
}

/// Has cert-manager make the certificate; nothing is sent if it was asked for already.
async fn certificate(
    client: &Client,
    metrics: &Metrics,
    cluster: &ValidatedCluster,
    tls: &NodeTls,
    issuer: &Value,
) -> Result<(), TlsError> {
    let failed = |verb| {
        let name = tls.secret.clone();
        let hint = "cert-manager is installed";
        move |source| TlsError::Request { verb, kind: "Certificate", name, hint, source: ApiError::from(source) }
    };
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &cluster.namespace, &kind());
    let wanted = apply::stamp(request(cluster, tls, issuer));
    if let Some(live) = api.get_opt(&tls.secret).await.map_err(failed("read"))? {
        if !apply::is_ours(&live, &cluster.owner) {
            return Err(TlsError::NameTaken { kind: "Certificate", name: live.name_any() });
        }
        if serde_json::to_value(&live).is_ok_and(|live| apply::holds(&live, &wanted)) {
            return Ok(());
        }
    }
    metrics.wrote("Certificate");
    let params = PatchParams::apply(labels::OPERATOR).force();
    api.patch(&tls.secret, &params, &Patch::Apply(&wanted)).await.map_err(failed("apply"))?;
    tracing::info!(namespace = cluster.namespace, certificate = tls.secret, "asked cert-manager for a certificate");
    Ok(())
}

fn kind() -> ApiResource {
    ApiResource {
        group: "cert-manager.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "cert-manager.io/v1".to_owned(),
        kind: "Certificate".to_owned(),
        plural: "certificates".to_owned(),
    }
}

/// What cert-manager is asked for.
fn request(cluster: &ValidatedCluster, tls: &NodeTls, issuer: &Value) -> Value {
    json!({
        "apiVersion": "cert-manager.io/v1",
        "kind": "Certificate",
        "metadata": {
            "name": tls.secret,
            "namespace": cluster.namespace,
            "labels": labels::all(&cluster.name),
            "ownerReferences": [cluster.owner],
        },
        "spec": {
            "secretName": tls.secret,
            "dnsNames": names(&cluster.name, &cluster.namespace),
            "usages": ["digital signature", "server auth", "client auth"],
            "duration": LIFE,
            "renewBefore": RENEW_BEFORE,
            "privateKey": { "algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always" },
            "issuerRef": issuer,
        },
    })
}

#[cfg(test)]
#[path = "keep_tests.rs"]
mod tests;
