//! Resource quantities: `100m`, `1.5Gi`, `2e3`, exact down to one nano, in the canonical form that upstream writes.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// Upstream's words for a malformed quantity.
pub const PATTERN_MESSAGE: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

const NANO: i128 = 1_000_000_000;

/// A fixed-point number with the notation it was written in.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    /// In units of 10⁻⁹.
    nanos: i128,
    format: Format,
}

/// How a quantity is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `k`, `M`, …, and `m`, `u`, `n`
    DecimalSi,
    /// `Ki`, `Mi`, …
    BinarySi,
    /// `e3`
    DecimalExponent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", PATTERN_MESSAGE)]
pub struct ParseError;

const BINARY: [(&str, u32); 6] = [
    ("Ki", 10),
    ("Mi", 20),
    ("Gi", 30),
    ("Ti", 40),
    ("Pi", 50),
    ("Ei", 60),
];
const DECIMAL: [(&str, i32); 10] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];

impl Quantity {
    pub const ZERO: Self = Self {
        nanos: 0,
        format: Format::DecimalSi,
    };

    #[must_use]
    pub fn from_units(units: i64) -> Self {
        Self {
            nanos: i128::from(units) * NANO,
            format: Format::DecimalSi,
        }
    }

    #[must_use]
    pub fn from_millis(millis: i64) -> Self {
        Self {
            nanos: i128::from(millis) * (NANO / 1000),
            format: Format::DecimalSi,
        }
    }

    /// A number of bytes, written with binary suffixes.
    #[must_use]
    pub fn from_bytes(bytes: i64) -> Self {
        Self {
            nanos: i128::from(bytes) * NANO,
            format: Format::BinarySi,
        }
    }

    /// Whole units, rounded up.
    #[must_use]
    pub fn value(&self) -> i64 {
        clamp(div_ceil(self.nanos, NANO))
    }

    /// Thousandths, rounded up.
    #[must_use]
    pub fn millis(&self) -> i64 {
        clamp(div_ceil(self.nanos, NANO / 1000))
    }

    /// The amount with no more than three decimals, in the same notation.
    #[must_use]
    pub fn rounded_up_to_millis(self) -> Self {
        let milli = NANO / 1000;
        Self {
            nanos: div_ceil(self.nanos, milli) * milli,
            ..self
        }
    }

    /// The exact amount, in units of 10⁻⁹.
    #[must_use]
    pub fn nanos(&self) -> i128 {
        self.nanos
    }

    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    #[must_use]
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// The sum, in the notation of the first operand unless that is zero.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let format = if self.nanos == 0 {
            other.format
        } else {
            self.format
        };
        Self {
            nanos: self.nanos.saturating_add(other.nanos),
            format,
        }
    }

    /// The difference, in the notation of the first operand unless that is zero.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        let format = if self.nanos == 0 {
            other.format
        } else {
            self.format
        };
        Self {
            nanos: self.nanos.saturating_sub(other.nanos),
            format,
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let end = text
            .find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-'))
            .unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (negative, digits) = match number.as_bytes().first() {
            Some(b'-') => (true, &number[1..]),
            Some(b'+') => (false, &number[1..]),
            _ => (false, number),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let all_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        if (whole.is_empty() && fraction.is_empty()) || !all_digits(whole) || !all_digits(fraction)
        {
            return Err(ParseError);
        }
        let (format, multiplier) = parse_suffix(suffix)?;
        let mantissa: i128 = parse_digits(whole, fraction)?;
        let nanos = scale(mantissa, fraction.len(), multiplier);
        Ok(Self {
            nanos: if negative { -nanos } else { nanos },
            format,
        })
    }
}

enum Multiplier {
    PowerOfTwo(u32),
    PowerOfTen(i32),
}

