//! Explains the refusal of a message that is too large to be decoded: names the fields and their limits, as for a
//! message that was decoded. The decoder alone would only report that the message is too large.

use tonic::body::Body;
use tonic::codegen::http::Response;
use tonic::{Code, Status};

use crate::config::Limits;

/// The limits that an explanation names.
#[derive(Clone, Copy)]
pub(super) struct Oversize {
    pub(super) limits: Limits,
    /// The largest message that is decoded.
    pub(super) max_message: usize,
}

/// The fields of a method's message that have a limit.
#[derive(Clone, Copy)]
pub(super) enum Fields {
    Key,
    KeyAndValue,
    Prefix,
}

impl Fields {
    pub(super) fn of(path: &str) -> Option<Self> {
        match path.strip_prefix("/kvasir.v1.Kv/")? {
            "Put" => Some(Self::KeyAndValue),
            "Get" | "Exists" | "Delete" | "Touch" => Some(Self::Key),
            "List" | "Watch" => Some(Self::Prefix),
            _ => None,
        }
    }
}

impl Oversize {
    /// The answer, or an explanation if the decoder refused the message.
    pub(super) fn explain(self, fields: Option<Fields>, answer: Response<Body>) -> Response<Body> {
        // No method answers OUT_OF_RANGE itself: the code is the decoder's.
        let refused = Status::from_header_map(answer.headers()).is_some_and(|s| s.code() == Code::OutOfRange);
        match fields {
            Some(fields) if refused => Status::invalid_argument(self.text(fields)).into_http(),
            _ => answer,
        }
    }

    fn text(self, fields: Fields) -> String {
        let Self { limits: Limits { max_key_bytes, max_value_bytes, .. }, max_message } = self;
        match fields {
            Fields::Key => format!("key: more than {max_message} bytes, at most {max_key_bytes} (maxKeyBytes)"),
            Fields::Prefix => format!("prefix: more than {max_message} bytes, at most {max_key_bytes} (maxKeyBytes)"),
            Fields::KeyAndValue => format!(
                "key and value: more than {max_message} bytes together, at most {max_key_bytes} (maxKeyBytes) and \
                 {max_value_bytes} (maxValueBytes)"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Every method with one key or prefix has the explanation; the decoder's own code is that of no method.
    #[test]
    fn oversized_message_is_explained_by_its_field() {
        let limits = Limits { max_key_bytes: 8, max_value_bytes: 16, max_ttl: Duration::from_secs(1) };
        let oversize = Oversize { limits, max_message: 64 };
        let answer = |method: &str| {
            let refused = Status::out_of_range("decoded message length too large").into_http();
            let answer = oversize.explain(Fields::of(&format!("/kvasir.v1.Kv/{method}")), refused);
            Status::from_header_map(answer.headers()).unwrap()
        };
        for (method, field) in [
            ("Put", "key and value: "),
            ("Get", "key: "),
            ("Exists", "key: "),
            ("Delete", "key: "),
            ("Touch", "key: "),
            ("List", "prefix: "),
            ("Watch", "prefix: "),
        ] {
            let status = answer(method);
            assert_eq!(status.code(), Code::InvalidArgument, "{method}");
            assert!(status.message().starts_with(field), "{method}: {}", status.message());
        }
        assert_eq!(answer("Nothing").code(), Code::OutOfRange);
    }
}
