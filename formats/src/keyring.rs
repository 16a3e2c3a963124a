//! Key files: the cookie and the keys that nodes encrypt with among themselves.
//!
//! The operator checks such a file before the members mount it; a node reads it. No message repeats a part of the file,
//! because the file is a secret.

use std::fmt;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Deserialize;

/// Keys that may be known at a time: a rotation needs two.
pub const MAX_KEYS: usize = 8;
/// The longest cookie.
pub const MAX_COOKIE_BYTES: usize = 256;
/// Bytes of a key.
pub const KEY_BYTES: usize = 32;

/// A cookie and the keys, the primary key first.
#[derive(Clone, PartialEq, Eq)]
pub struct Keyring {
    /// Binds what is encrypted to one group of nodes, in addition to the key.
    pub cookie: Vec<u8>,
    /// At least one, no two equal.
    pub keys: Vec<[u8; KEY_BYTES]>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Keyring of {} keys", self.keys.len())
    }
}

/// What is wrong with a cookie or with keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InvalidKeyring {
    /// The file has another form.
    Form,
    /// The cookie, with what is wrong about it.
    Cookie(String),
    /// The keys, with what is wrong about them.
    Keys(String),
}

impl fmt::Display for InvalidKeyring {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Form => formatter
                .write_str("the file must be YAML of the form `cookie: TEXT` and `keys: [KEY, ...]`, and nothing else"),
            Self::Cookie(message) => write!(formatter, "cookie: {message}"),
            Self::Keys(message) => write!(formatter, "keys: {message}"),
        }
    }
}

impl std::error::Error for InvalidKeyring {}

/// The form of the file. The YAML parser's own messages are not passed on: they would repeat what the file holds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    cookie: String,
    keys: OneOrMany,
}

/// A single key needs no list.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl Keyring {
    /// Reads a key file.
    ///
    /// # Errors
    ///
    /// If the file has another form, or [`Keyring::new`] refuses what is in it.
    pub fn parse(text: &[u8]) -> Result<Self, InvalidKeyring> {
        let text = std::str::from_utf8(text).map_err(|_| InvalidKeyring::Form)?;
        let File { cookie, keys } = serde_yaml::from_str(text).map_err(|_| InvalidKeyring::Form)?;
        let keys = match keys {
            OneOrMany::One(key) => vec![key],
            OneOrMany::Many(keys) => keys,
        };
        Self::new(&cookie, keys.iter().map(String::as_str))
    }

    /// Checks a cookie and base64 keys, the primary key first.
    ///
    /// # Errors
    ///
    /// If the cookie is empty or too long, there are no keys or too many, or a key is not 32 bytes, all zeros, or there twice.
    pub fn new<'a>(cookie: &str, keys: impl ExactSizeIterator<Item = &'a str>) -> Result<Self, InvalidKeyring> {
        let cookie = cookie.trim().as_bytes().to_vec();
        if cookie.is_empty() || cookie.len() > MAX_COOKIE_BYTES {
            let message = format!("has {} bytes: give 1 to {MAX_COOKIE_BYTES}", cookie.len());
            return Err(InvalidKeyring::Cookie(message));
        }
        if !(1..=MAX_KEYS).contains(&keys.len()) {
            let message = format!("{} keys: give 1 to {MAX_KEYS}, the primary one first", keys.len());
            return Err(InvalidKeyring::Keys(message));
        }
        let mut read = Vec::new();
        for (n, key) in keys.enumerate() {
            let key: [u8; KEY_BYTES] =
                BASE64_STANDARD.decode(key.trim()).ok().and_then(|key| key.try_into().ok()).ok_or_else(|| {
                    let make = format!("`openssl rand -base64 {KEY_BYTES}` makes one");
                    InvalidKeyring::Keys(format!("key {n} is not base64 of {KEY_BYTES} bytes: {make}"))
                })?;
            if key == [0; KEY_BYTES] {
                return Err(InvalidKeyring::Keys(format!("key {n} is all zeros: give a random one")));
            }
            if read.contains(&key) {
                return Err(InvalidKeyring::Keys(format!("key {n} is there twice: leave one out")));
            }
            read.push(key);
        }
        Ok(Self { cookie, keys: read })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    const OTHER: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

    #[test]
    fn a_file_holds_a_cookie_and_keys() {
        let two = Keyring { cookie: b"demo".to_vec(), keys: vec![[1; 32], [2; 32]] };
        let one = Keyring { cookie: b"demo".to_vec(), keys: vec![[1; 32]] };
        for (text, ring) in [
            (format!("cookie: demo\nkeys:\n- {KEY}\n- {OTHER}\n"), &two),
            (format!("{{\"cookie\": \" demo \", \"keys\": [\"{KEY}\"]}}"), &one),
            (format!("cookie: demo\nkeys: {KEY}"), &one),
        ] {
            assert_eq!(Keyring::parse(text.as_bytes()).as_ref(), Ok(ring), "{text}");
        }
        assert_eq!(format!("{two:?}"), "Keyring of 2 keys", "no key is shown");
    }

    #[test]
    fn sizes_up_to_the_limits_are_taken() {
        let of = |cookie: usize, keys: u8| {
            let keys: Vec<_> = (1..=keys).map(|n| BASE64_STANDARD.encode([n; KEY_BYTES])).collect();
            Keyring::parse(format!("cookie: {}\nkeys: {keys:?}", "c".repeat(cookie)).as_bytes())
        };
        assert_eq!(of(MAX_COOKIE_BYTES, 8).unwrap().keys.len(), MAX_KEYS);
        assert!(of(MAX_COOKIE_BYTES + 1, 8).unwrap_err().to_string().starts_with("cookie: has 257 bytes"));
        assert!(of(MAX_COOKIE_BYTES, 9).unwrap_err().to_string().starts_with("keys: 9 keys: give 1 to 8"));
    }

    #[test]
    fn a_wrong_file_is_refused_and_not_repeated() {
        for (wrong, why) in [
            ("hush", "must be YAML"),
            ("cookie: hush", "must be YAML"),
            (&format!("keys: [{KEY}]"), "must be YAML"),
            (&format!("cookie: demo\nkeys: [{KEY}]\nhush: hush"), "must be YAML"),
            ("cookie: [hush]\nkeys: [hush]", "must be YAML"),
            ("cookie: hush\nkeys: {hush: hush}", "must be YAML"),
            ("cookie: demo\nkeys: [hush]", "keys: key 0 is not base64 of 32 bytes"),
            ("cookie: demo\nkeys: [aHVzaA==]", "keys: key 0 is not base64 of 32 bytes"),
            ("cookie: ' '\nkeys: [hush]", "cookie: has 0 bytes"),
            ("cookie: demo\nkeys: []", "keys: 0 keys: give 1 to 8"),
            ("cookie: demo\nkeys: [AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=]", "keys: key 0 is all zeros"),
            (&format!("cookie: demo\nkeys: [{KEY}, {OTHER}, {KEY}]"), "keys: key 2 is there twice"),
        ] {
            let message = Keyring::parse(wrong.as_bytes()).unwrap_err().to_string();
            assert!(message.contains(why), "{wrong}: {message}");
            assert!(!message.contains("hush") && !message.contains(KEY), "{message}");
        }
        assert_eq!(Keyring::parse(&[0xff]), Err(InvalidKeyring::Form));
    }
}
