//! Who clients of members are and what they may do: that part of the members' configuration, its Secrets, and whether all that it
//! needs is there.

use k8s_openapi::{
    ByteString,
    api::{
        authorization::v1::{
            LocalSubjectAccessReview, ResourceAttributes, SubjectAccessReviewSpec, SubjectAccessReviewStatus,
        },
        core::v1::{KeyToPath, ProjectedVolumeSource, Secret, SecretProjection, Volume, VolumeMount, VolumeProjection},
    },
};
use kube::{Api, Client, api::PostParams};
use kvasir_crds::{Access, AccessRule, KvClusterSpec, SecretKey, ServiceAccounts};
use kvasir_formats::{
    access::{Verb, is_subject},
    defaults::REVIEW_TTL,
    duration,
};
use serde_json::{Map, Value, json};

use crate::{api_error::ApiError, certs, secret_folder, status::Obstacle, validate::ValidatedCluster};

/// Name of the volume, in members' pods.
pub const VOLUME: &str = "kvasir-access";
/// Where the authorities of clients are in a member's container.
pub const CLIENT_CA_FILE: &str = "/etc/kvasir-access/client-ca.crt";

const FOLDER: &str = "/etc/kvasir-access";
const TOKENS: &str = "tokens.yaml";
const CLIENT_CA: &str = "client-ca.crt";

/// What is wrong with that part of a spec, and where.
pub fn check(spec: &KvClusterSpec) -> Result<(), (&'static str, &'static str)> {
    let Some(Access { tokens_secret, client_ca_secret, service_accounts, rules }) = &spec.access else { return Ok(()) };
    if tokens_secret.is_none() && client_ca_secret.is_none() && service_accounts.is_none() {
        return Err(("spec.access", "give at least one of tokensSecret, clientCaSecret and serviceAccounts"));
    }
    let serves_tls = spec.tls.as_ref().is_some_and(|tls| tls.client.unwrap_or(true));
    if client_ca_secret.is_some() && !serves_tls {
        return Err(("spec.access.clientCaSecret", "set tls too: certificates are shown over TLS"));
    }
    if let Some(ServiceAccounts { audiences, review_ttl }) = service_accounts {
        if audiences.iter().flatten().any(String::is_empty) || audiences.as_ref().is_some_and(|all| all.len() > 16) {
            return Err(("spec.access.serviceAccounts.audiences", "give up to 16, none of them empty"));
        }
        let ttl = review_ttl.as_deref().map(duration::parse);
        if ttl.is_some_and(|ttl| !ttl.is_ok_and(|ttl| REVIEW_TTL.contains(&ttl))) {
            return Err(("spec.access.serviceAccounts.reviewTtl", "set at least 1s and at most 10m"));
        }
    }
    for AccessRule { subjects, prefix: _, verbs } in rules.iter().flatten() {
        if subjects.is_empty() || !subjects.iter().all(|subject| is_subject(subject)) {
            let forms = "give subjects as token:NAME, cert:NAME, serviceaccount:NAMESPACE/NAME, group:NAME or *";
            return Err(("spec.access.rules", forms));
        }
        if verbs.is_empty() || verbs.iter().any(|verb| verb.parse::<Verb>().is_err()) {
            return Err(("spec.access.rules", "give verbs of read, write, delete, watch and admin"));
        }
    }
    Ok(())
}

/// The settings under `auth`.
pub(crate) fn settings(access: &Access) -> Value {
    let Access { tokens_secret, client_ca_secret, service_accounts, rules: _ } = access;
    let mut settings = Map::new();
    let mut add = |name: &str, value: Value| _ = settings.insert(name.to_owned(), value);
    if tokens_secret.is_some() {
        add("tokensFile", json!(format!("{FOLDER}/{TOKENS}")));
    }
    if client_ca_secret.is_some() {
        add("clientCertificates", json!(true));
    }
    if let Some(ServiceAccounts { audiences, review_ttl }) = service_accounts {
        add("tokenReview", json!(true));
        if let Some(audiences) = audiences {
            add("tokenReviewAudiences", json!(audiences));
        }
        if let Some(ttl) = review_ttl {
            add("tokenReviewTtl", json!(ttl));
        }
    }
    Value::Object(settings)
}

/// The Secrets that the settings name, each with the name of its file.
fn secrets(access: &Access) -> impl Iterator<Item = (&SecretKey, &'static str)> {
    let Access { tokens_secret, client_ca_secret, .. } = access;
    let files = [(tokens_secret, TOKENS), (client_ca_secret, CLIENT_CA)];
    files.into_iter().filter_map(|(secret, file)| Some((secret.as_ref()?, file)))
}

