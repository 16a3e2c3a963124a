//! Reads the address of a node as users write it. Knows nothing of connections.

use crate::Error;
use kvasir_formats::defaults;
use kvasir_formats::host_port::{self, Wrong};
use tonic::codegen::http::Uri;

/// The port of the client API.
pub const DEFAULT_PORT: u16 = defaults::CLIENT_PORT;

/// Where a sidecar serves the application in its pod.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:7070";

const NOT_HOST_PORT: &str = "it is not of the form host:port";

/// Completes `host` or `host:port`, with or without `http://` or `https://`, to a URI with scheme and port.
pub(crate) fn parse(address: &str) -> Result<Uri, Error> {
    let refuse = |reason: &str| Error::Address { address: address.to_owned(), reason: reason.to_owned() };
    let trimmed = address.trim();
    let (scheme, rest) = match trimmed.split_once("://") {
        None => ("http", trimmed),
        Some((scheme @ ("http" | "https"), rest)) => (scheme, rest),
        Some(_) => return Err(refuse("only http://, https:// or no scheme is understood")),
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#', '@']) {
        return Err(refuse("it must be host:port, with no path or user"));
    }
    let (host, port) = host_port::split(authority).map_err(|wrong| {
        refuse(match wrong {
            Wrong::NoHost => "it names no host; write host:port",
            Wrong::NoPort => "the port is missing after ':'",
            Wrong::PortZero => "port 0 cannot be reached",
            Wrong::NoBrackets => "an IPv6 address needs brackets: [::1]:7070",
            Wrong::Form => NOT_HOST_PORT,
        })
    })?;
    let port = port.unwrap_or(DEFAULT_PORT);
    format!("{scheme}://{host}:{port}").parse().map_err(|_| refuse(NOT_HOST_PORT))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn address_is_completed() {
        for (given, meant) in [
            ("127.0.0.1:7070", "http://127.0.0.1:7070/"),
            ("http://127.0.0.1:7070", "http://127.0.0.1:7070/"),
            ("http://demo.apps.svc:9000/", "http://demo.apps.svc:9000/"),
            ("demo", "http://demo:7070/"),
            ("[::1]:7071", "http://[::1]:7071/"),
            ("https://demo:7071", "https://demo:7071/"),
            ("https://demo", "https://demo:7070/"),
            ("[::1]", "http://[::1]:7070/"),
            (" demo:1 ", "http://demo:1/"),
        ] {
            assert_eq!(parse(given).expect(given).to_string(), meant, "for {given}");
        }
    }

    #[test]
    fn address_is_refused_with_the_reason() {
        for (given, why) in [
            ("", "names no host"),
            ("http://", "names no host"),
            ("tcp://demo:7070", "scheme"),
            ("demo:70700", "host:port"),
            ("demo:", "port is missing"),
            ("demo:0", "port 0"),
            ("demo/path", "no path"),
            ("user@demo", "user"),
            ("::1", "brackets"),
            ("two words", "host:port"),
        ] {
            let message = parse(given).expect_err(given).to_string();
            assert!(message.contains(why), "{given:?}: {message}");
        }
    }
}
