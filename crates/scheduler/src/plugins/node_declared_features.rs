//! NodeDeclaredFeatures: a node must have declared the features that the pod needs (KEP-5328).

use fluyt_api::component_helpers::nodedeclaredfeatures::{FeatureSet, infer_for_scheduling};
use fluyt_client::helpers::resource::pod_info;
use k8s_openapi::api::core::v1::Pod;

use crate::framework::{
    CycleState, Event, NodeInfo, Plugin, PodInfo, PreFilter, Rejection, Snapshot, Verdict,
    declared_features,
};

pub struct NodeDeclaredFeatures;

const NAME: &str = "NodeDeclaredFeatures";

impl Plugin for NodeDeclaredFeatures {
    fn name(&self) -> &'static str {
        NAME
    }

    fn pre_filter(&self, state: &mut CycleState, pod: &PodInfo, _snapshot: &Snapshot) -> PreFilter {
        let required = infer_for_scheduling(&pod_info(pod.spec()));
        if required.is_empty() {
            return PreFilter::Skip;
        }
        state.put(NAME, required);
        PreFilter::Continue
    }

    fn filter(&self, state: &CycleState, _pod: &PodInfo, node: &NodeInfo) -> Verdict {
        let required = state.get(NAME).copied().unwrap_or(FeatureSet::default());
        if required.is_subset(node.declared_features) {
            return Ok(());
        }
        let reason = "node(s) didn't match Pod's required features";
        Err(Rejection::unresolvable(NAME, reason))
    }

    fn may_help(&self, event: &Event, _pod: &Pod) -> bool {
        match event {
            Event::NodeAdded(_) | Event::Unknown => true,
            Event::NodeUpdated { old, new } => declared_features(old) != declared_features(new),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::ContainerRestartRule;

    use super::*;
    use crate::testing::{NodeBuilder, PodBuilder, filter, node, passes, pod, snapshot};

    const RESTART_ALL: &str = "RestartAllContainersOnContainerExits";

    fn declaring(name: &str, features: &[&str]) -> NodeBuilder {
        let features = features.iter().map(|f| (*f).to_owned()).collect();
        node(name).edit(|node| {
            node.status.get_or_insert_default().declared_features = Some(features);
        })
    }

    fn restarting_all() -> PodBuilder {
        pod("p").edit(|spec| {
            spec.containers[0].restart_policy_rules = Some(vec![ContainerRestartRule {
                action: "RestartAllContainers".to_owned(),
                ..ContainerRestartRule::default()
            }]);
        })
    }

    #[test]
    fn nodes_must_declare_what_the_pod_needs() {
        let nodes = snapshot([
            node("a").with([]),
            declaring("b", &["Other", RESTART_ALL]).with([]),
            declaring("c", &["UserNamespacesHostNetworkSupport"]).with([]),
        ]);
        let passes = |pod: PodBuilder| passes(&NodeDeclaredFeatures, &pod.info(), &nodes);
        assert_eq!(passes(pod("p")), [true, true, true]);
        assert_eq!(passes(restarting_all()), [false, true, false]);
        let in_namespace = |pod: PodBuilder| {
            pod.edit(|spec| (spec.host_network, spec.host_users) = (Some(true), Some(false)))
        };
        assert_eq!(passes(in_namespace(pod("p"))), [false, false, true]);
        assert_eq!(
            passes(in_namespace(restarting_all())),
            [false, false, false]
        );
        let verdicts = filter(&NodeDeclaredFeatures, &restarting_all().info(), &nodes);
        let rejection = verdicts[0].clone().unwrap_err();
        assert!(!rejection.resolvable);
        let reason = "node(s) didn't match Pod's required features";
        assert_eq!(rejection.reasons, [reason]);
    }

    #[test]
    fn what_a_node_newly_declares_may_help() {
        let built = |features: &[&str]| Arc::new(declaring("n", features).build());
        let helps = |event| NodeDeclaredFeatures.may_help(&event, &pod("p").build());
        assert!(helps(Event::NodeAdded(built(&[]))));
        let update = |old: &[&str], new: &[&str]| Event::NodeUpdated {
            old: built(old),
            new: built(new),
        };
        assert!(helps(update(&[], &[RESTART_ALL])));
        assert!(!helps(update(&[RESTART_ALL], &[RESTART_ALL])));
        assert!(!helps(Event::PodRemoved(Arc::new(pod("q").build()))));
    }
}
