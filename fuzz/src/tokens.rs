//! Tokens that clients send back, of sessions and of listings, and the timeout in a call's header.

use kvasir_node::api::fuzzing::{read_page_token, read_timeout, write_page_token};
use kvasir_node::clock::Dot;
use kvasir_node::session::{MAX_ORIGINS, Session};

use crate::input::Input;

pub(crate) fn run(bytes: &[u8]) {
    session(bytes);
    page(bytes);
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Some(timeout) = read_timeout(text)
    {
        assert!(text.len() <= 9 && timeout.as_secs() <= 99_999_999 * 3600, "{text}: {timeout:?}");
    }
}

fn session(bytes: &[u8]) {
    if let Ok(session) = Session::decode(bytes) {
        let token = session.encode();
        assert!(token.len() <= 16 << 10, "{} bytes", token.len());
        assert_eq!(Session::decode(&token), Ok(session), "the token decodes to another session");
    }
    // A fuzzer rarely guesses a checksum, so one input has a correct one.
    let mut input = Input::new(bytes);
    let mut session = Session::default();
    while !input.is_empty() {
        session.saw(Dot { hlc: input.number(), origin: input.number() });
    }
    let mut token = session.encode().to_vec();
    assert!(
        bytes.len() > MAX_ORIGINS || Session::decode(&token) == Ok(session),
        "the token decodes to another session"
    );
    let at = usize::from(bytes.first().copied().unwrap_or(0)) % token.len();
    token[at] ^= 1;
    assert!(Session::decode(&token).is_err(), "a token is accepted with byte {at} changed");
}

fn page(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let prefix = String::from_utf8_lossy(input.chunk()).into_owned();
    let rest = input.rest();
    if let Ok(key) = read_page_token(rest, &prefix) {
        assert!(!key.is_empty() && key.starts_with(&prefix), "{key:?} is no key of {prefix:?}");
        assert_eq!(write_page_token(&prefix, &key), rest, "two tokens for one place");
    }
    let key = format!("{prefix}{}", String::from_utf8_lossy(rest));
    if !key.is_empty() {
        let token = write_page_token(&prefix, &key);
        assert_eq!(read_page_token(&token, &prefix).expect("our own"), key);
        let other = format!("{prefix}x");
        assert!(read_page_token(&token, &other).is_err(), "a token of {prefix:?} is accepted for {other:?}");
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut session = Session::default();
    session.saw(Dot { hlc: 7, origin: 9 });
    session.saw(Dot { hlc: u64::MAX, origin: 10 });
    let page = [crate::input::chunk(b"ab"), write_page_token("ab", "abc")].concat();
    vec![Vec::new(), session.encode().to_vec(), page, b"250m".to_vec(), b"99999999H".to_vec()]
}