/// Those Secrets as one volume; nothing if there are none.
pub fn volume(access: &Access) -> Option<Volume> {
    let sources: Vec<_> = secrets(access)
        .map(|(SecretKey { name, key }, file)| {
            let item = KeyToPath { key: key.clone(), path: file.to_owned(), mode: None };
            let secret = SecretProjection { name: name.clone(), items: Some(vec![item]), optional: None };
            VolumeProjection { secret: Some(secret), ..VolumeProjection::default() }
        })
        .collect();
    (!sources.is_empty()).then(|| Volume {
        name: VOLUME.to_owned(),
        projected: Some(ProjectedVolumeSource { sources: Some(sources), ..ProjectedVolumeSource::default() }),
        ..Volume::default()
    })
}

/// Where that volume is, if there is one.
pub fn mount(access: &Access) -> Option<VolumeMount> {
    secrets(access).next().map(|_| secret_folder::mount(VOLUME, FOLDER))
}

/// Why clients cannot be told apart.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A Secret is not there, or has no such key.
    #[error("spec.access: Secret {name} with the key {key} is not there: make it")]
    Missing {
        /// Name of the Secret.
        name: String,
        /// Key in it.
        key: String,
    },
    /// The authorities of clients are none.
    #[error("spec.access: {key} in Secret {name} holds no certificate of an authority")]
    NoAuthority {
        /// Name of the Secret.
        name: String,
        /// Key in it.
        key: String,
    },
    /// The API server said no.
    #[error("spec.access: cannot {verb}, check that the operator may: {source}")]
    Request {
        /// What was tried.
        verb: &'static str,
        /// What the API server said.
        source: ApiError,
    },
}

impl AccessError {
    /// One word for conditions and events.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "AccessSecretMissing",
            Self::NoAuthority { .. } => "AccessSecretMalformed",
            Self::Request { .. } => "AccessFailed",
        }
    }

    /// Whether trying again may help, without anybody mending anything.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Request { .. })
    }
}

/// Looks whether all is there that a cluster's access needs; gives what somebody should mend though nothing waits for it.
///
/// `role` is the `ClusterRole` that members need to have tokens reviewed.
pub async fn look(client: &Client, cluster: &ValidatedCluster, role: &str) -> Result<Option<Obstacle>, AccessError> {
    let Some(access) = &cluster.access else { return Ok(None) };
    let api: Api<Secret> = Api::namespaced(client.clone(), &cluster.namespace);
    for (SecretKey { name, key }, file) in secrets(access) {
        let failed = |source| AccessError::Request { verb: "read a Secret", source: ApiError::from(source) };
        let found = api.get_opt(name).await.map_err(failed)?;
        let found = found.as_ref().and_then(|secret| secret.data.as_ref()?.get(key));
        let ByteString(text) = found.ok_or_else(|| AccessError::Missing { name: name.clone(), key: key.clone() })?;
        if file == CLIENT_CA && !std::str::from_utf8(text).is_ok_and(certs::are_certificates) {
            return Err(AccessError::NoAuthority { name: name.clone(), key: key.clone() });
        }
    }
    if access.service_accounts.is_none() || may_review(client, cluster).await? {
        return Ok(None);
    }
    let (namespace, name) = (&cluster.namespace, &cluster.name);
    Ok(Some(Obstacle {
        reason: "TokenReviewForbidden",
        message: format!(
            "members may not ask about tokens, so that no ServiceAccount comes in: kubectl create clusterrolebinding \
             kvasir-{namespace}-{name} --clusterrole={role} --serviceaccount={namespace}:{name}"
        ),
    }))
}

/// Whether the members' account may have tokens reviewed. The operator does not give it that right: what holds in all namespaces
/// can belong to no `KvCluster`, and would outlive it.
async fn may_review(client: &Client, cluster: &ValidatedCluster) -> Result<bool, AccessError> {
    let ValidatedCluster { namespace, name, .. } = cluster;
    let group = |rest: &str| format!("system:{rest}");
    let mut review = LocalSubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(format!("system:serviceaccount:{namespace}:{name}")),
            groups: Some(vec![
                group("serviceaccounts"),
                group(&format!("serviceaccounts:{namespace}")),
                group("authenticated"),
            ]),
            resource_attributes: Some(ResourceAttributes {
                // A right that holds everywhere holds here too, and the operator may ask about its namespaces alone.
                namespace: Some(namespace.clone()),
                verb: Some("create".to_owned()),
                group: Some("authentication.k8s.io".to_owned()),
                resource: Some("tokenreviews".to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..LocalSubjectAccessReview::default()
    };
    review.metadata.namespace = Some(namespace.clone());
    let api: Api<LocalSubjectAccessReview> = Api::namespaced(client.clone(), namespace);
    let answer = api.create(&PostParams::default(), &review).await.map_err(|source| AccessError::Request {
        verb: "ask what the members' account may do",
        source: ApiError::from(source),
    })?;
    Ok(answer.status.is_some_and(|SubjectAccessReviewStatus { allowed, .. }| allowed))
}

#[cfg(test)]
#[path = "access_tests.rs"]
mod tests;
