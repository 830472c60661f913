//! A pod that is resized in place must fit on its node.

use async_trait::async_trait;
use fluyt_api::component_helpers::resource::{Options, PodResources};
use fluyt_api::quantity::Quantity;
use fluyt_api::{Cause, Error, meta, resources};
use serde_json::Value;

use super::{Attributes, Operation, Plugin};
use crate::cache::Caches;

pub(super) struct PodResizeValidator;

/// The label that says what a node runs on.
const SYSTEM: &str = "kubernetes.io/os";

#[async_trait]
impl Plugin for PodResizeValidator {
    async fn validate(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        pod: &Value,
    ) -> Result<(), Error> {
        let at = attributes.at;
        let is_pod = at.resource.group.is_empty() && at.resource.plural == "pods";
        let is_resize = attributes.operation == Operation::Update && at.subresource == "resize";
        let Some(name) = pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) else {
            return Ok(());
        };
        // Whatever changes the specification changes the generation.
        let is_same = |old: &Value| old["metadata"]["generation"] == pod["metadata"]["generation"];
        if !is_pod || !is_resize || attributes.old.is_none_or(is_same) {
            return Ok(());
        }
        let node = resources::find("", "v1", "nodes").and_then(|nodes| caches.of(nodes).get(name));
        let Some(node) = node.map(|node| node.object()) else {
            return Err(attributes.forbidden(format!("node {name:?} not found")));
        };
        let system = meta::labels(&node).and_then(|labels| labels.get(SYSTEM)?.as_str());
        if let Some(system) = system.filter(|system| *system != "linux") {
            let why =
                format!("pod resize is only supported on linux nodes, node {name:?} is {system:?}");
            return Err(refused(attributes, &why, "UnsupportedPlatform"));
        }
        let lacking = lacking(pod, &node);
        if lacking.is_empty() {
            return Ok(());
        }
        let why = format!(
            "node didn't have enough allocatable resources: {}",
            lacking.join("; ")
        );
        Err(refused(attributes, &why, "NodeCapacity"))
    }
}

fn refused(attributes: &Attributes<'_>, why: &str, reason: &'static str) -> Error {
    let mut error = attributes.forbidden(why);
    error.causes.push(Cause {
        reason,
        message: String::new(),
        field: String::new(),
    });
    error
}

/// What a node does not have enough of, as upstream shows it.
fn lacking(pod: &Value, node: &Value) -> Vec<String> {
    type Shown = fn(&Quantity) -> i64;
    let shown: [(&str, Shown); 2] = [("cpu", Quantity::millis), ("memory", Quantity::value)];
    let requests = PodResources::of(pod).requests(Options::default());
    let mut lacking = Vec::new();
    for (name, shown) in shown {
        let has = node["status"]["allocatable"][name].as_str();
        let has: Quantity = has
            .and_then(|has| has.parse().ok())
            .unwrap_or(Quantity::ZERO);
        let wanted = requests.get(name).copied().unwrap_or(Quantity::ZERO);
        if wanted > has {
            let (wanted, has) = (shown(&wanted), shown(&has));
            lacking.push(format!("{name}, requested: {wanted}, allocatable: {has}"));
        }
    }
    lacking
}
