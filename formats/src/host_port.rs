//! A host and a port: `name:7071`, `10.0.0.1:7071` or `[fd00::1]:7071`.

use std::{fmt, net::Ipv6Addr, str::FromStr};

/// What to write.
const FORM: &str = "write name:7071, 10.0.0.1:7071 or [fd00::1]:7071";

/// What is wrong with a text that should be a host and perhaps a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// The host is missing.
    NoHost,
    /// The port is missing after the colon.
    NoPort,
    /// Port 0 cannot be reached.
    PortZero,
    /// An IPv6 address without brackets looks like a host with a port.
    NoBrackets,
    /// The text has another form.
    Form,
}

/// Splits `host`, `host:port`, `[address]` or `[address]:port`. The host keeps its brackets.
///
/// # Errors
///
/// If the text has none of these forms.
pub fn split(text: &str) -> Result<(&str, Option<u16>), Wrong> {
    let (host, rest) = match text.strip_prefix('[').and_then(|inner| inner.find(']')) {
        Some(end) => text.split_at(end + 2),
        None if text.matches(':').count() > 1 => return Err(Wrong::NoBrackets),
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let name = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if name.unwrap_or(host).is_empty() {
        return Err(Wrong::NoHost);
    }
    if name.is_none() && host.contains(['[', ']', '/', ' ']) {
        return Err(Wrong::Form);
    }
    let port = match rest.strip_prefix(':') {
        None if rest.is_empty() => return Ok((host, None)),
        None => return Err(Wrong::Form),
        Some("") => return Err(Wrong::NoPort),
        Some(port) => port.parse().map_err(|_| Wrong::Form)?,
    };
    if port == 0 { Err(Wrong::PortZero) } else { Ok((host, Some(port))) }
}

/// A text that is not a host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidHostPort(String);

impl fmt::Display for InvalidHostPort {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?} is not a host and a port: {FORM}", self.0)
    }
}

impl std::error::Error for InvalidHostPort {}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// A name or an IP address, without brackets.
    pub host: String,
    /// The port, never 0.
    pub port: u16,
}

impl FromStr for HostPort {
    type Err = InvalidHostPort;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidHostPort(text.to_owned());
        let Ok((host, Some(port))) = split(text.trim()) else { return Err(invalid()) };
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(address) => address.parse::<Ipv6Addr>().map_err(|_| invalid())?.to_string(),
            None => host.to_owned(),
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(formatter, "[{}]:{}", self.host, self.port)
        } else {
            write!(formatter, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for HostPort {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for HostPort {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_may_have_a_port() {
        for (text, host, port) in [
            ("demo", "demo", None),
            ("demo:7070", "demo", Some(7070)),
            ("10.0.0.1:65535", "10.0.0.1", Some(65_535)),
            ("[fd00::1]", "[fd00::1]", None),
            ("[fd00::1]:7071", "[fd00::1]", Some(7071)),
        ] {
            assert_eq!(split(text), Ok((host, port)), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, wrong) in [
            ("", Wrong::NoHost),
            (":7070", Wrong::NoHost),
            ("[]:7070", Wrong::NoHost),
            ("demo:", Wrong::NoPort),
            ("[fd00::1]:", Wrong::NoPort),
            ("demo:0", Wrong::PortZero),
            ("fd00::1", Wrong::NoBrackets),
            ("fd00::1:7071", Wrong::NoBrackets),
            ("demo:70700", Wrong::Form),
            ("demo:http", Wrong::Form),
            ("two words", Wrong::Form),
            ("a/b:1", Wrong::Form),
            ("[fd00", Wrong::Form),
            ("[fd00]1", Wrong::Form),
            ("a]:1", Wrong::Form),
        ] {
            assert_eq!(split(text), Err(wrong), "{text}");
        }
    }

    #[test]
    fn both_are_needed_in_settings() {
        for (text, written) in
            [("name:7071", "name:7071"), (" 10.0.0.1:1 ", "10.0.0.1:1"), ("[fd00:0::1]:7071", "[fd00::1]:7071")]
        {
            assert_eq!(text.parse::<HostPort>().unwrap().to_string(), written);
        }
        for text in ["", "name", "name:0", "[name]:1", "[10.0.0.1]:1", "fd00::1:7071", "[fd00::1]"] {
            let message = text.parse::<HostPort>().unwrap_err().to_string();
            assert_eq!(message, format!("{text:?} is not a host and a port: {FORM}"));
        }
    }
}
