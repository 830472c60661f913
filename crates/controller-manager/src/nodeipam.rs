//! node-ipam-controller: gives every node a subnet of the pod network.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use fluyt_client::{
    Action, Change, EventType, Informer, ObjectKey, Recorder, WorkQueue, controller,
};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Resource,
    api::{Patch, PatchParams},
};
use parking_lot::Mutex;
use serde_json::json;
use tracing::warn;

use crate::Context;

const COMPONENT: &str = "cidrAllocator";

/// Hands out the subnets of one network.
#[derive(Debug)]
pub struct CidrSet {
    network: IpNet,
    prefix: u8,
    used: HashSet<u64>,
    /// Where to look for the next free one: an address is reused late.
    next: u64,
}

struct Controller {
    context: Context,
    nodes: Informer<Node>,
    sets: Mutex<Vec<CidrSet>>,
    recorder: Recorder,
}

/// Run the controller until shutdown.
pub async fn run(context: Context) {
    let config = &context.config;
    if !config.allocate_node_cidrs || config.cluster_cidrs.is_empty() {
        return;
    }
    let mut sets: Vec<CidrSet> = config
        .cluster_cidrs
        .iter()
        .map(|network| {
            let default = if network.addr().is_ipv4() {
                config.node_cidr_mask_size
            } else {
                64
            };
            CidrSet::new(*network, default)
        })
        .collect();
    if let Some(services) = &config.service_cluster_ip_range {
        sets.iter_mut().for_each(|set| set.occupy(services));
    }
    let nodes = context.informers.get::<Node>();
    nodes.synced().await;
    for node in nodes.list() {
        for subnet in pod_cidrs(&node) {
            sets.iter_mut().for_each(|set| set.occupy(&subnet));
        }
    }
    let queue = WorkQueue::new();
    let controller = std::sync::Arc::new(Controller {
        recorder: context.recorder(COMPONENT),
        nodes: nodes.clone(),
        sets: Mutex::new(sets),
        context,
    });
    let (feed, this) = (queue.clone(), std::sync::Arc::clone(&controller));
    nodes.on_change(move |change| match change {
        Change::Added(node) | Change::Updated { new: node, .. } => feed.add(ObjectKey::of(&*node)),
        Change::Deleted(node) => this.release(&node),
    });
    let shutdown = controller.context.shutdown.clone();
    // One worker: two must not pick the same subnet.
    controller::run(
        "node-ipam-controller",
        queue,
        1,
        |key| controller.reconcile(key),
        shutdown,
    )
    .await;
}

fn pod_cidrs(node: &Node) -> Vec<IpNet> {
    let spec = node.spec.as_ref();
    let listed = spec
        .and_then(|spec| spec.pod_cidrs.clone())
        .unwrap_or_default();
    let single = spec.and_then(|spec| spec.pod_cidr.clone());
    let all = if listed.is_empty() {
        single.into_iter().collect()
    } else {
        listed
    };
    all.iter().filter_map(|cidr| cidr.parse().ok()).collect()
}

impl Controller {
    fn release(&self, node: &Node) {
        for subnet in pod_cidrs(node) {
            self.sets
                .lock()
                .iter_mut()
                .for_each(|set| set.release(&subnet));
        }
    }

    async fn reconcile(&self, key: ObjectKey) -> anyhow::Result<Action> {
        let Some(node) = self.nodes.get_key(&key) else {
            return Ok(Action::Await);
        };
        if !pod_cidrs(&node).is_empty() {
            return Ok(Action::Await);
        }
        let subnets: Option<Vec<IpNet>> =
            self.sets.lock().iter_mut().map(CidrSet::allocate).collect();
        let Some(subnets) = subnets else {
            let message = format!("Node {} status is now: CIDRNotAvailable", key.name);
            let object = node.object_ref(&());
            self.recorder
                .event(&object, EventType::Normal, "CIDRNotAvailable", message);
            warn!(node = key.name, "no pod subnet is free");
            anyhow::bail!("no pod subnet is free for node {}", key.name);
        };
        let cidrs: Vec<String> = subnets.iter().map(ToString::to_string).collect();
        let patch = json!({"spec": {"podCIDR": cidrs.first(), "podCIDRs": cidrs}});
        let api = Api::<Node>::all(self.context.client.clone());
        let written = api
            .patch(&key.name, &PatchParams::default(), &Patch::Strategic(patch))
            .await;
        if let Err(error) = written {
            for subnet in &subnets {
                self.sets
                    .lock()
                    .iter_mut()
                    .for_each(|set| set.release(subnet));
            }
            if !fluyt_client::is_not_found(&error) {
                return Err(error.into());
            }
        }
        Ok(Action::Await)
    }
}

// === impl CidrSet ===

impl CidrSet {
    /// The subnets of `prefix` bits of `network`.
    pub fn new(network: IpNet, prefix: u8) -> Self {
        Self {
            network: network.trunc(),
            prefix: prefix.clamp(network.prefix_len(), network.max_prefix_len()),
            used: HashSet::new(),
            next: 0,
        }
    }

