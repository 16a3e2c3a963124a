//! Admission over HTTP: from an `AdmissionReview` with a pod to one with the patch for it.
//!
//! [`super::sidecar`] changes the pod. Nothing is written, so dry runs need no special case. The `KvCluster` is read for each
//! pod, so a cluster that was created a moment ago is found.
//!
//! There are two kinds of failure. A pod that cannot or should not have a sidecar is admitted with a warning, which `kubectl`
//! shows to the pod's creator; an invalid `KvCluster` is such a case. If the `KvCluster` cannot be read, the answer is an
//! error, and the API server applies the webhook's `failurePolicy`.

use std::time::Duration;

use axum::{
    Json, Router,
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use kube::{
    Api, Client,
    api::DynamicObject,
    core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation},
};
use kvasir_crds::KvCluster;
use serde_json::Value;
use tokio::time::timeout;

use super::{
    monitor::{Answer, Monitor},
    sidecar,
};
use crate::{
    api_server::ApiError,
    cluster::validate,
    names::{CLUSTER_LABEL, INJECT_ANNOTATION},
};

/// Path of the webhook in its configuration.
pub const PATH: &str = "/mutate-pods";
/// The largest review. The API server accepts objects of up to 3 MiB.
const LARGEST_REVIEW: usize = 3 << 20;
/// Time limit for receiving a review.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(5);
/// Time limit for reading the `KvCluster`: less than the webhook's own, so that the answer says why.
const READ_LIMIT: Duration = Duration::from_secs(3);

#[derive(Clone)]
struct Webhook {
    client: Client,
    node_image: String,
    monitor: Monitor,
}

/// Why a review gets no answer; the API server then applies its failure policy.
#[derive(Debug, thiserror::Error)]
enum AdmitError {
    #[error("send an AdmissionReview of at most {LARGEST_REVIEW} bytes, and within {ARRIVAL_LIMIT:?}: {0}")]
    Body(String),
    #[error("send an AdmissionReview of admission.k8s.io/v1 with a pod in it: {0}")]
    Malformed(String),
    #[error("cannot read KvCluster {cluster}: {source}")]
    Read { cluster: String, source: ApiError },
    #[error("reading KvCluster {0} took too long")]
    Slow(String),
    #[error("cannot write the answer: {0}")]
    Answer(String),
}

impl IntoResponse for AdmitError {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Body(_) | Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::Read { .. } | Self::Slow(_) | Self::Answer(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, self.to_string()).into_response()
    }
}

/// The webhook as a service; `node_image` is the image of sidecars whose `KvCluster` names none.
pub fn router(client: Client, node_image: String, monitor: Monitor) -> Router {
    Router::new().route(PATH, post(mutate)).with_state(Webhook { client, node_image, monitor })
}

async fn mutate(State(webhook): State<Webhook>, request: Request) -> Response {
    let admitted = async {
        let body = receive(request.into_body()).await?;
        webhook.admit(&body).await
    };
    match admitted.await {
        Ok((review, answer)) => {
            webhook.monitor.count(answer);
            Json(review).into_response()
        }
        Err(error) => {
            webhook.monitor.count(Answer::Failed);
            tracing::warn!(%error, "the webhook could not answer");
            error.into_response()
        }
    }
}

async fn receive(body: Body) -> Result<Bytes, AdmitError> {
    let body = timeout(ARRIVAL_LIMIT, to_bytes(body, LARGEST_REVIEW)).await;
    body.map_err(|elapsed| AdmitError::Body(elapsed.to_string()))?.map_err(|error| AdmitError::Body(error.to_string()))
}

