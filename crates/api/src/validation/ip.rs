//! Addresses and ranges: what upstream takes, what it complains about, and what it only warns of.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{At, Errors, quote};

/// An address as older releases read it: parts of IPv4 may have leading zeros.
#[must_use]
pub fn parse_sloppy(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        return text.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    }
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *octet = part.parse().ok()?;
    }
    parts
        .next()
        .is_none()
        .then(|| IpAddr::V4(Ipv4Addr::from(octets)))
}

/// The address without its disguise as IPv6.
#[must_use]
pub fn unmapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        v4 => v4,
    }
}

#[must_use]
pub fn is_ipv6(text: &str) -> bool {
    parse_sloppy(text).is_some_and(|a| unmapped(a).is_ipv6())
}

fn is_mapped(address: IpAddr) -> bool {
    unmapped(address) != address
}

/// Whether addresses are of both families; `None` when one of them is none.
#[must_use]
pub fn is_dual_stack(addresses: &[&str]) -> Option<bool> {
    let mut families = [false; 2];
    for text in addresses {
        let address = parse_sloppy(text)?;
        families[usize::from(unmapped(address).is_ipv6())] = true;
    }
    Some(families == [true, true])
}

/// An address in a field that used to take anything: what an object has already may stay.
pub fn legacy_ip(errors: &mut Errors, at: &At<'_, '_>, known: &[&str]) {
    if !known.contains(&at.str()) {
        strict_ip(errors, at, at.str());
    }
}

/// Errors name `at`; returns whether there were none.
pub fn strict_ip(errors: &mut Errors, at: &At<'_, '_>, text: &str) -> bool {
    let Some(address) = parse_sloppy(text) else {
        let form = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        errors.invalid_text(at, text, form);
        return false;
    };
    if text.parse::<IpAddr>().is_err() {
        errors.invalid_text(at, text, "must not have leading 0s");
    } else if is_mapped(address) {
        errors.invalid_text(at, text, "must not be an IPv4-mapped IPv6 address");
    } else {
        return true;
    }
    false
}

/// An address in the one form it has.
pub fn canonical_ip(errors: &mut Errors, at: &At<'_, '_>, text: &str) {
    if strict_ip(errors, at, text)
        && let Some(address) = parse_sloppy(text)
        && address.to_string() != text
    {
        let detail = format!(
            "must be in canonical form ({})",
            quote(&address.to_string())
        );
        errors.invalid_text(at, text, &detail);
    }
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    pub address: IpAddr,
    pub prefix: u8,
}

impl Cidr {
    /// As older releases read it: with leading zeros, and bits beyond the prefix.
    #[must_use]
    pub fn parse_sloppy(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let address = parse_sloppy(address)?;
        if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let prefix = prefix.parse().ok()?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        (prefix <= longest).then_some(Self { address, prefix })
    }

    /// The first address of the range.
    #[must_use]
    pub fn network(&self) -> IpAddr {
        let keep = u32::from(self.prefix);
        match self.address {
            IpAddr::V4(a) => {
                let mask = u32::MAX.checked_shl(32 - keep).unwrap_or(0);
                Ipv4Addr::from(u32::from(a) & mask).into()
            }
            IpAddr::V6(a) => {
                let mask = u128::MAX.checked_shl(128 - keep).unwrap_or(0);
                Ipv6Addr::from(u128::from(a) & mask).into()
            }
        }
    }

    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4()
            && Self { address, ..*self }.network() == self.network()
    }

    /// `network/prefix`
    #[must_use]
    pub fn canonical(&self) -> String {
        format!("{}/{}", self.network(), self.prefix)
    }
}

/// A range in a field that used to take anything.
pub fn legacy_cidr(errors: &mut Errors, at: &At<'_, '_>, text: &str, known: &[&str]) {
    if !known.contains(&text) {
        strict_cidr(errors, at, text);
    }
}

/// Errors name `at`; returns the range if there were none.
pub fn strict_cidr(errors: &mut Errors, at: &At<'_, '_>, text: &str) -> Option<Cidr> {
    let Some(cidr) = Cidr::parse_sloppy(text) else {
        let form = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
        errors.invalid_text(at, text, form);
        return None;
    };
    let problem = if !is_strict(text) {
        "must not have leading 0s in IP or prefix length"
    } else if is_mapped(cidr.address) {
        "must not have an IPv4-mapped IPv6 address"
    } else if cidr.network() != cidr.address {
        "must not have bits set beyond the prefix length"
    } else {
        return Some(cidr);
    };
    errors.invalid_text(at, text, problem);
    None
}

fn is_strict(text: &str) -> bool {
    text.split_once('/').is_some_and(|(address, prefix)| {
        address.parse::<IpAddr>().is_ok() && (prefix == "0" || !prefix.starts_with('0'))
    })
}

/// A range in the one form it has.
pub fn canonical_cidr(errors: &mut Errors, at: &At<'_, '_>, text: &str) {
    if let Some(cidr) = strict_cidr(errors, at, text)
        && cidr.canonical() != text
    {
        let detail = format!("must be in canonical form ({})", quote(&cidr.canonical()));
        errors.invalid_text(at, text, &detail);
    }
}

