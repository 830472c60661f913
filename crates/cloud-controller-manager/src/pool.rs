//! The addresses that load balancers may have.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// The address for a Service: the one it has, the one it asks for, or the first free one.
///
/// # Errors
/// Why there is none.
pub fn choose(
    pool: Ipv4Net,
    taken: &BTreeSet<Ipv4Addr>,
    present: Option<Ipv4Addr>,
    wanted: Option<&str>,
) -> Result<Ipv4Addr, String> {
    if let Some(wanted) = wanted.filter(|w| !w.is_empty()) {
        let address: Ipv4Addr = wanted
            .parse()
            .map_err(|_| format!("loadBalancerIP {wanted} is not an IPv4 address"))?;
        return match (pool.contains(&address), taken.contains(&address)) {
            (false, _) => Err(format!("loadBalancerIP {wanted} is not in the pool {pool}")),
            (true, true) => Err(format!(
                "loadBalancerIP {wanted} is in use by another service"
            )),
            (true, false) => Ok(address),
        };
    }
    if let Some(present) = present.filter(|p| pool.contains(p) && !taken.contains(p)) {
        return Ok(present);
    }
    pool.hosts()
        .find(|a| !taken.contains(a))
        .ok_or_else(|| format!("no free address in the pool {pool}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_kept_asked_for_or_free() {
        let pool: Ipv4Net = "127.20.1.0/30".parse().unwrap();
        let ip = |last: u8| Ipv4Addr::new(127, 20, 1, last);
        let none = BTreeSet::new();
        assert_eq!(choose(pool, &none, None, None), Ok(ip(1)));
        assert_eq!(choose(pool, &[ip(1)].into(), None, None), Ok(ip(2)));
        assert_eq!(choose(pool, &none, Some(ip(2)), None), Ok(ip(2)));
        assert_eq!(choose(pool, &[ip(2)].into(), Some(ip(2)), None), Ok(ip(1)));
        assert_eq!(
            choose(pool, &none, Some(ip(1)), Some("127.20.1.2")),
            Ok(ip(2))
        );
        assert!(choose(pool, &none, None, Some("10.0.0.1")).is_err());
        assert!(choose(pool, &[ip(1), ip(2)].into(), None, None).is_err());
    }
}
