//! Reading a resource quantity (`100m`, `1.5Gi`, `12e6`) as a whole number of units or thousandths.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Billionths of a unit: the finest the API knows (`n`).
fn nanos(text: &str) -> Option<i128> {
    let text = text.trim();
    let split = text
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-')))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (negative, number) = match number.as_bytes().first()? {
        b'-' => (true, &number[1..]),
        b'+' => (false, &number[1..]),
        _ => (false, number),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits_only = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits_only(whole) || !digits_only(fraction) {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let scale = 10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let power = |base: i128, exponent: u32| base.pow(exponent).checked_mul(1_000_000_000);
    let multiplier: i128 = match suffix {
        "" => 1_000_000_000,
        "n" => 1,
        "u" => 1_000,
        "m" => 1_000_000,
        "k" => power(1000, 1)?,
        "M" => power(1000, 2)?,
        "G" => power(1000, 3)?,
        "T" => power(1000, 4)?,
        "P" => power(1000, 5)?,
        "E" => power(1000, 6)?,
        "Ki" => power(1024, 1)?,
        "Mi" => power(1024, 2)?,
        "Gi" => power(1024, 3)?,
        "Ti" => power(1024, 4)?,
        "Pi" => power(1024, 5)?,
        "Ei" => power(1024, 6)?,
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let factor = 10i128.checked_pow(exponent.unsigned_abs())?;
            let value = if exponent >= 0 {
                digits.checked_mul(factor)?.checked_mul(1_000_000_000)? / scale
            } else {
                digits.checked_mul(1_000_000_000)? / scale / factor
            };
            return Some(if negative { -value } else { value });
        }
    };
    // Anything finer than a billionth rounds up, as the API does.
    let product = digits.checked_mul(multiplier)?;
    let value = product / scale + i128::from(product % scale != 0);
    Some(if negative { -value } else { value })
}

fn scaled(quantity: &Quantity, unit: i128) -> Option<i64> {
    let nanos = nanos(&quantity.0)?;
    let rounded = nanos.div_euclid(unit) + i128::from(nanos.rem_euclid(unit) != 0);
    i64::try_from(rounded).ok()
}

/// Whole units, rounded up (`1500m` is 2). `None` when the text isn't a quantity or doesn't fit.
pub fn value(quantity: &Quantity) -> Option<i64> {
    scaled(quantity, 1_000_000_000)
}

/// Thousandths, rounded up.
pub fn milli_value(quantity: &Quantity) -> Option<i64> {
    scaled(quantity, 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes() {
        for (text, milli, whole) in [
            ("0", 0, 0),
            ("1", 1000, 1),
            ("100m", 100, 1),
            ("1500m", 1500, 2),
            ("0.1", 100, 1),
            (".5", 500, 1),
            ("1Ki", 1_024_000, 1024),
            ("1.5Gi", 1_610_612_736_000, 1_610_612_736),
            ("12e3", 12_000_000, 12_000),
            ("1e-3", 1, 1),
            ("-2", -2000, -2),
            ("1n", 1, 1),
            ("128974848", 128_974_848_000, 128_974_848),
        ] {
            let quantity = Quantity(text.into());
            assert_eq!(milli_value(&quantity), Some(milli), "{text}");
            assert_eq!(value(&quantity), Some(whole), "{text}");
        }
        for text in ["", "x", "1X", "1.2.3", "e3", "--1"] {
            assert_eq!(value(&Quantity(text.into())), None, "{text}");
        }
    }
}
