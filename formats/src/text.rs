//! Serde for types that are written as text.

use std::{fmt, str::FromStr};

use serde::de;

/// Reads a string through [`FromStr`], and a bare number where the type allows one.
pub(crate) struct TextVisitor<T> {
    form: &'static str,
    number: fn(u64) -> Option<T>,
}

impl<T> TextVisitor<T> {
    /// `form` says what to write; `number` reads a number that has no unit.
    pub(crate) fn new(form: &'static str, number: fn(u64) -> Option<T>) -> Self {
        Self { form, number }
    }
}

impl<T: FromStr<Err: fmt::Display>> de::Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.form)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        (self.number)(number).ok_or_else(|| E::custom(format!("{number} lacks a unit: {}", self.form)))
    }
}
