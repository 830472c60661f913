//! NodePorts: a host port can be used once per node and address.

use k8s_openapi::api::core::v1::Pod;

use crate::framework::{
    CycleState, Event, NodeInfo, Plugin, PodInfo, PreFilter, Rejection, Snapshot, Verdict,
};

pub struct NodePorts;

const NAME: &str = "NodePorts";
const ANY: &str = "0.0.0.0";

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        NAME
    }

    fn pre_filter(
        &self,
        _state: &mut CycleState,
        pod: &PodInfo,
        _snapshot: &Snapshot,
    ) -> PreFilter {
        if pod.host_ports.is_empty() {
            PreFilter::Skip
        } else {
            PreFilter::Continue
        }
    }

    fn filter(&self, _state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Verdict {
        let taken = pod.host_ports.iter().any(|(protocol, address, port)| {
            node.used_ports
                .iter()
                .any(|(used_protocol, used_address, used_port)| {
                    used_port == port
                        && used_protocol == protocol
                        && (used_address == address || used_address == ANY || address == ANY)
                })
        });
        if taken {
            let reason = "node(s) didn't have free ports for the requested pod ports";
            return Err(Rejection::unschedulable(NAME, reason));
        }
        Ok(())
    }

    fn may_help(&self, event: &Event, _pod: &Pod) -> bool {
        matches!(
            event,
            Event::NodeAdded(_) | Event::PodRemoved(_) | Event::Unknown
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, passes, pod, snapshot};

    #[test]
    fn ports_are_exclusive() {
        let nodes = snapshot([node("a").with([pod("x").host_port(80)]), node("b").with([])]);
        assert_eq!(
            passes(&NodePorts, &pod("p").host_port(80).info(), &nodes),
            [false, true]
        );
        assert_eq!(
            passes(&NodePorts, &pod("p").host_port(81).info(), &nodes),
            [true, true]
        );
        assert_eq!(passes(&NodePorts, &pod("p").info(), &nodes), [true, true]);
    }
}
