//! Encryption between peers: a cookie and keys, given as settings or in a file.

use std::{fmt, path::PathBuf};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Deserialize;

use super::{ConfigError, EncryptionSettings, Secret, Secrets, validate::invalid};

/// The most keys at a time; a rotation needs two.
pub const MAX_KEYS: usize = 8;
/// The longest cookie.
pub const MAX_COOKIE_BYTES: usize = 256;
/// The length of a key in bytes.
pub const KEY_BYTES: usize = 32;

/// Where the cookie and the keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EncryptionConfig {
    /// Given as settings.
    Given(Keyring),
    /// In a file, which is reloaded when it changes.
    File(PathBuf),
}

/// A cookie and the keys, the primary one first.
#[derive(Clone, PartialEq, Eq)]
pub struct Keyring {
    /// A text that binds encrypted messages to one group of nodes, in addition to the key.
    pub cookie: Vec<u8>,
    /// At least one key, no two equal.
    pub keys: Vec<[u8; KEY_BYTES]>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Keyring of {} keys", self.keys.len())
    }
}

/// The format of a key file. The parser's error messages are not shown, because they quote the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    cookie: Secret,
    keys: Secrets,
}

impl Keyring {
    /// Reads a key file.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let form = "the file must be YAML with `cookie: TEXT` and `keys: [KEY, ...]`, and nothing else";
        let text = std::str::from_utf8(text).map_err(|_| form.to_owned())?;
        let KeyFile { cookie, keys } = serde_yaml::from_str(text).map_err(|_| form.to_owned())?;
        Self::of(&cookie, &keys).map_err(|(field, message)| format!("{field}: {message}"))
    }

    /// An error names the field.
    fn of(cookie: &Secret, keys: &Secrets) -> Result<Self, (&'static str, String)> {
        let cookie = cookie.expose().trim().as_bytes().to_vec();
        if cookie.is_empty() || cookie.len() > MAX_COOKIE_BYTES {
            return Err(("cookie", format!("has {} bytes: give 1 to {MAX_COOKIE_BYTES}", cookie.len())));
        }
        if keys.0.is_empty() || keys.0.len() > MAX_KEYS {
            return Err(("keys", format!("{} keys: give 1 to {MAX_KEYS}, the primary one first", keys.0.len())));
        }
        let mut read = Vec::new();
        for (n, key) in keys.0.iter().enumerate() {
            let key: [u8; KEY_BYTES] =
                BASE64_STANDARD.decode(key.expose().trim()).ok().and_then(|key| key.try_into().ok()).ok_or_else(
                    || {
                        let make = "`openssl rand -base64 32` makes one";
                        ("keys", format!("key {n} is not base64 of {KEY_BYTES} bytes: {make}"))
                    },
                )?;
            if key == [0; KEY_BYTES] {
                return Err(("keys", format!("key {n} is all zeros: give a random one")));
            }
            if read.contains(&key) {
                return Err(("keys", format!("key {n} is given twice: remove one of them")));
            }
            read.push(key);
        }
        Ok(Self { cookie, keys: read })
    }
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
                Keyring::of(&cookie, &keys).map(EncryptionConfig::Given).map_err(|(field, message)| {
                    invalid(if field == "cookie" { "encryption.cookie" } else { "encryption.keys" }, message)
                })
            }
            Self { cookie: None, .. } => Err(invalid("encryption.cookie", "give the cookie, or encryption.file")),
            Self { keys: None, .. } => Err(invalid("encryption.keys", "give at least one key, or encryption.file")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    const OTHER: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

    #[test]
    fn keyring_file_has_a_cookie_and_keys() {
        let ring = Keyring::parse(format!("cookie: demo\nkeys:\n- {KEY}\n- {OTHER}\n").as_bytes()).unwrap();
        assert_eq!(ring, Keyring { cookie: b"demo".to_vec(), keys: vec![[1; 32], [2; 32]] });
        assert_eq!(format!("{ring:?}"), "Keyring of 2 keys");
    }

    #[test]
    fn keyring_file_is_never_quoted_in_errors() {
        for (wrong, why) in [
            ("hush", "must be YAML"),
            ("cookie: hush", "must be YAML"),
            ("cookie: [hush]\nkeys: [hush]", "must be YAML"),
            ("cookie: hush\nkeys: {hush: hush}", "must be YAML"),
            ("cookie: demo\nkeys: [hush]", "keys: key 0 is not base64 of 32 bytes"),
            ("cookie: demo\nkeys: [aHVzaA==]", "keys: key 0 is not base64 of 32 bytes"),
            ("cookie: ''\nkeys: [hush]", "cookie: has 0 bytes"),
            ("cookie: demo\nkeys: []", "keys: 0 keys: give 1 to 8"),
            ("cookie: demo\nkeys: [AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=]", "keys: key 0 is all zeros"),
            (&format!("cookie: demo\nkeys: [{KEY}, {OTHER}, {KEY}]"), "keys: key 2 is given twice"),
            (&format!("cookie: {}\nkeys: [{KEY}]", "c".repeat(257)), "cookie: has 257 bytes"),
        ] {
            let message = Keyring::parse(wrong.as_bytes()).unwrap_err();
            assert!(message.contains(why), "{wrong}: {message}");
            assert!(!message.contains("hush") && !message.contains(KEY), "{message}");
        }
        assert!(Keyring::parse(&[0xff]).is_err());
    }
}
