//! Sends one object to the API server, by force if a plain apply is refused.

use std::fmt::Debug;

use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy},
    core::Status,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::outcome::{ApplyError, Done, Outcome, Replacement};
use crate::{api_server::ApiError, metrics::Metrics, names, reconcile::notice::Notice};

/// HTTP status of an object, or of a change, that the API server refuses as invalid.
pub(super) const INVALID: u16 = 422;
/// Field manager of the update that removes what server-side apply cannot.
const OVERWRITER: &str = "kvasir-operator-overwrite";

/// One object to be sent to the API server.
pub(super) struct Object<'a, K> {
    pub(super) api: Api<K>,
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) stamped: Value,
    pub(super) metrics: &'a Metrics,
}

impl<K> Object<'_, K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned,
{
    pub(super) fn failed(&self, verb: &'static str, source: kube::Error) -> ApplyError {
        ApplyError::Request { verb, kind: self.kind.clone(), name: self.name.clone(), source: ApiError::from(source) }
    }

    /// Applies the object.
    pub(super) async fn send(&self) -> Result<(), kube::Error> {
        self.metrics.wrote(&self.kind);
        let params = PatchParams::apply(names::OPERATOR).force();
        self.api.patch(&self.name, &params, &Patch::Apply(&self.stamped)).await.map(drop)
    }

    /// Applies the object although the API server refused a plain apply.
    pub(super) async fn force(
        &self,
        live: &K,
        refusal: Box<Status>,
        replacement: Replacement,
    ) -> Result<Done, ApplyError> {
        let why = refusal.message.clone();
        let done = |verb: &str| {
            let note = format!("{verb} {} {}, which could not be changed: {why}", self.kind, self.name);
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
    /// Server-side apply merges the ports of a Service (and of a container) by their numbers. If another client changed the
    /// number of a port, apply adds ours next to it, and two ports of one name are invalid. An update of the whole list removes
    /// the other client's port and keeps the rest of the object, such as a Service's address.
    async fn overwrite(&self, live: &K) -> Result<(), kube::Error> {
        self.metrics.wrote(&self.kind);
        let mut whole = self.stamped.clone();
        whole["metadata"]["uid"] = json!(live.uid());
        whole["metadata"]["resourceVersion"] = json!(live.resource_version());
        let params = PatchParams { field_manager: Some(OVERWRITER.to_owned()), ..PatchParams::default() };
        self.api.patch(&self.name, &params, &Patch::Merge(&whole)).await?;
        self.send().await?;
        // The apply owns the same fields by now. The update must no longer own them, or server-side apply could never
        // remove them again.
        let owned = self.api.get_metadata(&self.name).await?;
        if let Some(patch) = disown(owned.metadata.managed_fields.as_deref().unwrap_or_default()) {
            self.metrics.wrote(&self.kind);
            self.api.patch_metadata(&self.name, &PatchParams::default(), &Patch::Json::<()>(patch)).await?;
        }
        Ok(())
    }

    /// Whether the API server would create the object if it did not exist: if the object itself is refused, by a policy for
    /// example, the live one must stay.
    async fn would_be_created(&self) -> Result<bool, ApplyError> {
        let object: K = serde_json::from_value(self.stamped.clone())
            .map_err(|source| ApplyError::Encode { kind: self.kind.clone(), source })?;
        match self.api.create(&PostParams { dry_run: true, ..PostParams::default() }, &object).await {
            // Whether the object exists is the last of all checks.
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
        // Only the object that was read, not one that was changed or created since.
        let preconditions = Some(Preconditions { uid: live.uid(), resource_version: live.resource_version() });
        let params = DeleteParams { propagation_policy, preconditions, ..DeleteParams::default() };
        self.metrics.wrote(&self.kind);
        self.api.delete(&self.name, &params).await.map_err(|error| self.failed("delete", error))?;
        // While a finalizer runs (orphaning the pods is one) the object still exists. The watch reports its end, and the next
        // reconcile creates it.
        if self.api.get_metadata_opt(&self.name).await.map_err(|error| self.failed("read", error))?.is_some() {
            return Ok(());
        }
        self.send().await.map_err(|error| self.failed("create", error))
    }
}

/// The patch that removes [`OVERWRITER`] from the managers of an object; `None` if it owns no fields.
fn disown(managers: &[ManagedFieldsEntry]) -> Option<json_patch::Patch> {
    let index = managers.iter().position(|entry| entry.manager.as_deref() == Some(OVERWRITER))?;
    let patch = json!([
        {"op": "test", "path": format!("/metadata/managedFields/{index}/manager"), "value": OVERWRITER},
        {"op": "remove", "path": format!("/metadata/managedFields/{index}")},
    ]);
    Some(serde_json::from_value(patch).expect("the operations follow RFC 6902"))
}
