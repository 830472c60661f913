//! A pod that is on a node is not changed in a way that its node has not declared to know.

use async_trait::async_trait;
use fluyt_api::component_helpers::nodedeclaredfeatures::{FeatureSet, infer_for_update};
use fluyt_api::component_helpers::resource::PodResources;
use fluyt_api::{Error, resources};
use serde_json::Value;

use super::{Attributes, Operation, Plugin};
use crate::cache::Caches;

pub(super) struct NodeDeclaredFeatureValidator;

#[async_trait]
impl Plugin for NodeDeclaredFeatureValidator {
    async fn validate(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        pod: &Value,
    ) -> Result<(), Error> {
        let at = attributes.at;
        let is_pod = at.resource.group.is_empty() && at.resource.plural == "pods";
        let is_update = attributes.operation == Operation::Update;
        if !is_pod || !is_update || !["", "resize"].contains(&at.subresource) {
            return Ok(());
        }
        let bound = pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty());
        let (Some(name), Some(old)) = (bound, attributes.old) else {
            return Ok(());
        };
        // Whatever changes the specification changes the generation.
        if old["metadata"]["generation"] == pod["metadata"]["generation"] {
            return Ok(());
        }
        let required = infer_for_update(&PodResources::of(old), &PodResources::of(pod));
        if required.is_empty() {
            return Ok(());
        }
        let node = resources::find("", "v1", "nodes").and_then(|nodes| caches.of(nodes).get(name));
        let Some(node) = node.map(|node| node.object()) else {
            return Err(attributes.forbidden(format!("node {name:?} not found")));
        };
        let declared = node["status"]["declaredFeatures"].as_array();
        let declared = declared.into_iter().flatten().filter_map(Value::as_str);
        let missing = required.without(FeatureSet::named(declared));
        if missing.is_empty() {
            return Ok(());
        }
        Err(attributes.forbidden(format!(
            "pod update requires features {} which are not available on node {name:?}",
            missing.names().join(", ")
        )))
    }
}
