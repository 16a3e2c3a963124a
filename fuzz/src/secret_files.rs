//! Two secret files: the peers' encryption keys, which the operator checks before the node reads them, and the clients'
//! tokens.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use k8s_openapi::ByteString;
use kvasir_formats::access::Verb;
use kvasir_formats::keyring::{KEY_BYTES, Keyring, MAX_COOKIE_BYTES, MAX_KEYS};
use kvasir_node::auth::{Auth, MAX_TOKEN_BYTES};
use kvasir_node::config::AuthConfig;
use kvasir_node::reload::Reloads;
use tokio_util::sync::CancellationToken;

use crate::input::{Input, chunk};

/// The shortest token.
const MIN_TOKEN_BYTES: usize = 16;
const MAX_NAME_BYTES: usize = 256;
/// No fixed word of an error message is longer.
const LONGEST_WORD: usize = 15;

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.below(3) {
        0 => keys(input.rest()),
        1 => any_tokens(input.rest()),
        _ => given_tokens(&mut input),
    }
}

fn keys(text: &[u8]) {
    let read = Keyring::parse(text);
    let shown = text.escape_ascii();
    let ring = match &read {
        Ok(ring) => ring,
        Err(why) => {
            let (why, text) = (why.to_string(), String::from_utf8_lossy(text));
            let secret = text.split_whitespace().find(|word| word.len() > LONGEST_WORD && why.contains(word));
            assert_eq!(secret, None, "the error shows a part of the file: {why}");
            return;
        }
    };
    let different: BTreeSet<_> = ring.keys.iter().collect();
    assert!((1..=MAX_COOKIE_BYTES).contains(&ring.cookie.len()), "{shown}");
    assert!((1..=MAX_KEYS).contains(&ring.keys.len()) && different.len() == ring.keys.len(), "{shown}");
    assert!(!different.contains(&[0; KEY_BYTES]), "{shown}");
    let written = written(ring);
    assert!(Keyring::parse(written.as_bytes()) == read, "{shown} is not {written}");
}

/// A key file with these keys.
fn written(ring: &Keyring) -> String {
    let cookie = quoted(std::str::from_utf8(&ring.cookie).expect("it was text"));
    let keys: Vec<_> = ring.keys.iter().map(|key| base64(key)).collect();
    format!("cookie: {cookie}\nkeys: [{}]\n", keys.join(", "))
}

fn base64(bytes: &[u8]) -> String {
    serde_json::to_string(&ByteString(bytes.to_vec())).expect("bytes are JSON")
}

/// Text in any form that YAML allows.
fn quoted(text: &str) -> String {
    let escaped = |c: char| match c {
        '"' | '\\' => format!("\\{c}"),
        ' '..='~' => c.to_string(),
        _ => format!("\\U{:08x}", u32::from(c)),
    };
    format!("\"{}\"", text.chars().map(escaped).collect::<String>())
}

/// A node that has read its tokens from a file, as it does at start.
struct Door {
    runtime: tokio::runtime::Runtime,
    auth: Auth,
}

impl Door {
    fn open(text: &[u8]) -> Result<Self, String> {
        let file = file();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.expect("a runtime without sockets");
        let config = AuthConfig { tokens_file: Some(file.clone()), client_certificates: false, token_review: None };
        std::fs::write(&file, text).expect("a small file can be written");
        let auth = {
            let _entered = runtime.enter();
            // Without a rule every client is refused, and the refusal names the client.
            Auth::start(Some(&config), Some(Vec::new()), None, &Reloads::default(), &CancellationToken::new())
        };
        std::fs::remove_file(&file).expect("it was written");
        let auth = auth.map_err(|why| {
            let why = why.strip_prefix(&format!("{}: ", file.display())).map(str::to_owned);
            why.expect("an error names the file")
        })?;
        Ok(Self { runtime, auth })
    }

    /// The client of this token.
    fn whose(&self, token: &str) -> Option<String> {
        let caller = self.runtime.block_on(self.auth.identify(None, Some(token))).ok()?;
        let refused = caller.may(Verb::Read, "k").expect_err("no rule allows it").to_string();
        let name = refused.strip_prefix("token:").and_then(|it| it.split_once(" may not read the key"));
        Some(name.expect("it says who").0.to_owned())
    }
}

/// A file of this process alone.
fn file() -> PathBuf {
    std::env::temp_dir().join(format!("kvasir-fuzz-tokens-{}", std::process::id()))
}

fn is_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.chars().all(|c| c.is_ascii_graphic())
}

