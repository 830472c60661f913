//! TaintToleration: taints keep pods away that don't tolerate them, or (PreferNoSchedule) make a node less liked.

use std::sync::Arc;

use fluyt_client::helpers::scheduling::{taints, tolerates, untolerated_taint};
use k8s_openapi::api::core::v1::{Pod, Toleration};

use crate::framework::{
    CycleState, Event, NodeInfo, Plugin, PodInfo, Rejection, Snapshot, Verdict, normalize_to_max,
};

pub struct TaintToleration;

const NAME: &str = "TaintToleration";

fn tolerations(pod: &PodInfo) -> &[Toleration] {
    pod.spec().tolerations.as_deref().unwrap_or_default()
}

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        NAME
    }

    fn filter(&self, _state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Verdict {
        let keeps_away = |effect: &str| effect == "NoSchedule" || effect == "NoExecute";
        match untolerated_taint(taints(&node.node), tolerations(pod), |taint| {
            keeps_away(&taint.effect)
        }) {
            None => Ok(()),
            Some(_) => Err(Rejection::unresolvable(
                NAME,
                "node(s) had untolerated taint(s)",
            )),
        }
    }

    fn pre_score(
        &self,
        _state: &mut CycleState,
        _pod: &PodInfo,
        _snapshot: &Snapshot,
        feasible: &[Arc<NodeInfo>],
    ) -> bool {
        let prefers = |node: &Arc<NodeInfo>| {
            taints(&node.node)
                .iter()
                .any(|t| t.effect == "PreferNoSchedule")
        };
        feasible.iter().any(prefers)
    }

    /// The number of taints that the pod had better avoided.
    fn score(&self, _state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let tolerations = tolerations(pod);
        let unwelcome = taints(&node.node).iter().filter(|taint| {
            taint.effect == "PreferNoSchedule"
                && !tolerations
                    .iter()
                    .any(|toleration| tolerates(toleration, taint))
        });
        i64::try_from(unwelcome.count()).unwrap_or(i64::MAX)
    }

    fn normalize(&self, _state: &CycleState, _nodes: &[Arc<NodeInfo>], scores: &mut [i64]) {
        normalize_to_max(scores, true);
    }

    fn may_help(&self, event: &Event, pod: &Pod) -> bool {
        let node = match event {
            Event::NodeAdded(node) | Event::NodeUpdated { new: node, .. } => node,
            Event::Unknown => return true,
            _ => return false,
        };
        let tolerations = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.tolerations.as_deref());
        let keeps_away = |effect: &str| effect == "NoSchedule" || effect == "NoExecute";
        untolerated_taint(taints(node), tolerations.unwrap_or_default(), |t| {
            keeps_away(&t.effect)
        })
        .is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, passes, pod, scores, snapshot};

    #[test]
    fn taints_keep_away_or_make_unpopular() {
        let nodes = snapshot([
            node("a").taint("k", "NoSchedule").with([]),
            node("b").taint("k", "NoExecute").with([]),
            node("c").taint("k", "PreferNoSchedule").with([]),
            node("d").with([]),
        ]);
        assert_eq!(
            passes(&TaintToleration, &pod("p").info(), &nodes),
            [false, false, true, true]
        );
        let tolerant = pod("p").tolerate("k", "NoSchedule");
        assert_eq!(
            passes(&TaintToleration, &tolerant.info(), &nodes),
            [true, false, true, true]
        );
        assert_eq!(
            scores(&TaintToleration, &pod("p").info(), &nodes),
            [100, 100, 0, 100]
        );
    }

    #[test]
    fn only_a_tolerated_node_helps() {
        let pod = pod("p").build();
        let updated = |node: k8s_openapi::api::core::v1::Node| {
            let new = Arc::new(node);
            Event::NodeUpdated {
                old: Arc::clone(&new),
                new,
            }
        };
        assert!(
            !TaintToleration.may_help(&updated(node("a").taint("k", "NoSchedule").build()), &pod)
        );
        assert!(TaintToleration.may_help(&updated(node("a").build()), &pod));
    }
}
