//! What the server's flags say about services, and the ranges of addresses that they are given from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

/// The ranges that services draw from.
#[derive(Clone, Debug)]
pub struct ServiceNetwork {
    /// One range, or two of different families; services are of the first's family unless they say otherwise.
    pub cluster_ips: Vec<IpNet>,
    /// First and last port, inclusive.
    pub node_ports: (u16, u16),
}

impl Default for ServiceNetwork {
    fn default() -> Self {
        Self {
            cluster_ips: vec![Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 16).into()],
            node_ports: (30_000, 32_767),
        }
    }
}

impl ServiceNetwork {
    /// The families of addresses, the default one first.
    #[must_use]
    pub fn families(&self) -> Vec<&'static str> {
        let ranges = self.cluster_ips.iter();
        ranges.map(|range| family(range.addr())).collect()
    }

    /// The address of the `kubernetes` service.
    #[must_use]
    pub fn first_address(&self) -> Option<IpAddr> {
        let range = self.cluster_ips.first()?;
        AddressRange::new(*range)?.first()
    }
}

/// The family of an address, as services name it.
pub(crate) fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// The addresses of a network that services may have, in two parts: automatic choice leaves the lower one to services that
/// name their address, as long as it can (KEP-3070).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AddressRange {
    net: IpNet,
    first: u128,
    /// How many addresses there are, and how many of them are in the lower part.
    size: u128,
    reserved: u128,
}

impl AddressRange {
    /// `None` for networks of IPv6 that are larger than upstream takes.
    pub(super) fn new(net: IpNet) -> Option<Self> {
        let net = net.trunc();
        let host_bits = u32::from(net.max_prefix_len() - net.prefix_len());
        if host_bits > 64 {
            return None;
        }
        let all = 1_u128 << host_bits;
        // The network's own address is nobody's, and neither is IPv4's for broadcasts.
        let unusable = if net.addr().is_ipv4() { 2 } else { 1 };
        let reserved = if all <= 16 {
            0
        } else {
            (all / 16).clamp(16, 256)
        };
        Some(Self {
            net,
            first: bits(net.addr()).saturating_add(1),
            size: all.saturating_sub(unusable),
            reserved,
        })
    }

    pub(super) fn net(&self) -> IpNet {
        self.net
    }

    /// How many addresses there are.
    pub(super) fn size(&self) -> u128 {
        self.size
    }

    pub(super) fn family(&self) -> &'static str {
        family(self.net.addr())
    }

    pub(super) fn first(&self) -> Option<IpAddr> {
        (self.size > 0).then(|| self.at(0))
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.net.contains(&address)
            && bits(address)
                .checked_sub(self.first)
                .is_some_and(|offset| offset < self.size)
    }

    /// All addresses in the order in which automatic choice tries them: both parts from a random place on.
    pub(super) fn candidates(self) -> impl Iterator<Item = IpAddr> {
        let reserved = self.reserved.min(self.size);
        let parts = [(reserved, self.size - reserved), (0, reserved)];
        parts.into_iter().flat_map(move |(start, length)| {
            let skipped = if length > 0 {
                rand::random_range(0..length)
            } else {
                0
            };
            (0..length).map(move |i| self.at(start + (skipped + i) % length))
        })
    }

    fn at(&self, offset: u128) -> IpAddr {
        let address = self.first + offset;
        match u32::try_from(address) {
            Ok(v4) if self.net.addr().is_ipv4() => Ipv4Addr::from(v4).into(),
            _ => Ipv6Addr::from(address).into(),
        }
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> AddressRange {
        AddressRange::new(text.parse().unwrap()).unwrap()
    }

    fn all(text: &str) -> Vec<String> {
        let mut all: Vec<IpAddr> = range(text).candidates().collect();
        all.sort();
        all.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_ends_of_a_network_are_nobodys() {
        assert_eq!(all("10.0.0.0/30"), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(all("fd00::/126"), ["fd00::1", "fd00::2", "fd00::3"]);
        assert!(all("10.0.0.0/32").is_empty() && all("10.0.0.0/31").is_empty());
        assert!(AddressRange::new("fd00::/63".parse().unwrap()).is_none());
        let small = range("10.0.0.8/29");
        let has = |text: &str| small.contains(text.parse().unwrap());
        assert!(has("10.0.0.9") && has("10.0.0.14"));
        assert!(!has("10.0.0.8") && !has("10.0.0.15") && !has("10.0.0.16") && !has("::a00:9"));
    }

    #[test]
    fn the_lower_part_comes_last() {
        let order: Vec<IpAddr> = range("10.0.0.0/24").candidates().collect();
        assert_eq!(order.len(), 254);
        let first_reserved = order.iter().position(|a| bits(*a) & 0xff <= 16);
        assert_eq!(first_reserved, Some(254 - 16));
        let large: Vec<IpAddr> = range("10.0.0.0/16")
            .candidates()
            .take(65_534 - 256)
            .collect();
        let lowest = "10.0.1.1".parse::<IpAddr>().unwrap();
        assert!(large.iter().all(|a| *a >= lowest));
        assert!(range("fd00::/64").candidates().next().is_some());
    }
}