fn is_token(token: &str) -> bool {
    (MIN_TOKEN_BYTES..=MAX_TOKEN_BYTES).contains(&token.len()) && token.chars().all(|c| c.is_ascii_graphic())
}

fn any_tokens(text: &[u8]) {
    let Ok(door) = Door::open(text) else { return };
    let text = std::str::from_utf8(text).expect("what was taken is text");
    // Whatever the node reads as a token or name meets the documented rules for tokens and names.
    let parts = text.split(|c: char| c.is_whitespace() || "\"',:{}".contains(c));
    for part in parts.filter(|part| !part.is_empty()) {
        if let Some(name) = door.whose(part) {
            assert!(is_name(&name) && is_token(part), "{part:?} is the token of {name:?}");
        }
    }
}

fn given_tokens(input: &mut Input<'_>) {
    let mut given = BTreeMap::new();
    while !input.is_empty() && given.len() < 8 {
        let mut text = |more: &[usize]| {
            let text = String::from_utf8_lossy(input.chunk()).into_owned();
            let more = input.of(more);
            text + &"n".repeat(more)
        };
        let name = text(&[0, 0, 0, MAX_NAME_BYTES - 1, MAX_NAME_BYTES]);
        let token = text(&[0, 0, MIN_TOKEN_BYTES - 1, MIN_TOKEN_BYTES, MAX_TOKEN_BYTES - 1, MAX_TOKEN_BYTES]);
        given.insert(name, token);
    }
    let lines: Vec<_> = given.iter().map(|(name, token)| format!("{}: {}", quoted(name), quoted(token))).collect();
    let file = lines.join("\n");
    let tokens: BTreeSet<_> = given.values().map(|token| token.trim()).collect();
    let good = given.iter().all(|(name, token)| is_name(name) && is_token(token.trim()));
    match Door::open(file.as_bytes()) {
        Ok(door) => {
            assert!(good && tokens.len() == given.len(), "{file}");
            for (name, token) in &given {
                let token = token.trim();
                assert_eq!(door.whose(token).as_ref(), Some(name), "{file}");
                for other in [&token[1..], &format!("{token}n")] {
                    assert_eq!(door.whose(other).is_some(), tokens.contains(other), "{other}: {file}");
                }
            }
        }
        Err(why) => {
            assert!(!good || tokens.len() < given.len(), "{why}: {file}");
            // Errors may contain a name.
            let hidden = |token: &&&str| is_token(token) && !given.keys().any(|name| name.contains(**token));
            let shown = tokens.iter().filter(hidden).find(|token| why.contains(**token));
            assert_eq!(shown, None, "the error shows a token: {why}");
        }
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    const OTHER: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
    let of = |kind: u8, text: &str| [&[kind], text.as_bytes()].concat();
    let given = |tokens: &[(&str, u8, &str, u8)]| {
        let one = |(name, more_name, token, more): &(&str, u8, &str, u8)| {
            [&chunk(name.as_bytes())[..], &[*more_name], &chunk(token.as_bytes()), &[*more]].concat()
        };
        [vec![2], tokens.iter().flat_map(one).collect()].concat()
    };
    vec![
        of(0, &format!("cookie: demo\nkeys:\n- {KEY}\n- {OTHER}\n")),
        of(0, &format!("{{\"cookie\": \"d\\u00e4mo\", \"keys\": \"{KEY}\"}}")),
        of(0, &format!("# of the operator\ncookie: \" demo \"\nkeys:\n- |\n  {KEY}\n- {KEY}\n")),
        of(0, "cookie: 7\nkeys: [AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=]\n"),
        of(1, "app: 0123456789abcdef\nops: fedcba9876543210\n"),
        of(1, "{\"app\": \"0123456789abcdef\", 'b': &a fedcba9876543210, c: *a}"),
        of(1, ""),
        given(&[("app", 0, "0123456789abcdef", 0), ("ops", 0, "fedcba9876543210", 0)]),
        given(&[("app", 0, " 0123456789abcdef\n", 0), ("ops", 0, "1", 2), ("", 4, "", 3), ("o", 3, "", 5)]),
        given(&[("app", 0, "0123456789abcdef", 0), ("ops", 0, "0123456789abcdef ", 0)]),
        given(&[("app", 0, "0123456789abcdef", 0), ("a b", 0, "ä", 5)]),
        given(&[("a", 0, "1", 5), ("b", 4, "1", 4), ("c", 4, "short", 0)]),
    ]
}
