//! Puts built objects on the API server, and only when something is to do.
//!
//! Two questions decide. Was this very object applied last, by the hash in its annotation? That covers what a new spec
//! takes away. Does the live object still hold every field of it? That covers what others changed. With two times yes no
//! request is sent. Knows nothing of what the objects are for.

use std::fmt::Debug;

use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use crate::{fetch::Live, labels, metrics::Metrics, quantity, resources::ClusterResources};

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
        source: Box<kube::Error>,
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
            Self::Request { .. } | Self::Encode { .. } => "ApplyFailed",
        }
    }
}

/// What applying one object did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was as it should be; nothing was sent.
    Unchanged,
    /// It was not there.
    Created,
    /// It was there and different.
    Updated,
}

/// Applies everything that a cluster is made of, and deletes what it no longer has. Says what became of the
/// `StatefulSet`.
pub async fn apply(
    client: &Client,
    metrics: &Metrics,
    owner: &OwnerReference,
    desired: &ClusterResources,
    live: &Live,
) -> Result<Outcome, ApplyError> {
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
    at.apply(service_account, live.service_account.as_ref()).await?;
    at.apply(role, live.role.as_ref()).await?;
    at.apply(role_binding, live.role_binding.as_ref()).await?;
    at.apply(config_map, live.config_map.as_ref()).await?;
    at.apply(headless_service, live.headless_service.as_ref()).await?;
    at.apply(client_service, live.client_service.as_ref()).await?;
    match (pod_disruption_budget, live.pod_disruption_budget.as_ref()) {
        (Some(desired), live) => {
            at.apply(desired, live).await?;
        }
        (None, Some(live)) => at.delete(live).await?,
        (None, None) => {}
    }
    at.apply(stateful_set, live.stateful_set.as_ref()).await
}

struct At<'a> {
    client: &'a Client,
    metrics: &'a Metrics,
    owner: &'a OwnerReference,
}

