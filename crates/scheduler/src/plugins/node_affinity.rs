//! NodeAffinity: `nodeSelector` and node affinity, required and preferred.

use std::{collections::BTreeSet, sync::Arc};

use fluyt_client::helpers::scheduling::{
    node_selector_term_matches, required_node_affinity_matches,
};
use k8s_openapi::api::core::v1::{NodeAffinity as Affinity, Pod};

use crate::framework::{
    CycleState, Event, NodeInfo, Plugin, PodInfo, PreFilter, Rejection, Snapshot, Verdict,
    normalize_to_max,
};

pub struct NodeAffinity;

const NAME: &str = "NodeAffinity";

fn affinity(pod: &PodInfo) -> Option<&Affinity> {
    pod.spec().affinity.as_ref()?.node_affinity.as_ref()
}

/// The node names that the required terms allow, if every term names some (as DaemonSets' pods do).
fn named_nodes(affinity: &Affinity) -> Option<BTreeSet<String>> {
    let required = affinity
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let mut nodes = BTreeSet::new();
    for term in &required.node_selector_terms {
        let fields = term.match_fields.iter().flatten();
        let mut named: Option<BTreeSet<String>> = None;
        for field in fields.filter(|field| field.key == "metadata.name" && field.operator == "In") {
            let values: BTreeSet<String> = field.values.iter().flatten().cloned().collect();
            named = Some(match named {
                None => values,
                Some(known) => known.intersection(&values).cloned().collect(),
            });
        }
        nodes.extend(named?);
    }
    Some(nodes)
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        NAME
    }

    fn pre_filter(
        &self,
        _state: &mut CycleState,
        pod: &PodInfo,
        _snapshot: &Snapshot,
    ) -> PreFilter {
        let required = affinity(pod).filter(|affinity| {
            affinity
                .required_during_scheduling_ignored_during_execution
                .is_some()
        });
        match required {
            None if pod
                .spec()
                .node_selector
                .as_ref()
                .is_none_or(|selector| selector.is_empty()) =>
            {
                PreFilter::Skip
            }
            None => PreFilter::Continue,
            Some(affinity) => named_nodes(affinity).map_or(PreFilter::Continue, PreFilter::Only),
        }
    }

    fn filter(&self, _state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Verdict {
        if required_node_affinity_matches(pod.spec(), &node.node) {
            return Ok(());
        }
        Err(Rejection::unresolvable(
            NAME,
            "node(s) didn't match Pod's node affinity/selector",
        ))
    }

    fn pre_score(
        &self,
        _state: &mut CycleState,
        pod: &PodInfo,
        _snapshot: &Snapshot,
        _feasible: &[Arc<NodeInfo>],
    ) -> bool {
        let preferred = affinity(pod).and_then(|affinity| {
            affinity
                .preferred_during_scheduling_ignored_during_execution
                .as_ref()
        });
        preferred.is_some_and(|preferred| !preferred.is_empty())
    }

    fn score(&self, _state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let preferred = affinity(pod).and_then(|affinity| {
            affinity
                .preferred_during_scheduling_ignored_during_execution
                .as_deref()
        });
        let matching = preferred.unwrap_or_default().iter().filter(|preferred| {
            let term = &preferred.preference;
            let empty = term.match_expressions.as_ref().is_none_or(Vec::is_empty)
                && term.match_fields.as_ref().is_none_or(Vec::is_empty);
            // Unlike a required one, an empty preferred term matches all.
            empty || node_selector_term_matches(term, &node.node)
        });
        matching.map(|preferred| i64::from(preferred.weight)).sum()
    }

    fn normalize(&self, _state: &CycleState, _nodes: &[Arc<NodeInfo>], scores: &mut [i64]) {
        normalize_to_max(scores, false);
    }

    fn may_help(&self, event: &Event, pod: &Pod) -> bool {
        match event {
            Event::NodeAdded(node) | Event::NodeUpdated { new: node, .. } => pod
                .spec
                .as_ref()
                .is_some_and(|spec| required_node_affinity_matches(spec, node)),
            Event::Unknown => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{
        NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PreferredSchedulingTerm,
    };

    use super::*;
    use crate::testing::{node, passes, pod, scores, snapshot};

    fn requirement(key: &str, value: &str) -> NodeSelectorRequirement {
        NodeSelectorRequirement {
            key: key.to_owned(),
            operator: "In".to_owned(),
            values: Some(vec![value.to_owned()]),
        }
    }

    fn with_affinity(affinity: Affinity) -> PodInfo {
        pod("p")
            .edit(|spec| spec.affinity.get_or_insert_default().node_affinity = Some(affinity))
            .info()
    }

    #[test]
    fn selector_and_affinity() {
        let nodes = snapshot([node("a").label("disk", "ssd").with([]), node("b").with([])]);
        assert_eq!(
            passes(&NodeAffinity, &pod("p").info(), &nodes),
            [true, true]
        );
        let selecting = pod("p").edit(|spec| {
            spec.node_selector = Some([("disk".to_owned(), "ssd".to_owned())].into());
        });
        assert_eq!(
            passes(&NodeAffinity, &selecting.info(), &nodes),
            [true, false]
        );

        let preferred = with_affinity(Affinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![
                PreferredSchedulingTerm {
                    weight: 7,
                    preference: NodeSelectorTerm {
                        match_expressions: Some(vec![requirement("disk", "ssd")]),
                        match_fields: None,
                    },
                },
            ]),
            ..Affinity::default()
        });
        assert_eq!(passes(&NodeAffinity, &preferred, &nodes), [true, true]);
        assert_eq!(scores(&NodeAffinity, &preferred, &nodes), [100, 0]);
    }

    #[test]
    fn a_named_node_is_the_only_one_looked_at() {
        let daemon = with_affinity(Affinity {
            required_during_scheduling_ignored_during_execution: Some(NodeSelector {
                node_selector_terms: vec![NodeSelectorTerm {
                    match_expressions: None,
                    match_fields: Some(vec![requirement("metadata.name", "b")]),
                }],
            }),
            ..Affinity::default()
        });
        let nodes = snapshot([node("a").with([]), node("b").with([])]);
        let PreFilter::Only(named) =
            NodeAffinity.pre_filter(&mut CycleState::default(), &daemon, &nodes)
        else {
            panic!("one node is named");
        };
        assert_eq!(named, ["b".to_owned()].into());
        assert_eq!(passes(&NodeAffinity, &daemon, &nodes), [false, true]);
    }
}
