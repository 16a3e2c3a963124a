//! Certificates in a Secret.
//!
//! What is due is decided in [`super`]. Several operators may do this at once: whoever loses the race to write takes over
//! what the winner wrote.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, ResourceExt as _,
    api::{ObjectMeta, PostParams},
};

use super::{self as certs, CertError, Purpose, Stored};
use crate::api_error::ApiError;

/// Key of the Secret with the authorities to trust.
pub const AUTHORITIES: &str = "ca.crt";
/// Key of the Secret with the newest authority's key.
pub const AUTHORITY_KEY: &str = "ca.key";
/// Key of the Secret with the certificate that is shown.
pub const CERTIFICATE: &str = "tls.crt";
/// Key of the Secret with its key.
pub const KEY: &str = "tls.key";

/// Races for the Secret that may be lost before it is called trouble.
const MOST_RACES: usize = 10;

/// Why the Secret is not as it should be; each is tried again.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It could not be read or written.
    #[error("cannot keep certificates in secret {name}, check that it may be read and written: {source}")]
    Request {
        /// The Secret.
        name: String,
        /// What the API server said.
        source: ApiError,
    },
    /// It changed under every attempt to write it.
    #[error("secret {0} is changed all the time, see who else writes it")]
    Race(String),
    /// The certificate itself.
    #[error(transparent)]
    Certificate(#[from] CertError),
}

/// What the Secret holds, after everything that was due at `now` has been made anew.
///
/// `empty` is what is created if there is none, once it is filled.
pub async fn stored(
    api: &Api<Secret>,
    empty: Secret,
    purpose: Purpose,
    names: &[String],
    now: i64,
) -> Result<Stored, SecretError> {
    let name = &*empty.name_any();
    let failed = |source: kube::Error| SecretError::Request { name: name.to_owned(), source: ApiError::from(source) };
    for _ in 0..MOST_RACES {
        let secret = api.get_opt(name).await.map_err(failed)?;
        let current = secret.as_ref().and_then(read);
        let Some((next, plan)) = certs::renew(current.as_ref(), purpose, names, now)? else {
            return Ok(current.expect("only what is stored can be left as it is"));
        };
        let written = if let Some(mut secret) = secret {
            // The version that was read goes along, so a Secret that has changed since is not overwritten.
            secret.data.get_or_insert_default().extend(data(&next));
            api.replace(name, &PostParams::default(), &secret).await
        } else {
            let secret = Secret { data: Some(data(&next)), ..empty.clone() };
            api.create(&PostParams::default(), &secret).await
        };
        match written {
            Ok(_) => {
                let certs::Plan { authority, serving, prune } = plan;
                tracing::info!(secret = name, authority, serving, prune, "certificates were made anew");
                return Ok(next);
            }
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Err(SecretError::Race(name.to_owned()))
}

/// A Secret with nothing in it.
pub fn empty(name: &str) -> Secret {
    Secret {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        type_: Some("Opaque".into()),
        ..Secret::default()
    }
}

pub(crate) fn data(stored: &Stored) -> BTreeMap<String, ByteString> {
    let Stored { authorities, authority_key, certificate, key } = stored;
    [(AUTHORITIES, authorities), (AUTHORITY_KEY, authority_key), (CERTIFICATE, certificate), (KEY, key)]
        .map(|(name, text)| (name.to_owned(), ByteString(text.clone().into_bytes())))
        .into()
}

/// Nothing of an empty Secret, which is how the chart makes it; a missing or unreadable part reads as empty.
pub fn read(secret: &Secret) -> Option<Stored> {
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
