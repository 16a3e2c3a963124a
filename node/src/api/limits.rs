//! The limits on a request's fields. Each function takes a field and returns what the engine takes, or an
//! `INVALID_ARGUMENT` that names the field and the limit. Knows nothing of the data.

use std::time::Duration;

use kvasir_proto::v1::{self as wire, AckLevel, ack::Asked};
use tonic::Status;

use super::deadline::MAX_WAIT;
use crate::config::Limits;
use crate::engine::Need;

/// Nanoseconds in a second.
const NANOS: i32 = 1_000_000_000;

/// Checks a key's length.
pub(super) fn key(key: &str, limits: &Limits) -> Result<(), Status> {
    match key.len() {
        0 => Err(Status::invalid_argument(format!(
            "key: empty, must be 1 to {} bytes (maxKeyBytes)",
            limits.max_key_bytes
        ))),
        len => at_most("key", len, limits.max_key_bytes, "maxKeyBytes"),
    }
}

/// Checks that a prefix is no longer than a key may be.
pub(super) fn prefix(prefix: &str, limits: &Limits) -> Result<(), Status> {
    at_most("prefix", prefix.len(), limits.max_key_bytes, "maxKeyBytes")
}

/// Checks a value's length.
pub(super) fn value(value: &[u8], limits: &Limits) -> Result<(), Status> {
    at_most("value", value.len(), limits.max_value_bytes, "maxValueBytes")
}

fn at_most(field: &str, len: usize, limit: usize, setting: &str) -> Result<(), Status> {
    if len > limit {
        return Err(Status::invalid_argument(format!("{field}: {len} bytes, at most {limit} ({setting})")));
    }
    Ok(())
}

/// Checks how many keys a batch has.
pub(super) fn batch(field: &str, len: usize, limit: usize) -> Result<(), Status> {
    match len {
        0 => Err(Status::invalid_argument(format!("{field}: empty, must be 1 to {limit}"))),
        len if len > limit => Err(Status::invalid_argument(format!("{field}: {len}, at most {limit}"))),
        _ => Ok(()),
    }
}

/// The largest `ack.count`.
const MAX_ACK_COUNT: u32 = 1024;

/// Which nodes a write waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ack {
    pub(super) need: Need,
    /// `None`: as long as the call may last.
    pub(super) timeout: Option<Duration>,
}

/// Which nodes a write waits for; `None` if it need not wait.
pub(super) fn ack(given: Option<wire::Ack>) -> Result<Option<Ack>, Status> {
    let Some(wire::Ack { asked, timeout }) = given else { return Ok(None) };
    let timeout = timeout.map(|timeout| duration("ack.timeout", timeout, MAX_WAIT, "")).transpose()?;
    let need = match asked {
        None | Some(Asked::Count(0)) => return Ok(None),
        Some(Asked::Count(count)) if count > MAX_ACK_COUNT => {
            return Err(Status::invalid_argument(format!("ack.count: {count}, at most {MAX_ACK_COUNT}")));
        }
        Some(Asked::Count(count)) => Need::Count(count as usize),
        Some(Asked::Level(level)) => match AckLevel::try_from(level) {
            Ok(AckLevel::Local) => return Ok(None),
            Ok(AckLevel::Majority) => Need::Majority,
            Ok(AckLevel::All) => Need::All,
            Err(_) => {
                return Err(Status::invalid_argument(format!(
                    "ack.level: {level} is unknown to this node's release: give LOCAL, MAJORITY or ALL"
                )));
            }
        },
    };
    Ok(Some(Ack { need, timeout }))
}

/// A TTL that is above zero and within the limit, rounded up to whole milliseconds.
pub(super) fn ttl(ttl: prost_types::Duration, limits: &Limits) -> Result<Duration, Status> {
    duration("ttl", ttl, limits.max_ttl, " (maxTtl)")
}

