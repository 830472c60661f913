//! A pod that is bound to a node gets the node's zone and region as labels.

use async_trait::async_trait;
use fluyt_api::{Error, meta, resources};
use serde_json::{Value, json};

use super::{Attributes, Operation, Plugin};
use crate::cache::Caches;

pub(super) struct PodTopologyLabels;

const LABELS: [&str; 2] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
];

#[async_trait]
impl Plugin for PodTopologyLabels {
    async fn admit(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        pod: &mut Value,
    ) -> Result<(), Error> {
        let at = attributes.at;
        let is_pod = at.resource.group.is_empty() && at.resource.plural == "pods";
        let created = attributes.operation == Operation::Create && at.subresource.is_empty();
        if !is_pod || !(created || at.subresource == "binding") {
            return Ok(());
        }
        let Some(node) = pod["spec"]["nodeName"].as_str() else {
            return Ok(());
        };
        let node = resources::find("", "v1", "nodes").and_then(|r| caches.of(r).get(node));
        let Some(node) = node.map(|n| n.object()) else {
            return Ok(());
        };
        for label in LABELS {
            if let Some(value) = meta::labels(&node).and_then(|l| l.get(label)) {
                let labels = meta::metadata(pod)
                    .entry("labels")
                    .or_insert_with(|| json!({}));
                labels[label] = value.clone();
            }
        }
        Ok(())
    }
}
