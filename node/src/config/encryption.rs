//! Encryption between peers: a cookie and keys, given as settings or in a file.

use std::path::PathBuf;

pub use kvasir_formats::keyring::{KEY_BYTES, Keyring, MAX_COOKIE_BYTES, MAX_KEYS};

use kvasir_formats::keyring::InvalidKeyring;

use super::{ConfigError, EncryptionSettings, Secret, error::invalid};

/// Where the cookie and the keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EncryptionConfig {
    /// Given as settings.
    Given(Keyring),
    /// The cookie and the keys are in a file, which is reloaded when it changes.
    File(PathBuf),
}

impl EncryptionSettings {
    pub(super) fn validate(self) -> Result<EncryptionConfig, ConfigError> {
        match self {
            Self { cookie: None, keys: None, file: Some(file) } => Ok(EncryptionConfig::File(file)),
            Self { file: Some(_), .. } => Err(invalid(
                "encryption.file",
                "cookie or keys are given too: the file contains both, leave the others out",
            )),
            Self { cookie: Some(cookie), keys: Some(keys), file: None } => {
                let ring = Keyring::new(cookie.expose(), keys.0.iter().map(Secret::expose));
                ring.map(EncryptionConfig::Given).map_err(|wrong| match wrong {
                    InvalidKeyring::Cookie(message) => invalid("encryption.cookie", message),
                    InvalidKeyring::Keys(message) => invalid("encryption.keys", message),
                    InvalidKeyring::Form => invalid("encryption", wrong.to_string()),
                })
            }
            Self { cookie: None, .. } => Err(invalid("encryption.cookie", "give the cookie, or encryption.file")),
            Self { keys: None, .. } => Err(invalid("encryption.keys", "give at least one key, or encryption.file")),
        }
    }
}
