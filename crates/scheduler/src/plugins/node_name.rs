//! NodeName: a pod that names its node fits no other.

use k8s_openapi::api::core::v1::Pod;

use crate::framework::{CycleState, Event, NodeInfo, Plugin, PodInfo, Rejection, Verdict};

pub struct NodeName;

const NAME: &str = "NodeName";

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        NAME
    }

    fn filter(&self, _state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Verdict {
        match pod.spec().node_name.as_deref() {
            Some(wanted) if !wanted.is_empty() && wanted != node.name() => Err(
                Rejection::unresolvable(NAME, "node(s) didn't match the requested node name"),
            ),
            _ => Ok(()),
        }
    }

    fn may_help(&self, event: &Event, _pod: &Pod) -> bool {
        matches!(event, Event::NodeAdded(_) | Event::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, passes, pod, snapshot};

    #[test]
    fn only_the_named_node() {
        let nodes = snapshot([node("a").with([]), node("b").with([])]);
        assert_eq!(passes(&NodeName, &pod("p").info(), &nodes), [true, true]);
        assert_eq!(
            passes(&NodeName, &pod("p").on("b").info(), &nodes),
            [false, true]
        );
    }
}
