//! The values of Kubernetes' libraries: addresses, URLs, formats, semantic versions, durations.

use std::cmp::Ordering;
use std::net::IpAddr;

use fluyt_api::validation::{self, Problems};
use jiff::SignedDuration;

/// An address and a prefix, which need not be masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    pub address: IpAddr,
    pub bits: u8,
}

impl Cidr {
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "network address parse error during conversion from string: netip.ParsePrefix({text:?}): no '/'"
            )
        };
        let (address, bits) = text.split_once('/').ok_or_else(wrong)?;
        let address = parse_ip(address).map_err(|_| {
            format!("network address parse error during conversion from string: netip.ParsePrefix({text:?}): ParseAddr({address:?}): unable to parse IP")
        })?;
        let max = if address.is_ipv4() { 32 } else { 128 };
        match bits.parse::<u8>() {
            Ok(n) if n <= max && bits == n.to_string() => Ok(Self { address, bits: n }),
            _ => Err(format!(
                "network address parse error during conversion from string: netip.ParsePrefix({text:?}): prefix length out of range"
            )),
        }
    }

    pub fn size(self) -> usize {
        (usize::from(self.bits) / 8).max(1)
    }

    pub fn masked(self) -> Self {
        let address = match self.address {
            IpAddr::V4(a) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                IpAddr::from((u32::from(a) & mask).to_be_bytes())
            }
            IpAddr::V6(a) => {
                let mask = u128::MAX
                    .checked_shl(128 - u32::from(self.bits))
                    .unwrap_or(0);
                IpAddr::from((u128::from(a) & mask).to_be_bytes())
            }
        };
        Self { address, ..self }
    }

    pub fn contains(self, address: IpAddr) -> bool {
        let other = Self {
            address,
            bits: self.bits,
        };
        address.is_ipv4() == self.address.is_ipv4()
            && other.masked().address == self.masked().address
    }

    pub fn contains_cidr(self, other: Self) -> bool {
        other.bits >= self.bits && self.contains(other.address)
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// An address; those of IPv4 in IPv6 form and with zones are refused.
pub fn parse_ip(text: &str) -> Result<IpAddr, String> {
    let wrong = |why: &str| {
        Err(format!(
            "IP Address {text:?} parse error during conversion from string: {why}"
        ))
    };
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(a)) if a.to_ipv4_mapped().is_some() => {
            Err(format!("IPv4-mapped IPv6 address {text:?} is not allowed"))
        }
        Ok(address) => Ok(address),
        Err(_) if text.contains('%') => Err(format!(
            "IP address {text:?} with zone value is not allowed"
        )),
        Err(_) => wrong(&format!("ParseAddr({text:?}): unable to parse IP")),
    }
}

/// A parsed URL: absolute, or an absolute path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    pub scheme: String,
    pub host: String,
    pub path: String,
    pub query: String,
}

impl Url {
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!("URL parse error during conversion from string: parse {text:?}: {why}")
        };
        if text.is_empty() {
            return Err(wrong("empty url"));
        }
        if text.chars().any(|c| c.is_control()) {
            return Err(wrong("net/url: invalid control character in URL"));
        }
        let (rest, query) = text.split_once('?').unwrap_or((text, ""));
        if rest.starts_with('/') {
            return Ok(Self {
                scheme: String::new(),
                host: String::new(),
                path: rest.to_owned(),
                query: query.to_owned(),
            });
        }
        let (scheme, rest) = rest
            .split_once(':')
            .ok_or_else(|| wrong("invalid URI for request"))?;
        let valid = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
        if !valid {
            return Err(wrong("first path segment in URL cannot contain colon"));
        }
        let rest = rest
            .strip_prefix("//")
            .ok_or_else(|| wrong("invalid URI for request"))?;
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let host = authority.rsplit('@').next().unwrap_or_default();
        if host.contains(' ') {
            return Err(wrong("invalid character \" \" in host name"));
        }
        Ok(Self {
            scheme: scheme.to_ascii_lowercase(),
            host: host.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
        })
    }

    fn split_host(&self) -> (&str, &str) {
        if let Some(inner) = self.host.strip_prefix('[') {
            let (name, rest) = inner.split_once(']').unwrap_or((inner, ""));
            return (name, rest.trim_start_matches(':'));
        }
        self.host.split_once(':').unwrap_or((&self.host, ""))
    }

    pub fn hostname(&self) -> &str {
        self.split_host().0
    }

    pub fn port(&self) -> &str {
        self.split_host().1
    }

    /// The parameters, each with all its values.
    pub fn parameters(&self) -> Vec<(String, Vec<String>)> {
        let mut all: Vec<(String, Vec<String>)> = Vec::new();
        for pair in self.query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (unescape(name), unescape(value));
            match all.iter_mut().find(|(n, _)| *n == name) {
                Some((_, values)) => values.push(value),
                None => all.push((name, vec![value])),
            }
        }
        all
    }
}

