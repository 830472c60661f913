//! hostPort: ports of the node that lead to a pod, as nftables rules.
//!
//! One table holds the mappings of all pods and is replaced as a whole: few pods have a hostPort, and a transaction
//! over the full set can't leave a stale rule behind.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use crate::pod::{PortMapping, Protocol};

const TABLE: &str = "fluyt_hostports";

/// The script that makes the table hold exactly `pods`.
pub fn ruleset<'a>(
    bridge: &str,
    pods: impl Iterator<Item = (Ipv4Addr, &'a [PortMapping])>,
) -> String {
    let mut rules = String::new();
    let mut hairpins = String::new();
    for (address, mappings) in pods {
        for mapping in mappings {
            let protocol = mapping.protocol.as_str();
            let destination = match mapping.host_ip {
                Some(host_ip) => format!("ip daddr {host_ip} "),
                None => String::new(),
            };
            let _ = writeln!(
                rules,
                "    {destination}{protocol} dport {} dnat to {address}:{}",
                mapping.host_port, mapping.container_port
            );
            let _ = writeln!(
                hairpins,
                "    ip saddr {address} ip daddr {address} {protocol} dport {} masquerade",
                mapping.container_port
            );
        }
    }
    let drop_table = format!("table ip {TABLE} {{}}\ndelete table ip {TABLE}\n");
    if rules.is_empty() {
        return drop_table;
    }
    format!(
        "{drop_table}table ip {TABLE} {{
  chain hostports {{
{rules}  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local jump hostports
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    fib daddr type local jump hostports
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname \"{bridge}\" ip saddr 127.0.0.0/8 masquerade
{hairpins}  }}
}}
"
    )
}

impl Protocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_mapping_means_no_table() {
        let script = ruleset("cbr0", std::iter::empty());
        assert!(script.ends_with("delete table ip fluyt_hostports\n"));
    }

    #[test]
    fn a_mapping_becomes_a_dnat_rule() {
        let mappings = [PortMapping {
            protocol: Protocol::Udp,
            container_port: 53,
            host_port: 5353,
            host_ip: Some(Ipv4Addr::new(127, 0, 0, 1)),
        }];
        let script = ruleset(
            "cbr0",
            [(Ipv4Addr::new(10, 244, 0, 2), mappings.as_slice())].into_iter(),
        );
        assert!(script.contains("ip daddr 127.0.0.1 udp dport 5353 dnat to 10.244.0.2:53"));
    }
}
