//! Puts built objects on the API server, and only when something is to do.
//!
//! Two questions decide. Was this very object applied last, by the hash in its annotation? That covers what a new spec
//! takes away. Does the live object still hold every field of it? That covers what others changed. With two times yes no
//! request is sent.
//!
//! Each object is applied for itself: a failure is reported and keeps none of the others waiting. An object that the API
//! server refuses to change is overwritten or, if that is refused too, replaced; the pods of a `StatefulSet` stay. Knows
//! nothing of what the objects are for.

use std::fmt::Debug;

use k8s_openapi::{
    NamespaceResourceScope,
    api::apps::v1::StatefulSet,
    apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, OwnerReference},
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy},
    core::Status,
};
use kvasir_formats::quantity;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use crate::{api_error::ApiError, fetch::Live, labels, metrics::Metrics, notice::Notice, resources::ClusterResources};

/// HTTP status of an object that the API server finds invalid, and of a change that it finds invalid.
const INVALID: u16 = 422;
/// Field manager of the update that removes what server-side apply cannot.
const OVERWRITER: &str = "kvasir-operator-overwrite";
/// An object that is still there so long after its deletion is held back by a finalizer.
const DELETION_DEADLINE: SignedDuration = SignedDuration::from_secs(30);

/// Lists that are replaced as a whole when applied, though their elements have names.
const WHOLE_LISTS: [&str; 2] = ["rules", "subjects"];

/// Why an object could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Something of that name is there and is not ours to change.
    #[error("{kind} {name} exists and belongs to something else: delete it, or give the KvCluster another name")]
    NameTaken {
        /// Kind of the object.
        kind: String,
        /// Name of the object.
        name: String,
    },
    /// The API server said no.
    #[error("cannot {verb} {kind} {name}: {source}")]
    Request {
        /// What was tried.
        verb: &'static str,
        /// Kind of the object.
        kind: String,
        /// Name of the object.
        name: String,
        /// What the API server said.
        source: ApiError,
    },
    /// The object was deleted and does not go.
    #[error("{kind} {name} was deleted and does not go: remove its finalizers ({finalizers}), and it is created again")]
    HeldBack {
        /// Kind of the object.
        kind: String,
        /// Name of the object.
        name: String,
        /// What holds it back.
        finalizers: String,
    },
    /// An object that cannot be written as JSON.
    #[error("cannot write the {kind} as JSON: {source}")]
    Encode {
        /// Kind of the object.
        kind: String,
        /// What is wrong.
        source: serde_json::Error,
    },
}

impl ApplyError {
    /// One word for conditions and events.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NameTaken { .. } => "NameTaken",
            Self::Request { .. } | Self::HeldBack { .. } | Self::Encode { .. } => "ApplyFailed",
        }
    }
}

/// Why objects of a cluster could not be put in place: one error for each, at least one.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct ApplyErrors(Vec<ApplyError>);

impl ApplyErrors {
    /// One word for conditions and events: the reason of the first.
    pub fn reason(&self) -> &'static str {
        self.0.first().map_or("ApplyFailed", ApplyError::reason)
    }
}

/// What applying one object did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// It was as it should be; nothing was sent.
    #[default]
    Unchanged,
    /// It was not there.
    Created,
    /// It was there and different.
    Updated,
}

/// What became of the objects of a cluster.
#[derive(Debug, Default)]
pub struct Applied {
    /// What became of the `StatefulSet`.
    pub stateful_set: Outcome,
    /// Events for objects that were overwritten or replaced.
    pub notices: Vec<Notice>,
    failures: Vec<ApplyError>,
}

impl Applied {
    /// Why some objects are not in place; nothing if all are.
    pub fn failure(&mut self) -> Option<ApplyErrors> {
        (!self.failures.is_empty()).then(|| ApplyErrors(std::mem::take(&mut self.failures)))
    }

    /// Notes what became of one object; says whether it is in place.
    fn note(&mut self, done: Result<Done, ApplyError>) -> Option<Outcome> {
        match done {
            Ok(Done { outcome, notice }) => {
                self.notices.extend(notice);
                Some(outcome)
            }
            Err(error) => {
                self.failures.push(error);
                None
            }
        }
    }
}

/// What to do about the members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Members {
    /// Apply the `StatefulSet`.
    Apply,
    /// Leave it as it is: members that started now would lack something.
    LeaveAlone,
}

