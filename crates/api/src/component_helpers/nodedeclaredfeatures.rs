//! Features that nodes declare in their status (KEP-5328), and which of them a pod, or a change of one, needs of its node.

use super::resource::{Container, PodResources};

/// The features that there are, in the order of their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// exec, attach and port-forward over WebSocket end at the node and need no translation on the way.
    ExtendWebSocketsToKubelet,
    /// What a pod states for all of its containers is resized in place.
    InPlacePodLevelResourcesVerticalScaling,
    /// Init containers that run to completion are resized in place.
    InPlacePodVerticalScalingInitContainers,
    /// A rule for the end of a container may start all containers of the pod anew.
    RestartAllContainersOnContainerExits,
    /// A pod may be in the node's network and in a user namespace of its own.
    UserNamespacesHostNetworkSupport,
}

impl Feature {
    pub const ALL: [Self; 5] = [
        Self::ExtendWebSocketsToKubelet,
        Self::InPlacePodLevelResourcesVerticalScaling,
        Self::InPlacePodVerticalScalingInitContainers,
        Self::RestartAllContainersOnContainerExits,
        Self::UserNamespacesHostNetworkSupport,
    ];

    /// As it is in `status.declaredFeatures`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ExtendWebSocketsToKubelet => "ExtendWebSocketsToKubelet",
            Self::InPlacePodLevelResourcesVerticalScaling => {
                "InPlacePodLevelResourcesVerticalScaling"
            }
            Self::InPlacePodVerticalScalingInitContainers => {
                "InPlacePodVerticalScalingInitContainers"
            }
            Self::RestartAllContainersOnContainerExits => "RestartAllContainersOnContainerExits",
            Self::UserNamespacesHostNetworkSupport => "UserNamespacesHostNetworkSupport",
        }
    }
}

/// A set of features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeatureSet(u8);

impl FeatureSet {
    /// Those of these names that there are; nodes may declare others.
    pub fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let find = |name: &str| Feature::ALL.into_iter().find(|f| f.name() == name);
        names.into_iter().filter_map(find).collect()
    }

    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    #[must_use]
    pub fn is_subset(self, of: Self) -> bool {
        self.without(of).is_empty()
    }

    /// What is not in the other one.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The names in their order.
    #[must_use]
    pub fn names(self) -> Vec<&'static str> {
        let is_in = |feature: &Feature| self.0 & (1 << (*feature as u8)) != 0;
        let all = Feature::ALL.into_iter().filter(is_in);
        all.map(Feature::name).collect()
    }
}

impl FromIterator<Feature> for FeatureSet {
    fn from_iter<T: IntoIterator<Item = Feature>>(features: T) -> Self {
        let bits = features.into_iter().map(|feature| 1 << (feature as u8));
        Self(bits.fold(0, |set, bit| set | bit))
    }
}

/// What of a pod's specification says which features it needs to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodInfo {
    pub host_network: bool,
    pub host_users: Option<bool>,
    /// Whether a rule of one of its containers restarts all of them.
    pub restarts_all: bool,
}

/// What a node must have declared for the pod to run there.
#[must_use]
pub fn infer_for_scheduling(pod: &PodInfo) -> FeatureSet {
    Feature::ALL
        .into_iter()
        .filter(|feature| match feature {
            Feature::RestartAllContainersOnContainerExits => pod.restarts_all,
            Feature::UserNamespacesHostNetworkSupport => {
                pod.host_network && pod.host_users == Some(false)
            }
            // These are about pods that run already, or not about pods at all.
            Feature::InPlacePodLevelResourcesVerticalScaling
            | Feature::InPlacePodVerticalScalingInitContainers
            | Feature::ExtendWebSocketsToKubelet => false,
        })
        .collect()
}

/// What the node of a pod must have declared for the pod to change.
#[must_use]
pub fn infer_for_update(old: &PodResources, new: &PodResources) -> FeatureSet {
    Feature::ALL
        .into_iter()
        .filter(|feature| match feature {
            Feature::InPlacePodLevelResourcesVerticalScaling => old.stated != new.stated,
            Feature::InPlacePodVerticalScalingInitContainers => {
                let differ = |(old, new): (&Container, &Container)| {
                    !old.is_sidecar && old.stated != new.stated
                };
                old.init_containers
                    .iter()
                    .zip(&new.init_containers)
                    .any(differ)
            }
            // What they are inferred from stays as it is.
            Feature::RestartAllContainersOnContainerExits
            | Feature::UserNamespacesHostNetworkSupport
            | Feature::ExtendWebSocketsToKubelet => false,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn names_are_sorted_and_found() {
        let names = Feature::ALL.map(Feature::name);
        assert!(names.is_sorted());
        let all: FeatureSet = Feature::ALL.into_iter().collect();
        assert_eq!(all.names(), names);
        let some = FeatureSet::named(["Other", names[3], names[1]]);
        assert_eq!(some.names(), [names[1], names[3]]);
        assert!(some.is_subset(all) && !all.is_subset(some));
        assert_eq!(all.without(some).names(), [names[0], names[2], names[4]]);
        assert!(FeatureSet::default().is_empty() && !some.is_empty());
    }

    #[test]
    fn what_a_pod_needs_to_run() {
        let needs = |host_network, host_users, restarts_all| {
            let pod = PodInfo {
                host_network,
                host_users,
                restarts_all,
            };
            infer_for_scheduling(&pod).names()
        };
        assert!(needs(false, Some(false), false).is_empty());
        assert!(needs(true, None, false).is_empty() && needs(true, Some(true), false).is_empty());
        assert_eq!(
            needs(true, Some(false), false),
            ["UserNamespacesHostNetworkSupport"]
        );
        assert_eq!(
            needs(false, None, true),
            ["RestartAllContainersOnContainerExits"]
        );
    }

    #[test]
    fn what_a_change_needs() {
        let resources = |cpu: &str| json!({"requests": {"cpu": cpu}});
        let pod = |whole: Value, init: &str, sidecar: &str, main: &str| {
            PodResources::of(&json!({"spec": {
                "resources": whole,
                "initContainers": [
                    {"name": "i", "resources": resources(init)},
                    {"name": "s", "restartPolicy": "Always", "resources": resources(sidecar)},
                ],
                "containers": [{"name": "c", "resources": resources(main)}],
            }}))
        };
        let old = pod(resources("4"), "1", "1", "1");
        let needs = |new: PodResources| infer_for_update(&old, &new).names();
        assert!(needs(pod(resources("4"), "1", "2", "2")).is_empty());
        assert!(needs(pod(resources("4000m"), "1000m", "1", "1")).is_empty());
        let pod_level = "InPlacePodLevelResourcesVerticalScaling";
        let init = "InPlacePodVerticalScalingInitContainers";
        assert_eq!(needs(pod(resources("5"), "1", "1", "1")), [pod_level]);
        assert_eq!(needs(pod(Value::Null, "1", "1", "1")), [pod_level]);
        assert_eq!(needs(pod(resources("4"), "2", "1", "1")), [init]);
        assert_eq!(needs(pod(resources("5"), "2", "1", "1")), [pod_level, init]);
    }
}
