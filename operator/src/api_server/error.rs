//! Errors of the API server, in words for conditions, events and logs.
//!
//! `kube::Error` prints a refusal with the Rust `Debug` form of the whole answer. Knows nothing of the requests.

use std::{error::Error, fmt};

/// A request to the API server failed.
#[derive(Debug)]
pub struct ApiError(Box<kube::Error>);

impl ApiError {
    /// The error itself.
    pub fn inner(&self) -> &kube::Error {
        &self.0
    }
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        Self(Box::new(error))
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            kube::Error::Api(status) => match (&*status.message, &*status.reason) {
                ("", "") => write!(out, "the API server answered {}", status.code),
                ("", reason) => out.write_str(reason),
                (message, _) => out.write_str(message),
            },
            kube::Error::Service(error) => write!(out, "no answer from the API server: {}", chain(&**error)),
            error => out.write_str(&chain(error)),
        }
    }
}

// The causes are part of the text. A `source` would print them a second time.
impl Error for ApiError {}

/// An error with its causes, except for those that its own text repeats.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn api_error_is_the_servers_own_words() {
        let refusal = Status::failure("Service \"demo\" is invalid: spec.ports[1].name: Duplicate value", "Invalid");
        let error = ApiError::from(kube::Error::Api(refusal.with_code(422).boxed()));
        assert_eq!(error.to_string(), "Service \"demo\" is invalid: spec.ports[1].name: Duplicate value");
        let bare = ApiError::from(kube::Error::Api(Status::failure("", "").with_code(502).boxed()));
        assert_eq!(bare.to_string(), "the API server answered 502");
    }

    #[test]
    fn api_error_names_the_cause_once() {
        let refused = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "connection refused");
        let error = ApiError::from(kube::Error::Service(refused.into()));
        assert_eq!(error.to_string(), "no answer from the API server: connection refused");
        assert!(error.source().is_none());
    }
}
