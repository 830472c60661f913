//! What a write of a service takes and gives back. What is taken is kept from other writers of this server from the choice
//! until the caches show it, or until the write has failed.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use parking_lot::Mutex;

use super::metrics::{Scope, Tallies};
use super::ports::View;

const ALLOCATED: &str = "provided port is already allocated";

/// What writers of this server are about to take.
#[derive(Default)]
pub(super) struct Reserved {
    addresses: HashSet<IpAddr>,
    ports: HashSet<i64>,
}

/// The addresses and ports that a write changes hands of.
pub(in crate::registry) struct Allocation {
    reserved: Arc<Mutex<Reserved>>,
    tallies: Arc<Tallies>,
    since: Instant,
    /// The ranges of the addresses that are taken.
    ranges: Vec<IpNet>,
    /// Nothing is taken, and what is free is not looked at, as in upstream's dry runs.
    pub(super) dry_run: bool,
    pub(in crate::registry) addresses: Changes<IpAddr>,
    pub(in crate::registry) ports: Changes<i64>,
}

pub(in crate::registry) struct Changes<T> {
    pub(in crate::registry) taken: Vec<T>,
    pub(in crate::registry) released: Vec<T>,
}

impl<T> Changes<T> {
    fn none() -> Self {
        Self {
            taken: Vec::new(),
            released: Vec::new(),
        }
    }

    pub(in crate::registry) fn is_empty(&self) -> bool {
        self.taken.is_empty() && self.released.is_empty()
    }
}

impl Allocation {
    pub(super) fn new(
        reserved: &Arc<Mutex<Reserved>>,
        tallies: &Arc<Tallies>,
        dry_run: bool,
    ) -> Self {
        Self {
            reserved: reserved.clone(),
            tallies: tallies.clone(),
            since: Instant::now(),
            ranges: Vec::new(),
            dry_run,
            addresses: Changes::none(),
            ports: Changes::none(),
        }
    }

    /// Takes the first of some addresses of a range that nobody has. `is_stored` is asked while nobody else can take any.
    pub(super) fn take_address(
        &mut self,
        range: IpNet,
        scope: Scope,
        mut candidates: impl Iterator<Item = IpAddr>,
        mut is_stored: impl FnMut(IpAddr) -> bool,
    ) -> Option<IpAddr> {
        let mut reserved = self.reserved.lock();
        let free = candidates
            .find(|address| !reserved.addresses.contains(address) && !is_stored(*address));
        let tally = &self.tallies.addresses;
        tally.count(Some(range), scope, free.is_some());
        let free = free?;
        reserved.addresses.insert(free);
        self.addresses.taken.push(free);
        self.ranges.push(range);
        Some(free)
    }

    /// What is taken has been stored.
    pub(in crate::registry) fn committed(&self) {
        for range in &self.ranges {
            self.tallies.took(*range, self.since.elapsed());
        }
    }

    /// Takes a port that the service names.
    ///
    /// # Errors
    /// When it is not to be had.
    pub(super) fn take_port(&mut self, view: &View<'_>, port: i64) -> Result<(), String> {
        let taken = self.try_port(view, port);
        self.count_port(Scope::Static, taken.is_ok());
        taken
    }

    fn count_port(&self, scope: Scope, succeeded: bool) {
        if !self.dry_run {
            self.tallies.ports.count(None, scope, succeeded);
        }
    }

    fn try_port(&mut self, view: &View<'_>, port: i64) -> Result<(), String> {
        if !self.dry_run && !view.contains(port) {
            return Err(format!(
                "provided port is not in the valid range. The range of valid ports is {}",
                view.range()
            ));
        }
        let mut reserved = self.reserved.lock();
        let is_ours = self.ports.taken.contains(&port);
        if is_ours || view.has(port)? || (!self.dry_run && !reserved.ports.insert(port)) {
            return Err(ALLOCATED.into());
        }
        self.ports.taken.push(port);
        Ok(())
    }

    /// Takes any port.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn take_any_port(&mut self, view: &View<'_>) -> Result<i64, String> {
        let taken = self.try_any_port(view);
        self.count_port(Scope::Dynamic, taken.is_ok());
        taken
    }

    fn try_any_port(&mut self, view: &View<'_>) -> Result<i64, String> {
        if self.dry_run {
            // No port that anybody could have, as upstream's.
            let last = self.ports.taken.iter().copied().max();
            let port = last.unwrap_or(32_768) + 1;
            self.ports.taken.push(port);
            return Ok(port);
        }
        let mut reserved = self.reserved.lock();
        let free = view.free()?.find(|port| !reserved.ports.contains(port));
        let port = free.ok_or("range is full")?;
        reserved.ports.insert(port);
        self.ports.taken.push(port);
        Ok(port)
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if self.dry_run {
            return;
        }
        let mut reserved = self.reserved.lock();
        for address in &self.addresses.taken {
            reserved.addresses.remove(address);
        }
        for port in &self.ports.taken {
            reserved.ports.remove(port);
        }
    }
}
