//! InterPodAffinity: pods that want to be (or must not be) near other pods.

use std::{collections::HashMap, sync::Arc};

use fluyt_client::helpers::labels::{self, labels_of};
use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm};

use crate::framework::{
    CycleState, Event, MAX_SCORE, NodeInfo, Plugin, PodInfo, PreFilter, Rejection, Snapshot,
    Verdict,
};

pub struct InterPodAffinity;

const NAME: &str = "InterPodAffinity";
/// Pull of an existing pod's required affinity on pods that it would match.
const HARD_AFFINITY_WEIGHT: i64 = 1;

/// A value of a node label.
type Topology = (String, String);
type Counts = HashMap<Topology, i64>;

/// What the preFilter counts.
struct Counted {
    /// Where existing pods would not have the incoming pod near.
    existing_anti: Counts,
    /// Where pods are that the incoming pod has to be near to (that match all its terms).
    affinity: Counts,
    /// Where pods are that the incoming pod must not be near to.
    anti: Counts,
}

/// Sums of weights by topology.
struct Scored(Counts);

type Namespaces = HashMap<String, labels::Labels>;

/// Whether `term` of a pod in `owner_namespace` selects `pod`.
fn term_matches(
    term: &PodAffinityTerm,
    owner_namespace: &str,
    pod: &Pod,
    namespaces: &Namespaces,
) -> bool {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let listed = term.namespaces.as_deref().unwrap_or_default();
    let in_namespace = match &term.namespace_selector {
        None if listed.is_empty() => namespace == owner_namespace,
        None => listed.iter().any(|listed| listed == namespace),
        Some(selector) => {
            listed.iter().any(|listed| listed == namespace)
                || labels::is_empty(selector)
                || namespaces
                    .get(namespace)
                    .is_some_and(|of| labels::matches(selector, of))
        }
    };
    let selector = term.label_selector.as_ref();
    in_namespace
        && selector.is_some_and(|selector| labels::matches(selector, labels_of(&pod.metadata)))
}

fn topology(node: &NodeInfo, key: &str) -> Option<Topology> {
    node.label(key)
        .map(|value| (key.to_owned(), value.to_owned()))
}

fn count(pod: &PodInfo, snapshot: &Snapshot) -> Counted {
    let namespaces = &snapshot.namespaces;
    let mut counted = Counted {
        existing_anti: Counts::new(),
        affinity: Counts::new(),
        anti: Counts::new(),
    };
    let wants = !pod.required_affinity.is_empty() || !pod.required_anti_affinity.is_empty();
    for node in &snapshot.nodes {
        for existing in &node.pods {
            for term in &existing.required_anti_affinity {
                if term_matches(term, existing.namespace(), &pod.pod, namespaces)
                    && let Some(topology) = topology(node, &term.topology_key)
                {
                    *counted.existing_anti.entry(topology).or_default() += 1;
                }
            }
            if !wants {
                continue;
            }
            let selects = |term: &PodAffinityTerm| {
                term_matches(term, pod.namespace(), &existing.pod, namespaces)
            };
            if !pod.required_affinity.is_empty() && pod.required_affinity.iter().all(selects) {
                for term in &pod.required_affinity {
                    if let Some(topology) = topology(node, &term.topology_key) {
                        *counted.affinity.entry(topology).or_default() += 1;
                    }
                }
            }
            for term in pod
                .required_anti_affinity
                .iter()
                .filter(|term| selects(term))
            {
                if let Some(topology) = topology(node, &term.topology_key) {
                    *counted.anti.entry(topology).or_default() += 1;
                }
            }
        }
    }
    counted
}