    fn count(&self) -> u64 {
        // More subnets than this no cluster will use.
        1 << u32::from(self.prefix - self.network.prefix_len()).min(32)
    }

    fn host_bits(&self) -> u32 {
        u32::from(self.network.max_prefix_len() - self.prefix)
    }

    /// A free subnet, which is now taken.
    pub fn allocate(&mut self) -> Option<IpNet> {
        let count = self.count();
        let free = (0..count)
            .map(|i| (self.next + i) % count)
            .find(|index| !self.used.contains(index))?;
        self.used.insert(free);
        self.next = (free + 1) % count;
        self.subnet(free)
    }

    fn subnet(&self, index: u64) -> Option<IpNet> {
        let offset = u128::from(index) << self.host_bits();
        let address = match self.network.addr() {
            IpAddr::V4(base) => IpAddr::V4(Ipv4Addr::from(
                u32::from(base) + u32::try_from(offset).ok()?,
            )),
            IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from(u128::from(base) + offset)),
        };
        IpNet::new(address, self.prefix).ok()
    }

    /// The indexes of our subnets that `other` overlaps.
    fn overlap(&self, other: &IpNet) -> std::ops::RangeInclusive<u64> {
        #[allow(clippy::reversed_empty_ranges)]
        const NONE: std::ops::RangeInclusive<u64> = 1..=0;
        let value = |address: IpAddr| match address {
            IpAddr::V4(address) => u128::from(u32::from(address)),
            IpAddr::V6(address) => u128::from(address),
        };
        if other.addr().is_ipv4() != self.network.addr().is_ipv4() {
            return NONE;
        }
        let (base, end) = (
            value(self.network.network()),
            value(self.network.broadcast()),
        );
        let (first, last) = (
            value(other.network()).max(base),
            value(other.broadcast()).min(end),
        );
        if first > last {
            return NONE;
        }
        let index =
            |address: u128| u64::try_from((address - base) >> self.host_bits()).unwrap_or(u64::MAX);
        index(first)..=index(last).min(self.count() - 1)
    }

    /// Mark what `taken` overlaps as used.
    pub fn occupy(&mut self, taken: &IpNet) {
        let overlap = self.overlap(taken);
        self.used.extend(overlap);
    }

    /// Give a subnet back.
    pub fn release(&mut self, subnet: &IpNet) {
        for index in self.overlap(subnet) {
            self.used.remove(&index);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::common::test_support::{context, named};

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn subnets_are_handed_out_once_and_reused_late() {
        let mut set = CidrSet::new(net("10.244.0.0/22"), 24);
        set.occupy(&net("10.244.1.0/24"));
        set.occupy(&net("10.0.0.0/16"));
        let allocate = |set: &mut CidrSet| set.allocate().map(|subnet| subnet.to_string());
        assert_eq!(allocate(&mut set).as_deref(), Some("10.244.0.0/24"));
        assert_eq!(allocate(&mut set).as_deref(), Some("10.244.2.0/24"));
        set.release(&net("10.244.0.0/24"));
        assert_eq!(allocate(&mut set).as_deref(), Some("10.244.3.0/24"));
        assert_eq!(allocate(&mut set).as_deref(), Some("10.244.0.0/24"));
        assert_eq!(allocate(&mut set), None);
    }

    #[test]
    fn a_service_range_inside_the_network_is_left_out() {
        let mut set = CidrSet::new(net("10.0.0.0/14"), 16);
        set.occupy(&net("10.1.4.0/22"));
        let subnets: Vec<String> = std::iter::from_fn(|| set.allocate())
            .map(|s| s.to_string())
            .collect();
        assert_eq!(subnets, ["10.0.0.0/16", "10.2.0.0/16", "10.3.0.0/16"]);
        let mut set = CidrSet::new(net("fd00::/48"), 64);
        set.allocate();
        assert_eq!(set.allocate(), Some(net("fd00:0:0:1::/64")));
    }

    #[tokio::test]
    async fn nodes_get_their_own_subnets() {
        let (fake, mut context) = context();
        let config = Arc::get_mut(&mut context.config).unwrap();
        config.allocate_node_cidrs = true;
        config.cluster_cidrs = vec![net("10.244.0.0/16")];
        let node = |name: &str| Node {
            metadata: named("", name),
            ..Node::default()
        };
        let mut present = node("present");
        present.spec.get_or_insert_default().pod_cidr = Some("10.244.0.0/24".to_owned());
        fake.insert(present);
        fake.insert(node("a"));
        tokio::spawn(run(context));
        let cidr = |fake: &fluyt_client::fake::FakeApi, name: &str| {
            fake.get::<Node>("", name)?
                .spec?
                .pod_cidrs
                .map(|cidrs| cidrs.join(","))
        };
        fake.until("a's subnet", |fake| cidr(fake, "a").is_some())
            .await;
        fake.insert(node("b"));
        fake.until("b's subnet", |fake| cidr(fake, "b").is_some())
            .await;
        assert_eq!(cidr(&fake, "a").as_deref(), Some("10.244.1.0/24"));
        assert_eq!(cidr(&fake, "b").as_deref(), Some("10.244.2.0/24"));
    }
}
