//! Checks what members need to authenticate clients: the Secrets of the spec, and the right to have tokens reviewed.

use k8s_openapi::{
    ByteString,
    api::{
        authorization::v1::{
            LocalSubjectAccessReview, ResourceAttributes, SubjectAccessReviewSpec, SubjectAccessReviewStatus,
        },
        core::v1::Secret,
    },
};
use kube::{Api, Client, api::PostParams};
use kvasir_crds::SecretKey;

use crate::{
    api_server::ApiError,
    certs,
    cluster::{ValidatedCluster, access::secrets},
    names::CLIENT_CA_FILE,
    obstacle::{Failure, Obstacle},
};

/// Why members cannot authenticate clients.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A Secret or its key does not exist.
    #[error("spec.access: there is no Secret {name} with the key {key}: create it")]
    Missing {
        /// Name of the Secret.
        name: String,
        /// Key in it.
        key: String,
    },
    /// The file of authorities holds no certificate.
    #[error("spec.access: {key} in Secret {name} holds no certificate of an authority")]
    NoAuthority {
        /// Name of the Secret.
        name: String,
        /// Key in it.
        key: String,
    },
    /// A request to the API server failed.
    #[error("spec.access: cannot {verb}, check that the operator has the right: {source}")]
    Request {
        /// What the request was for.
        verb: &'static str,
        /// The error.
        source: ApiError,
    },
}

impl Failure for AccessError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "AccessSecretMissing",
            Self::NoAuthority { .. } => "AccessSecretMalformed",
            Self::Request { .. } => "AccessFailed",
        }
    }

    fn is_passing(&self) -> bool {
        matches!(self, Self::Request { .. })
    }
}

/// Checks the Secrets and rights that `spec.access` needs. Returns what a person should fix although members can start without
/// it.
///
/// `role` is the `ClusterRole` that members need to have tokens reviewed.
pub async fn check(client: &Client, cluster: &ValidatedCluster, role: &str) -> Result<Option<Obstacle>, AccessError> {
    let Some(access) = &cluster.access else { return Ok(None) };
    let api: Api<Secret> = Api::namespaced(client.clone(), &cluster.namespace);
    for (SecretKey { name, key }, file) in secrets(access) {
        let failed = |source| AccessError::Request { verb: "read a Secret", source: ApiError::from(source) };
        let found = api.get_opt(name).await.map_err(failed)?;
        let found = found.as_ref().and_then(|secret| secret.data.as_ref()?.get(key));
        let ByteString(text) = found.ok_or_else(|| AccessError::Missing { name: name.clone(), key: key.clone() })?;
        if file == CLIENT_CA_FILE && !std::str::from_utf8(text).is_ok_and(certs::are_certificates) {
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
            "members may not have tokens reviewed, so no ServiceAccount can authenticate: kubectl create clusterrolebinding \
             kvasir-{namespace}-{name} --clusterrole={role} --serviceaccount={namespace}:{name}"
        ),
    }))
}

/// Whether the members' `ServiceAccount` may have tokens reviewed. The operator does not grant that right: a `ClusterRoleBinding`
/// cannot be owned by a `KvCluster`, and would outlive it.
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
                // A cluster-wide right includes this namespace, and the operator may ask about single namespaces only.
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
        verb: "ask for the rights of the members' ServiceAccount",
        source: ApiError::from(source),
    })?;
    Ok(answer.status.is_some_and(|SubjectAccessReviewStatus { allowed, .. }| allowed))
}

#[cfg(test)]
mod tests;
