//! Times as Go reads them, and what it says of those that it cannot read.

use crate::validation::quote;

/// The form of most times.
pub const RFC3339: &str = "2006-01-02T15:04:05Z07:00";

/// The form of times that are exact to the microsecond.
pub const RFC3339_MICRO: &str = "2006-01-02T15:04:05.000000Z07:00";

/// Parts of a layout, in order: what is read, and how much it may be at most.
const PARTS: [(&str, Option<Bound>); 11] = [
    ("2006", None),
    ("-", None),
    (
        "01",
        Some(Bound {
            name: "month",
            low: 1,
            high: 12,
        }),
    ),
    ("-", None),
    ("02", None),
    ("T", None),
    (
        "15",
        Some(Bound {
            name: "hour",
            low: 0,
            high: 23,
        }),
    ),
    (":", None),
    (
        "04",
        Some(Bound {
            name: "minute",
            low: 0,
            high: 59,
        }),
    ),
    (":", None),
    (
        "05",
        Some(Bound {
            name: "second",
            low: 0,
            high: 59,
        }),
    ),
];

const FRACTION: &str = ".000000";

const ZONE: &str = "Z07:00";

/// What a number may be.
#[derive(Clone, Copy)]
struct Bound {
    name: &'static str,
    low: u32,
    high: u32,
}

/// Whether a text is a time of a layout.
///
/// # Errors
/// Go's words for what is wrong.
pub fn check(text: &str, layout: &str) -> Result<(), String> {
    let wrong = |rest: &str, part: &str| {
        let [text, layout, rest, part] = [text, layout, rest, part].map(quote);
        Err(format!(
            "parsing time {text} as {layout}: cannot parse {rest} as {part}"
        ))
    };
    let out_of_range =
        |name: &str| Err(format!("parsing time {}: {name} out of range", quote(text)));
    let mut rest = text;
    let mut numbers = Vec::new();
    for (part, bound) in PARTS {
        if !part.starts_with(|c: char| c.is_ascii_digit()) {
            match rest.strip_prefix(part) {
                Some(tail) => rest = tail,
                None => return wrong(rest, part),
            }
            continue;
        }
        let digits = rest.get(..part.len());
        let Some(digits) = digits.filter(|d| d.bytes().all(|b| b.is_ascii_digit())) else {
            return wrong(rest, part);
        };
        rest = &rest[part.len()..];
        let number: u32 = digits.parse().unwrap_or_default();
        if let Some(bound) = bound.filter(|b| !(b.low..=b.high).contains(&number)) {
            return out_of_range(bound.name);
        }
        numbers.push(number);
    }
    let fraction = rest.strip_prefix(['.', ',']).map_or(0, |digits| {
        digits.bytes().take_while(u8::is_ascii_digit).count()
    });
    if layout == RFC3339_MICRO {
        if fraction < FRACTION.len() - 1 || rest.starts_with(',') {
            return wrong(rest, FRACTION);
        }
        rest = &rest[FRACTION.len()..];
    } else if fraction > 0 {
        rest = &rest[fraction + 1..];
    }
    let Some(tail) = zone(rest) else {
        return wrong(rest, ZONE);
    };
    if !tail.is_empty() {
        let (text, tail) = (quote(text), quote(tail));
        return Err(format!("parsing time {text}: extra text: {tail}"));
    }
    match numbers.as_slice() {
        [year, month, day, ..] if !(1..=days(*year, *month)).contains(day) => out_of_range("day"),
        _ => Ok(()),
    }
}

/// What follows a zone: `Z`, or an offset.
fn zone(text: &str) -> Option<&str> {
    if let Some(tail) = text.strip_prefix('Z') {
        return Some(tail);
    }
    let offset = text.get(..6)?.as_bytes();
    let is_form = matches!(offset[0], b'+' | b'-')
        && offset[3] == b':'
        && [1, 2, 4, 5].iter().all(|i| offset[*i].is_ascii_digit());
    is_form.then(|| &text[6..])
}

fn days(year: u32, month: u32) -> u32 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => {
            29
        }
        2 => 28,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_go_reads_them() {
        for text in ["2020-02-29T01:02:03Z", "2020-01-01T00:00:00.5+01:00"] {
            assert_eq!(check(text, RFC3339), Ok(()));
        }
        assert_eq!(check("2020-01-01T00:00:00.123456Z", RFC3339_MICRO), Ok(()));
        let problem = |text: &str, layout: &str| check(text, layout).unwrap_err();
        assert_eq!(
            problem("2020-01-01T00:00:00Z", RFC3339_MICRO),
            "parsing time \"2020-01-01T00:00:00Z\" as \"2006-01-02T15:04:05.000000Z07:00\": cannot parse \"Z\" as \".000000\""
        );
        assert_eq!(
            problem("yesterday", RFC3339),
            "parsing time \"yesterday\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"yesterday\" as \"2006\""
        );
        assert_eq!(
            problem("2020-13-01T00:00:00Z", RFC3339),
            "parsing time \"2020-13-01T00:00:00Z\": month out of range"
        );
        assert_eq!(
            problem("2021-02-29T00:00:00Z", RFC3339),
            "parsing time \"2021-02-29T00:00:00Z\": day out of range"
        );
        assert_eq!(
            problem("2020-01-01T00:00:00Zx", RFC3339),
            "parsing time \"2020-01-01T00:00:00Zx\": extra text: \"x\""
        );
    }
}