fn parse_suffix(suffix: &str) -> Result<(Format, Multiplier), ParseError> {
    if let Some((_, bits)) = BINARY.iter().find(|(s, _)| *s == suffix) {
        return Ok((Format::BinarySi, Multiplier::PowerOfTwo(*bits)));
    }
    if let Some((_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Ok((Format::DecimalSi, Multiplier::PowerOfTen(*exponent)));
    }
    match suffix.strip_prefix(['e', 'E']).map(str::parse::<i32>) {
        Some(Ok(exponent)) if exponent.abs() <= 40 => {
            Ok((Format::DecimalExponent, Multiplier::PowerOfTen(exponent)))
        }
        _ => Err(ParseError),
    }
}

fn parse_digits(whole: &str, fraction: &str) -> Result<i128, ParseError> {
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    if digits.len() > 30 {
        return Err(ParseError);
    }
    if digits.is_empty() {
        Ok(0)
    } else {
        digits.parse().map_err(|_| ParseError)
    }
}

/// `mantissa · 10^-fraction · multiplier` in nanos, rounded up, saturating.
fn scale(mantissa: i128, fraction: usize, multiplier: Multiplier) -> i128 {
    let fraction = i32::try_from(fraction).unwrap_or(i32::MAX);
    let (mantissa, exponent) = match multiplier {
        Multiplier::PowerOfTwo(bits) => (mantissa.saturating_mul(1 << bits), 9 - fraction),
        Multiplier::PowerOfTen(exponent) => (mantissa, 9 + exponent - fraction),
    };
    let power = 10_i128
        .checked_pow(exponent.unsigned_abs())
        .unwrap_or(i128::MAX);
    if exponent >= 0 {
        mantissa.saturating_mul(power)
    } else {
        div_ceil(mantissa, power)
    }
}

fn div_ceil(a: i128, b: i128) -> i128 {
    a.div_euclid(b) + i128::from(a.rem_euclid(b) != 0)
}

fn clamp(n: i128) -> i64 {
    i64::try_from(n).unwrap_or(if n < 0 { i64::MIN } else { i64::MAX })
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        if self.format == Format::BinarySi
            && self.nanos % NANO == 0
            && (self.nanos / NANO).abs() >= 1024
        {
            let units = self.nanos / NANO;
            let (suffix, bits) = BINARY
                .iter()
                .rev()
                .find(|(_, bits)| units % (1 << bits) == 0)
                .map_or(("", 0), |(s, b)| (*s, *b));
            return write!(f, "{}{suffix}", units >> bits);
        }
        // The largest power of a thousand that leaves a whole number.
        let (mut mantissa, mut exponent) = (self.nanos, -9);
        while mantissa % 1000 == 0 && exponent < 18 {
            mantissa /= 1000;
            exponent += 3;
        }
        if self.format == Format::DecimalExponent && exponent != 0 {
            return write!(f, "{mantissa}e{exponent}");
        }
        let suffix = DECIMAL
            .iter()
            .find(|(_, e)| *e == exponent)
            .map_or("", |(s, _)| s);
        write!(f, "{mantissa}{suffix}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(text: &str) -> String {
        text.parse::<Quantity>().unwrap().to_string()
    }

    #[test]
    fn canonical_forms() {
        for (from, to) in [
            ("0", "0"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("1.5", "1500m"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("1000", "1k"),
            ("12e6", "12e6"),
            ("1Ki", "1Ki"),
            ("512", "512"),
            ("0.1Gi", "107374182400m"),
            ("-5", "-5"),
            ("1e3", "1e3"),
            ("2000Ki", "2000Ki"),
            ("1500k", "1500k"),
            (".5", "500m"),
        ] {
            assert_eq!(canonical(from), to, "{from}");
        }
        for bad in ["", "x", "1.2.3", "1ki", "--1", "1e", "Gi", "1 Gi"] {
            assert!(bad.parse::<Quantity>().is_err(), "{bad}");
        }
    }

    #[test]
    fn values_round_up() {
        assert_eq!("1.1".parse::<Quantity>().unwrap().value(), 2);
        assert_eq!("100m".parse::<Quantity>().unwrap().millis(), 100);
        assert_eq!("1n".parse::<Quantity>().unwrap().millis(), 1);
    }

    proptest! {
        #[test]
        fn writing_and_reading_keeps_the_value(units in -1_000_000_000_000_i64..1_000_000_000_000, suffix in "(m|k|M|Ki|Mi|Gi|e3|)") {
            let quantity: Quantity = format!("{units}{suffix}").parse().unwrap();
            prop_assert_eq!(quantity.to_string().parse::<Quantity>().unwrap(), quantity);
        }

        #[test]
        fn parsing_never_panics(text in ".{0,40}") {
            let _ = text.parse::<Quantity>();
        }
    }
}
