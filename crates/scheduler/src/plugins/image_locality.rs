//! ImageLocality: likes nodes that have the pod's images already, the more the larger the images are.

use std::{collections::HashMap, sync::Arc};

use crate::framework::{CycleState, MAX_SCORE, NodeInfo, Plugin, PodInfo, Snapshot};

pub struct ImageLocality;

const NAME: &str = "ImageLocality";
const MB: i64 = 1024 * 1024;
const MIN_THRESHOLD: i64 = 23 * MB;
const MAX_CONTAINER_THRESHOLD: i64 = 1000 * MB;

/// Number of nodes that have each of the pod's images, and of all nodes.
struct Spread(HashMap<String, i64>, i64);

fn images(pod: &PodInfo) -> impl Iterator<Item = String> {
    let spec = pod.spec();
    let containers = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers);
    containers.filter_map(|container| container.image.as_deref().map(normalized))
}

/// Nodes report images with their tag.
fn normalized(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || image.contains('@') {
        image.to_owned()
    } else {
        format!("{image}:latest")
    }
}

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        NAME
    }

    fn pre_score(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
        _feasible: &[Arc<NodeInfo>],
    ) -> bool {
        let count = |image: &String| {
            snapshot
                .nodes
                .iter()
                .filter(|node| node.images.contains_key(image))
                .count()
        };
        let having: HashMap<String, i64> = images(pod)
            .map(|image| {
                let count = i64::try_from(count(&image)).unwrap_or(i64::MAX);
                (image, count)
            })
            .filter(|(_, count)| *count > 0)
            .collect();
        let worthwhile = !having.is_empty();
        state.put(
            NAME,
            Spread(
                having,
                i64::try_from(snapshot.nodes.len()).unwrap_or(i64::MAX),
            ),
        );
        worthwhile
    }

    fn score(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let Some(Spread(having, total)) = state.get::<Spread>(NAME) else {
            return 0;
        };
        // An image that only one node has would otherwise gather all pods there.
        let sum: i64 = images(pod)
            .filter_map(|image| {
                Some(node.images.get(&image)? * having.get(&image)? / (*total).max(1))
            })
            .sum();
        let containers = i64::try_from(images(pod).count()).unwrap_or(1).max(1);
        let max = MAX_CONTAINER_THRESHOLD * containers;
        MAX_SCORE * (sum.clamp(MIN_THRESHOLD, max) - MIN_THRESHOLD) / (max - MIN_THRESHOLD)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ContainerImage;

    use super::*;
    use crate::testing::{node, pod, scores, snapshot};

    #[test]
    fn present_images_are_liked() {
        let having = |size: i64| {
            node(if size > 0 { "a" } else { "b" }).edit(|node| {
                let image = ContainerImage {
                    names: Some(vec!["registry/app:latest".to_owned()]),
                    size_bytes: Some(size),
                };
                node.status.get_or_insert_default().images = (size > 0).then(|| vec![image]);
            })
        };
        let incoming = pod("p")
            .edit(|spec| spec.containers[0].image = Some("registry/app".to_owned()))
            .info();
        let nodes = snapshot([having(2000 * MB).with([]), having(0).with([])]);
        assert_eq!(scores(&ImageLocality, &incoming, &nodes), [100, 0]);
        let nodes = snapshot([having(20 * MB).with([]), having(0).with([])]);
        assert_eq!(
            scores(&ImageLocality, &incoming, &nodes),
            [0, 0],
            "small images are quickly pulled"
        );
    }
}
