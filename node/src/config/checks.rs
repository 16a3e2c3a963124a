//! The checks that several settings share.

use std::{ops::RangeInclusive, time::Duration};

use super::{
    error::{ConfigError, invalid},
    text::DurationText,
};

pub(super) fn within(
    field: &'static str,
    given: Option<DurationText>,
    default: Duration,
    range: &RangeInclusive<Duration>,
) -> Result<Duration, ConfigError> {
    let value = given.map_or(default, |DurationText(duration)| duration);
    if range.contains(&value) {
        return Ok(value);
    }
    Err(invalid(field, format!("{value:?} is out of range: give between {:?} and {:?}", range.start(), range.end())))
}

pub(super) fn size_within(
    field: &'static str,
    given: Option<usize>,
    default: usize,
    range: &RangeInclusive<usize>,
) -> Result<usize, ConfigError> {
    let value = given.unwrap_or(default);
    if range.contains(&value) {
        return Ok(value);
    }
    Err(invalid(field, format!("{value} is out of range: give between {} and {}", range.start(), range.end())))
}
