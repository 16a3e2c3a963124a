//! The token with which a client continues a listing that `limit` ended. It is opaque to the client, and valid only for
//! the same prefix.

use tonic::Status;

/// The version of the layout, in the first byte.
const VERSION: u8 = 1;
/// Bytes before the key: the version, and the length of the prefix (big endian). The key begins with the prefix, so the
/// token does not repeat it.
const HEADER: usize = 5;

/// The token for the entries after `last_key` in a listing of `prefix`.
pub(super) fn encode(prefix: &str, last_key: &[u8]) -> Vec<u8> {
    let prefix_len = u32::try_from(prefix.len()).expect("a prefix is within maxKeyBytes");
    let mut token = Vec::with_capacity(HEADER + last_key.len());
    token.push(VERSION);
    token.extend_from_slice(&prefix_len.to_be_bytes());
    token.extend_from_slice(last_key);
    token
}

/// The last key of the earlier listing.
pub(super) fn decode(token: &[u8], prefix: &str) -> Result<String, Status> {
    let malformed =
        || Status::invalid_argument("page_token: malformed; give the next_page_token of an earlier listing unchanged");
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
        fn page_token_round_trip(prefix in ".{0,8}", rest in ".{1,8}") {
            let key = format!("{prefix}{rest}");
            prop_assert_eq!(decode(&encode(&prefix, key.as_bytes()), &prefix).unwrap(), key);
        }

        #[test]
        fn page_token_of_any_bytes_is_refused_or_valid(token: Vec<u8>, prefix in "[ab]{0,2}") {
            match decode(&token, &prefix) {
                Ok(key) => prop_assert!(!key.is_empty() && key.starts_with(&prefix)),
                Err(status) => prop_assert_eq!(status.code(), tonic::Code::InvalidArgument),
            }
        }
    }

    #[test]
    fn page_token_of_another_prefix_is_refused() {
        let token = encode("ab", b"abc");
        for other in ["a", "abc", "x", ""] {
            assert!(decode(&token, other).unwrap_err().message().contains("belongs to a listing"), "{other}");
        }
    }

    #[test]
    fn page_token_malformed_is_refused() {
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
