//! Durations as text: whole numbers with a unit, such as `500ms` or `1m30s`.
//!
//! Knows nothing of the fields that are durations, or of their ranges.

use std::time::Duration;

/// The text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidDuration(String);

impl std::fmt::Display for InvalidDuration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} is not a duration: write whole numbers with ms, s, m or h, such as 500ms or 1m30s", self.0)
    }
}

impl std::error::Error for InvalidDuration {}

/// Parses a duration.
///
/// # Errors
///
/// If the text is not a sequence of whole numbers with the units `ms`, `s`, `m` and `h`, or the duration overflows.
pub fn parse(text: &str) -> Result<Duration, InvalidDuration> {
    let invalid = || InvalidDuration(text.to_owned());
    let mut total_ms: u64 = 0;
    let mut rest = text;
    if rest.is_empty() {
        return Err(invalid());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
        let number: u64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let millis = match &rest[..unit] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(invalid()),
        };
        rest = &rest[unit..];
        let part = number.checked_mul(millis).ok_or_else(invalid)?;
        total_ms = total_ms.checked_add(part).ok_or_else(invalid)?;
    }
    Ok(Duration::from_millis(total_ms))
}

/// Formats a duration as [`parse`] reads it: whole seconds as `2s`, others in milliseconds.
pub fn format(duration: Duration) -> String {
    if duration.subsec_millis() == 0 {
        format!("{}s", duration.as_secs())
    } else {
        format!("{}ms", duration.as_millis())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_parses_all_units() {
        for (text, millis) in
            [("500ms", 500), ("1s", 1_000), ("1m30s", 90_000), ("2h", 7_200_000), ("0s", 0), ("1s500ms", 1_500)]
        {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn duration_refuses_other_text() {
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
            "99999999999999999999s",
            "9999999999999999h",
            "18446744073709551615ms1ms",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn duration_has_one_form() {
        assert_eq!(format(parse("1000ms").unwrap()), "1s");
        assert_eq!(format(parse("1s500ms").unwrap()), "1500ms");
        assert_eq!(format(parse("1m").unwrap()), "60s");
    }
}
