//! Reads the file with the encryption keys, in order to check it.
//!
//! The format is the node's. Errors repeat nothing of what the file holds.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Deserialize;

/// Limits of the node.
const MAX_COOKIE_BYTES: usize = 256;
const MAX_KEYS: usize = 8;
/// Length of a key.
pub const KEY_BYTES: usize = 32;

/// The form of the file. Errors of its parser are not shown, because they would repeat what the file holds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    cookie: String,
    keys: Keys,
}

/// A single key needs no list.
#[derive(Deserialize)]
#[serde(untagged)]
enum Keys {
    One(String),
    Many(Vec<String>),
}

/// Whether a node accepts this file; if not, why.
pub fn check(text: &[u8]) -> Result<(), String> {
    let form = "it must be YAML of the form `cookie: TEXT` and `keys: [KEY, ...]`, and nothing else";
    let text = std::str::from_utf8(text).map_err(|_| form.to_owned())?;
    let Form { cookie, keys } = serde_yaml::from_str(text).map_err(|_| form.to_owned())?;
    let keys = match keys {
        Keys::One(key) => vec![key],
        Keys::Many(keys) => keys,
    };
    let cookie = cookie.trim().len();
    if !(1..=MAX_COOKIE_BYTES).contains(&cookie) {
        return Err(format!("cookie has {cookie} bytes: give 1 to {MAX_COOKIE_BYTES}"));
    }
    if !(1..=MAX_KEYS).contains(&keys.len()) {
        return Err(format!("{} keys: give 1 to {MAX_KEYS}, the primary one first", keys.len()));
    }
    let mut seen = Vec::new();
    for (n, key) in keys.iter().enumerate() {
        let key: Option<[u8; KEY_BYTES]> = BASE64_STANDARD.decode(key.trim()).ok().and_then(|key| key.try_into().ok());
        let key = key.ok_or_else(|| {
            format!("key {n} is not base64 of {KEY_BYTES} bytes: `openssl rand -base64 {KEY_BYTES}` makes one")
        })?;
        if key == [0; KEY_BYTES] {
            return Err(format!("key {n} is all zeros: give a random one"));
        }
        if seen.contains(&key) {
            return Err(format!("key {n} is listed twice: remove one"));
        }
        seen.push(key);
    }
    Ok(())
}
