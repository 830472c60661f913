//! The addresses of services. One is taken as long as there is an `IPAddress` object of its name, whoever made it.

use std::net::IpAddr;
use std::sync::Arc;

use fluyt_api::resources::{self, Resource};
use fluyt_api::validation::{Errors, ip};
use fluyt_api::{Error, meta};
use ipnet::IpNet;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::allocation::Allocation;
use super::metrics::Scope;
use super::network::{AddressRange, family};
use crate::cache::Caches;
use crate::default_service_cidr;

/// Who looks after an address.
pub(crate) const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
pub(crate) const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
/// The allocator's name in that label.
pub(crate) const ALLOCATOR: &str = "ipallocator.k8s.io";

/// The ranges of the present ServiceCIDR objects.
#[derive(Default)]
pub(super) struct Ranges(Mutex<(i64, Arc<[AddressRange]>)>);

pub(crate) fn addresses() -> Result<&'static Resource, Error> {
    resources::find("networking.k8s.io", "v1", "ipaddresses").ok_or_else(Error::no_route)
}

pub(crate) fn service_cidrs() -> Result<&'static Resource, Error> {
    resources::find("networking.k8s.io", "v1", "servicecidrs").ok_or_else(Error::no_route)
}

/// Whether services have an address at all.
fn has_address(service: &Value) -> bool {
    service["spec"]["type"] != "ExternalName"
}

fn strings(list: &Value) -> impl Iterator<Item = &str> {
    let items = list.as_array().into_iter().flatten();
    items.filter_map(Value::as_str)
}

/// The addresses that a service has, in the form that their objects are named by.
pub(crate) fn cluster_ips(service: &Value) -> Vec<IpAddr> {
    let all = strings(&service["spec"]["clusterIPs"]).filter(|_| has_address(service));
    all.filter_map(parse).collect()
}

pub(crate) fn parse(text: &str) -> Option<IpAddr> {
    ip::parse_sloppy(text).map(ip::unmapped)
}

/// The object that stands for an address of a service.
pub(crate) fn address_of(address: IpAddr, namespace: &str, service: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {"name": address.to_string(), "labels": {FAMILY: family(address), MANAGED_BY: ALLOCATOR}},
        "spec": {"parentRef": {"resource": "services", "namespace": namespace, "name": service}},
    })
}

/// Whether an address says that it is a service's.
pub(crate) fn belongs_to(address: &Value, namespace: &str, service: &str) -> bool {
    let parent = &address["spec"]["parentRef"];
    is_of_a_service(address) && parent["namespace"] == namespace && parent["name"] == service
}

pub(crate) fn is_of_a_service(address: &Value) -> bool {
    let parent = &address["spec"]["parentRef"];
    parent["resource"] == "services" && parent["group"].as_str().is_none_or(str::is_empty)
}

