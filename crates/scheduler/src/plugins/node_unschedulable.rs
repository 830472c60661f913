//! NodeUnschedulable: cordoned nodes take only pods that tolerate it.

use fluyt_client::helpers::scheduling::tolerates;
use k8s_openapi::api::core::v1::{Pod, Taint};

use crate::framework::{CycleState, Event, NodeInfo, Plugin, PodInfo, Rejection, Verdict};

pub struct NodeUnschedulable;

const NAME: &str = "NodeUnschedulable";

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        NAME
    }

    fn filter(&self, _state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Verdict {
        let cordoned = node
            .node
            .spec
            .as_ref()
            .and_then(|spec| spec.unschedulable)
            .unwrap_or(false);
        if !cordoned {
            return Ok(());
        }
        let taint = Taint {
            key: "node.kubernetes.io/unschedulable".to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        };
        let mut tolerations = pod.spec().tolerations.iter().flatten();
        if tolerations.any(|toleration| tolerates(toleration, &taint)) {
            return Ok(());
        }
        Err(Rejection::unresolvable(NAME, "node(s) were unschedulable"))
    }

    fn may_help(&self, event: &Event, _pod: &Pod) -> bool {
        matches!(
            event,
            Event::NodeAdded(_) | Event::NodeUpdated { .. } | Event::Unknown
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, passes, pod, snapshot};

    #[test]
    fn cordoned_nodes() {
        let cordon = |node: &mut k8s_openapi::api::core::v1::Node| {
            node.spec.get_or_insert_default().unschedulable = Some(true);
        };
        let nodes = snapshot([node("a").edit(cordon).with([]), node("b").with([])]);
        assert_eq!(
            passes(&NodeUnschedulable, &pod("p").info(), &nodes),
            [false, true]
        );
        let daemon = pod("p").tolerate("node.kubernetes.io/unschedulable", "NoSchedule");
        assert_eq!(
            passes(&NodeUnschedulable, &daemon.info(), &nodes),
            [true, true]
        );
    }
}
