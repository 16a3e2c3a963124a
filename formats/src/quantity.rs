//! Amounts such as `256Mi`, as settings of a node and as Kubernetes write them.
//!
//! A node reads whole bytes with a unit. Kubernetes has more forms (`1.5Gi`, `250m`, `1e3`) and rewrites some of them
//! (`0.5` becomes `500m`), so quantities of Kubernetes are compared as numbers.

use std::{fmt, str::FromStr};

/// What to write.
pub const FORM: &str =
    "write a whole number of bytes, with a unit if you like (k, M, G, T or Ki, Mi, Gi, Ti), such as 256Mi or 1000000";

/// The units of a node's settings.
const UNITS: [&str; 9] = ["", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"];

/// A text that is not an amount of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidQuantity(String);

impl fmt::Display for InvalidQuantity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?} is not an amount of memory: {FORM}", self.0)
    }
}

impl std::error::Error for InvalidQuantity {}

/// A number of bytes in settings of a node: `256Mi`, `1G` or `1000000`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantity(pub u64);

impl FromStr for Quantity {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidQuantity(text.to_owned());
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        if number.is_empty() || !UNITS.contains(&unit) {
            return Err(invalid());
        }
        units(text).map(Self).ok_or_else(invalid)
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
        match units.into_iter().find(|(_, bits)| self.0 > 0 && self.0.trailing_zeros() >= *bits) {
            Some((unit, bits)) => write!(formatter, "{}{unit}", self.0 >> bits),
            None => write!(formatter, "{}", self.0),
        }
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Quantity {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(crate::text::TextVisitor::new(FORM, |bytes| Some(Self(bytes))))
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Quantity {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A quantity of Kubernetes in thousandths; `None` if the text is not a quantity, or the number is too large.
pub fn milli(text: &str) -> Option<i128> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (numerator, denominator) = scale(suffix)?;
    let (sign, number) = match number.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: i128 = digits.parse().ok()?;
    let divisor = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?.checked_mul(denominator)?;
    let milli = value.checked_mul(numerator)?.checked_mul(1000)?;
    // Kubernetes rounds up what is finer than a thousandth.
    Some(sign * (milli.checked_add(divisor - 1)? / divisor))
}

/// A quantity of Kubernetes in whole units, rounded up; `None` also if it is negative.
pub fn units(text: &str) -> Option<u64> {
    let milli = u128::try_from(milli(text)?).ok()?;
    u64::try_from(milli.div_ceil(1000)).ok()
}

/// The factor that a suffix stands for, as a fraction.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    let binary = |power: u32| Some((1024_i128.pow(power), 1));
    match suffix {
        "" => Some((1, 1)),
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1_000)),
        "k" => Some((1_000, 1)),
        "M" => Some((1_000_000, 1)),
        "G" => Some((1_000_000_000, 1)),
        "T" => Some((1_000_000_000_000, 1)),
        "P" => Some((1_000_000_000_000_000, 1)),
        "E" => Some((1_000_000_000_000_000_000, 1)),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
            Some(if exponent < 0 { (1, power) } else { (power, 1) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_take_whole_bytes_with_a_unit() {
        for (text, bytes) in [
            ("0", 0),
            ("1000000", 1_000_000),
            ("1k", 1_000),
            ("1Ki", 1 << 10),
            ("256Mi", 256 << 20),
            ("2T", 2_000_000_000_000),
            ("16777215Ti", 16_777_215 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(Quantity(bytes)), "{text}");
        }
        for text in ["", "Mi", "1.5Gi", "1e3", "1m", "1P", "-1", "+1", "1 Mi", "18446744073709551616", "16777216Ti"] {
            let message = text.parse::<Quantity>().unwrap_err().to_string();
            assert_eq!(message, format!("{text:?} is not an amount of memory: {FORM}"));
        }
    }

    #[test]
    fn settings_have_the_largest_whole_unit() {
        for text in ["0", "1000", "1Ki", "1536Mi", "2Gi", "3Ti"] {
            assert_eq!(text.parse::<Quantity>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn kubernetes_has_many_forms_of_a_quantity() {
        for (one, other) in [
            ("0.5", "500m"),
            ("1", "1000m"),
            ("1Gi", "1024Mi"),
            ("1.5Gi", "1536Mi"),
            ("1k", "1000"),
            ("1e3", "1k"),
            ("2E", "2e18"),
            ("+5", "5"),
            (".5", "500m"),
            ("1e-3", "1m"),
        ] {
            assert!(milli(one).is_some(), "{one}");
            assert_eq!(milli(one), milli(other), "{one} {other}");
        }
        assert_ne!(milli("1M"), milli("1Mi"));
        assert_eq!(milli("0.1m"), Some(1));
        assert_eq!(milli("-1"), Some(-1000));
    }

    #[test]
    fn units_are_whole() {
        assert_eq!(units("64Mi"), Some(64 << 20));
        assert_eq!(units("0.5"), Some(1));
        assert_eq!(units("16777215Ti"), Some(16_777_215 << 40));
        assert_eq!(units("-1"), None);
    }

    #[test]
    fn other_texts_are_not_quantities() {
        for text in ["", "Mi", "1Q", "1.2.3", "1 Mi", "--1", "1-", "x", "1e", "99999999999999999999999999999Ei"] {
            assert_eq!(milli(text), None, "{text}");
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_number_is_bytes() {
        assert_eq!(serde_yaml::from_str::<Quantity>("1000").unwrap(), Quantity(1000));
        assert_eq!(serde_yaml::from_str::<Quantity>("1Ki").unwrap(), Quantity(1024));
        assert!(serde_yaml::from_str::<Quantity>("[1]").unwrap_err().to_string().contains(FORM));
    }
}
