//! Brings the objects of a cluster to the API server.
//!
//! Nothing is sent if the hash in the object's annotation matches, which covers what a new spec removes, and the live object
//! still has every field that was set, which covers changes by others.
//!
//! Each object is applied independently: a failure is reported and delays no other object. An object that the API server refuses
//! to change is overwritten or, if that is refused too, replaced; the pods of a `StatefulSet` stay. Knows nothing of what the
//! objects are for.

pub mod compare;
mod object;
mod outcome;

use std::fmt::Debug;

use k8s_openapi::{
    NamespaceResourceScope,
    api::apps::v1::StatefulSet,
    apimachinery::pkg::apis::meta::v1::OwnerReference,
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Preconditions},
};
use serde::{Serialize, de::DeserializeOwned};

pub use self::outcome::{ApplyError, ApplyErrors, Outcome};
use self::{
    compare::{holds, is_ours, stamp},
    object::{INVALID, Object},
    outcome::{Done, Replacement},
};
use super::{fetch::Live, notice::Notice};
use crate::{api_server::ApiError, metrics::Metrics, names, objects::ClusterObjects};

/// An object that still exists so long after its deletion is held by a finalizer.
const DELETION_DEADLINE: SignedDuration = SignedDuration::from_secs(30);

/// The result for all objects of a cluster.
#[derive(Debug, Default)]
pub struct Applied {
    /// The result for the `StatefulSet`.
    pub stateful_set: Outcome,
    /// Events for objects that were overwritten or replaced.
    pub notices: Vec<Notice>,
    failures: Vec<ApplyError>,
}

impl Applied {
    /// Why some objects could not be applied; `None` if all were.
    pub fn failure(&mut self) -> Option<ApplyErrors> {
        (!self.failures.is_empty()).then(|| ApplyErrors(std::mem::take(&mut self.failures)))
    }

    /// Adds the result for one object; `None` if it failed.
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

/// What to do with the members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Members {
    /// Apply the `StatefulSet`.
    Apply,
    /// Leave the `StatefulSet` as it is: members that start now would lack a Secret.
    LeaveAlone,
}

/// Applies all objects of a cluster independently of each other, and deletes what the cluster no longer has.
pub async fn apply(
    client: &Client,
    metrics: &Metrics,
    owner: &OwnerReference,
    desired: &ClusterObjects,
    live: &Live,
    members: Members,
) -> Applied {
    // No `..`, so that no object can be forgotten.
    let ClusterObjects {
        service_account,
        role,
        role_binding,
        config_map,
        headless_service,
        client_service,
        stateful_set,
        pod_disruption_budget,
    } = desired;
    let sender = Sender { client, metrics, owner };
    let freely = Replacement::Freely;
    let mut applied = Applied::default();
    applied.note(sender.apply(service_account, live.service_account.as_ref(), freely).await);
    applied.note(sender.apply(role, live.role.as_ref(), freely).await);
    applied.note(sender.apply(role_binding, live.role_binding.as_ref(), freely).await);
    let configured = applied.note(sender.apply(config_map, live.config_map.as_ref(), freely).await);
    applied.note(sender.apply(headless_service, live.headless_service.as_ref(), freely).await);
    applied.note(sender.apply(client_service, live.client_service.as_ref(), freely).await);
    match (pod_disruption_budget, live.pod_disruption_budget.as_ref()) {
        (Some(desired), live) => {
            applied.note(sender.apply(desired, live, freely).await);
        }
        (None, Some(live)) => {
            applied.note(sender.delete(live).await);
        }
        (None, None) => {}
    }
    if members == Members::LeaveAlone {
        return applied;
    }
    let live = live.stateful_set.as_ref();
    // Pods read their configuration when they start. With the new hash and the old ConfigMap they would start with the old
    // configuration, and nothing would restart them later.
    let held_back = live.filter(|_| configured.is_none()).map(|live| with_config_hash_of(stateful_set, live));
    let stateful_set = held_back.as_ref().unwrap_or(stateful_set);
    let done = sender.apply(stateful_set, live, Replacement::of_pods(stateful_set, live)).await;
    applied.stateful_set = applied.note(done).unwrap_or_default();
    applied
}

/// The desired `StatefulSet` with the configuration hash of the live one.
fn with_config_hash_of(desired: &StatefulSet, live: &StatefulSet) -> StatefulSet {
    let hash = live
        .spec
        .as_ref()
        .and_then(|spec| spec.template.metadata.as_ref()?.annotations.as_ref()?.get(names::CONFIG_HASH).cloned());
    let mut desired = desired.clone();
    if let (Some(hash), Some(spec)) = (hash, &mut desired.spec) {
        let annotations = spec.template.metadata.get_or_insert_default().annotations.get_or_insert_default();
        annotations.insert(names::CONFIG_HASH.to_owned(), hash);
    }
    desired
}

/// Applies and deletes objects of one owner.
struct Sender<'a> {
    client: &'a Client,
    metrics: &'a Metrics,
    owner: &'a OwnerReference,
}

impl Sender<'_> {
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
                // A change now would be deleted with the object. The watch reports its end, and the next reconcile creates it.
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

    /// Deletes an object of this cluster; an object of the same name that belongs to something else stays.
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
        // Only the object that was read, not one created since.
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

#[cfg(test)]
#[expect(clippy::large_futures, reason = "a test has the stack to itself")]
mod tests;
