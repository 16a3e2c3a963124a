//! Certificates in a Secret.
//!
//! [`super`] decides what is due. Several operators may do this at once: one that loses the race to write uses what the winner
//! wrote.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, ResourceExt as _,
    api::{ObjectMeta, PostParams},
};

use super::{self as certs, CertError, Purpose, Stored};
use crate::{
    api_server::ApiError,
    names::{AUTHORITIES, AUTHORITY_KEY, CERTIFICATE, KEY},
};

/// Lost races to write the Secret that are tolerated.
const MOST_RACES: usize = 10;

/// Why the Secret could not be brought up to date; each error is retried.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The Secret could not be read or written.
    #[error("cannot store certificates in Secret {name}, check that the operator may read and write it: {source}")]
    Request {
        /// Name of the Secret.
        name: String,
        /// The error.
        source: ApiError,
    },
    /// The Secret changed at every attempt to write it.
    #[error("Secret {0} changes all the time, find out what else writes it")]
    Race(String),
    /// A certificate could not be issued or used.
    #[error(transparent)]
    Certificate(#[from] CertError),
}

/// The content of the Secret after everything that was due at `now` has been renewed.
///
/// If the Secret does not exist, `empty` is filled and created.
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
            return Ok(current.expect("only stored certificates need no renewal"));
        };
        let written = if let Some(mut secret) = secret {
            // With the version that was read, so that a Secret that has changed since is not overwritten.
            secret.data.get_or_insert_default().extend(data(&next));
            api.replace(name, &PostParams::default(), &secret).await
        } else {
            let secret = Secret { data: Some(data(&next)), ..empty.clone() };
            api.create(&PostParams::default(), &secret).await
        };
        match written {
            Ok(_) => {
                let certs::Plan { authority, serving, prune } = plan;
                tracing::info!(secret = name, authority, serving, prune, "certificates were renewed");
                return Ok(next);
            }
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Err(SecretError::Race(name.to_owned()))
}

/// A Secret without data.
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

/// The certificates of a Secret; `None` if it is empty, as the chart creates it. A missing or unreadable part is read as empty.
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
