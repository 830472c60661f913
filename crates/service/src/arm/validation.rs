//! What AKS refuses, with its codes and nearly its words.

use ipnet::Ipv4Net;

use super::error::{ArmError, Result};
use crate::service::Service;
use crate::state::Tables;
use crate::versions::{self, OFFERED};
use crate::vm_sizes::{self, VmSize};

/// Nodes of a pool.
const MAX_COUNT: i64 = 1000;

/// Pods of a node, with AKS's network plugins.
const MAX_PODS: std::ops::RangeInclusive<i64> = 10..=250;

pub fn cluster_name(name: &str) -> Result<()> {
    let bytes = name.as_bytes();
    let is_end = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let fits = name.len() <= 63
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if fits && is_end(bytes.first()) && is_end(bytes.last()) {
        return Ok(());
    }
    let message = format!(
        "The name '{name}' of the managed cluster is invalid. It must have 1 to 63 characters: letters, digits, underscores and hyphens, \
         beginning and ending with a letter or digit."
    );
    Err(ArmError::bad_request("InvalidParameter", message).at("resourceName"))
}

pub fn pool_name(name: &str) -> Result<()> {
    let bytes = name.as_bytes();
    let fits = bytes.len() <= 12
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if fits && bytes.first().is_some_and(u8::is_ascii_lowercase) {
        return Ok(());
    }
    let message = format!(
        "The agent pool name '{name}' is invalid. A Linux agent pool's name begins with a lowercase letter, contains only lowercase \
         letters and digits, and has 1 to 12 characters."
    );
    Err(ArmError::bad_request("InvalidParameter", message).at("agentPoolProfile.name"))
}

pub fn group_name(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '(' | ')');
    if (1..=90).contains(&name.chars().count()) && name.chars().all(allowed) && !name.ends_with('.')
    {
        return Ok(());
    }
    let message = format!(
        "The provided resource group name '{name}' has these invalid characters or an invalid length."
    );
    Err(ArmError::bad_request("InvalidResourceGroup", message))
}

pub fn dns_prefix(prefix: &str) -> Result<()> {
    let bytes = prefix.as_bytes();
    let fits = (1..=54).contains(&bytes.len())
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || *b == b'-');
    if fits
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
    {
        return Ok(());
    }
    let message = format!(
        "The DNS prefix '{prefix}' is invalid: 1 to 54 letters, digits and hyphens, beginning and ending with a letter or digit."
    );
    Err(ArmError::bad_request("DnsPrefixInvalid", message).at("properties.dnsPrefix"))
}

pub fn version(version: &str, target: &str) -> Result<&'static str> {
    versions::resolve(version).ok_or_else(|| {
        let message = format!(
            "Version {version} is not supported in this region. Supported are: {}. `fluyt aks get-versions` lists them.",
            OFFERED.join(", ")
        );
        ArmError::bad_request("K8sVersionNotSupported", message).at(target)
    })
}

pub fn count(count: i64, mode: &str) -> Result<u32> {
    let least = i64::from(mode.eq_ignore_ascii_case("System"));
    if (least..=MAX_COUNT).contains(&count) {
        return Ok(u32::try_from(count).unwrap_or_default());
    }
    let message = format!(
        "The value {count} of parameter agentPoolProfile.count is invalid: a pool of mode {mode} has {least} to {MAX_COUNT} nodes."
    );
    Err(ArmError::bad_request("InvalidParameter", message).at("agentPoolProfile.count"))
}

pub fn max_pods(pods: i64) -> Result<u32> {
    if MAX_PODS.contains(&pods) {
        return Ok(u32::try_from(pods).unwrap_or_default());
    }
    let message = format!(
        "The value {pods} of parameter agentPoolProfile.maxPods is invalid: it is {} to {}.",
        MAX_PODS.start(),
        MAX_PODS.end()
    );
    Err(ArmError::bad_request("InvalidParameter", message).at("agentPoolProfile.maxPods"))
}

/// The size, if there is one of this name that the host can give to a node.
pub fn vm_size(service: &Service, name: &str) -> Result<&'static VmSize> {
    let Some(size) = vm_sizes::find(name) else {
        let message = format!(
            "The VM size of '{name}' is not allowed in your subscription in location 'local': there is no such size."
        );
        return Err(
            ArmError::bad_request("VMSizeNotSupported", message).at("agentPoolProfile.vmSize")
        );
    };
    let host = service.settings.host_memory;
    if size.memory_bytes() > host {
        let message = format!(
            "A node of size {} has {} GiB of memory; this host has {:.1} GiB altogether.",
            size.name,
            size.memory_gib,
            gib(host)
        );
        return Err(ArmError::bad_request("SkuNotAvailable", message).at("agentPoolProfile.vmSize"));
    }
    Ok(size)
}

