//! Images are pulled for every pod, so that nobody uses one that a node has only because somebody else may pull it.

use std::collections::HashSet;

use async_trait::async_trait;
use fluyt_api::validation::Errors;
use fluyt_api::{Error, Reason};
use serde_json::Value;

use super::{Attributes, Plugin};
use crate::authz::aggregate;
use crate::cache::Caches;

pub(super) struct AlwaysPullImages;

const LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// All containers of a pod, with their places.
fn containers(pod: &Value) -> impl Iterator<Item = (String, &Value)> {
    LISTS.into_iter().flat_map(move |list| {
        let containers = pod["spec"][list].as_array().into_iter().flatten();
        let place = move |(i, container)| (format!("spec.{list}[{i}]"), container);
        containers.enumerate().map(place)
    })
}

/// Whether the request is about a pod that may bring images with it.
fn concerns(attributes: &Attributes<'_>, pod: &Value) -> bool {
    if !attributes.writes("pods") {
        return false;
    }
    let Some(old) = attributes.old else {
        return true;
    };
    let known: HashSet<Option<&str>> = containers(old).map(|(_, c)| c["image"].as_str()).collect();
    containers(pod).any(|(_, c)| !known.contains(&c["image"].as_str()))
}

/// The places where a pod would make do with an image that is there.
fn objections(pod: &Value) -> Vec<String> {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let of_volumes = volumes.enumerate().filter_map(|(i, volume)| {
        let image = volume.get("image").filter(|image| image.is_object())?;
        let place = format!("spec.volumes[{i}].image.pullPolicy");
        Some((place, &image["pullPolicy"]))
    });
    let of_containers = containers(pod).map(|(place, container)| {
        (
            format!("{place}.imagePullPolicy"),
            &container["imagePullPolicy"],
        )
    });
    let mut errors = Errors::default();
    for (place, policy) in of_containers.chain(of_volumes) {
        let policy = policy.as_str().unwrap_or_default();
        if policy != "Always" {
            errors.not_supported(place, &policy.into(), &["Always"]);
        }
    }
    let said = errors.0.into_iter();
    said.map(|cause| format!("{}: {}", cause.field, cause.message))
        .collect()
}

#[async_trait]
impl Plugin for AlwaysPullImages {
    async fn admit(
        &self,
        _caches: &Caches,
        attributes: &Attributes<'_>,
        pod: &mut Value,
    ) -> Result<(), Error> {
        if !concerns(attributes, pod) {
            return Ok(());
        }
        for list in LISTS {
            for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
                container["imagePullPolicy"] = "Always".into();
            }
        }
        for volume in pod["spec"]["volumes"].as_array_mut().into_iter().flatten() {
            if let Some(image) = volume.get_mut("image").filter(|image| image.is_object()) {
                image["pullPolicy"] = "Always".into();
            }
        }
        Ok(())
    }

    async fn validate(
        &self,
        _caches: &Caches,
        attributes: &Attributes<'_>,
        pod: &Value,
    ) -> Result<(), Error> {
        if !concerns(attributes, pod) {
            return Ok(());
        }
        let refusals = objections(pod).into_iter();
        let refusals = refusals.map(|why| attributes.forbidden(why).message);
        // Several refusals have no one reason, and upstream gives none for a single one either.
        match aggregate(refusals.collect()) {
            None => Ok(()),
            Some(all) => Err(Error::new(Reason::Unknown, all)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_image_of_a_pod_is_looked_at() {
        let pod = json!({"spec": {
            "initContainers": [{"imagePullPolicy": "Always"}, {"imagePullPolicy": "Never"}],
            "containers": [{"imagePullPolicy": "IfNotPresent"}],
            "ephemeralContainers": [{"imagePullPolicy": "Always"}],
            "volumes": [{"emptyDir": {}}, {"image": {"pullPolicy": "Never"}}]}});
        let unsupported = |place: &str, policy: &str| {
            format!("{place}: Unsupported value: {policy:?}: supported values: \"Always\"")
        };
        assert_eq!(
            objections(&pod),
            [
                unsupported("spec.initContainers[1].imagePullPolicy", "Never"),
                unsupported("spec.containers[0].imagePullPolicy", "IfNotPresent"),
                unsupported("spec.volumes[1].image.pullPolicy", "Never"),
            ]
        );
    }
}
