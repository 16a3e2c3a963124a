//! How long a call may wait for other nodes: the client's deadline, within limits.

use std::time::Duration;

use tokio::time::Instant;
use tonic::metadata::MetadataMap;

/// How long a call without a deadline waits.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(10);
/// The longest wait of any call.
pub const MAX_WAIT: Duration = Duration::from_mins(1);
/// A call is answered this long before its deadline, so that the answer reaches the client; at most a quarter of the
/// client's timeout.
const MARGIN: Duration = Duration::from_millis(100);
/// How many digits gRPC allows in a timeout.
const MAX_DIGITS: usize = 8;

/// When a call must be answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    end: Option<Instant>,
}

impl Deadline {
    /// No deadline: each wait has its own limit.
    pub(super) const NONE: Self = Self { end: None };

    /// The deadline in a call's metadata.
    pub(super) fn of(metadata: &MetadataMap) -> Self {
        Self::of_at(metadata, Instant::now())
    }

    fn of_at(metadata: &MetadataMap, now: Instant) -> Self {
        // gRPC's own layers ignore a timeout that does not parse, too.
        let given = metadata.get("grpc-timeout").and_then(|text| text.to_str().ok()).and_then(parse);
        Self { end: given.map(|given| now + given.saturating_sub(MARGIN.min(given / 4)).min(MAX_WAIT)) }
    }

    /// When a wait that begins now ends, if the client asks for the timeout `asked`.
    pub(super) fn wait(self, asked: Option<Duration>) -> Instant {
        self.wait_at(asked, Instant::now())
    }

    fn wait_at(self, asked: Option<Duration>, now: Instant) -> Instant {
        match (asked, self.end) {
            (Some(asked), Some(end)) => end.min(now + asked.min(MAX_WAIT)),
            (None, Some(end)) => end,
            (asked, None) => now + asked.unwrap_or(DEFAULT_WAIT).min(MAX_WAIT),
        }
    }
}

/// Parses `5S`, `100m`, and so on.
pub(super) fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > MAX_DIGITS || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_hours(number),
        "M" => Duration::from_mins(number),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadline_parses_grpc_timeouts() {
        assert_eq!(parse("5S"), Some(Duration::from_secs(5)));
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse("99999999H"), Some(Duration::from_hours(99_999_999)));
        for wrong in ["", "S", "5", "-5S", "5.5S", "999999999S", "5s", "é", "5é"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn deadline_leaves_a_margin_and_is_limited() {
        let now = Instant::now();
        let given = |timeout: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", timeout.parse().unwrap());
            Deadline::of_at(&metadata, now)
        };
        let left = |deadline: Deadline, asked| deadline.wait_at(asked, now) - now;
        assert_eq!(left(given("1S"), None), Duration::from_millis(900));
        assert_eq!(left(given("100m"), None), Duration::from_millis(75));
        assert_eq!(left(given("1S"), Some(Duration::from_millis(10))), Duration::from_millis(10));
        assert_eq!(left(given("1S"), Some(MAX_WAIT)), Duration::from_millis(900));
        assert_eq!(left(given("9H"), Some(MAX_WAIT * 2)), MAX_WAIT);
        assert_eq!(left(Deadline::NONE, None), DEFAULT_WAIT);
        assert_eq!(left(Deadline::NONE, Some(MAX_WAIT * 2)), MAX_WAIT);
        assert_eq!(left(given("soon"), None), DEFAULT_WAIT);
    }
}