/// Whether all nodes of all clusters together are within what the host may give.
pub fn budget(service: &Service, tables: &Tables) -> Result<()> {
    let pools = tables
        .clusters
        .values()
        .flat_map(|c| &c.pools)
        .filter(|p| !p.deleting);
    let wanted: u64 = pools
        .map(|p| u64::from(p.count) * vm_sizes::find(&p.vm_size).map_or(0, VmSize::memory_bytes))
        .sum();
    let budget = service.memory_budget();
    if wanted <= budget {
        return Ok(());
    }
    let message = format!(
        "The nodes of all clusters would have {:.0} GiB of memory; this host can give them {:.0} GiB ({:.1} GiB, {} times).",
        gib(wanted),
        gib(budget),
        gib(service.settings.host_memory),
        service.settings.memory_overcommit
    );
    Err(ArmError::bad_request("QuotaExceeded", message).at("agentPoolProfile.count"))
}

#[expect(clippy::cast_precision_loss)]
fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

pub fn cidr(text: &str, target: &str) -> Result<Ipv4Net> {
    let invalid = |why: &str| {
        ArmError::bad_request(
            "InvalidParameter",
            format!("The address range '{text}' is invalid: {why}."),
        )
        .at(target)
    };
    let network: Ipv4Net = text
        .parse()
        .map_err(|_| invalid("it has the form 10.0.0.0/16"))?;
    if network.trunc() != network {
        return Err(invalid("its address has bits beyond the prefix"));
    }
    Ok(network)
}

/// `key=value:effect`.
pub fn taint(taint: &str) -> Result<()> {
    let parsed = taint.rsplit_once(':').filter(|(key, effect)| {
        !key.is_empty()
            && !key.starts_with('=')
            && matches!(*effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute")
    });
    match parsed {
        Some(_) => Ok(()),
        None => {
            let message = format!(
                "The taint '{taint}' is invalid: it has the form key=value:effect, with NoSchedule, PreferNoSchedule or NoExecute."
            );
            Err(ArmError::bad_request("InvalidParameter", message)
                .at("agentPoolProfile.nodeTaints"))
        }
    }
}

/// A label as Kubernetes takes it, outside the prefixes that are its own.
pub fn label(key: &str, value: &str) -> Result<()> {
    let is_word = |s: &str, longest: usize| {
        let b = s.as_bytes();
        b.len() <= longest
            && b.iter()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
            && b.first().is_none_or(u8::is_ascii_alphanumeric)
            && b.last().is_none_or(u8::is_ascii_alphanumeric)
    };
    let (prefix, name) = key
        .rsplit_once('/')
        .map_or((None, key), |(p, n)| (Some(p), n));
    let reserved = prefix.is_some_and(|p| {
        p == "kubernetes.azure.com" || p.ends_with("kubernetes.io") || p.ends_with("k8s.io")
    });
    let well_formed = !name.is_empty()
        && is_word(name, 63)
        && is_word(value, 63)
        && prefix.is_none_or(|p| !p.is_empty() && is_word(p, 253));
    if well_formed && !reserved {
        return Ok(());
    }
    let why = if reserved {
        "its prefix is reserved"
    } else {
        "it is not a label of Kubernetes"
    };
    Err(ArmError::bad_request(
        "InvalidParameter",
        format!("The node label '{key}={value}' is invalid: {why}."),
    )
    .at("agentPoolProfile.nodeLabels"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "Demo-1_x", &"a".repeat(63)] {
            assert!(cluster_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "a.b", "a b", "é", &"a".repeat(64)] {
            assert_eq!(
                cluster_name(bad).unwrap_err().code,
                "InvalidParameter",
                "{bad}"
            );
        }
        assert!(pool_name("nodepool1").is_ok());
        for bad in ["", "1pool", "Pool", "a-b", "abcdefghijklm"] {
            assert!(pool_name(bad).is_err(), "{bad}");
        }
        assert!(
            group_name("My.Group_(1)").is_ok()
                && group_name("a/b").is_err()
                && group_name("a.").is_err()
        );
        assert!(dns_prefix("demo-1").is_ok() && dns_prefix("demo_1").is_err());
    }

    #[test]
    fn numbers() {
        assert_eq!(count(1, "System").unwrap(), 1);
        assert_eq!(count(0, "User").unwrap(), 0);
        for bad in [-1, 0, 1001, i64::MAX] {
            assert!(count(bad, "System").is_err(), "{bad}");
        }
        assert!(max_pods(9).is_err() && max_pods(251).is_err());
        assert_eq!(
            version("1.10.1", "v").unwrap_err().code,
            "K8sVersionNotSupported"
        );
    }

    #[test]
    fn labels_taints_and_ranges() {
        assert!(taint("a=b:NoSchedule").is_ok() && taint("a:NoExecute").is_ok());
        assert!(
            taint("a=b").is_err() && taint("a=b:Never").is_err() && taint(":NoSchedule").is_err()
        );
        assert!(label("a.b/c", "d").is_ok() && label("x", "").is_ok());
        assert!(
            label("kubernetes.io/x", "y").is_err()
                && label("", "y").is_err()
                && label("a", "b c").is_err()
        );
        assert!(
            cidr("10.0.0.0/16", "x").is_ok()
                && cidr("10.0.0.1/16", "x").is_err()
                && cidr("10.0.0.0", "x").is_err()
        );
    }
}