/// Applies everything that a cluster is made of, each object for itself, and deletes what the cluster no longer has.
pub async fn apply(
    client: &Client,
    metrics: &Metrics,
    owner: &OwnerReference,
    desired: &ClusterResources,
    live: &Live,
    members: Members,
) -> Applied {
    // No `..` here: an object that is added to the cluster cannot be forgotten.
    let ClusterResources {
        service_account,
        role,
        role_binding,
        config_map,
        headless_service,
        client_service,
        stateful_set,
        pod_disruption_budget,
    } = desired;
    let at = At { client, metrics, owner };
    let freely = Replacement::Freely;
    let mut applied = Applied::default();
    applied.note(at.apply(service_account, live.service_account.as_ref(), freely).await);
    applied.note(at.apply(role, live.role.as_ref(), freely).await);
    applied.note(at.apply(role_binding, live.role_binding.as_ref(), freely).await);
    let configured = applied.note(at.apply(config_map, live.config_map.as_ref(), freely).await);
    applied.note(at.apply(headless_service, live.headless_service.as_ref(), freely).await);
    applied.note(at.apply(client_service, live.client_service.as_ref(), freely).await);
    match (pod_disruption_budget, live.pod_disruption_budget.as_ref()) {
        (Some(desired), live) => {
            applied.note(at.apply(desired, live, freely).await);
        }
        (None, Some(live)) => {
            applied.note(at.delete(live).await);
        }
        (None, None) => {}
    }
    if members == Members::LeaveAlone {
        return applied;
    }
    let live = live.stateful_set.as_ref();
    // Pods read their configuration as they start. With the new hash and the old ConfigMap they would start with the old
    // one, and nothing would restart them later.
    let held_back = live.filter(|_| configured.is_none()).map(|live| with_config_hash_of(stateful_set, live));
    let stateful_set = held_back.as_ref().unwrap_or(stateful_set);
    let done = at.apply(stateful_set, live, Replacement::of_pods(stateful_set, live)).await;
    applied.stateful_set = applied.note(done).unwrap_or_default();
    applied
}

/// The desired `StatefulSet`, with the hash of the configuration that the live one has.
fn with_config_hash_of(desired: &StatefulSet, live: &StatefulSet) -> StatefulSet {
    let hash = live
        .spec
        .as_ref()
        .and_then(|spec| spec.template.metadata.as_ref()?.annotations.as_ref()?.get(labels::CONFIG_HASH).cloned());
    let mut desired = desired.clone();
    if let (Some(hash), Some(spec)) = (hash, &mut desired.spec) {
        let annotations = spec.template.metadata.get_or_insert_default().annotations.get_or_insert_default();
        annotations.insert(labels::CONFIG_HASH.to_owned(), hash);
    }
    desired
}

/// Whether an object may be deleted and created again when it cannot be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replacement {
    /// It holds no data.
    Freely,
    /// Its pods hold the data: they stay without an owner, and the new object adopts them by their labels.
    KeepingPods,
    /// The new object would not adopt the pods of the old one.
    Never,
}

impl Replacement {
    fn of_pods(desired: &StatefulSet, live: Option<&StatefulSet>) -> Self {
        let selector = |set: &StatefulSet| set.spec.as_ref().map(|spec| spec.selector.clone());
        if live.is_none_or(|live| selector(live) == selector(desired)) { Self::KeepingPods } else { Self::Never }
    }
}

/// What became of one object.
struct Done {
    outcome: Outcome,
    notice: Option<Notice>,
}

impl From<Outcome> for Done {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, notice: None }
    }
}

struct At<'a> {
    client: &'a Client,
    metrics: &'a Metrics,
    owner: &'a OwnerReference,
}

