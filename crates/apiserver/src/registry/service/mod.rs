//! Cluster IPs and node ports of services. They are chosen before a service is validated, and what is chosen is committed
//! with it in one transaction: an `IPAddress` object for each address, and the bitmap of node ports.

mod allocation;
mod cluster_ips;
mod metrics;
mod network;
mod node_ports;
mod ports;
mod range_allocation;

use std::sync::Arc;

use fluyt_api::resources::Resource;
use fluyt_api::strategy;
use fluyt_api::validation::Errors;
use fluyt_api::{Error, meta};
use parking_lot::Mutex;
use serde_json::Value;

use super::delete::{self, DeleteOptions};
use super::write::{Side, Write};
use super::{Location, Registry, stamp_new};
use crate::cache::Caches;
use crate::loopback::SERVER;

pub(super) use allocation::Allocation;
pub(crate) use cluster_ips::{
    ALLOCATOR, FAMILY, MANAGED_BY, address_of, addresses, belongs_to, cluster_ips,
    is_in_some_range, is_of_a_service, parse, service_cidrs,
};
pub use network::ServiceNetwork;
pub(crate) use network::family;
pub(crate) use node_ports::claimed as claimed_ports;
pub(super) use ports::Plan;
pub(crate) use ports::{NodePorts, StoredPorts};

/// Hands out addresses and ports.
pub(super) struct Allocator {
    families: Vec<&'static str>,
    ranges: cluster_ips::Ranges,
    pub(super) ports: NodePorts,
    reserved: Arc<Mutex<allocation::Reserved>>,
    tallies: Arc<metrics::Tallies>,
}

/// Whether something goes with objects of a resource that another writer may be faster to take.
pub(super) fn allocates(resource: &Resource) -> bool {
    resource.group.is_empty() && resource.kind == "Service"
}

impl Allocator {
    pub(super) fn new(network: &ServiceNetwork) -> Self {
        Self {
            families: network.families(),
            ranges: cluster_ips::Ranges::default(),
            ports: NodePorts::new(network.node_ports),
            reserved: Arc::default(),
            tallies: Arc::default(),
        }
    }

    /// Gives a service what it needs and has not got; nothing for other kinds and for parts of a service.
    ///
    /// # Errors
    /// What upstream answers when it cannot have what it asks for.
    pub(super) async fn begin(
        &self,
        caches: &Caches,
        at: Location<'_>,
        service: &mut Value,
        old: Option<&Value>,
        dry_run: bool,
    ) -> Result<Option<Allocation>, Error> {
        if !allocates(at.resource) || !at.subresource.is_empty() {
            return Ok(None);
        }
        let mut errors = Errors::default();
        strategy::service::begin(service, old, &self.families, &mut errors);
        if !errors.is_empty() {
            return Err(Error::invalid("", "Service", meta::name(service), errors.0));
        }
        let mut allocation = Allocation::new(&self.reserved, &self.tallies, dry_run);
        self.ranges.assign(caches, service, old, &mut allocation)?;
        if node_ports::concern(service, old) {
            let view = self.ports.view(caches).await?;
            node_ports::assign(&view, service, old, &mut allocation)?;
        }
        Ok(Some(allocation))
    }

    /// Everything that a service has goes with it.
    pub(super) fn release(&self, resource: &Resource, service: &Value) -> Option<Allocation> {
        allocates(resource).then(|| {
            let mut allocation = Allocation::new(&self.reserved, &self.tallies, false);
            allocation.addresses.released = cluster_ips(service);
            allocation.ports.released = node_ports::all(service);
            allocation
        })
    }
}

impl Registry {
    /// The writes of the objects of a service's addresses.
    pub(super) async fn address_sides(
        &self,
        service: Location<'_>,
        allocation: &Allocation,
    ) -> Result<Vec<Side>, Error> {
        let mut sides = Vec::new();
        for address in &allocation.addresses.taken {
            let mut object = address_of(*address, service.namespace, service.name);
            let name = address.to_string();
            let at = address_location(&name)?;
            stamp_new(&mut object, at.strategy());
            let context = SERVER.context(at.resource);
            self.track(&context, at, &Value::Null, &mut object);
            sides.push(Side::of(at, 0, self.write(at, object, 0).await?));
        }
        for address in &allocation.addresses.released {
            sides.extend(self.release_address(service, &address.to_string()).await?);
        }
        Ok(sides)
    }

    /// The end of an address, or its beginning where finalizers hold it. What is not the service's is left alone.
    async fn release_address(
        &self,
        service: Location<'_>,
        name: &str,
    ) -> Result<Option<Side>, Error> {
        let at = address_location(name)?;
        let Some(entry) = self.caches.of(at.resource).get(name) else {
            return Ok(None);
        };
        let old = entry.object();
        if !belongs_to(&old, service.namespace, service.name) {
            return Ok(None);
        }
        let object = delete::mark(at.resource, &old, &DeleteOptions::default());
        let write = if delete::is_finished(at.resource, &object) {
            Write::removal(at, object)
        } else {
            self.write(at, object, 0).await?
        };
        Ok(Some(Side::of(at, entry.revision, write)))
    }
}

fn address_location(name: &str) -> Result<Location<'_>, Error> {
    Ok(Location {
        resource: addresses()?,
        namespace: "",
        name,
        subresource: "",
    })
}
