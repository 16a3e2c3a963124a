//! Keeps the webhook trusted: its certificates in a Secret, its authority in the API server's configuration, and the
//! one in use by the server.
//!
//! What is due is decided in [`super::certs`]; this is the part with the API server in it. Several operators may do
//! this at once: whoever loses the race to write takes over what the winner wrote.

use std::{collections::BTreeMap, fmt::Debug, time::Duration};

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
    api::{ObjectMeta, PartialObjectMeta, Patch, PatchParams, PostParams},
};
use kube_runtime::{WatchStreamExt, watcher};
use serde_json::json;
use tokio::time::sleep;

use super::{
    Monitor, Settings,
    certs::{self, CertError, Stored},
    server::CertificateSlot,
};

/// All is looked at again this often, whatever the watches say.
const CHECK_EVERY: Duration = Duration::from_hours(1);
/// After trouble with the API server.
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// A change is often followed by another; both are looked at together.
const SETTLE: Duration = Duration::from_millis(200);
/// Races for the Secret that may be lost before it is called trouble.
const MOST_RACES: usize = 10;
/// Who changed the configuration, in its list of managed fields.
const FIELD_MANAGER: &str = "kvasir-operator-webhook";

const AUTHORITIES: &str = "ca.crt";
const AUTHORITY_KEY: &str = "ca.key";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// Why the certificate is not as it should be; each is tried again.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The Secret could not be read or written.
    #[error("cannot keep the webhook's certificate in secret {name}, check that it may be read and written: {source}")]
    Secret {
        /// The Secret.
        name: String,
        /// What the API server said.
        source: Box<kube::Error>,
    },
    /// The Secret changed under every attempt to write it.
    #[error("secret {0} is changed all the time, see who else writes it")]
    Race(String),
    /// The configuration could not be read or patched.
    #[error("cannot tell the API server whom to trust in {name}, check that it exists and may be patched: {source}")]
    Configuration {
        /// The `MutatingWebhookConfiguration`.
        name: String,
        /// What the API server said.
        source: Box<kube::Error>,
    },
    /// The certificate itself.
    #[error(transparent)]
    Certificate(#[from] CertError),
}

/// Keeps everything right for ever: at the start, hourly, and at once when somebody changes one of the two objects.
pub async fn keep(settings: &Settings, client: Client, slot: &CertificateSlot, monitor: &Monitor) {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &settings.namespace);
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let mut changes = stream::select(
        changes_of::<Secret>(Api::namespaced(client.clone(), &settings.namespace), &settings.secret).boxed(),
        changes_of::<MutatingWebhookConfiguration>(Api::all(client.clone()), &settings.configuration).boxed(),
    );
    let mut told = None;
    loop {
        let wait = match check(settings, &secrets, &configurations, slot, monitor).await {
            Ok(()) => {
                told = None;
                CHECK_EVERY
            }
            Err(error) => {
                let error = error.to_string();
                if told.as_ref() != Some(&error) {
                    tracing::warn!(error, "the webhook's certificate needs attention, trying again");
                    told = Some(error);
                }
                TRY_AGAIN
            }
        };
        tokio::select! {
            () = sleep(wait) => {}
            Some(()) = changes.next() => sleep(SETTLE).await,
        }
        // What has changed up to here is seen by the check that follows.
        while let Some(Some(())) = futures::FutureExt::now_or_never(changes.next()) {}
    }
}

