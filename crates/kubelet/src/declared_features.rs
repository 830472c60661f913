//! Which features this node declares to have (KEP-5328). Found out when the kubelet starts; the next one may declare others.

use fluyt_api::component_helpers::nodedeclaredfeatures::{Feature, FeatureSet};

/// The runtime whose streams speak all protocols of exec, attach and port-forward: they go through the kubelet as they are.
const STREAMS_WEBSOCKETS: &str = "fluyt";

/// What the kubelet does with this runtime.
pub fn discover(runtime_name: &str) -> FeatureSet {
    let is_there = |feature: &Feature| match feature {
        Feature::InPlacePodLevelResourcesVerticalScaling
        | Feature::InPlacePodVerticalScalingInitContainers
        | Feature::RestartAllContainersOnContainerExits => true,
        Feature::ExtendWebSocketsToKubelet => runtime_name == STREAMS_WEBSOCKETS,
        // Off by default upstream, too.
        Feature::UserNamespacesHostNetworkSupport => false,
    };
    Feature::ALL.into_iter().filter(is_there).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_the_runtimes() {
        let everywhere = [
            "InPlacePodLevelResourcesVerticalScaling",
            "InPlacePodVerticalScalingInitContainers",
            "RestartAllContainersOnContainerExits",
        ];
        assert_eq!(discover("containerd").names(), everywhere);
        let ours = discover("fluyt");
        assert_eq!(ours.names()[0], "ExtendWebSocketsToKubelet");
        assert_eq!(ours.names()[1..], everywhere);
    }
}