/// An address of an interface, with the length of its network's prefix, in the one form it has.
pub fn interface_address(errors: &mut Errors, at: &At<'_, '_>) {
    let text = at.str();
    let Some(cidr) = Cidr::parse_sloppy(text) else {
        let form = "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)";
        errors.invalid_text(at, text, form);
        return;
    };
    let address = unmapped(cidr.address);
    let mapped = address.is_ipv4() && cidr.prefix > 32;
    let prefix = if mapped {
        cidr.prefix - 96
    } else {
        cidr.prefix
    };
    let canonical = format!("{address}/{prefix}");
    if text != canonical {
        let detail = format!("must be in canonical form ({})", quote(&canonical));
        errors.invalid_text(at, text, &detail);
    }
}

/// An address that endpoints of services may have.
pub fn endpoint_ip(errors: &mut Errors, at: &At<'_, '_>) {
    let text = at.str();
    let Some(address) = parse_sloppy(text).map(unmapped) else {
        errors.bad(at, "must be a valid IP address");
        return;
    };
    let (link_local, link_local_multicast) = match address {
        IpAddr::V4(a) => (a.is_link_local(), a.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(a) => (
            a.is_unicast_link_local(),
            a.segments()[0] & 0xff0f == 0xff02,
        ),
    };
    if address.is_unspecified() {
        errors.bad(at, &format!("may not be unspecified ({text})"));
    }
    if address.is_loopback() {
        errors.bad(
            at,
            "may not be in the loopback range (127.0.0.0/8, ::1/128)",
        );
    }
    if link_local {
        errors.bad(
            at,
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        );
    }
    if link_local_multicast {
        errors.bad(
            at,
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
        );
    }
}

/// What is unusual about an address that was found valid.
pub fn ip_warning(warnings: &mut Vec<String>, at: &At<'_, '_>) {
    let text = at.str();
    let Some(address) = parse_sloppy(text) else {
        return;
    };
    if text.parse::<IpAddr>().is_err() || is_mapped(address) {
        warnings.push(format!(
            "{at}: non-standard IP address {} is invalid: use {}",
            quote(text),
            quote(&unmapped(address).to_string())
        ));
    } else if address.is_ipv6() && address.to_string() != text {
        warnings.push(format!(
            "{at}: IPv6 address {} should be in RFC 5952 canonical format ({})",
            quote(text),
            quote(&address.to_string())
        ));
    }
}

/// What is unusual about a range that was found valid.
pub fn cidr_warnings(warnings: &mut Vec<String>, at: &At<'_, '_>) {
    let text = at.str();
    let Some(cidr) = Cidr::parse_sloppy(text) else {
        return;
    };
    let before = warnings.len();
    if cidr.network() != cidr.address {
        let single = format!(
            "{}/{}",
            cidr.address,
            if cidr.address.is_ipv4() { 32 } else { 128 }
        );
        warnings.push(format!(
            "{at}: CIDR value {} is ambiguous in this context (should be {} or {}?)",
            quote(text),
            quote(&cidr.canonical()),
            quote(&single)
        ));
    }
    if !is_strict(text) || is_mapped(cidr.address) {
        warnings.push(format!(
            "{at}: non-standard CIDR value {} is invalid: use {}",
            quote(text),
            quote(&cidr.canonical())
        ));
    }
    if warnings.len() == before && cidr.address.is_ipv6() && cidr.canonical() != text {
        warnings.push(format!(
            "{at}: IPv6 CIDR value {} should be in RFC 5952 canonical format ({})",
            quote(text),
            quote(&cidr.canonical())
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn problems(text: &str, check: fn(&mut Errors, &At<'_, '_>, &str)) -> usize {
        let mut errors = Errors::default();
        let value = json!(text);
        check(&mut errors, &At::named(&value, "ip"), text);
        errors.len()
    }

    #[test]
    fn addresses() {
        for (text, wrong) in [
            ("10.0.0.1", 0),
            ("10.0.0.01", 1),
            ("::ffff:1.2.3.4", 1),
            ("fd00::0", 1),
            ("x", 1),
        ] {
            assert_eq!(problems(text, canonical_ip), wrong, "{text}");
        }
        assert_eq!(is_dual_stack(&["10.0.0.1", "fd00::1"]), Some(true));
        assert_eq!(is_dual_stack(&["10.0.0.1", "x"]), None);
    }

    #[test]
    fn ranges() {
        for (text, wrong) in [
            ("10.0.0.0/8", 0),
            ("10.0.0.1/8", 1),
            ("10.0.0.0/33", 1),
            ("0.0.0.0/0", 0),
            ("::/0", 0),
        ] {
            assert_eq!(problems(text, canonical_cidr), wrong, "{text}");
        }
        let range = Cidr::parse_sloppy("10.1.2.3/16").unwrap();
        assert_eq!(range.canonical(), "10.1.0.0/16");
        assert!(
            range.contains("10.1.9.9".parse().unwrap()) && !range.contains("::1".parse().unwrap())
        );
    }
}
