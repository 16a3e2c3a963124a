//! Keeps the webhook trusted: its certificates in a Secret, its authority in the API server's configuration, and the
//! certificate that the server uses.
//!
//! [`crate::certs`] decides what is due. Several operators may do this at once.

use std::{fmt::Debug, time::Duration};

use futures::{StreamExt, stream};
use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::{MutatingWebhook, MutatingWebhookConfiguration},
        core::v1::Secret,
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource,
    api::{PartialObjectMeta, Patch, PatchParams},
};
use kube_runtime::watcher;
use serde_json::json;
use tokio::time::sleep;

use super::{monitor::Monitor, server::CertificateSlot, settings::Settings};
use crate::{
    api_server::{
        ApiError,
        watches::{self, Watch, Watches},
    },
    certs::{
        self, CertError, Purpose,
        secret::{self, SecretError},
    },
};

/// Interval of a check without any change.
const CHECK_EVERY: Duration = Duration::from_hours(1);
/// Wait after an error of the API server.
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// Changes often come in groups, which one check handles.
const SETTLE: Duration = Duration::from_millis(200);
/// Field manager of the change of the configuration.
const FIELD_MANAGER: &str = "kvasir-operator-webhook";

/// Why the webhook's certificates could not be brought up to date; each error is retried.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The Secret could not be brought up to date.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The configuration could not be read or patched.
    #[error(
        "cannot set the webhook's authority in {name}, check that it exists and that the operator may patch it: {source}"
    )]
    Configuration {
        /// The `MutatingWebhookConfiguration`.
        name: String,
        /// The error.
        source: ApiError,
    },
    /// A certificate could not be issued or used.
    #[error(transparent)]
    Certificate(#[from] CertError),
}

/// Keeps everything up to date without end: at the start, hourly, and at once after a change of one of the two objects.
pub async fn keep(settings: &Settings, client: Client, slot: &CertificateSlot, monitor: &Monitor, watches: &Watches) {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &settings.namespace);
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let mut changes = stream::select(
        changes_of::<Secret>(
            Api::namespaced(client.clone(), &settings.namespace),
            &settings.secret,
            watches.begin("Secret"),
        )
        .boxed(),
        changes_of::<MutatingWebhookConfiguration>(
            Api::all(client.clone()),
            &settings.configuration,
            watches.begin("MutatingWebhookConfiguration"),
        )
        .boxed(),
    );
    let mut logged = None;
    loop {
        let wait = match check(settings, &secrets, &configurations, slot, monitor).await {
            Ok(()) => {
                logged = None;
                CHECK_EVERY
            }
            Err(error) => {
                let error = error.to_string();
                if logged.as_ref() != Some(&error) {
                    tracing::warn!(error, "the webhook's certificates could not be brought up to date, retrying");
                    logged = Some(error);
                }
                TRY_AGAIN
            }
        };
        tokio::select! {
            () = sleep(wait) => {}
            Some(()) = changes.next() => sleep(SETTLE).await,
        }
        // The next check sees all changes up to here.
        while let Some(Some(())) = futures::FutureExt::now_or_never(changes.next()) {}
    }
}

/// One item for each change of the object of this name.
fn changes_of<K>(
    api: Api<PartialObjectMeta<K>>,
    name: &str,
    watch: Watch,
) -> impl stream::Stream<Item = ()> + Send + use<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
{
    // By name: the operator may watch this object and no other of its kind.
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    watches::events(api, config, watch).filter_map(|event| async move {
        match event {
            Ok(watcher::Event::Apply(_) | watcher::Event::Delete(_) | watcher::Event::InitDone) => Some(()),
            Ok(watcher::Event::Init | watcher::Event::InitApply(_)) | Err(_) => None,
        }
    })
}

async fn check(
    settings: &Settings,
    secrets: &Api<Secret>,
    configurations: &Api<MutatingWebhookConfiguration>,
    slot: &CertificateSlot,
    monitor: &Monitor,
) -> Result<(), KeepError> {
    let now = Timestamp::now().as_second();
    let empty = secret::empty(&settings.secret);
    let stored = secret::stored(secrets, empty, Purpose::Webhook, &settings.names(), now).await?;
    // The authority comes before the certificate. The server starts even if the authority could not be published.
    let published = publish(configurations, &settings.configuration, &stored.authorities).await;
    slot.set(certs::certified_key(&stored)?);
    monitor.start_serving(certs::inspect(&stored).serving.map_or(0, |serving| serving.validity.end));
    published
}

/// Writes `authorities` into the configuration, unless it has them already.
pub async fn publish(api: &Api<MutatingWebhookConfiguration>, name: &str, authorities: &str) -> Result<(), KeepError> {
    let failed =
        |source: kube::Error| KeepError::Configuration { name: name.to_owned(), source: ApiError::from(source) };
    let configuration = api.get(name).await.map_err(failed)?;
    let Some(patch) = bundle_patch(configuration.webhooks.as_deref().unwrap_or_default(), authorities) else {
        return Ok(());
    };
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    api.patch(name, &params, &Patch::Json::<()>(patch)).await.map_err(failed)?;
    tracing::info!(configuration = name, "published the authorities of the webhook");
    Ok(())
}

/// The change that is needed, if any. The patch tests each webhook's name, so that it fails if their order has changed.
fn bundle_patch(webhooks: &[MutatingWebhook], authorities: &str) -> Option<json_patch::Patch> {
    let bundle = ByteString(authorities.as_bytes().to_vec());
    let operations: Vec<_> = webhooks
        .iter()
        .enumerate()
        .filter(|(_, webhook)| webhook.client_config.ca_bundle.as_ref() != Some(&bundle))
        .flat_map(|(index, webhook)| {
            [
                json!({"op": "test", "path": format!("/webhooks/{index}/name"), "value": webhook.name}),
                json!({"op": "add", "path": format!("/webhooks/{index}/clientConfig/caBundle"), "value": bundle}),
            ]
        })
        .collect();
    let patch = serde_json::from_value(json!(operations)).expect("the operations follow RFC 6902");
    (!operations.is_empty()).then_some(patch)
}

#[cfg(test)]
mod tests;
