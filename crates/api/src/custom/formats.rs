//! String formats of OpenAPI schemas, as upstream's registry of formats knows them.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use regex::Regex;

/// Whether a string has a format; `None` for a format that is not enforced.
#[must_use]
pub fn check(format: &str, text: &str) -> Option<bool> {
    let format = format.replace('-', "");
    Some(match format.as_str() {
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => is_cidr(text),
        "mac" => is_mac(text),
        "uuid" => UUID.is_match(text),
        "uuid3" => UUID.is_match(text) && version_digit(text) == Some('3'),
        "uuid4" => UUID.is_match(text) && version_digit(text) == Some('4') && is_variant(text),
        "uuid5" => UUID.is_match(text) && version_digit(text) == Some('5') && is_variant(text),
        "hostname" => is_hostname(text),
        "email" => is_email(text),
        "uri" => is_request_uri(text),
        "date" => text.parse::<jiff::civil::Date>().is_ok() && text.len() == 10,
        "datetime" => is_date_time(text),
        "duration" => is_duration(text),
        "byte" => is_base64(text),
        "bsonobjectid" => text.len() == 24 && text.bytes().all(|b| b.is_ascii_hexdigit()),
        "creditcard" => is_credit_card(text),
        "isbn" => is_isbn10(text) || is_isbn13(text),
        "isbn10" => is_isbn10(text),
        "isbn13" => is_isbn13(text),
        "ssn" => SSN.is_match(text),
        "hexcolor" => HEX_COLOR.is_match(text),
        "rgbcolor" => RGB_COLOR.is_match(text),
        "password" => true,
        "k8sshortname" => crate::validation::dns_label(text).is_empty(),
        "k8slongname" => crate::validation::dns_subdomain(text).is_empty(),
        _ => return None,
    })
}

static UUID: LazyLock<Regex> = LazyLock::new(|| {
    pattern("(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$")
});
static SSN: LazyLock<Regex> = LazyLock::new(|| pattern(r"^\d{3}[- ]?\d{2}[- ]?\d{4}$"));
static HEX_COLOR: LazyLock<Regex> =
    LazyLock::new(|| pattern("^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$"));
static RGB_COLOR: LazyLock<Regex> = LazyLock::new(|| {
    const PART: &str = r"\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*";
    pattern(&format!(r"^rgb\({PART},{PART},{PART}\)$"))
});
static HOSTNAME: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"^([a-zA-Z0-9\p{S}\p{L}]((-?[a-zA-Z0-9\p{S}\p{L}]{0,62})?)|([a-zA-Z0-9\p{S}\p{L}](([a-zA-Z0-9-\p{S}\p{L}]{0,61}[a-zA-Z0-9\p{S}\p{L}])?)(\.)){1,}([a-zA-Z\p{L}]){2,63})$",
    )
});
static DATE_TIME: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"^([0-9]{2}):([0-9]{2}):([0-9]{2})(.[0-9]+)?(z|([+-][0-9]{2}:[0-9]{2}))$")
});
static DURATION: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^(?:[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h))+$|^0$"));
static LONG_DURATION: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"^(?:(\d+)\s*(ns|nanosecond|us|µs|microsecond|ms|millisecond|s|sec|second|m|min|minute|h|hr|hour|d|day|w|wk|week)s?\s*)+$",
    )
});

fn pattern(text: &str) -> Regex {
    match Regex::new(text) {
        Ok(regex) => regex,
        Err(error) => unreachable!("a constant pattern: {error}"),
    }
}

fn digits(text: &str) -> String {
    text.chars().filter(|c| *c != '-').collect()
}

fn version_digit(text: &str) -> Option<char> {
    digits(text).chars().nth(12)
}

fn is_variant(text: &str) -> bool {
    digits(text)
        .chars()
        .nth(16)
        .is_some_and(|c| matches!(c.to_ascii_lowercase(), '8' | '9' | 'a' | 'b'))
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else {
        return false;
    };
    let max = match address.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(_)) => 32,
        Ok(std::net::IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    bits.bytes().all(|b| b.is_ascii_digit()) && bits.parse::<u8>().is_ok_and(|b| b <= max)
}

/// 6, 8 or 20 bytes with colons or dashes, or in groups of four with dots.
fn is_mac(text: &str) -> bool {
    let groups: Vec<&str> = match text.chars().find(|c| !c.is_ascii_hexdigit()) {
        Some(separator @ (':' | '-' | '.')) => text.split(separator).collect(),
        _ => return false,
    };
    let width = if text.contains('.') { 4 } else { 2 };
    groups
        .iter()
        .all(|g| g.len() == width && g.bytes().all(|b| b.is_ascii_hexdigit()))
        && [6, 8, 20].contains(&(groups.len() * width / 2))
}

fn is_hostname(text: &str) -> bool {
    text.len() <= 255 && HOSTNAME.is_match(text) && text.split('.').all(|part| part.len() <= 63)
}