fn unescape(text: &str) -> String {
    let text = text.replace('+', " ");
    let bytes = text.as_bytes();
    let (mut out, mut i) = (Vec::with_capacity(bytes.len()), 0);
    while i < bytes.len() {
        let hex = (bytes[i] == b'%')
            .then(|| text.get(i + 1..i + 3))
            .flatten()
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        out.push(hex.unwrap_or(bytes[i]));
        i += if hex.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A named format.
pub struct Format {
    pub name: &'static str,
    pub check: fn(&str) -> Problems,
    /// How long the regular expression is that upstream checks it with.
    pub regex_size: u64,
}

impl std::fmt::Debug for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

fn prefix(rule: fn(&str) -> Problems, text: &str) -> Problems {
    rule(
        text.strip_suffix('-')
            .map_or(text, |_| &text[..text.len() - 1]),
    )
}

fn by_openapi(format: &str, text: &str, message: &str) -> Problems {
    match fluyt_api::custom::formats::check(format, text) {
        Some(false) => vec![message.to_owned()],
        _ => Vec::new(),
    }
}

static FORMATS: [Format; 12] = [
    Format {
        name: "dns1123Label",
        check: validation::dns_label,
        regex_size: 30,
    },
    Format {
        name: "dns1123Subdomain",
        check: validation::dns_subdomain,
        regex_size: 60,
    },
    Format {
        name: "dns1035Label",
        check: validation::dns_1035_label,
        regex_size: 30,
    },
    Format {
        name: "qualifiedName",
        check: validation::qualified_name,
        regex_size: 60,
    },
    Format {
        name: "dns1123LabelPrefix",
        check: |t| prefix(validation::dns_label, t),
        regex_size: 30,
    },
    Format {
        name: "dns1123SubdomainPrefix",
        check: |t| prefix(validation::dns_subdomain, t),
        regex_size: 60,
    },
    Format {
        name: "dns1035LabelPrefix",
        check: |t| prefix(validation::dns_1035_label, t),
        regex_size: 30,
    },
    Format {
        name: "labelValue",
        check: validation::label_value,
        regex_size: 40,
    },
    Format {
        name: "uri",
        check: |t| match Url::parse(t) {
            Ok(_) => Vec::new(),
            Err(why) => vec![
                why.trim_start_matches("URL parse error during conversion from string: ")
                    .to_owned(),
            ],
        },
        regex_size: 0,
    },
    Format {
        name: "uuid",
        check: |t| by_openapi("uuid", t, "does not match the UUID format"),
        regex_size: 70,
    },
    Format {
        name: "byte",
        check: |t| by_openapi("byte", t, "invalid base64"),
        regex_size: 0,
    },
    Format {
        name: "date",
        check: |t| by_openapi("date", t, "invalid date"),
        regex_size: 0,
    },
];

static DATETIME: Format = Format {
    name: "datetime",
    check: |t| by_openapi("datetime", t, "invalid datetime"),
    regex_size: 0,
};

/// The largest of the formats' regular expressions.
pub const MAX_FORMAT_REGEX: u64 = 128;

/// A format by its name.
pub fn format(name: &str) -> Option<&'static Format> {
    if name == "datetime" {
        return Some(&DATETIME);
    }
    FORMATS.iter().find(|f| f.name == name)
}

/// A semantic version.
#[derive(Clone, Debug)]
pub struct Semver {
    pub numbers: [u64; 3],
    pre: Vec<String>,
}

impl Semver {
    /// Parses a version; `normalize` takes a leading `v`, missing parts and leading zeros as well.
    pub fn parse(text: &str, normalize: bool) -> Result<Self, String> {
        let mut core = text;
        if normalize {
            core = core.strip_prefix('v').unwrap_or(core);
        }
        let (rest, build) = core
            .split_once('+')
            .map_or((core, None), |(r, b)| (r, Some(b)));
        let (rest, pre) = rest
            .split_once('-')
            .map_or((rest, None), |(r, p)| (r, Some(p)));
        let parts: Vec<&str> = rest.split('.').collect();
        if !normalize && parts.len() != 3 {
            return Err("No Major.Minor.Patch elements found".into());
        }
        let mut numbers = [0; 3];
        for (i, part) in parts.iter().enumerate() {
            if i > 2 || part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
                return Err(format!(
                    "Invalid character(s) found in version number {part:?}"
                ));
            }
            if !normalize && part.len() > 1 && part.starts_with('0') {
                return Err(format!(
                    "Version number must not contain leading zeroes {part:?}"
                ));
            }
            numbers[i] = part
                .parse()
                .map_err(|_| format!("version number out of range {part:?}"))?;
        }
        let identifiers = |text: Option<&str>| -> Result<Vec<String>, String> {
            let Some(text) = text else {
                return Ok(Vec::new());
            };
            text.split('.')
                .map(|id| {
                    let valid =
                        !id.is_empty() && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
                    valid
                        .then(|| id.to_owned())
                        .ok_or_else(|| format!("Invalid character(s) found in prerelease {id:?}"))
                })
                .collect()
        };
        identifiers(build)?;
        Ok(Self {
            numbers,
            pre: identifiers(pre)?,
        })
    }

    pub fn compare(&self, other: &Self) -> Ordering {
        self.numbers.cmp(&other.numbers).then_with(|| {
            match (self.pre.is_empty(), other.pre.is_empty()) {
                (true, true) => Ordering::Equal,
                (true, false) => Ordering::Greater,
                (false, true) => Ordering::Less,
                (false, false) => {
                    for (a, b) in self.pre.iter().zip(&other.pre) {
                        let ordering = match (a.parse::<u64>(), b.parse::<u64>()) {
                            (Ok(a), Ok(b)) => a.cmp(&b),
                            (Ok(_), Err(_)) => Ordering::Less,
                            (Err(_), Ok(_)) => Ordering::Greater,
                            (Err(_), Err(_)) => a.cmp(b),
                        };
                        if ordering != Ordering::Equal {
                            return ordering;
                        }
                    }
                    self.pre.len().cmp(&other.pre.len())
                }
            }
        })
    }
}

/// A duration as Go writes it: `1h30m`, `1.5s`, `-2ms`.
pub fn parse_duration(text: &str) -> Option<SignedDuration> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanos: f64 = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        nanos += number * unit;
        rest = &rest[end..];
    }
    #[allow(clippy::cast_possible_truncation)]
    let nanos = (if negative { -nanos } else { nanos }).round() as i128;
    let seconds = i64::try_from(nanos / 1_000_000_000).ok()?;
    let fraction = i32::try_from(nanos % 1_000_000_000).ok()?;
    Some(SignedDuration::new(seconds, fraction))
}

/// A duration in seconds, `90s` or `1.5s`.
pub fn show_duration(duration: SignedDuration) -> String {
    let (seconds, nanos) = (duration.as_secs(), duration.subsec_nanos());
    if nanos == 0 {
        return format!("{seconds}s");
    }
    let sign = if nanos < 0 || seconds < 0 { "-" } else { "" };
    let fraction = format!("{:09}", nanos.abs());
    format!(
        "{sign}{}.{}s",
        seconds.abs(),
        fraction.trim_end_matches('0')
    )
}