/// Whether a ServiceCIDR takes part in allocation. One of which nobody has said anything yet does: the controller that says
/// so may not run.
fn is_ready(cidr: &Value) -> bool {
    let conditions = cidr["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten();
    let mut ready = conditions.filter(|c| c["type"] == "Ready");
    !meta::is_terminating(cidr) && ready.next().is_none_or(|c| c["status"] == "True")
}

/// The networks of a ServiceCIDR.
fn networks(cidr: &Value) -> impl Iterator<Item = IpNet> {
    strings(&cidr["spec"]["cidrs"]).filter_map(|text| text.parse().ok())
}

/// Whether any ServiceCIDR, ready or not, has an address.
pub(crate) fn is_in_some_range(caches: &Caches, address: IpAddr) -> Result<bool, Error> {
    let snapshot = caches.of(service_cidrs()?).snapshot();
    Ok(snapshot.entries.values().any(|cidr| {
        let ranges: Vec<AddressRange> = networks(&cidr.object())
            .filter_map(AddressRange::new)
            .collect();
        ranges.iter().any(|range| range.contains(address))
    }))
}

// === impl Ranges ===

impl Ranges {
    /// The ranges to allocate from: the default one first, the others by the names of their objects.
    pub(super) fn ready(&self, caches: &Caches) -> Result<Arc<[AddressRange]>, Error> {
        let cache = caches.of(service_cidrs()?);
        let mut known = self.0.lock();
        if known.0 == cache.revision() && known.0 != 0 {
            return Ok(known.1.clone());
        }
        let snapshot = cache.snapshot();
        let mut objects: Vec<Value> = snapshot.entries.values().map(|e| e.object()).collect();
        objects.retain(is_ready);
        objects.sort_by_key(|cidr| meta::name(cidr) != default_service_cidr::NAME);
        let ranges = objects.iter().flat_map(networks);
        let ranges: Arc<[AddressRange]> = ranges.filter_map(AddressRange::new).collect();
        *known = (snapshot.revision, ranges.clone());
        Ok(ranges)
    }

    /// Gives a service the addresses that it needs and has not got, and notes which ones it had and does not need.
    pub(super) fn assign(
        &self,
        caches: &Caches,
        service: &mut Value,
        old: Option<&Value>,
        allocation: &mut Allocation,
    ) -> Result<(), Error> {
        let Some(old) = old.filter(|old| has_address(old)) else {
            let is_headless = strings(&service["spec"]["clusterIPs"]).next() == Some("None");
            if has_address(service) && !is_headless {
                self.take(caches, service, 0, allocation)?;
            }
            return Ok(());
        };
        let had = cluster_ips(old);
        if had.is_empty() {
            return Ok(());
        }
        if !has_address(service) {
            allocation.addresses.released = had;
            return Ok(());
        }
        let families = |of: &Value| strings(&of["spec"]["ipFamilies"]).count();
        match (families(old), families(service)) {
            (0 | 1, 2) => self.take(caches, service, 1, allocation)?,
            (2, 1) => allocation.addresses.released = had.into_iter().skip(1).collect(),
            _ => {}
        }
        Ok(())
    }

    /// Takes addresses for the families of a service from one on.
    fn take(
        &self,
        caches: &Caches,
        service: &mut Value,
        from: usize,
        allocation: &mut Allocation,
    ) -> Result<(), Error> {
        let ranges = self.ready(caches)?;
        let owned = |list: &Value| -> Vec<String> { strings(list).map(Into::into).collect() };
        let families = owned(&service["spec"]["ipFamilies"]);
        let mut wanted = owned(&service["spec"]["clusterIPs"]);
        if wanted.len() < families.len() {
            wanted.resize(families.len(), String::new());
        }
        let mut got = wanted.clone();
        for (i, family) in families.iter().enumerate().skip(from) {
            let own = ranges.iter().copied().filter(|r| r.family() == family);
            let taken = if wanted[i].is_empty() {
                any(caches, own, allocation)
            } else {
                named(caches, own, &wanted[i], allocation).map(|()| wanted[i].clone())
            };
            got[i] = taken.map_err(|why| why.about(service, &wanted, i))?;
        }
        let spec = meta::child(service, "spec");
        if let Some(first) = got.first() {
            spec.insert("clusterIP".into(), first.as_str().into());
        }
        spec.insert("clusterIPs".into(), json!(got));
        Ok(())
    }
}

/// Why an address cannot be had.
enum Refusal {
    Full,
    NotReady,
    Mismatch,
    Allocated,
    OutOfRange(IpAddr, IpNet),
    Malformed,
    Internal(Error),
}

impl Refusal {
    fn about(self, service: &Value, wanted: &[String], i: usize) -> Error {
        let detail = match self {
            Self::Internal(error) => return error,
            Self::Malformed => {
                return Error::internal(format!("failed to parse service IP {:?}", wanted[i]));
            }
            Self::Full => {
                return Error::internal(format!(
                    "failed to allocate a serviceIP for Service {:?}: range is full",
                    meta::name(service)
                ));
            }
            Self::NotReady => "allocator not ready".to_owned(),
            Self::Mismatch => "the provided network does not match the current range".to_owned(),
            Self::Allocated => "provided IP is already allocated".to_owned(),
            Self::OutOfRange(address, net) => format!(
                "the provided IP ({address}) is not in the valid range. The range of valid IPs is {net}"
            ),
        };
        let which = match wanted[i].as_str() {
            "" => String::new(),
            address => format!(" {address}"),
        };
        let mut errors = Errors::default();
        let detail = format!("failed to allocate IP{which}: {detail}");
        errors.invalid("spec.clusterIPs", &json!(wanted), &detail);
        Error::invalid("", "Service", meta::name(service), errors.0)
    }
}

/// Takes any address of some ranges.
fn any(
    caches: &Caches,
    mut ranges: impl Iterator<Item = AddressRange>,
    allocation: &mut Allocation,
) -> Result<String, Refusal> {
    if allocation.dry_run {
        // What is free is not worth finding out, as upstream sees it.
        let first = ranges.next().ok_or(Refusal::NotReady)?;
        return Ok(first.net().addr().to_string());
    }
    let resource = addresses().map_err(Refusal::Internal)?;
    let cache = caches.of(resource);
    let mut stored = None;
    let taken = ranges.find_map(|range| {
        allocation.take_address(range.net(), Scope::Dynamic, range.candidates(), |address| {
            let stored = stored.get_or_insert_with(|| cache.snapshot());
            stored.entries.contains_key(address.to_string().as_str())
        })
    });
    taken.map(|a| a.to_string()).ok_or(Refusal::Full)
}

/// Takes an address that the service names.
fn named(
    caches: &Caches,
    mut ranges: impl Iterator<Item = AddressRange>,
    wanted: &str,
    allocation: &mut Allocation,
) -> Result<(), Refusal> {
    let address = parse(wanted).ok_or(Refusal::Malformed)?;
    let mut first = None;
    let range = ranges.find(|range| {
        first.get_or_insert(*range);
        range.contains(address)
    });
    if allocation.dry_run {
        return match (range, first) {
            (Some(_), _) => Ok(()),
            (None, Some(range)) => Err(Refusal::OutOfRange(address, range.net())),
            (None, None) => Err(Refusal::NotReady),
        };
    }
    let range = range.ok_or(Refusal::Mismatch)?;
    let cache = caches.of(addresses().map_err(Refusal::Internal)?);
    let is_stored = |address: IpAddr| cache.get(&address.to_string()).is_some();
    let wanted = std::iter::once(address);
    let taken = allocation.take_address(range.net(), Scope::Static, wanted, is_stored);
    taken.map(drop).ok_or(Refusal::Allocated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_counts_until_somebody_says_otherwise() {
        let with = |conditions: Value| json!({"status": {"conditions": conditions}});
        assert!(is_ready(&json!({})));
        assert!(is_ready(&with(
            json!([{"type": "Ready", "status": "True"}])
        )));
        assert!(!is_ready(&with(
            json!([{"type": "Ready", "status": "False"}])
        )));
        assert!(!is_ready(
            &json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})
        ));
    }

    #[test]
    fn addresses_name_their_service() {
        let address = address_of("fd00::1".parse().unwrap(), "n", "a");
        assert_eq!(address["metadata"]["labels"][FAMILY], "IPv6");
        assert!(belongs_to(&address, "n", "a") && !belongs_to(&address, "n", "b"));
        let service =
            json!({"spec": {"type": "ClusterIP", "clusterIPs": ["010.0.0.1", "FD00::0:1"]}});
        let names: Vec<String> = cluster_ips(&service)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(names, ["10.0.0.1", "fd00::1"]);
        assert!(cluster_ips(&json!({"spec": {"clusterIPs": ["None"]}})).is_empty());
    }
}
