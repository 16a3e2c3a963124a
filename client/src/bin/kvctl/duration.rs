//! Durations as they are written on a command line and in settings: `500ms`, `3s`, `1m30s`.

use std::time::Duration;

/// Reads whole numbers with units, largest or smallest first as one likes.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    const WANTED: &str = "write a whole number and a unit (ms, s, m, h), as in 500ms or 1m30s";
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, after) = rest.split_at(digits);
        let letters = after.len() - after.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let (unit, after) = after.split_at(letters);
        let unit_ms: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(WANTED.to_owned()),
        };
        if number.is_empty() {
            return Err(WANTED.to_owned());
        }
        total = number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(unit_ms))
            .and_then(|ms| total.checked_add(Duration::from_millis(ms)))
            .ok_or("too long")?;
        rest = after;
    }
    if text.is_empty() { Err(WANTED.to_owned()) } else { Ok(total) }
}

/// For people: the two largest units that are not zero, milliseconds below ten seconds.
pub(crate) fn show(duration: Duration) -> String {
    let (ms, s) = (duration.as_millis(), duration.as_secs());
    match s {
        0 => format!("{ms}ms"),
        1..10 => format!("{}.{}s", s, duration.subsec_millis() / 100),
        10..60 => format!("{s}s"),
        60..3600 => format!("{}m{}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{}h", s / 86_400, s % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::{parse, show};
    use std::time::Duration;

    #[test]
    fn reads_what_is_written() {
        for (text, ms) in [("500ms", 500), ("3s", 3000), ("1m30s", 90_000), ("2h", 7_200_000), ("0s", 0)] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn refuses_the_rest() {
        for text in ["", "3", "s", "3 s", "-3s", "1.5s", "3d", "3s3", "99999999999999999999s", "18446744073709551615h"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shows_two_units() {
        for (ms, text) in
            [(0, "0ms"), (999, "999ms"), (3250, "3.2s"), (59_999, "59s"), (90_000, "1m30s"), (90_000_000, "1d1h")]
        {
            assert_eq!(show(Duration::from_millis(ms)), text);
        }
    }
}
