//! The token with which a client goes on after a listing that `limit` ended:
//! opaque to the client, and of no meaning with another prefix.

use tonic::Status;

/// The layout below. A later layout has another first byte.
const VERSION: u8 = 1;
/// Bytes before the key: the version, and the prefix's length (big endian).
/// The prefix itself is the beginning of the key.
const HEADER: usize = 5;

/// The token for the entries after `last_key`, of a listing with `prefix`.
pub(super) fn encode(prefix: &str, last_key: &[u8]) -> Vec<u8> {
    let prefix_len = u32::try_from(prefix.len()).expect("a prefix is within maxKeyBytes");
    let mut token = Vec::with_capacity(HEADER + last_key.len());
    token.push(VERSION);
    token.extend_from_slice(&prefix_len.to_be_bytes());
    token.extend_from_slice(last_key);
    token
}

/// The key to go on after.
pub(super) fn decode(token: &[u8], prefix: &str) -> Result<String, Status> {
    let malformed = || {
        Status::invalid_argument("page_token: malformed; give the next_page_token of an earlier listing, byte for byte")
    };
    let (header, key) = token.split_at_checked(HEADER).ok_or_else(malformed)?;
    let [VERSION, len @ ..] = header else { return Err(malformed()) };
    let prefix_len = u32::from_be_bytes(len.try_into().map_err(|_| malformed())?) as usize;
    let key = std::str::from_utf8(key).map_err(|_| malformed())?;
    let of = key.get(..prefix_len).filter(|_| !key.is_empty()).ok_or_else(malformed)?;
    if of != prefix {
        return Err(Status::invalid_argument(format!(
            "page_token: belongs to a listing with the prefix {of:?}, not {prefix:?}; use the same prefix or no token"
        )));
    }
    Ok(key.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_encoded_comes_back(prefix in ".{0,8}", rest in ".{1,8}") {
            let key = format!("{prefix}{rest}");
            prop_assert_eq!(decode(&encode(&prefix, key.as_bytes()), &prefix).unwrap(), key);
        }

        #[test]
        fn any_bytes_are_refused_or_a_key_of_the_prefix(token: Vec<u8>, prefix in "[ab]{0,2}") {
            match decode(&token, &prefix) {
                Ok(key) => prop_assert!(!key.is_empty() && key.starts_with(&prefix)),
                Err(status) => prop_assert_eq!(status.code(), tonic::Code::InvalidArgument),
            }
        }
    }

    #[test]
    fn a_token_of_another_prefix_is_refused() {
        let token = encode("ab", b"abc");
        for other in ["a", "abc", "x", ""] {
            assert!(decode(&token, other).unwrap_err().message().contains("belongs to a listing"), "{other}");
        }
    }

    #[test]
    fn malformed_tokens_are_refused() {
        let mut of_later = encode("", b"k");
        of_later[0] = 2;
        let cut = &encode("ab", b"abc")[..6];
        for token in
            [&b"x"[..], &[1, 0, 0, 0, 0], &[1, 0, 0, 0, 0, 0xff], &[1, 0xff, 0xff, 0xff, 0xff, b'k'], cut, &of_later]
        {
            assert!(decode(token, "").unwrap_err().message().contains("malformed"), "{token:?}");
        }
    }
}