impl At<'_> {
    async fn apply<K>(&self, desired: &K, live: Option<&K>, replacement: Replacement) -> Result<Done, ApplyError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned,
    {
        let kind = || K::kind(&()).into_owned();
        let encode = |source| ApplyError::Encode { kind: kind(), source };
        let name = desired.name_any();
        let stamped = stamp(serde_json::to_value(desired).map_err(encode)?);
        if let Some(live) = live {
            if !is_ours(live, self.owner) {
                return Err(ApplyError::NameTaken { kind: kind(), name });
            }
            if let Some(since) = live.meta().deletion_timestamp.as_ref() {
                // What is applied now goes with the object. Its end is seen, and then it is created.
                let finalizers = live.finalizers().join(", ");
                return if Timestamp::now().duration_since(since.0) > DELETION_DEADLINE {
                    Err(ApplyError::HeldBack { kind: kind(), name, finalizers })
                } else {
                    Ok(Outcome::Unchanged.into())
                };
            }
            if holds(&serde_json::to_value(live).map_err(encode)?, &stamped) {
                return Ok(Outcome::Unchanged.into());
            }
        }
        let object = Object { api: self.api(desired), kind: kind(), name, stamped, metrics: self.metrics };
        match (object.send().await, live) {
            (Ok(()), _) => {
                tracing::info!(kind = object.kind, name = object.name, new = live.is_none(), "applied");
                Ok(if live.is_none() { Outcome::Created } else { Outcome::Updated }.into())
            }
            (Err(kube::Error::Api(refusal)), Some(live)) if refusal.code == INVALID => {
                object.force(live, refusal, replacement).await
            }
            (Err(error), _) => Err(object.failed("apply", error)),
        }
    }

    fn api<K>(&self, object: &K) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &object.namespace().unwrap_or_default())
    }

    /// Deletes an object of ours; one of the same name that is not ours is left alone.
    async fn delete<K>(&self, live: &K) -> Result<Done, ApplyError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        if !is_ours(live, self.owner) || live.meta().deletion_timestamp.is_some() {
            return Ok(Outcome::Unchanged.into());
        }
        let kind = K::kind(&()).into_owned();
        let name = live.name_any();
        self.metrics.wrote(&kind);
        // Only the object that was looked at, not one made since.
        let params = DeleteParams::default().preconditions(Preconditions { uid: live.uid(), resource_version: None });
        match self.api(live).delete(&name, &params).await {
            Ok(_) => {
                tracing::info!(kind, name, "deleted");
                Ok(Outcome::Updated.into())
            }
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Outcome::Unchanged.into()),
            Err(source) => Err(ApplyError::Request { verb: "delete", kind, name, source: ApiError::from(source) }),
        }
    }
}

/// One object on its way to the API server.
struct Object<'a, K> {
    api: Api<K>,
    kind: String,
    name: String,
    stamped: Value,
    metrics: &'a Metrics,
}

impl<K> Object<'_, K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned,
{
    fn failed(&self, verb: &'static str, source: kube::Error) -> ApplyError {
        ApplyError::Request { verb, kind: self.kind.clone(), name: self.name.clone(), source: ApiError::from(source) }
    }

    /// Applies the object.
    async fn send(&self) -> Result<(), kube::Error> {
        self.metrics.wrote(&self.kind);
        let params = PatchParams::apply(labels::OPERATOR).force();
        self.api.patch(&self.name, &params, &Patch::Apply(&self.stamped)).await.map(drop)
    }

    /// Puts the object in place though the API server refuses to apply it.
    async fn force(&self, live: &K, refusal: Box<Status>, replacement: Replacement) -> Result<Done, ApplyError> {
        let said = refusal.message.clone();
        let done = |verb: &str| {
            let note = format!("{verb} {} {}, which could not be changed: {said}", self.kind, self.name);
            tracing::warn!(kind = self.kind, name = self.name, "{note}");
            let notice = Notice { warning: true, reason: "Replaced".to_owned(), note };
            Ok(Done { outcome: Outcome::Updated, notice: Some(notice) })
        };
        match self.overwrite(live).await {
            Ok(()) => return done("overwrote"),
            Err(kube::Error::Api(status)) if status.code == INVALID => {}
            Err(error) => return Err(self.failed("overwrite", error)),
        }
        if replacement == Replacement::Never || !self.would_be_created().await? {
            return Err(self.failed("apply", kube::Error::Api(refusal)));
        }
        self.replace(live, replacement).await?;
        done("replaced")
    }

    /// Replaces whole lists, and then applies.
    ///
    /// Server-side apply merges the ports of a Service (and of a container) by their numbers: it adds ours beside one with
    /// another number that someone else wrote, and two ports of one name are invalid. An update of the list removes what
    /// someone else wrote and keeps the rest of the object, such as a Service's address.
    async fn overwrite(&self, live: &K) -> Result<(), kube::Error> {
        self.metrics.wrote(&self.kind);
        let mut whole = self.stamped.clone();
        whole["metadata"]["uid"] = json!(live.uid());
        whole["metadata"]["resourceVersion"] = json!(live.resource_version());
        let params = PatchParams { field_manager: Some(OVERWRITER.to_owned()), ..PatchParams::default() };
        self.api.patch(&self.name, &params, &Patch::Merge(&whole)).await?;
        self.send().await?;
        // What the update set is applied as well by now. It must not belong to the update any longer, or server-side
        // apply would never take it away again.
        let owned = self.api.get_metadata(&self.name).await?;
        if let Some(patch) = disown(owned.metadata.managed_fields.as_deref().unwrap_or_default()) {
            self.metrics.wrote(&self.kind);
            self.api.patch_metadata(&self.name, &PatchParams::default(), &Patch::Json::<()>(patch)).await?;
        }
        Ok(())
    }