/// Whether the pod satisfies its own affinity: the first of its group has nobody to be near to.
fn is_its_own_company(pod: &PodInfo) -> bool {
    let empty = Namespaces::new();
    pod.required_affinity.iter().all(|term| {
        let everywhere = term
            .namespace_selector
            .as_ref()
            .is_some_and(labels::is_empty);
        let listed = term.namespaces.as_deref().unwrap_or_default();
        let here = listed.is_empty() || listed.iter().any(|listed| listed == pod.namespace());
        let local = PodAffinityTerm {
            namespaces: None,
            namespace_selector: None,
            ..term.clone()
        };
        (everywhere || here) && term_matches(&local, pod.namespace(), &pod.pod, &empty)
    })
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        NAME
    }

    fn pre_filter(&self, state: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot) -> PreFilter {
        let wants = !pod.required_affinity.is_empty() || !pod.required_anti_affinity.is_empty();
        if !wants && snapshot.with_anti_affinity == 0 {
            return PreFilter::Skip;
        }
        let counted = count(pod, snapshot);
        if !wants && counted.existing_anti.is_empty() {
            return PreFilter::Skip;
        }
        state.put(NAME, counted);
        PreFilter::Continue
    }

    fn filter(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Verdict {
        let Some(counted) = state.get::<Counted>(NAME) else {
            return Ok(());
        };
        let near = |counts: &Counts, term: &PodAffinityTerm| {
            topology(node, &term.topology_key)
                .is_some_and(|topology| counts.contains_key(&topology))
        };
        let has_keys = pod
            .required_affinity
            .iter()
            .all(|term| node.label(&term.topology_key).is_some());
        let has_company = pod
            .required_affinity
            .iter()
            .all(|term| near(&counted.affinity, term));
        let may_be_first = counted.affinity.is_empty() && is_its_own_company(pod);
        if !pod.required_affinity.is_empty() && !(has_keys && (has_company || may_be_first)) {
            return Err(Rejection::unresolvable(
                NAME,
                "node(s) didn't match pod affinity rules",
            ));
        }
        if pod
            .required_anti_affinity
            .iter()
            .any(|term| near(&counted.anti, term))
        {
            return Err(Rejection::unschedulable(
                NAME,
                "node(s) didn't match pod anti-affinity rules",
            ));
        }
        let repelled = counted
            .existing_anti
            .keys()
            .any(|(key, value)| node.label(key) == Some(value));
        if repelled {
            let reason = "node(s) didn't satisfy existing pods anti-affinity rules";
            return Err(Rejection::unschedulable(NAME, reason));
        }
        Ok(())
    }

    fn pre_score(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
        _feasible: &[Arc<NodeInfo>],
    ) -> bool {
        let namespaces = &snapshot.namespaces;
        let mut sums = Counts::new();
        let mut add = |node: &NodeInfo, term: &PodAffinityTerm, weight: i64| {
            if let Some(topology) = topology(node, &term.topology_key) {
                *sums.entry(topology).or_default() += weight;
            }
        };
        for node in &snapshot.nodes {
            for existing in &node.pods {
                let wanted = pod
                    .preferred_affinity
                    .iter()
                    .map(|(weight, term)| (i64::from(*weight), term));
                let unwanted = pod
                    .preferred_anti_affinity
                    .iter()
                    .map(|(weight, term)| (-i64::from(*weight), term));
                for (weight, term) in wanted.chain(unwanted) {
                    if term_matches(term, pod.namespace(), &existing.pod, namespaces) {
                        add(node, term, weight);
                    }
                }
                let required = existing
                    .required_affinity
                    .iter()
                    .map(|term| (HARD_AFFINITY_WEIGHT, term));
                let liked = existing
                    .preferred_affinity
                    .iter()
                    .map(|(weight, term)| (i64::from(*weight), term));
                let disliked = existing
                    .preferred_anti_affinity
                    .iter()
                    .map(|(weight, term)| (-i64::from(*weight), term));
                for (weight, term) in required.chain(liked).chain(disliked) {
                    if term_matches(term, existing.namespace(), &pod.pod, namespaces) {
                        add(node, term, weight);
                    }
                }
            }
        }
        let matters = !sums.is_empty();
        state.put("InterPodAffinity/score", Scored(sums));
        matters
    }

    fn score(&self, state: &CycleState, _pod: &PodInfo, node: &NodeInfo) -> i64 {
        let Some(Scored(sums)) = state.get("InterPodAffinity/score") else {
            return 0;
        };
        let here = sums
            .iter()
            .filter(|((key, value), _)| node.label(key) == Some(value));
        here.map(|(_, sum)| sum).sum()
    }

    fn normalize(&self, _state: &CycleState, _nodes: &[Arc<NodeInfo>], scores: &mut [i64]) {
        let (min, max) = (scores.iter().min().copied(), scores.iter().max().copied());
        let (Some(min), Some(max)) = (min, max) else {
            return;
        };
        for score in scores {
            *score = if max > min {
                MAX_SCORE * (*score - min) / (max - min)
            } else {
                0
            };
        }
    }

    fn may_help(&self, event: &Event, _pod: &Pod) -> bool {
        matches!(
            event,
            Event::PodAssigned { .. }
                | Event::PodRemoved(_)
                | Event::NodeAdded(_)
                | Event::NodeUpdated { .. }
                | Event::Unknown
        )
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::core::v1::{Affinity, PodAffinity, PodAntiAffinity, WeightedPodAffinityTerm},
        apimachinery::pkg::apis::meta::v1::LabelSelector,
    };

    use super::*;
    use crate::testing::{PodBuilder, node, passes, pod, scores, snapshot};

    fn term(app: &str) -> PodAffinityTerm {
        PodAffinityTerm {
            topology_key: "zone".to_owned(),
            label_selector: Some(LabelSelector {
                match_labels: Some([("app".to_owned(), app.to_owned())].into()),
                match_expressions: None,
            }),
            ..PodAffinityTerm::default()
        }
    }

    fn affinity(pod: PodBuilder, edit: impl FnOnce(&mut Affinity)) -> PodBuilder {
        pod.edit(|spec| edit(spec.affinity.get_or_insert_default()))
    }

    fn near(pod: PodBuilder, term: PodAffinityTerm) -> PodBuilder {
        affinity(pod, |affinity| {
            affinity.pod_affinity = Some(PodAffinity {
                required_during_scheduling_ignored_during_execution: Some(vec![term]),
                ..PodAffinity::default()
            });
        })
    }

    fn away(pod: PodBuilder, term: PodAffinityTerm) -> PodBuilder {
        affinity(pod, |affinity| {
            affinity.pod_anti_affinity = Some(PodAntiAffinity {
                required_during_scheduling_ignored_during_execution: Some(vec![term]),
                ..PodAntiAffinity::default()
            });
        })
    }

    fn cluster(existing: PodBuilder) -> Snapshot {
        snapshot([
            node("a").label("zone", "1").with([existing]),
            node("b").label("zone", "1").with([]),
            node("c").label("zone", "2").with([]),
            node("d").with([]),
        ])
    }

    #[test]
    fn affinity_needs_company_in_the_topology() {
        let web = pod("web").label("app", "web");
        let nodes = cluster(web.clone());
        let incoming = near(pod("p"), term("web"));
        assert_eq!(
            passes(&InterPodAffinity, &incoming.clone().info(), &nodes),
            [true, true, false, false]
        );
        // Nobody to be near to, and it is not its own company.
        let empty = cluster(pod("other"));
        assert_eq!(
            passes(&InterPodAffinity, &incoming.info(), &empty),
            [false; 4]
        );
        // The first of its kind may go anywhere where there is a zone.
        let first = near(web, term("web"));
        assert_eq!(
            passes(&InterPodAffinity, &first.info(), &empty),
            [true, true, true, false]
        );
    }

    #[test]
    fn anti_affinity_works_both_ways() {
        let web = pod("web").label("app", "web");
        let shy = away(pod("p"), term("web"));
        let expected = [false, false, true, true];
        assert_eq!(
            passes(&InterPodAffinity, &shy.info(), &cluster(web.clone())),
            expected
        );
        let hostile = away(pod("x"), term("web"));
        assert_eq!(
            passes(&InterPodAffinity, &web.info(), &cluster(hostile)),
            expected
        );
        let unconcerned = pod("p").info();
        assert_eq!(
            passes(&InterPodAffinity, &unconcerned, &cluster(pod("y"))),
            [true; 4]
        );
    }

    #[test]
    fn other_namespaces_have_to_be_named() {
        let web = pod("web")
            .label("app", "web")
            .edit_pod(|pod| pod.metadata.namespace = Some("other".to_owned()));
        let nodes = cluster(web);
        let local = away(pod("p"), term("web"));
        assert_eq!(passes(&InterPodAffinity, &local.info(), &nodes), [true; 4]);
        let listed = PodAffinityTerm {
            namespaces: Some(vec!["other".to_owned()]),
            ..term("web")
        };
        assert!(!passes(&InterPodAffinity, &away(pod("p"), listed).info(), &nodes)[0]);
        let all = PodAffinityTerm {
            namespace_selector: Some(LabelSelector::default()),
            ..term("web")
        };
        assert!(!passes(&InterPodAffinity, &away(pod("p"), all).info(), &nodes)[0]);
        let labelled = PodAffinityTerm {
            namespace_selector: term("db").label_selector,
            ..term("web")
        };
        let mut nodes = nodes;
        let of_namespace = [("app".to_owned(), "db".to_owned())].into();
        nodes.namespaces = Arc::new([("other".to_owned(), of_namespace)].into());
        assert!(!passes(&InterPodAffinity, &away(pod("p"), labelled).info(), &nodes)[0]);
    }

    #[test]
    fn preferences_score() {
        let nodes = cluster(pod("web").label("app", "web"));
        let preferred = |weight: i32| WeightedPodAffinityTerm {
            weight,
            pod_affinity_term: term("web"),
        };
        let liking = affinity(pod("p"), |affinity| {
            affinity
                .pod_affinity
                .get_or_insert_default()
                .preferred_during_scheduling_ignored_during_execution = Some(vec![preferred(5)]);
        });
        assert_eq!(
            scores(&InterPodAffinity, &liking.info(), &nodes),
            [100, 100, 0, 0]
        );
        let disliking = affinity(pod("p"), |affinity| {
            let anti = affinity.pod_anti_affinity.get_or_insert_default();
            anti.preferred_during_scheduling_ignored_during_execution = Some(vec![preferred(5)]);
        });
        assert_eq!(
            scores(&InterPodAffinity, &disliking.info(), &nodes),
            [0, 0, 100, 100]
        );
    }
}
