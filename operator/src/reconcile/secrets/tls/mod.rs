//! Checks the certificate of a cluster's nodes, and issues or requests it if the spec says so.

use k8s_openapi::{ByteString, api::core::v1::Secret, jiff::Timestamp};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::{
    api_server::ApiError,
    certs::{
        self, CertError, Purpose,
        secret::{self, SecretError},
    },
    cluster::{
        ValidatedCluster,
        tls::{NodeTls, Source, dns_names},
    },
    metrics::Metrics,
    names::{self, AUTHORITIES, CERTIFICATE, KEY},
    obstacle::Failure,
    reconcile::apply::compare::{holds, is_ours, stamp},
};

/// Lifetime of a certificate from cert-manager, and how long before its end it is renewed: after two thirds.
const LIFE: &str = "2160h0m0s";
const RENEW_BEFORE: &str = "720h0m0s";

/// Why nodes cannot use their certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The Secret does not exist.
    #[error("spec.tls: there is no Secret {0}: create it, with tls.crt and tls.key, and ca.crt for peers")]
    Missing(String),
    /// cert-manager has not created the Secret yet.
    #[error("spec.tls: cert-manager has not filled Secret {0} yet: see `kubectl describe certificate {0}`")]
    Pending(String),
    /// The Secret cannot be used.
    #[error("spec.tls: Secret {secret} cannot be used: {why}")]
    Malformed {
        /// Name of the Secret.
        secret: String,
        /// What is wrong.
        why: String,
    },
    /// An object of that name belongs to something else.
    #[error("spec.tls: {kind} {name} belongs to something else: delete it, or give the KvCluster another name")]
    NameTaken {
        /// Kind of the object.
        kind: &'static str,
        /// Name of the object.
        name: String,
    },
    /// The operator's own certificates could not be stored.
    #[error("spec.tls: {0}")]
    Keep(#[from] SecretError),
    /// A request to the API server failed.
    #[error("spec.tls: cannot {verb} {kind} {name}, check that {hint} and that the operator has the right: {source}")]
    Request {
        /// What the request was for.
        verb: &'static str,
        /// Kind of the object.
        kind: &'static str,
        /// Name of the object.
        name: String,
        /// What to check.
        hint: &'static str,
        /// The error.
        source: ApiError,
    },
}

impl Failure for TlsError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Missing(_) => "TlsSecretMissing",
            Self::Pending(_) => "CertificatePending",
            Self::Malformed { .. } => "TlsSecretMalformed",
            Self::NameTaken { .. } => "NameTaken",
            Self::Keep(_) | Self::Request { .. } => "TlsFailed",
        }
    }

    fn is_passing(&self) -> bool {
        matches!(self, Self::Keep(_) | Self::Request { .. })
    }
}

/// Checks, issues or requests the certificate of a cluster.
pub async fn ensure(client: &Client, metrics: &Metrics, cluster: &ValidatedCluster) -> Result<(), TlsError> {
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
            if found.is_some_and(|secret| !is_ours(&secret, &cluster.owner)) {
                return Err(TlsError::NameTaken { kind: "Secret", name: tls.secret.clone() });
            }
            let names = dns_names(&cluster.name, &cluster.namespace);
            secret::stored(&api, empty(cluster, tls), Purpose::Nodes, &names, now).await?;
            Ok(())
        }
        (Source::Secret, None) => Err(TlsError::Missing(tls.secret.clone())),
        (Source::Issuer { .. }, None) => Err(TlsError::Pending(tls.secret.clone())),
        (Source::Secret | Source::Issuer { .. }, Some(secret)) => {
            check(&secret, cluster, tls, now).map_err(|why| TlsError::Malformed { secret: tls.secret.clone(), why })
        }
    }
}

/// The operator's Secret without data.
fn empty(cluster: &ValidatedCluster, tls: &NodeTls) -> Secret {
    let mut empty = secret::empty(&tls.secret);
    empty.metadata.labels = Some(names::labels(&cluster.name));
    empty.metadata.owner_references = Some(vec![cluster.owner.clone()]);
    empty
}

/// Whether nodes can use the Secret at `now`, in seconds since 1970; if not, why.
fn check(secret: &Secret, cluster: &ValidatedCluster, tls: &NodeTls, now: i64) -> Result<(), String> {
    let part = |name: &str| {
        secret.data.as_ref().and_then(|data| data.get(name)).is_some_and(|ByteString(part)| !part.is_empty())
    };
    if let Some(missing) = tls.files().find(|name| !part(name)) {
        return Err(format!("it has no {missing}"));
    }
    let stored = secret::read(secret).ok_or("it is empty")?;
    certs::certified_key(&stored).map_err(|error| match error {
        CertError::Use(why) => format!("{CERTIFICATE} and {KEY} are not a certificate with its key: {why}"),
        CertError::Make(why) => why.to_string(),
    })?;
    let leaf = certs::leaf(&stored.certificate).ok_or_else(|| format!("{CERTIFICATE} is not a certificate"))?;
    if now > leaf.validity.end {
        return Err(format!("the certificate in {CERTIFICATE} has expired: replace it"));
    }
    if tls.peers {
        if !certs::are_certificates(&stored.authorities) {
            return Err(format!("{AUTHORITIES} holds no certificate of an authority"));
        }
        let name = names::peer_domain(&cluster.name, &cluster.namespace);
        if !leaf.names.contains(&name) {
            return Err(format!("its certificate does not have the name {name}, by which peers know each other"));
        }
    }
    Ok(())
}

/// Requests the certificate from cert-manager; nothing is sent if the request exists already.
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
    let wanted = stamp(request(cluster, tls, issuer));
    if let Some(live) = api.get_opt(&tls.secret).await.map_err(failed("read"))? {
        if !is_ours(&live, &cluster.owner) {
            return Err(TlsError::NameTaken { kind: "Certificate", name: live.name_any() });
        }
        if serde_json::to_value(&live).is_ok_and(|live| holds(&live, &wanted)) {
            return Ok(());
        }
    }
    metrics.wrote("Certificate");
    let params = PatchParams::apply(names::OPERATOR).force();
    api.patch(&tls.secret, &params, &Patch::Apply(&wanted)).await.map_err(failed("apply"))?;
    tracing::info!(
        namespace = cluster.namespace,
        certificate = tls.secret,
        "requested a certificate from cert-manager"
    );
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

/// The request to cert-manager.
fn request(cluster: &ValidatedCluster, tls: &NodeTls, issuer: &Value) -> Value {
    json!({
        "apiVersion": "cert-manager.io/v1",
        "kind": "Certificate",
        "metadata": {
            "name": tls.secret,
            "namespace": cluster.namespace,
            "labels": names::labels(&cluster.name),
            "ownerReferences": [cluster.owner],
        },
        "spec": {
            "secretName": tls.secret,
            "dnsNames": dns_names(&cluster.name, &cluster.namespace),
            "usages": ["digital signature", "server auth", "client auth"],
            "duration": LIFE,
            "renewBefore": RENEW_BEFORE,
            "privateKey": { "algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always" },
            "issuerRef": issuer,
        },
    })
}

#[cfg(test)]
mod tests;