impl Webhook {
    async fn admit(&self, body: &[u8]) -> Result<(AdmissionReview<DynamicObject>, Answer), AdmitError> {
        let malformed = |error: &dyn std::fmt::Display| AdmitError::Malformed(error.to_string());
        let review: AdmissionReview<DynamicObject> = serde_json::from_slice(body).map_err(|error| malformed(&error))?;
        let request: AdmissionRequest<DynamicObject> = review.try_into().map_err(|error| malformed(&error))?;
        let response = AdmissionResponse::from(&request);
        let is_pod = request.resource.group.is_empty() && request.resource.resource == "pods";
        if !is_pod || request.operation != Operation::Create || request.sub_resource.is_some() {
            return Ok((response.into_review(), Answer::Unchanged));
        }
        let pod = request.object.as_ref().ok_or_else(|| malformed(&"it has no object"))?;
        let pod = serde_json::to_value(pod).map_err(|error| malformed(&error))?;
        let Some(cluster) = sidecar::wanted(&pod) else {
            return Ok((response.into_review(), Answer::Unchanged));
        };
        // A pod that was created from a template may have no namespace yet; the request always has one.
        let namespace = request.namespace.as_deref().ok_or_else(|| malformed(&"it has no namespace"))?;
        let (patched, warnings) = self.patched(&pod, namespace, cluster).await?;

        let patch = patched.map(|patched| json_patch::diff(&pod, &patched)).filter(|patch| !patch.is_empty());
        let answer = match (&patch, warnings.is_empty()) {
            (Some(_), _) => Answer::Injected,
            (None, true) => Answer::Unchanged,
            (None, false) => Answer::Warned,
        };
        if answer == Answer::Warned {
            let pod = pod["metadata"]["name"].as_str().or(pod["metadata"]["generateName"].as_str());
            tracing::warn!(namespace, pod, warning = warnings[0], "a pod is admitted without a sidecar");
        }
        let mut response = match patch {
            Some(patch) => response.with_patch(patch).map_err(|error| AdmitError::Answer(error.to_string()))?,
            None => response,
        };
        response.warnings = (!warnings.is_empty()).then_some(warnings);
        Ok((response.into_review(), answer))
    }

    /// The changed pod, if it can have a sidecar, and the warnings for its creator.
    async fn patched(
        &self,
        pod: &Value,
        namespace: &str,
        name: &str,
    ) -> Result<(Option<Value>, Vec<String>), AdmitError> {
        let without = |why: String| Ok((None, vec![why]));
        // Labels are validated only after admission, and this one becomes a part of a URL.
        if !is_name(name) {
            return without(format!("no kvasir sidecar: label {CLUSTER_LABEL} must name a KvCluster"));
        }
        let Some(cluster) = self.read(namespace, name).await? else {
            return without(format!(
                "no kvasir sidecar: there is no KvCluster {name} in namespace {namespace}: create it, then this pod again"
            ));
        };
        if cluster.metadata.deletion_timestamp.is_some() {
            return without(format!(
                "no kvasir sidecar: KvCluster {name} is being deleted: create it again, then this pod, or annotate the pod \
                 {INJECT_ANNOTATION}: \"false\""
            ));
        }
        let cluster = match validate(&cluster, &self.node_image) {
            Ok(cluster) => cluster,
            Err(invalid) => return without(format!("no kvasir sidecar: KvCluster {name}: {invalid}")),
        };
        match sidecar::inject(pod, &cluster) {
            Ok(patched) => Ok((Some(patched), sidecar::port_warnings(pod))),
            Err(refusal) => without(format!("no kvasir sidecar: {refusal}")),
        }
    }

    async fn read(&self, namespace: &str, name: &str) -> Result<Option<KvCluster>, AdmitError> {
        let cluster = || format!("{namespace}/{name}");
        let api: Api<KvCluster> = Api::namespaced(self.client.clone(), namespace);
        let read = timeout(READ_LIMIT, api.get_opt(name)).await.map_err(|_| AdmitError::Slow(cluster()))?;
        read.map_err(|source| AdmitError::Read { cluster: cluster(), source: ApiError::from(source) })
    }
}

/// Whether a `KvCluster` could have this name.
fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty() && name.len() <= kvasir_crds::MAX_NAME && name.bytes().all(fits)
}

#[cfg(test)]
mod tests;
