//! Sees that the Secret with the keys is there and in order, and makes it where the operator is asked to.
//!
//! What is in it is looked at and forgotten. A Secret that is there is never changed: the keys are for people to exchange.

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

use super::KeyFile;
use crate::{api_error::ApiError, labels, metrics::Metrics, validate::ValidatedCluster};

/// Bytes of randomness in a cookie that the operator makes.
const COOKIE_BYTES: usize = 16;

/// Why members cannot have their keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// Nobody made the Secret.
    #[error("spec.encryption: there is no Secret {0}: make it, or set generate: true in a new KvCluster")]
    Missing(String),
    /// It was made once, and is gone.
    #[error(
        "spec.encryption: Secret {0} is gone, and pods without it do not start: put it back as it was. The operator makes \
         no other, as pods with other keys do not hear those that run"
    )]
    Gone(String),
    /// It has no such key.
    #[error("spec.encryption: Secret {secret} has no key {key}: put the file with cookie and keys there")]
    NoFile {
        /// Name of the Secret.
        secret: String,
        /// The key.
        key: String,
    },
    /// It holds something else.
    #[error("spec.encryption: {key} in Secret {secret} cannot be used: {why}")]
    Malformed {
        /// Name of the Secret.
        secret: String,
        /// Key in it.
        key: String,
        /// What is wrong; nothing of what the file holds.
        why: InvalidKeyring,
    },
    /// It is another object's, which will take it along.
    #[error("spec.encryption: Secret {0} belongs to something else: delete it, or give the KvCluster another name")]
    NameTaken(String),
    /// The API server said no.
    #[error("cannot {verb} Secret {name}, check that the operator may: {source}")]
    Request {
        /// What was tried.
        verb: &'static str,
        /// Name of the Secret.
        name: String,
        /// What the API server said.
        source: ApiError,
    },
    /// The system gave no random bytes.
    #[error("cannot make keys: the system gives no random bytes")]
    Random,
}

impl KeysError {
    /// One word for conditions and events.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing(_) | Self::Gone(_) => "EncryptionSecretMissing",
            Self::NoFile { .. } | Self::Malformed { .. } => "EncryptionSecretMalformed",
            Self::NameTaken(_) => "NameTaken",
            Self::Request { .. } | Self::Random => "EncryptionSecretFailed",
        }
    }

    /// Whether trying again may help, without anybody mending anything.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Request { .. } | Self::Random)
    }
}

/// Sees to the keys of a cluster; `began` is whether it has members already.
pub async fn keep(
    client: &Client,
    metrics: &Metrics,
    cluster: &ValidatedCluster,
    began: bool,
) -> Result<(), KeysError> {
    let Some(file) = &cluster.encryption else { return Ok(()) };
    let api: Api<Secret> = Api::namespaced(client.clone(), &cluster.namespace);
    let failed =
        |verb| move |source| KeysError::Request { verb, name: file.secret.clone(), source: ApiError::from(source) };
    match api.get_opt(&file.secret).await.map_err(failed("read"))? {
        Some(secret) => judge(&secret, file, &cluster.owner),
        None if !file.generate => Err(KeysError::Missing(file.secret.clone())),
        None if began => Err(KeysError::Gone(file.secret.clone())),
        None => {
            metrics.wrote("Secret");
            // By creation, which fails if somebody was faster: theirs is judged next time.
            api.create(&PostParams::default(), &made(cluster, file)?).await.map_err(failed("create"))?;
            tracing::info!(namespace = cluster.namespace, secret = file.secret, "made keys for encryption");
            Ok(())
        }
    }
}

/// Whether members can use what is there.
fn judge(secret: &Secret, file: &KeyFile, owner: &OwnerReference) -> Result<(), KeysError> {
    let KeyFile { secret: name, key, generate } = file;
    // One of an earlier KvCluster of that name goes with it.
    let owners = || secret.metadata.owner_references.iter().flatten();
    if *generate && owners().any(|of| of.controller == Some(true) && of.uid != owner.uid) {
        return Err(KeysError::NameTaken(name.clone()));
    }
    let bytes = secret.data.as_ref().and_then(|data| data.get(key));
    let ByteString(bytes) = bytes.ok_or_else(|| KeysError::NoFile { secret: name.clone(), key: key.clone() })?;
    Keyring::parse(bytes).map(drop).map_err(|why| KeysError::Malformed { secret: name.clone(), key: key.clone(), why })
}

/// A Secret with a cookie and one key that nobody has seen.
fn made(cluster: &ValidatedCluster, file: &KeyFile) -> Result<Secret, KeysError> {
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
            labels: Some(labels::all(&cluster.name)),
            owner_references: Some(vec![cluster.owner.clone()]),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(file.key.clone(), ByteString(text.into_bytes()))])),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    })
}

/// So many bytes of the system's randomness, in base64.
fn random<const BYTES: usize>() -> Result<String, KeysError> {
    let mut bytes = [0; BYTES];
    SystemRandom::new().fill(&mut bytes).map_err(|_| KeysError::Random)?;
    Ok(BASE64_STANDARD.encode(bytes))
}

#[cfg(test)]
#[path = "keep_tests.rs"]
mod tests;