    /// Whether the API server would create the object if it was not there: an object that is refused by itself, say by a
    /// policy, must not cost the one that is there.
    async fn would_be_created(&self) -> Result<bool, ApplyError> {
        let object: K = serde_json::from_value(self.stamped.clone())
            .map_err(|source| ApplyError::Encode { kind: self.kind.clone(), source })?;
        match self.api.create(&PostParams { dry_run: true, ..PostParams::default() }, &object).await {
            // The last of all checks is whether it is there already.
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(true),
            Ok(_) => Ok(true),
            Err(kube::Error::Api(_)) => Ok(false),
            Err(error) => Err(self.failed("create", error)),
        }
    }

    /// Deletes the object and creates it again.
    async fn replace(&self, live: &K, replacement: Replacement) -> Result<(), ApplyError> {
        let propagation_policy = Some(match replacement {
            Replacement::Freely => PropagationPolicy::Background,
            Replacement::KeepingPods | Replacement::Never => PropagationPolicy::Orphan,
        });
        // Only the object as it was looked at, not one that was changed or created since.
        let preconditions = Some(Preconditions { uid: live.uid(), resource_version: live.resource_version() });
        let params = DeleteParams { propagation_policy, preconditions, ..DeleteParams::default() };
        self.metrics.wrote(&self.kind);
        self.api.delete(&self.name, &params).await.map_err(|error| self.failed("delete", error))?;
        // While a finalizer runs (letting go of the pods is one) the object is still there; its end is seen, and then it is
        // created.
        if self.api.get_metadata_opt(&self.name).await.map_err(|error| self.failed("read", error))?.is_some() {
            return Ok(());
        }
        self.send().await.map_err(|error| self.failed("create", error))
    }
}

/// Takes the fields of an object from [`OVERWRITER`], if it has any.
fn disown(managers: &[ManagedFieldsEntry]) -> Option<json_patch::Patch> {
    let index = managers.iter().position(|entry| entry.manager.as_deref() == Some(OVERWRITER))?;
    let patch = json!([
        {"op": "test", "path": format!("/metadata/managedFields/{index}/manager"), "value": OVERWRITER},
        {"op": "remove", "path": format!("/metadata/managedFields/{index}")},
    ]);
    Some(serde_json::from_value(patch).expect("operations as the standard writes them"))
}

/// Whether an object belongs to this cluster: by its owner, or, when its owner was taken from it, by its labels.
pub(crate) fn is_ours<K: Resource>(live: &K, owner: &OwnerReference) -> bool {
    let metadata = live.meta();
    let controller = metadata.owner_references.iter().flatten().find(|reference| reference.controller == Some(true));
    if let Some(reference) = controller {
        return reference.uid == owner.uid;
    }
    let label = |key| metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    label(labels::MANAGED_BY) == Some(labels::OPERATOR) && label(labels::MEMBER_OF) == Some(owner.name.as_str())
}

/// Adds to an object the hash of itself.
pub(crate) fn stamp(mut object: Value) -> Value {
    let hash = format!("{:016x}", xxh3_64(object.to_string().as_bytes()));
    object["metadata"]["annotations"][labels::APPLIED] = Value::String(hash);
    object
}

/// Whether the live object holds every field of the desired one with the same value.
pub(crate) fn holds(live: &Value, desired: &Value) -> bool {
    holds_at("", live, desired)
}

fn holds_at(key: &str, live: &Value, desired: &Value) -> bool {
    match (live, desired) {
        (Value::Object(live), Value::Object(desired)) => desired.iter().all(|(field, desired)| match live.get(field) {
            Some(live) if matches!(key, "limits" | "requests") => same_quantity(live, desired),
            Some(live) => holds_at(field, live, desired),
            None => is_empty(desired),
        }),
        (Value::Array(live), Value::Array(desired)) => {
            let named = !desired.is_empty() && desired.iter().all(|element| element.get("name").is_some());
            if named && !WHOLE_LISTS.contains(&key) {
                // A list by name, to which others may add.
                desired.iter().all(|desired| live.iter().any(|live| holds_at("", live, desired)))
            } else {
                live.len() == desired.len()
                    && live.iter().zip(desired).all(|(live, desired)| holds_at("", live, desired))
            }
        }
        (live, desired) => live == desired,
    }
}

/// The API server does not store what is empty.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(array) => array.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn same_quantity(live: &Value, desired: &Value) -> bool {
    let milli = |value: &Value| value.as_str().and_then(quantity::milli);
    live == desired || milli(live).is_some_and(|live| milli(desired) == Some(live))
}

#[cfg(test)]
#[expect(clippy::large_futures, reason = "a test has the stack to itself")]
#[path = "apply_tests.rs"]
mod tests;
