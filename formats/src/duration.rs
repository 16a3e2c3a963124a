//! Durations: whole numbers with a unit, one after another, such as `500ms` or `1m30s`.

use std::{fmt, str::FromStr, time::Duration};

/// What to write.
pub const FORM: &str = "write a whole number and a unit (ms, s, m, h), such as 500ms, 1s or 1m30s";

/// A text that is not a duration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidDuration(String);

impl fmt::Display for InvalidDuration {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?} is not a duration: {FORM}", self.0)
    }
}

impl std::error::Error for InvalidDuration {}

/// Reads a duration of at most `u64::MAX` milliseconds.
///
/// # Errors
///
/// If the text is not a chain of whole numbers with the units `ms`, `s`, `m` and `h`, or the sum is too large.
pub fn parse(text: &str) -> Result<Duration, InvalidDuration> {
    let invalid = || InvalidDuration(text.to_owned());
    if text.is_empty() {
        return Err(invalid());
    }
    let mut total_ms = 0u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let letters = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, tail) = tail.split_at(letters);
        let unit_ms: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(invalid()),
        };
        let number: u64 = number.parse().map_err(|_| invalid())?;
        total_ms = number.checked_mul(unit_ms).and_then(|ms| total_ms.checked_add(ms)).ok_or_else(invalid)?;
        rest = tail;
    }
    Ok(Duration::from_millis(total_ms))
}

/// Writes whole seconds as `60s`, and other durations in milliseconds.
///
/// The operator writes the configuration of the members in this form. Another form of an equal value would change the
/// hash of the configuration, and so restart every member when the operator is updated.
pub fn in_seconds(duration: Duration) -> String {
    if duration.subsec_millis() == 0 {
        format!("{}s", duration.as_secs())
    } else {
        format!("{}ms", duration.as_millis())
    }
}

/// A duration in settings. It is written in the largest unit in which it is a whole number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DurationText(pub Duration);

impl FromStr for DurationText {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map(Self)
    }
}

impl fmt::Display for DurationText {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        match ms {
            0 => formatter.write_str("0s"),
            ms if ms % 3_600_000 == 0 => write!(formatter, "{}h", ms / 3_600_000),
            ms if ms % 60_000 == 0 => write!(formatter, "{}m", ms / 60_000),
            ms if ms % 1_000 == 0 => write!(formatter, "{}s", ms / 1_000),
            ms => write!(formatter, "{ms}ms"),
        }
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for DurationText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(crate::text::TextVisitor::new(FORM, |_| None))
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for DurationText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        for (text, millis) in [
            ("500ms", 500),
            ("3s", 3_000),
            ("1m30s", 90_000),
            ("2h", 7_200_000),
            ("0s", 0),
            ("1s500ms", 1_500),
            ("1s1m", 61_000),
            ("18446744073709551615ms", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "1",
            "s",
            "1d",
            "-1s",
            "1.5s",
            "1 s",
            "1s ",
            "1ns",
            "3s3",
            "1ü",
            "99999999999999999999s",
            "18446744073709551615h",
            "18446744073709551615ms1ms",
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert_eq!(message, format!("{text:?} is not a duration: {FORM}"));
        }
    }

    #[test]
    fn settings_have_the_largest_whole_unit() {
        for text in ["0s", "1ms", "1500ms", "1s", "90s", "1m", "90m", "2h"] {
            assert_eq!(text.parse::<DurationText>().unwrap().to_string(), text);
        }
        assert_eq!("60m".parse::<DurationText>().unwrap().to_string(), "1h");
    }

    #[test]
    fn the_operator_writes_seconds() {
        for (text, written) in [("1000ms", "1s"), ("1s500ms", "1500ms"), ("1m", "60s"), ("0ms", "0s")] {
            assert_eq!(in_seconds(parse(text).unwrap()), written);
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_number_needs_a_unit() {
        let read = serde_yaml::from_str::<DurationText>;
        assert_eq!(read("1m30s").unwrap(), DurationText(Duration::from_secs(90)));
        assert!(read("90").unwrap_err().to_string().contains("90 lacks a unit: write a whole number"));
        assert!(read("[1s]").unwrap_err().to_string().contains(FORM));
    }
}
