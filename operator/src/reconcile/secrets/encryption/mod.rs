//! Checks the Secret with the encryption keys, and creates it if the spec says so.
//!
//! An existing Secret is never changed: exchanging keys is up to people.

use std::collections::BTreeMap;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use k8s_openapi::{
    ByteString,
    api::core::v1::Secret,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{Api, Client, api::PostParams};
use kvasir_formats::keyring::{InvalidKeyring, KEY_BYTES, Keyring};
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::{
    api_server::ApiError,
    cluster::{ValidatedCluster, encryption::KeyFile},
    metrics::Metrics,
    names,
    obstacle::Failure,
};

/// Length of a generated cookie before base64.
const COOKIE_BYTES: usize = 16;

/// Why members cannot have their keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The Secret does not exist.
    #[error("spec.encryption: there is no Secret {0}: create it, or set generate: true in a new KvCluster")]
    Missing(String),
    /// The generated Secret existed once and is gone.
    #[error(
        "spec.encryption: Secret {0} is gone, and pods without it do not start: restore it with the same content. The \
         operator does not generate another one, because pods with other keys could not talk to those that run"
    )]
    Gone(String),
    /// The Secret has no such key.
    #[error("spec.encryption: Secret {secret} has no key {key}: put the file with cookie and keys there")]
    NoFile {
        /// Name of the Secret.
        secret: String,
        /// The key.
        key: String,
    },
    /// The file cannot be used.
    #[error("spec.encryption: {key} in Secret {secret} cannot be used: {why}")]
    Malformed {
        /// Name of the Secret.
        secret: String,
        /// Key in it.
        key: String,
        /// What is wrong, without any content of the file.
        why: InvalidKeyring,
    },
    /// Another object owns the Secret, which will be deleted with it.
    #[error("spec.encryption: Secret {0} belongs to something else: delete it, or give the KvCluster another name")]
    NameTaken(String),
    /// A request to the API server failed.
    #[error("cannot {verb} Secret {name}, check that the operator has the right: {source}")]
    Request {
        /// What the request was for.
        verb: &'static str,
        /// Name of the Secret.
        name: String,
        /// The error.
        source: ApiError,
    },
    /// The system provided no random bytes.
    #[error("cannot generate keys: the system provides no random bytes")]
    Random,
}

impl Failure for KeysError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Missing(_) | Self::Gone(_) => "EncryptionSecretMissing",
            Self::NoFile { .. } | Self::Malformed { .. } => "EncryptionSecretMalformed",
            Self::NameTaken(_) => "NameTaken",
            Self::Request { .. } | Self::Random => "EncryptionSecretFailed",
        }
    }

    fn is_passing(&self) -> bool {
        matches!(self, Self::Request { .. } | Self::Random)
    }
}

/// Checks the keys of a cluster, or generates them; `has_members` is whether it ever had a `StatefulSet`.
pub async fn ensure(
    client: &Client,
    metrics: &Metrics,
    cluster: &ValidatedCluster,
    has_members: bool,
) -> Result<(), KeysError> {
    let Some(file) = &cluster.encryption else { return Ok(()) };
    let api: Api<Secret> = Api::namespaced(client.clone(), &cluster.namespace);
    let failed =
        |verb| move |source| KeysError::Request { verb, name: file.secret.clone(), source: ApiError::from(source) };
    match api.get_opt(&file.secret).await.map_err(failed("read"))? {
        Some(secret) => check(&secret, file, &cluster.owner),
        None if !file.generate => Err(KeysError::Missing(file.secret.clone())),
        None if has_members => Err(KeysError::Gone(file.secret.clone())),
        None => {
            metrics.wrote("Secret");
            // A create, not an apply: it fails if another operator was faster. The next reconcile checks that operator's
            // Secret.
            api.create(&PostParams::default(), &generate(cluster, file)?).await.map_err(failed("create"))?;
            tracing::info!(namespace = cluster.namespace, secret = file.secret, "generated encryption keys");
            Ok(())
        }
    }
}

/// Whether members can use the existing Secret.
fn check(secret: &Secret, file: &KeyFile, owner: &OwnerReference) -> Result<(), KeysError> {
    let KeyFile { secret: name, key, generate } = file;
    // The Secret of an earlier KvCluster of this name will be deleted with that one.
    let owners = || secret.metadata.owner_references.iter().flatten();
    if *generate && owners().any(|of| of.controller == Some(true) && of.uid != owner.uid) {
        return Err(KeysError::NameTaken(name.clone()));
    }
    let bytes = secret.data.as_ref().and_then(|data| data.get(key));
    let ByteString(bytes) = bytes.ok_or_else(|| KeysError::NoFile { secret: name.clone(), key: key.clone() })?;
    Keyring::parse(bytes).map(drop).map_err(|why| KeysError::Malformed { secret: name.clone(), key: key.clone(), why })
}

/// A Secret with a random cookie and one random key.
fn generate(cluster: &ValidatedCluster, file: &KeyFile) -> Result<Secret, KeysError> {
    let text = format!(
        "# Made by the Kvasir operator, which does not change it. How keys are exchanged: docs/security.md.\n\
         cookie: {:?}\nkeys:\n- {:?}\n",
        random::<COOKIE_BYTES>()?,
        random::<KEY_BYTES>()?,
    );
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(file.secret.clone()),
            namespace: Some(cluster.namespace.clone()),
            labels: Some(names::labels(&cluster.name)),
            owner_references: Some(vec![cluster.owner.clone()]),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(file.key.clone(), ByteString(text.into_bytes()))])),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    })
}

/// Random bytes in base64.
fn random<const BYTES: usize>() -> Result<String, KeysError> {
    let mut bytes = [0; BYTES];
    SystemRandom::new().fill(&mut bytes).map_err(|_| KeysError::Random)?;
    Ok(BASE64_STANDARD.encode(bytes))
}

#[cfg(test)]
mod tests;