/// An address, perhaps with a name before it: `Ada <ada@example.com>`.
fn is_email(text: &str) -> bool {
    let address = match (text.rfind('<'), text.ends_with('>')) {
        (Some(start), true) => &text[start + 1..text.len() - 1],
        _ => text,
    };
    let Some((local, domain)) = address.rsplit_once('@') else {
        return false;
    };
    let atom = |c: char| c.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(c);
    let dotted = |s: &str| !s.is_empty() && s.split('.').all(|p| !p.is_empty());
    let quoted = local.len() > 2 && local.starts_with('"') && local.ends_with('"');
    (quoted || (dotted(local) && local.chars().all(atom)))
        && dotted(domain)
        && domain.chars().all(atom)
}

/// An absolute path or an absolute URI.
fn is_request_uri(text: &str) -> bool {
    if text.is_empty() || text.chars().any(|c| c.is_control() || c == ' ') {
        return false;
    }
    text.starts_with('/')
        || text.split_once(':').is_some_and(|(scheme, rest)| {
            scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
                && !rest.is_empty()
        })
}

fn is_date_time(text: &str) -> bool {
    if text.len() < 4 {
        return false;
    }
    let lower = text.to_ascii_lowercase();
    let Some((date, time)) = lower.split_once('t') else {
        return false;
    };
    let Some(parts) = DATE_TIME.captures(time) else {
        return false;
    };
    let part = |i: usize| parts.get(i).and_then(|p| p.as_str().parse::<u8>().ok());
    date.len() == 10
        && date.parse::<jiff::civil::Date>().is_ok()
        && part(1).is_some_and(|h| h <= 23)
        && part(2).is_some_and(|m| m <= 59)
        && part(3).is_some_and(|s| s <= 59)
}

fn is_duration(text: &str) -> bool {
    DURATION.is_match(text) || LONG_DURATION.is_match(text)
}

fn is_base64(text: &str) -> bool {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .is_ok()
}

fn is_credit_card(text: &str) -> bool {
    let numbers: Vec<u32> = text
        .chars()
        .filter(|c| !matches!(c, ' ' | '-'))
        .map_while(|c| c.to_digit(10))
        .collect();
    let sum: u32 = numbers
        .iter()
        .rev()
        .enumerate()
        .map(|(i, d)| match i % 2 {
            0 => *d,
            _ if d * 2 > 9 => d * 2 - 9,
            _ => d * 2,
        })
        .sum();
    (13..=19).contains(&numbers.len())
        && text
            .chars()
            .all(|c| c.is_ascii_digit() || matches!(c, ' ' | '-'))
        && sum.is_multiple_of(10)
}

fn isbn_digits(text: &str) -> String {
    text.chars().filter(|c| !matches!(c, ' ' | '-')).collect()
}

fn is_isbn10(text: &str) -> bool {
    let text = isbn_digits(text);
    if text.len() != 10 {
        return false;
    }
    let mut sum = 0;
    for (i, c) in (1u32..).zip(text.chars()) {
        let digit = match (i, c) {
            (10, 'X') => 10,
            (_, c) => match c.to_digit(10) {
                Some(digit) => digit,
                None => return false,
            },
        };
        sum += i * digit;
    }
    sum.is_multiple_of(11)
}

fn is_isbn13(text: &str) -> bool {
    let text = isbn_digits(text);
    let digits: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(10)).collect();
    digits.is_some_and(|d| {
        let weighted = |(i, d): (usize, &u32)| if i % 2 == 0 { *d } else { d * 3 };
        d.len() == 13
            && d.iter()
                .enumerate()
                .map(weighted)
                .sum::<u32>()
                .is_multiple_of(10)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_tell_good_from_bad() {
        for (format, good, bad) in [
            ("ipv4", "1.2.3.4", "1.2.3"),
            ("ipv6", "::1", "1.2.3.4"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("mac", "00:11:22:33:44:55", "00:11:22"),
            (
                "uuid4",
                "f47ac10b-58cc-4372-a567-0e02b2c3d479",
                "f47ac10b-58cc-3372-a567-0e02b2c3d479",
            ),
            ("hostname", "example.com", "-a-"),
            ("email", "a@example.com", "example.com"),
            ("uri", "https://a/b", "a b"),
            ("date", "2026-02-28", "2026-02-30"),
            ("date-time", "2026-02-28T10:00:00Z", "2026-02-28"),
            ("duration", "1h30m", "soon"),
            ("byte", "aGk=", "a"),
            ("isbn10", "0306406152", "0306406153"),
            ("isbn13", "9780306406157", "9780306406158"),
            ("creditcard", "4111 1111 1111 1111", "4111111111111112"),
            ("hexcolor", "#ff00ff", "red"),
            ("rgbcolor", "rgb(1,2,3)", "rgb(1,2)"),
            ("k8s-short-name", "abc", "a.b"),
        ] {
            assert_eq!(check(format, good), Some(true), "{format} {good}");
            assert_eq!(check(format, bad), Some(false), "{format} {bad}");
        }
        assert_eq!(check("int32", "x"), None);
    }
}
