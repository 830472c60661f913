//! Pods that ask for an extended resource tolerate the taint that keeps others off the nodes that have it.

use std::collections::BTreeSet;

use async_trait::async_trait;
use fluyt_api::validation::resource::is_extended;
use fluyt_api::{Error, meta};
use serde_json::{Value, json};

use super::{Attributes, Plugin};
use crate::cache::Caches;

pub(super) struct ExtendedResourceToleration;

/// The extended resources that a pod's containers ask for.
fn requested(pod: &Value) -> BTreeSet<String> {
    ["containers", "initContainers"]
        .into_iter()
        .flat_map(|list| pod["spec"][list].as_array().into_iter().flatten())
        .flat_map(|c| c["resources"]["requests"].as_object().into_iter().flatten())
        .map(|(name, _)| name.clone())
        .filter(|name| is_extended(name))
        .collect()
}

fn tolerate(pod: &mut Value, resource: &str) {
    let wanted = json!({"key": resource, "operator": "Exists", "effect": "NoSchedule"});
    let same = |t: &Value| {
        ["key", "operator", "effect"]
            .iter()
            .all(|f| t[*f] == wanted[*f])
    };
    let list = meta::child(pod, "spec")
        .entry("tolerations")
        .or_insert_with(|| json!([]));
    if let Some(list) = list.as_array_mut()
        && !list.iter().any(same)
    {
        list.push(wanted);
    }
}

#[async_trait]
impl Plugin for ExtendedResourceToleration {
    async fn admit(
        &self,
        _caches: &Caches,
        attributes: &Attributes<'_>,
        pod: &mut Value,
    ) -> Result<(), Error> {
        if attributes.writes("pods") {
            for resource in requested(pod) {
                tolerate(pod, &resource);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_extended_resources_are_tolerated_and_once() {
        let asks = |names: &[&str]| {
            let requests: serde_json::Map<_, _> = names
                .iter()
                .map(|n| ((*n).to_owned(), json!("1")))
                .collect();
            json!({"resources": {"requests": requests}})
        };
        let mut pod = json!({"spec": {
            "initContainers": [asks(&["example.com/b"])],
            "containers": [asks(&["cpu", "hugepages-2Mi", "example.com/a", "pods.kubernetes.io/x"])]}});
        assert_eq!(
            requested(&pod).into_iter().collect::<Vec<_>>(),
            ["example.com/a", "example.com/b"]
        );
        tolerate(&mut pod, "example.com/a");
        tolerate(&mut pod, "example.com/a");
        assert_eq!(
            pod["spec"]["tolerations"],
            json!([{"key": "example.com/a", "operator": "Exists", "effect": "NoSchedule"}])
        );
    }
}
