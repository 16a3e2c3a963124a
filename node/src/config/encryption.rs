//! What peers encrypt with: a cookie and keys, given here or in a file.

use std::{fmt, path::PathBuf};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Deserialize;

use super::{ConfigError, EncryptionSettings, Secret, Secrets, validate::invalid};

/// Keys that may be known at a time: a rotation needs two.
pub const MAX_KEYS: usize = 8;
/// The longest cookie.
pub const MAX_COOKIE_BYTES: usize = 256;
/// Bytes of a key.
pub const KEY_BYTES: usize = 32;

/// Where the cookie and the keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EncryptionConfig {
    /// Here.
    Given(Keyring),
    /// In a file, which is read again when it changes.
    File(PathBuf),
}

/// A cookie and the keys, the primary one first.
#[derive(Clone, PartialEq, Eq)]
pub struct Keyring {
    /// Binds what is encrypted to one set of nodes, beside the key.
    pub cookie: Vec<u8>,
    /// At least one, no two equal.
    pub keys: Vec<[u8; KEY_BYTES]>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Keyring of {} keys", self.keys.len())
    }
}

/// The form of a file. What the parser says of one that breaks it would repeat
/// what the file holds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    cookie: Secret,
    keys: Secrets,
}

impl Keyring {
    /// Reads a key file.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let form = "the file must be YAML of the form `cookie: TEXT` and `keys: [KEY, ...]`, and nothing else";
        let text = std::str::from_utf8(text).map_err(|_| form.to_owned())?;
        let KeyFile { cookie, keys } = serde_yaml::from_str(text).map_err(|_| form.to_owned())?;
        Self::of(&cookie, &keys).map_err(|(field, message)| format!("{field}: {message}"))
    }

    /// Takes what was given; an error has the field.
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
                return Err(("keys", format!("key {n} is there twice: leave one out")));
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
                "cookie or keys are given too: the file holds both, leave the others out",
            )),
            Self { cookie: Some(cookie), keys: Some(keys), file: None } => {
                Keyring::of(&cookie, &keys).map(EncryptionConfig::Given).map_err(|(field, message)| {
                    invalid(if field == "cookie" { "encryption.cookie" } else { "encryption.keys" }, message)
                })
            }
            Self { cookie: None, .. } => Err(invalid("encryption.cookie", "give it, or encryption.file")),
            Self { keys: None, .. } => Err(invalid("encryption.keys", "give at least one, or encryption.file")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    const OTHER: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

    #[test]
    fn a_file_holds_a_cookie_and_keys_primary_first() {
        let ring = Keyring::parse(format!("cookie: demo\nkeys:\n- {KEY}\n- {OTHER}\n").as_bytes()).unwrap();
        assert_eq!(ring, Keyring { cookie: b"demo".to_vec(), keys: vec![[1; 32], [2; 32]] });
        assert_eq!(format!("{ring:?}"), "Keyring of 2 keys");
    }

    #[test]
    fn a_wrong_file_is_refused_and_nothing_of_it_repeated() {
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
            (&format!("cookie: demo\nkeys: [{KEY}, {OTHER}, {KEY}]"), "keys: key 2 is there twice"),
            (&format!("cookie: {}\nkeys: [{KEY}]", "c".repeat(257)), "cookie: has 257 bytes"),
        ] {
            let message = Keyring::parse(wrong.as_bytes()).unwrap_err();
            assert!(message.contains(why), "{wrong}: {message}");
            assert!(!message.contains("hush") && !message.contains(KEY), "{message}");
        }
        assert!(Keyring::parse(&[0xff]).is_err());
    }
}
