//! Kubernetes quantities, such as `250m`, `64Mi` or `1e3`, as numbers.
//!
//! The API server may rewrite a quantity (`0.5` becomes `500m`), so quantities are compared as numbers. Knows nothing of what is
//! measured.

/// A quantity in thousandths; `None` if the text is not a quantity or the number overflows.
pub fn parse_milli(text: &str) -> Option<i128> {
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
    // Like Kubernetes, which rounds up to a thousandth.
    Some(sign * (milli.checked_add(divisor - 1)? / divisor))
}

/// A quantity in whole units, rounded up; `None` if it is negative.
pub fn parse_units(text: &str) -> Option<u64> {
    let milli = u128::try_from(parse_milli(text)?).ok()?;
    u64::try_from(milli.div_ceil(1000)).ok()
}

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
    fn quantity_has_many_forms() {
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
            assert!(parse_milli(one).is_some(), "{one}");
            assert_eq!(parse_milli(one), parse_milli(other), "{one} {other}");
        }
        assert_ne!(parse_milli("1M"), parse_milli("1Mi"));
        assert_eq!(parse_milli("0.1m"), Some(1));
        assert_eq!(parse_milli("-1"), Some(-1000));
    }

    #[test]
    fn quantity_in_units_is_whole() {
        assert_eq!(parse_units("64Mi"), Some(64 << 20));
        assert_eq!(parse_units("0.5"), Some(1));
        assert_eq!(parse_units("16777215Ti"), Some(16_777_215 << 40));
        assert_eq!(parse_units("-1"), None);
    }

    #[test]
    fn quantity_refuses_other_text() {
        for text in ["", "Mi", "1Q", "1.2.3", "1 Mi", "--1", "1-", "x", "1e", "99999999999999999999999999999Ei"] {
            assert_eq!(parse_milli(text), None, "{text}");
        }
    }
}