/// A duration that is above zero and within the limit, rounded up to whole milliseconds.
fn duration(field: &str, given: prost_types::Duration, limit: Duration, setting: &str) -> Result<Duration, Status> {
    let prost_types::Duration { seconds, nanos } = given;
    let signs_agree = seconds == 0 || nanos == 0 || (seconds < 0) == (nanos < 0);
    if !signs_agree || nanos <= -NANOS || nanos >= NANOS {
        return Err(Status::invalid_argument(format!(
            "{field}: not a valid duration: {seconds} seconds and {nanos} nanoseconds; \
             give nanoseconds between -999999999 and 999999999 with the sign of the seconds"
        )));
    }
    if seconds <= 0 && nanos <= 0 {
        return Err(Status::invalid_argument(format!("{field}: must be above zero, was {}", Signed(seconds, nanos))));
    }
    // Both numbers are positive: the casts keep the value.
    let exact = Duration::new(seconds.unsigned_abs(), nanos.unsigned_abs());
    if exact > limit {
        return Err(Status::invalid_argument(format!(
            "{field}: {}, at most {}{setting}",
            Signed(seconds, nanos),
            Limit(limit)
        )));
    }
    let part = exact.subsec_nanos() % 1_000_000;
    let up = if part == 0 { 0 } else { 1_000_000 - part };
    Ok(exact + Duration::from_nanos(up.into()))
}

/// The remaining TTL, for an answer; never zero.
pub(super) fn remaining(expires_ms: Option<u64>, now_ms: u64) -> Option<prost_types::Duration> {
    // The entry was live at a clock reading after `now_ms`: zero only if the clock was set back in between.
    let left = expires_ms?.saturating_sub(now_ms).max(1);
    Some(prost_types::Duration {
        seconds: i64::try_from(left / 1000).expect("an u64 of milliseconds fits an i64 of seconds"),
        nanos: i32::try_from(left % 1000 * 1_000_000).expect("less than a second"),
    })
}

/// Displays seconds and nanoseconds of the same sign.
struct Signed(i64, i32);

impl std::fmt::Display for Signed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = if self.0 < 0 || self.1 < 0 { "-" } else { "" };
        match self.1.unsigned_abs() {
            0 => write!(f, "{sign}{}s", self.0.unsigned_abs()),
            nanos => {
                let part = format!("{nanos:09}");
                write!(f, "{sign}{}.{}s", self.0.unsigned_abs(), part.trim_end_matches('0'))
            }
        }
    }
}