/// One item for each change of the object of this name.
fn changes_of<K>(api: Api<PartialObjectMeta<K>>, name: &str) -> impl stream::Stream<Item = ()> + Send + use<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
{
    // By its name: the operator may watch this object, and no other of its kind.
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    watcher(api, config).default_backoff().filter_map(|event| async {
        match event {
            Ok(watcher::Event::Apply(_) | watcher::Event::Delete(_) | watcher::Event::InitDone) => Some(()),
            Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => None,
            Err(error) => {
                tracing::debug!(%error, "a watch for the webhook broke and starts again");
                None
            }
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
    let stored = stored(secrets, &settings.secret, &settings.names(), now).await?;
    // First whom to trust, then what is shown. The server serves even if the API server cannot be told.
    let published = publish(configurations, &settings.configuration, &stored.authorities).await;
    slot.set(certs::certified_key(&stored)?);
    monitor.start_serving(certs::inspect(&stored).serving.map_or(0, |serving| serving.validity.end));
    published
}

/// What the Secret holds, after everything that was due at `now` has been made anew.
pub async fn stored(api: &Api<Secret>, name: &str, names: &[String], now: i64) -> Result<Stored, KeepError> {
    let failed = |source: kube::Error| KeepError::Secret { name: name.to_owned(), source: Box::new(source) };
    for _ in 0..MOST_RACES {
        let secret = api.get_opt(name).await.map_err(failed)?;
        let current = secret.as_ref().and_then(read);
        let Some((next, plan)) = certs::renew(current.as_ref(), names, now)? else {
            return Ok(current.expect("only what is stored can be left as it is"));
        };
        let written = match secret {
            // The version that was read goes along, so a Secret that has changed since is not overwritten.
            Some(mut secret) => {
                secret.data.get_or_insert_default().extend(data(&next));
                api.replace(name, &PostParams::default(), &secret).await
            }
            None => api.create(&PostParams::default(), &secret_of(name, &next)).await,
        };
        match written {
            Ok(_) => {
                let certs::Plan { authority, serving, prune } = plan;
                tracing::info!(secret = name, authority, serving, prune, "the webhook's certificates were made anew");
                return Ok(next);
            }
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Err(KeepError::Race(name.to_owned()))
}

fn secret_of(name: &str, stored: &Stored) -> Secret {
    Secret {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        data: Some(data(stored)),
        type_: Some("Opaque".into()),
        ..Secret::default()
    }
}

fn data(stored: &Stored) -> BTreeMap<String, ByteString> {
    let Stored { authorities, authority_key, certificate, key } = stored;
    [(AUTHORITIES, authorities), (AUTHORITY_KEY, authority_key), (CERTIFICATE, certificate), (KEY, key)]
        .map(|(name, text)| (name.to_owned(), ByteString(text.clone().into_bytes())))
        .into()
}

/// Nothing of an empty Secret, which is how the chart makes it; a missing or unreadable part reads as empty.
fn read(secret: &Secret) -> Option<Stored> {
    let data = secret.data.as_ref().filter(|data| !data.is_empty())?;
    let part =
        |name: &str| data.get(name).and_then(|bytes| String::from_utf8(bytes.0.clone()).ok()).unwrap_or_default();
    Some(Stored {
        authorities: part(AUTHORITIES),
        authority_key: part(AUTHORITY_KEY),
        certificate: part(CERTIFICATE),
        key: part(KEY),
    })
}

/// Writes `authorities` into the configuration, if it holds anything else.
pub async fn publish(api: &Api<MutatingWebhookConfiguration>, name: &str, authorities: &str) -> Result<(), KeepError> {
    let failed = |source: kube::Error| KeepError::Configuration { name: name.to_owned(), source: Box::new(source) };
    let configuration = api.get(name).await.map_err(failed)?;
    let Some(patch) = bundle_patch(configuration.webhooks.as_deref().unwrap_or_default(), authorities) else {
        return Ok(());
    };
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    api.patch(name, &params, &Patch::Json::<()>(patch)).await.map_err(failed)?;
    tracing::info!(configuration = name, "told the API server whom to trust for the webhook");
    Ok(())
}

/// What to change, if anything. Each webhook is named in the patch, so that it fails should their order have changed.
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
    let patch = serde_json::from_value(json!(operations)).expect("operations as the standard writes them");
    (!operations.is_empty()).then_some(patch)
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
