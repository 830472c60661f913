//! NodeResourcesBalancedAllocation: likes nodes whose resources are used to the same degree, so that no CPU is left
//! without memory to go with it.

use std::sync::Arc;

use crate::framework::{CycleState, MAX_SCORE, NodeInfo, Plugin, PodInfo, Snapshot};

pub struct NodeResourcesBalancedAllocation;

impl Plugin for NodeResourcesBalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    /// A pod without requests does not change any balance.
    fn pre_score(
        &self,
        _state: &mut CycleState,
        pod: &PodInfo,
        _snapshot: &Snapshot,
        _feasible: &[Arc<NodeInfo>],
    ) -> bool {
        pod.request.milli_cpu > 0 || pod.request.memory > 0
    }

    fn score(&self, _state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> i64 {
        // Ratios of amounts that fit into 52 bits.
        #[allow(clippy::cast_precision_loss)]
        let fraction = |used: i64, total: i64| {
            if total <= 0 {
                1.0
            } else {
                (used as f64 / total as f64).min(1.0)
            }
        };
        let cpu = fraction(
            node.requested.milli_cpu + pod.request.milli_cpu,
            node.allocatable.milli_cpu,
        );
        let memory = fraction(
            node.requested.memory + pod.request.memory,
            node.allocatable.memory,
        );
        let deviation = (cpu - memory).abs() / 2.0;
        #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
        let score = ((1.0 - deviation) * MAX_SCORE as f64) as i64;
        score
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, pod, scores, snapshot};

    #[test]
    fn balance_is_liked() {
        let nodes = snapshot([
            node("a")
                .cpu("4")
                .with([pod("x").cpu("2").request("memory", "4Gi")]),
            node("b").cpu("4").with([pod("y").cpu("3")]),
        ]);
        let incoming = pod("p").cpu("1").request("memory", "2Gi").info();
        assert_eq!(
            scores(&NodeResourcesBalancedAllocation, &incoming, &nodes),
            [100, 62]
        );
    }
}
