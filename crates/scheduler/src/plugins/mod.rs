//! The in-tree plugins, by upstream's names, and the default profile.

mod default_binder;
pub mod default_preemption;
mod image_locality;
mod inter_pod_affinity;
mod node_affinity;
mod node_declared_features;
mod node_name;
mod node_ports;
mod node_resources_balanced_allocation;
mod node_resources_fit;
mod node_unschedulable;
mod pod_topology_spread;
mod scheduling_gates;
mod taint_toleration;
pub mod volume_binding;
mod volume_restrictions;

use std::sync::Arc;

use fluyt_client::Informers;
use kube::Client;

pub use self::{
    node_resources_fit::ScoringStrategy, pod_topology_spread::DefaultSelectors,
    volume_binding::VolumeBinding,
};
use crate::framework::{Plugin, WeightedPlugin};

/// Upstream's default plugins with their weights, in the order in which they run: cheap filters first.
pub fn default_plugins(
    client: &Client,
    informers: &Informers,
    scoring: ScoringStrategy,
) -> Vec<WeightedPlugin> {
    let plugin = |plugin: Arc<dyn Plugin>, weight| WeightedPlugin { plugin, weight };
    vec![
        plugin(Arc::new(scheduling_gates::SchedulingGates), 0),
        plugin(Arc::new(node_unschedulable::NodeUnschedulable), 0),
        plugin(Arc::new(node_name::NodeName), 0),
        plugin(Arc::new(taint_toleration::TaintToleration), 3),
        plugin(Arc::new(node_affinity::NodeAffinity), 2),
        plugin(Arc::new(node_ports::NodePorts), 0),
        plugin(
            Arc::new(node_resources_fit::NodeResourcesFit { scoring }),
            1,
        ),
        plugin(
            Arc::new(volume_restrictions::VolumeRestrictions::new(informers)),
            0,
        ),
        plugin(Arc::new(VolumeBinding::new(client.clone(), informers)), 0),
        plugin(
            Arc::new(pod_topology_spread::PodTopologySpread::new(
                DefaultSelectors::new(informers),
            )),
            2,
        ),
        plugin(Arc::new(inter_pod_affinity::InterPodAffinity), 2),
        plugin(
            Arc::new(node_resources_balanced_allocation::NodeResourcesBalancedAllocation),
            1,
        ),
        plugin(Arc::new(image_locality::ImageLocality), 1),
        plugin(
            Arc::new(default_binder::DefaultBinder {
                client: client.clone(),
            }),
            0,
        ),
        plugin(Arc::new(node_declared_features::NodeDeclaredFeatures), 0),
    ]
}