/// Displays a limit as a person would write it in the configuration.
struct Limit(Duration);

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.0.as_secs(), self.0.subsec_millis()) {
            (secs, 0) if secs > 0 && secs % 3600 == 0 => write!(f, "{}h", secs / 3600),
            (secs, 0) => write!(f, "{secs}s"),
            (..) => write!(f, "{}ms", self.0.as_millis()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits() -> Limits {
        Limits { max_key_bytes: 1024, max_value_bytes: 10, max_ttl: Duration::from_hours(87_600) }
    }

    fn of(seconds: i64, nanos: i32) -> Result<Duration, String> {
        ttl(prost_types::Duration { seconds, nanos }, &limits()).map_err(|status| {
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            status.message().to_owned()
        })
    }

    #[test]
    fn limits_of_keys_and_values_name_the_field() {
        let limits = limits();
        assert!(key("k", &limits).is_ok() && key(&"k".repeat(1024), &limits).is_ok());
        assert_eq!(key("", &limits).unwrap_err().message(), "key: empty, must be 1 to 1024 bytes (maxKeyBytes)");
        assert_eq!(
            key(&"k".repeat(2000), &limits).unwrap_err().message(),
            "key: 2000 bytes, at most 1024 (maxKeyBytes)"
        );
        assert!(prefix("", &limits).is_ok());
        assert_eq!(
            prefix(&"k".repeat(1025), &limits).unwrap_err().message(),
            "prefix: 1025 bytes, at most 1024 (maxKeyBytes)"
        );
        assert!(value(&[0; 10], &limits).is_ok());
        assert_eq!(value(&[0; 11], &limits).unwrap_err().message(), "value: 11 bytes, at most 10 (maxValueBytes)");
    }

    #[test]
    fn limits_of_an_ack() {
        let of = |asked, timeout: Option<(i64, i32)>| {
            let timeout = timeout.map(|(seconds, nanos)| prost_types::Duration { seconds, nanos });
            ack(Some(wire::Ack { asked, timeout })).map_err(|status| status.message().to_owned())
        };
        assert_eq!(ack(None).unwrap(), None);
        assert_eq!(of(None, None), Ok(None));
        assert_eq!(of(Some(Asked::Level(0)), None), Ok(None));
        assert_eq!(of(Some(Asked::Count(0)), None), Ok(None));
        let three = Ack { need: Need::Count(3), timeout: Some(Duration::from_secs(2)) };
        assert_eq!(of(Some(Asked::Count(3)), Some((2, 0))), Ok(Some(three)));
        assert_eq!(of(Some(Asked::Level(1)), None), Ok(Some(Ack { need: Need::Majority, timeout: None })));
        assert_eq!(of(Some(Asked::Level(2)), None), Ok(Some(Ack { need: Need::All, timeout: None })));
        assert!(of(Some(Asked::Level(9)), None).unwrap_err().starts_with("ack.level: 9 is unknown"));
        assert_eq!(of(Some(Asked::Count(1025)), None).unwrap_err(), "ack.count: 1025, at most 1024");
        assert_eq!(of(Some(Asked::Count(1)), Some((61, 0))).unwrap_err(), "ack.timeout: 61s, at most 60s");
        assert_eq!(of(None, Some((0, 0))).unwrap_err(), "ack.timeout: must be above zero, was 0s");
    }

    #[test]
    fn limits_of_a_batch() {
        assert!(batch("keys", 1, 10).is_ok() && batch("keys", 10, 10).is_ok());
        assert_eq!(batch("keys", 0, 10).unwrap_err().message(), "keys: empty, must be 1 to 10");
        assert_eq!(batch("puts", 11, 10).unwrap_err().message(), "puts: 11, at most 10");
    }

    #[test]
    fn limits_of_a_ttl() {
        assert_eq!(of(3, 0), Ok(Duration::from_secs(3)));
        assert_eq!(of(87_600 * 3600, 0), Ok(Duration::from_hours(87_600)));
        assert_eq!(of(0, 0).unwrap_err(), "ttl: must be above zero, was 0s");
        assert_eq!(of(-3, 0).unwrap_err(), "ttl: must be above zero, was -3s");
        assert_eq!(of(0, -1_000_000).unwrap_err(), "ttl: must be above zero, was -0.001s");
        assert_eq!(of(87_600 * 3600, 1).unwrap_err(), "ttl: 315360000.000000001s, at most 87600h (maxTtl)");
        // The message names the limit, also for a TTL beyond the range of a protobuf `Duration`.
        assert_eq!(of(i64::MAX, 0).unwrap_err(), "ttl: 9223372036854775807s, at most 87600h (maxTtl)");
        assert_eq!(of(i64::MIN, 0).unwrap_err(), "ttl: must be above zero, was -9223372036854775808s");
    }

    #[test]
    fn ttl_is_rounded_up_to_milliseconds() {
        assert_eq!(of(0, 1), Ok(Duration::from_millis(1)));
        assert_eq!(of(1, 999_000_001), Ok(Duration::from_secs(2)));
        assert_eq!(of(1, 2_000_000), Ok(Duration::from_millis(1002)));
    }

    #[test]
    fn ttl_with_wrong_signs_is_refused() {
        for (seconds, nanos) in [(1, -1), (-1, 1), (0, NANOS), (0, -NANOS), (1, i32::MIN)] {
            assert!(of(seconds, nanos).unwrap_err().starts_with("ttl: not a valid duration"), "{seconds} {nanos}");
        }
    }

    proptest! {
        #[test]
        fn ttl_is_refused_or_whole_milliseconds(seconds: i64, nanos: i32) {
            if let Ok(ttl) = of(seconds, nanos) {
                prop_assert!(ttl > Duration::ZERO && ttl.subsec_nanos() % 1_000_000 == 0);
            }
        }
    }

    #[test]
    fn remaining_ttl_is_never_zero() {
        let remaining = |end, now| remaining(end, now).map(|d| (d.seconds, d.nanos));
        assert_eq!(remaining(None, 5), None);
        assert_eq!(remaining(Some(3500), 1000), Some((2, 500_000_000)));
        assert_eq!(remaining(Some(1000), 2000), Some((0, 1_000_000)));
    }
}
