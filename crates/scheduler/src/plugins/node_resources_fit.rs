//! NodeResourcesFit: a node has to have what the pod requests; scores by how much is left (or used).

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::framework::{
    CycleState, Event, MAX_SCORE, NodeInfo, Plugin, PodInfo, Rejection, Resource, Snapshot, Verdict,
};

/// Which nodes are liked: empty ones, to spread the load, or full ones, to be able to remove others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ScoringStrategy {
    #[default]
    LeastAllocated,
    MostAllocated,
}

pub struct NodeResourcesFit {
    pub scoring: ScoringStrategy,
}

const NAME: &str = "NodeResourcesFit";

/// What is missing on the node for `request`: (reason, whether the empty node would have it).
fn missing(request: &Resource, node: &NodeInfo) -> Vec<(String, bool)> {
    let mut missing = Vec::new();
    let pods = i64::try_from(node.pods.len()).unwrap_or(i64::MAX);
    if pods + 1 > node.allocatable.pods {
        missing.push(("Too many pods".to_owned(), node.allocatable.pods > 0));
    }
    let mut check = |name: &str, wanted: i64, used: i64, total: i64| {
        if wanted > 0 && wanted > total - used {
            missing.push((format!("Insufficient {name}"), wanted <= total));
        }
    };
    let (used, total) = (&node.requested, &node.allocatable);
    check("cpu", request.milli_cpu, used.milli_cpu, total.milli_cpu);
    check("memory", request.memory, used.memory, total.memory);
    check(
        "ephemeral-storage",
        request.ephemeral_storage,
        used.ephemeral_storage,
        total.ephemeral_storage,
    );
    for (name, wanted) in &request.scalars {
        let amount = |resource: &Resource| resource.scalars.get(name).copied().unwrap_or(0);
        check(name, *wanted, amount(used), amount(total));
    }
    missing
}

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        NAME
    }

    fn filter(&self, _state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Verdict {
        let missing = missing(&pod.request, node);
        if missing.is_empty() {
            return Ok(());
        }
        let resolvable = missing.iter().all(|(_, resolvable)| *resolvable);
        let reasons = missing.into_iter().map(|(reason, _)| reason).collect();
        Err(Rejection {
            plugin: NAME,
            reasons,
            resolvable,
        })
    }

    fn pre_score(
        &self,
        _state: &mut CycleState,
        _pod: &PodInfo,
        _snapshot: &Snapshot,
        _feasible: &[Arc<NodeInfo>],
    ) -> bool {
        true
    }

    fn score(&self, _state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let of = |used: i64, total: i64| {
            if total <= 0 {
                return None;
            }
            let used = used.clamp(0, total);
            let liked = match self.scoring {
                ScoringStrategy::LeastAllocated => total - used,
                ScoringStrategy::MostAllocated => used,
            };
            i64::try_from(i128::from(liked) * i128::from(MAX_SCORE) / i128::from(total)).ok()
        };
        let cpu = of(
            node.scored_milli_cpu + pod.scored_milli_cpu,
            node.allocatable.milli_cpu,
        );
        let memory = of(
            node.scored_memory + pod.scored_memory,
            node.allocatable.memory,
        );
        let scores: Vec<i64> = [cpu, memory].into_iter().flatten().collect();
        let count = i64::try_from(scores.len()).unwrap_or(1).max(1);
        scores.iter().sum::<i64>() / count
    }

    fn may_help(&self, event: &Event, pod: &Pod) -> bool {
        match event {
            Event::PodRemoved(_) | Event::Unknown => true,
            // A pod that shrinks in place makes room.
            Event::PodAssigned { old, new } => {
                let shrunk = |old: &Arc<Pod>| old.spec != new.spec;
                old.as_ref().is_some_and(shrunk)
            }
            Event::NodeAdded(node) => could_fit(pod, node),
            Event::NodeUpdated { old, new } => {
                let allocatable = |node: &k8s_openapi::api::core::v1::Node| {
                    node.status
                        .as_ref()
                        .and_then(|status| status.allocatable.clone())
                };
                allocatable(old) != allocatable(new) && could_fit(pod, new)
            }
            _ => false,
        }
    }
}

/// Whether the pod would fit on the empty node.
fn could_fit(pod: &Pod, node: &Arc<k8s_openapi::api::core::v1::Node>) -> bool {
    let info = PodInfo::new(Arc::new(pod.clone()));
    missing(&info.request, &NodeInfo::new(Arc::clone(node))).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{filter, node, pod, scores, snapshot};

    const FIT: NodeResourcesFit = NodeResourcesFit {
        scoring: ScoringStrategy::LeastAllocated,
    };

    #[test]
    fn what_is_missing() {
        let nodes = snapshot([
            node("a").cpu("2").with([pod("x").cpu("1500m")]),
            node("b").cpu("500m").with([]),
            node("c").allocatable("pods", "1").with([pod("y")]),
            node("d").allocatable("example.com/gpu", "1").with([]),
        ]);
        let verdicts = |pod: &PodInfo| -> Vec<String> {
            let verdicts = filter(&FIT, pod, &nodes);
            let describe = |verdict: Verdict| match verdict {
                Ok(()) => String::new(),
                Err(rejection) => {
                    format!("{} {}", rejection.reasons.join(", "), rejection.resolvable)
                }
            };
            verdicts.into_iter().map(describe).collect()
        };
        let cpu = verdicts(&pod("p").cpu("600m").info());
        assert_eq!(
            cpu,
            [
                "Insufficient cpu true",
                "Insufficient cpu false",
                "Too many pods true",
                ""
            ]
        );
        assert_eq!(verdicts(&pod("p").cpu("500m").info())[..2], ["", ""]);
        let gpu = verdicts(&pod("p").request("example.com/gpu", "1").info());
        assert_eq!(gpu[0], "Insufficient example.com/gpu false");
        assert_eq!(gpu[3], "");
        let none = verdicts(&pod("p").info());
        assert_eq!(
            none[..2],
            ["", ""],
            "a pod without requests fits on a full node"
        );
    }

    #[test]
    fn empty_or_full_nodes_are_liked() {
        let nodes = snapshot([
            node("a")
                .cpu("4")
                .with([pod("x").cpu("3").request("memory", "6Gi")]),
            node("b").cpu("4").with([]),
        ]);
        let incoming = pod("p").cpu("1").request("memory", "2Gi").info();
        assert_eq!(scores(&FIT, &incoming, &nodes), [0, 75]);
        let packing = NodeResourcesFit {
            scoring: ScoringStrategy::MostAllocated,
        };
        assert_eq!(scores(&packing, &incoming, &nodes), [100, 25]);
    }
}