impl At<'_> {
    async fn apply<K>(&self, desired: &K, live: Option<&K>) -> Result<Outcome, ApplyError>
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
            if holds(&serde_json::to_value(live).map_err(encode)?, &stamped) {
                return Ok(Outcome::Unchanged);
            }
        }
        self.metrics.wrote(&kind());
        let api: Api<K> = Api::namespaced(self.client.clone(), &desired.namespace().unwrap_or_default());
        let params = PatchParams::apply(labels::OPERATOR).force();
        api.patch(&name, &params, &Patch::Apply(&stamped)).await.map_err(|source| ApplyError::Request {
            verb: "apply",
            kind: kind(),
            name: name.clone(),
            source: Box::new(source),
        })?;
        tracing::info!(kind = kind(), name, new = live.is_none(), "applied");
        Ok(if live.is_none() { Outcome::Created } else { Outcome::Updated })
    }

    /// Deletes an object of ours; one of the same name that is not ours is left alone.
    async fn delete<K>(&self, live: &K) -> Result<(), ApplyError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        if !is_ours(live, self.owner) || live.meta().deletion_timestamp.is_some() {
            return Ok(());
        }
        let kind = K::kind(&()).into_owned();
        let name = live.name_any();
        self.metrics.wrote(&kind);
        let api: Api<K> = Api::namespaced(self.client.clone(), &live.namespace().unwrap_or_default());
        // Only the object that was looked at, not one made since.
        let params = DeleteParams::default().preconditions(Preconditions { uid: live.uid(), resource_version: None });
        match api.delete(&name, &params).await {
            Ok(_) => {
                tracing::info!(kind, name, "deleted");
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(source) => Err(ApplyError::Request { verb: "delete", kind, name, source: Box::new(source) }),
        }
    }
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
    let milli = |value: &Value| value.as_str().and_then(quantity::parse_milli);
    live == desired || milli(live).is_some_and(|live| milli(desired) == Some(live))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;
    use crate::{resources, validate::tests::valid};

    /// The `StatefulSet` as an API server stores it: with defaults filled in, and quantities in its own form.
    fn stored() -> Value {
        let mut live = built();
        live["metadata"]["resourceVersion"] = json!("7");
        live["spec"]["revisionHistoryLimit"] = json!(10);
        live["spec"]["template"]["spec"]["dnsPolicy"] = json!("ClusterFirst");
        let container = &mut live["spec"]["template"]["spec"]["containers"][0];
        container["terminationMessagePath"] = json!("/dev/termination-log");
        container["env"][0]["valueFrom"]["fieldRef"]["apiVersion"] = json!("v1");
        container["resources"]["requests"]["cpu"] = json!("500m");
        live
    }

    fn built() -> Value {
        let cluster = valid("{resources: {requests: {cpu: 0.5, memory: 64Mi}}}");
        stamp(serde_json::to_value(resources::build(&cluster).stateful_set).unwrap())
    }

    #[test]
    fn what_the_api_server_fills_in_is_no_difference() {
        assert!(holds(&stored(), &built()));
    }

    #[test]
    fn a_change_by_someone_else_is_seen() {
        let container = "/spec/template/spec/containers/0";
        for (path, value) in [
            ("/spec/replicas".to_owned(), json!(2)),
            (format!("{container}/image"), json!("evil")),
            (format!("{container}/resources/requests/cpu"), json!("501m")),
            (format!("{container}/command"), json!(["/kvasir-node", "--config", "/etc/kvasir/node.yaml", "-x"])),
            (format!("{container}/ports"), json!([])),
            (format!("{container}/securityContext/capabilities"), json!({})),
            ("/metadata/ownerReferences".to_owned(), json!([])),
            ("/metadata/labels".to_owned(), json!({})),
        ] {
            let mut live = stored();
            *live.pointer_mut(&path).unwrap() = value;
            assert!(!holds(&live, &built()), "{path}");
        }
    }

    #[test]
    fn what_a_new_spec_takes_away_is_seen_by_the_hash() {
        let with = valid("{resources: {requests: {cpu: 1}, limits: {cpu: 2}}}");
        let without = valid("{resources: {requests: {cpu: 1}}}");
        let object = |cluster| stamp(serde_json::to_value(resources::build(cluster).stateful_set).unwrap());
        assert!(!holds(&object(&with), &object(&without)));
    }

    #[test]
    fn a_right_that_someone_added_is_seen_and_a_container_is_theirs() {
        let resources = resources::build(&valid("{}"));
        let role = serde_json::to_value(&resources.role).unwrap();
        let mut more = role.clone();
        more["rules"].as_array_mut().unwrap().push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        assert!(holds(&role, &role) && !holds(&more, &role));
        let binding = serde_json::to_value(&resources.role_binding).unwrap();
        let mut more = binding.clone();
        more["subjects"].as_array_mut().unwrap().push(json!({"kind": "User", "name": "eve"}));
        assert!(holds(&binding, &binding) && !holds(&more, &binding));
        let mut more = stored();
        more["spec"]["template"]["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "mesh"}));
        assert!(holds(&more, &built()));
    }

    #[test]
    fn what_belongs_to_others_is_not_ours() {
        let cluster = valid("{}");
        let ours = resources::build(&cluster).config_map;
        assert!(is_ours(&ours, &cluster.owner));
        let mut orphan = ours.clone();
        orphan.metadata.owner_references = None;
        assert!(is_ours(&orphan, &cluster.owner), "left behind by kubectl delete --cascade=orphan");
        assert!(!is_ours(&ConfigMap::default(), &cluster.owner), "made by hand");
        let mut theirs = ours.clone();
        theirs.metadata.owner_references.as_mut().unwrap()[0].uid = "u-0".to_owned();
        assert!(!is_ours(&theirs, &cluster.owner), "of an earlier KvCluster of that name");
    }
}
