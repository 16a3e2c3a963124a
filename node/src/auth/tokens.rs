//! Bearer tokens from a file, a YAML map of names to tokens. Only their hashes are kept, and compared in constant time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use ring::digest::{SHA256, digest};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::identity::MAX_TOKEN_BYTES;
use crate::config::Secret;
use crate::reload::{self, Reloads};

/// The shortest token in bytes. Shorter ones could be guessed.
const MIN_TOKEN_BYTES: usize = 16;
/// The most tokens.
const MAX_TOKENS: usize = 4096;
const MAX_NAME_BYTES: usize = 256;

pub(super) type Hash = [u8; 32];

pub(super) fn hash(token: &str) -> Hash {
    digest(&SHA256, token.as_bytes()).as_ref().try_into().expect("a SHA-256 hash has 32 bytes")
}

/// The current tokens.
pub(super) struct Tokens(watch::Receiver<Arc<[(String, Hash)]>>);

impl Tokens {
    pub(super) fn start(file: PathBuf, reloads: &Reloads, stop: CancellationToken) -> Result<Self, String> {
        let shown = file.display().to_string();
        let load = move |text: &[u8]| parse(text).map_err(|error| format!("{shown}: {error}"));
        let text = reload::read(&file)?;
        let (sender, tokens) = watch::channel(load(&text)?.into());
        let take = move |files: &[Vec<u8>]| {
            sender.send_replace(load(&files[0])?.into());
            Ok(())
        };
        let follow = reloads.clone().follow("tokens", vec![file], vec![text], take);
        tokio::spawn(stop.run_until_cancelled_owned(follow));
        Ok(Self(tokens))
    }

    /// The name of a token. Compares all tokens completely, so that the time does not depend on the result.
    pub(super) fn find(&self, token: &str) -> Option<String> {
        let given = hash(token);
        let tokens = self.0.borrow().clone();
        let mut found = u32::MAX;
        for (n, (_, known)) in (0_u32..).zip(tokens.iter()) {
            let same: Choice = known[..].ct_eq(&given[..]);
            found.conditional_assign(&n, same);
        }
        tokens.get(found as usize).map(|(name, _)| name.clone())
    }
}

fn parse(text: &[u8]) -> Result<Vec<(String, Hash)>, String> {
    // The parser's message is not used, because it quotes the file.
    let form = "the file must be a YAML map of names to tokens";
    let text = std::str::from_utf8(text).map_err(|_| form.to_owned())?;
    let tokens: BTreeMap<String, Secret> = match serde_yaml::from_str::<Option<_>>(text) {
        Ok(tokens) => tokens.unwrap_or_default(),
        Err(_) => return Err(form.to_owned()),
    };
    if tokens.len() > MAX_TOKENS {
        return Err(format!("{} tokens: give at most {MAX_TOKENS}", tokens.len()));
    }
    let mut hashes: Vec<(String, Hash)> = Vec::new();
    for (name, token) in tokens {
        if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(|c| c.is_ascii_graphic()) {
            return Err(format!("a name is empty, longer than {MAX_NAME_BYTES} bytes, or has spaces"));
        }
        let token = token.expose().trim();
        let len = token.len();
        if !(MIN_TOKEN_BYTES..=MAX_TOKEN_BYTES).contains(&len) || !token.chars().all(|c| c.is_ascii_graphic()) {
            let range = format!("{MIN_TOKEN_BYTES} to {MAX_TOKEN_BYTES}");
            return Err(format!(
                "the token of {name} has {len} bytes: give {range} letters, digits and punctuation (ASCII)"
            ));
        }
        let hash = hash(token);
        if hashes.iter().any(|(_, other)| *other == hash) {
            return Err(format!("the token of {name} is that of another name as well: give each name its own token"));
        }
        hashes.push((name, hash));
    }
    Ok(hashes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_compared_completely() {
        let text = b"app: 0123456789abcdef\nops: fedcba9876543210\n";
        let tokens = Tokens(watch::channel(parse(text).unwrap().into()).1);
        assert_eq!(tokens.find("0123456789abcdef").as_deref(), Some("app"));
        assert_eq!(tokens.find("fedcba9876543210").as_deref(), Some("ops"));
        for wrong in ["", "0123456789abcde", "0123456789abcdef0", "0123456789abcdeF", "app"] {
            assert_eq!(tokens.find(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn tokens_file_is_never_quoted_in_errors() {
        for (wrong, why) in [
            ("hush", "YAML map"),
            ("[hush]", "YAML map"),
            ("app: {hush: hush}", "YAML map"),
            ("app: hush", "the token of app has 4 bytes: give 16 to"),
            ("app: hush hush hush hush", "letters, digits and punctuation"),
            ("a b: hushhushhushhush", "has spaces"),
            ("a: hushhushhushhush\nb: hushhushhushhush", "the token of b is that of another name"),
        ] {
            let message = parse(wrong.as_bytes()).unwrap_err();
            assert!(message.contains(why) && !message.contains("hush"), "{wrong}: {message}");
        }
        assert_eq!(parse(b"").unwrap(), [], "an empty file has no tokens");
    }
}
