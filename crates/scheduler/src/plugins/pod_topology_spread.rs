//! PodTopologySpread: spreads equal pods over zones, nodes or whatever labels nodes have.

use std::{collections::HashMap, sync::Arc};

use fluyt_client::{
    Informer, Informers,
    helpers::{
        labels::{self, labels_of},
        pods,
        scheduling::{required_node_affinity_matches, taints, untolerated_taint},
    },
};
use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSet, StatefulSet},
        core::v1::{Pod, ReplicationController, Service},
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement},
};

use crate::framework::{
    CycleState, Event, MAX_SCORE, NodeInfo, Plugin, PodInfo, PreFilter, Rejection, Snapshot,
    Verdict,
};

const NAME: &str = "PodTopologySpread";
const SCORE: &str = "PodTopologySpread/score";
const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

pub struct PodTopologySpread {
    defaults: DefaultSelectors,
}

/// Finds which pods belong together when their author did not say how to spread them.
pub struct DefaultSelectors {
    services: Informer<Service>,
    replica_sets: Informer<ReplicaSet>,
    replication_controllers: Informer<ReplicationController>,
    stateful_sets: Informer<StatefulSet>,
}

#[derive(Debug, Clone)]
struct Constraint {
    topology_key: String,
    max_skew: i64,
    min_domains: i64,
    selector: LabelSelector,
    honor_affinity: bool,
    honor_taints: bool,
}

/// A constraint with the matching pods by topology value.
struct Counted {
    constraint: Constraint,
    by_value: HashMap<String, i64>,
    min: i64,
}

struct Scored {
    counted: Vec<(Counted, f64)>,
    /// Nodes without all topology keys score nothing, unless the constraints are only defaults.
    require_all: bool,
}

impl PodTopologySpread {
    pub fn new(defaults: DefaultSelectors) -> Self {
        Self { defaults }
    }
}

/// The pod's own constraints of one kind.
fn constraints(pod: &PodInfo, when_unsatisfiable: &str) -> Vec<Constraint> {
    let all = pod.spec().topology_spread_constraints.iter().flatten();
    let of_kind = all.filter(|constraint| constraint.when_unsatisfiable == when_unsatisfiable);
    of_kind
        .map(|constraint| {
            let mut selector = constraint.label_selector.clone().unwrap_or_default();
            let own = labels_of(&pod.pod.metadata);
            for key in constraint.match_label_keys.iter().flatten() {
                if let Some(value) = own.get(key) {
                    let requirement = LabelSelectorRequirement {
                        key: key.clone(),
                        operator: "In".to_owned(),
                        values: Some(vec![value.clone()]),
                    };
                    let expressions = selector.match_expressions.get_or_insert_default();
                    if !expressions.contains(&requirement) {
                        expressions.push(requirement);
                    }
                }
            }
            Constraint {
                topology_key: constraint.topology_key.clone(),
                max_skew: i64::from(constraint.max_skew),
                min_domains: i64::from(constraint.min_domains.unwrap_or(1)),
                selector,
                honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
                honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
            }
        })
        .collect()
}

/// Upstream's defaults for pods of a Service or workload.
fn default_constraints(selector: &LabelSelector) -> Vec<Constraint> {
    let constraint = |topology_key: &str, max_skew| Constraint {
        topology_key: topology_key.to_owned(),
        max_skew,
        min_domains: 1,
        selector: selector.clone(),
        honor_affinity: true,
        honor_taints: false,
    };
    vec![constraint(HOSTNAME, 3), constraint(ZONE, 5)]
}

/// Whether the pods on the node count for the constraint.
fn is_included(constraint: &Constraint, pod: &PodInfo, node: &NodeInfo) -> bool {
    let keeps_away = |effect: &str| effect == "NoSchedule" || effect == "NoExecute";
    let tolerations = pod.spec().tolerations.as_deref().unwrap_or_default();
    (!constraint.honor_affinity || required_node_affinity_matches(pod.spec(), &node.node))
        && (!constraint.honor_taints
            || untolerated_taint(taints(&node.node), tolerations, |t| keeps_away(&t.effect))
                .is_none())
}

fn matching_pods(constraint: &Constraint, namespace: &str, node: &NodeInfo) -> i64 {
    let matching = node.pods.iter().filter(|pod| {
        pod.namespace() == namespace
            && !pods::is_terminating(&pod.pod)
            && labels::matches(&constraint.selector, labels_of(&pod.pod.metadata))
    });
    i64::try_from(matching.count()).unwrap_or(i64::MAX)
}

fn count<'a>(
    constraint: Constraint,
    pod: &PodInfo,
    nodes: impl Iterator<Item = &'a Arc<NodeInfo>>,
) -> Counted {
    let mut by_value: HashMap<String, i64> = HashMap::new();
    for node in nodes.filter(|node| is_included(&constraint, pod, node)) {
        if let Some(value) = node.label(&constraint.topology_key) {
            let count = matching_pods(&constraint, pod.namespace(), node);
            *by_value.entry(value.to_owned()).or_default() += count;
        }
    }
    let domains = i64::try_from(by_value.len()).unwrap_or(i64::MAX);
    let min = if domains < constraint.min_domains {
        0
    } else {
        by_value.values().copied().min().unwrap_or(0)
    };
    Counted {
        constraint,
        by_value,
        min,
    }
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        NAME
    }

    fn pre_filter(&self, state: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot) -> PreFilter {
        let hard = constraints(pod, "DoNotSchedule");
        if hard.is_empty() {
            return PreFilter::Skip;
        }
        let keys: Vec<String> = hard
            .iter()
            .map(|constraint| constraint.topology_key.clone())
            .collect();
        let eligible: Vec<&Arc<NodeInfo>> = snapshot
            .nodes
            .iter()
            .filter(|node| keys.iter().all(|key| node.label(key).is_some()))
            .collect();
        let counted: Vec<Counted> = hard
            .into_iter()
            .map(|constraint| count(constraint, pod, eligible.iter().copied()))
            .collect();
        state.put(NAME, counted);
        PreFilter::Continue
    }

    fn filter(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Verdict {
        for Counted {
            constraint,
            by_value,
            min,
        } in state.get::<Vec<Counted>>(NAME).into_iter().flatten()
        {
            let Some(value) = node.label(&constraint.topology_key) else {
                let reason =
                    "node(s) didn't match pod topology spread constraints (missing required label)";
                return Err(Rejection::unresolvable(NAME, reason));
            };
            let itself = i64::from(labels::matches(
                &constraint.selector,
                labels_of(&pod.pod.metadata),
            ));
            let there = by_value.get(value).copied().unwrap_or(0);
            if there + itself - min > constraint.max_skew {
                let reason = "node(s) didn't match pod topology spread constraints";
                return Err(Rejection::unschedulable(NAME, reason));
            }
        }
        Ok(())
    }

    fn pre_score(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
        feasible: &[Arc<NodeInfo>],
    ) -> bool {
        let mut soft = constraints(pod, "ScheduleAnyway");
        let require_all = pod
            .spec()
            .topology_spread_constraints
            .as_ref()
            .is_some_and(|all| !all.is_empty());
        if !require_all {
            soft = self
                .defaults
                .selector(&pod.pod)
                .map(|s| default_constraints(&s))
                .unwrap_or_default();
        }
        if soft.is_empty() {
            return false;
        }
        let keys: Vec<String> = soft
            .iter()
            .map(|constraint| constraint.topology_key.clone())
            .collect();
        let has_keys = |node: &&Arc<NodeInfo>| {
            !require_all || keys.iter().all(|key| node.label(key).is_some())
        };
        let weighted = soft.into_iter().map(|constraint| {
            let values = feasible
                .iter()
                .filter(has_keys)
                .filter_map(|node| node.label(&constraint.topology_key));
            let domains = values.collect::<std::collections::HashSet<_>>().len();
            // The more domains, the less one pod in one of them means.
            #[allow(clippy::cast_precision_loss)]
            let weight = (domains as f64 + 2.0).ln();
            (
                count(constraint, pod, snapshot.nodes.iter().filter(has_keys)),
                weight,
            )
        });
        state.put(
            SCORE,
            Scored {
                counted: weighted.collect(),
                require_all,
            },
        );
        true
    }

    /// The weighted number of matching pods in the node's domains; less is better.
    fn score(&self, state: &CycleState, _pod: &PodInfo, node: &NodeInfo) -> i64 {
        let Some(scored) = state.get::<Scored>(SCORE) else {
            return 0;
        };
        if is_ignored(scored, node) {
            return 0;
        }
        let of = |(counted, weight): &(Counted, f64)| {
            let value = node.label(&counted.constraint.topology_key)?;
            let there = counted.by_value.get(value).copied().unwrap_or(0);
            #[allow(clippy::cast_precision_loss)]
            let cost = there as f64 * weight + (counted.constraint.max_skew - 1) as f64;
            Some(cost)
        };
        #[allow(clippy::cast_possible_truncation)]
        let cost = scored.counted.iter().filter_map(of).sum::<f64>().round() as i64;
        cost
    }

    fn normalize(&self, state: &CycleState, nodes: &[Arc<NodeInfo>], scores: &mut [i64]) {
        let Some(scored) = state.get::<Scored>(SCORE) else {
            return;
        };
        let counting = || {
            nodes
                .iter()
                .zip(scores.iter())
                .filter(|(node, _)| !is_ignored(scored, node))
        };
        let max = counting().map(|(_, score)| *score).max().unwrap_or(0);
        let min = counting().map(|(_, score)| *score).min().unwrap_or(0);
        for (node, score) in nodes.iter().zip(scores.iter_mut()) {
            *score = match max {
                _ if is_ignored(scored, node) => 0,
                0 => MAX_SCORE,
                max => MAX_SCORE * (max + min - *score) / max,
            };
        }
    }

    fn may_help(&self, event: &Event, _pod: &Pod) -> bool {
        !matches!(
            event,
            Event::ClaimChanged(_) | Event::VolumeChanged(_) | Event::StorageClassChanged
        )
    }
}

fn is_ignored(scored: &Scored, node: &NodeInfo) -> bool {
    scored.require_all
        && scored
            .counted
            .iter()
            .any(|(counted, _)| node.label(&counted.constraint.topology_key).is_none())
}

impl DefaultSelectors {
    pub fn new(informers: &Informers) -> Self {
        Self {
            services: informers.get(),
            replica_sets: informers.get(),
            replication_controllers: informers.get(),
            stateful_sets: informers.get(),
        }
    }

    /// What selects the pods of the same Services and workload; `None` if the pod belongs to none.
    fn selector(&self, pod: &Pod) -> Option<LabelSelector> {
        let namespace = pod.metadata.namespace.as_deref()?;
        let labels = labels_of(&pod.metadata);
        let mut selector = LabelSelector::default();
        for service in self.services.list_namespace(namespace) {
            let Some(of_service) = service
                .spec
                .as_ref()
                .and_then(|spec| spec.selector.as_ref())
            else {
                continue;
            };
            if !of_service.is_empty() && labels::matches_map(of_service, labels) {
                selector
                    .match_labels
                    .get_or_insert_default()
                    .extend(of_service.clone());
            }
        }
        let owners = pod.metadata.owner_references.iter().flatten();
        for owner in owners.filter(|owner| owner.controller == Some(true)) {
            if let Some(of_owner) = self.owner_selector(namespace, &owner.kind, &owner.name) {
                let labels = of_owner.match_labels.unwrap_or_default();
                selector.match_labels.get_or_insert_default().extend(labels);
                let expressions = of_owner.match_expressions.unwrap_or_default();
                selector
                    .match_expressions
                    .get_or_insert_default()
                    .extend(expressions);
            }
        }
        (!labels::is_empty(&selector)).then_some(selector)
    }

    fn owner_selector(&self, namespace: &str, kind: &str, name: &str) -> Option<LabelSelector> {
        match kind {
            "ReplicaSet" => {
                let set = self.replica_sets.get(Some(namespace), name)?;
                set.spec.as_ref().map(|spec| spec.selector.clone())
            }
            "StatefulSet" => {
                let set = self.stateful_sets.get(Some(namespace), name)?;
                set.spec.as_ref().map(|spec| spec.selector.clone())
            }
            "ReplicationController" => {
                let controller = self.replication_controllers.get(Some(namespace), name)?;
                let match_labels = controller.spec.as_ref()?.selector.clone();
                Some(LabelSelector {
                    match_labels,
                    match_expressions: None,
                })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ServiceSpec, TopologySpreadConstraint};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{PodBuilder, node, passes, pod, scores, snapshot};

    fn plugin(services: Vec<Service>) -> PodTopologySpread {
        PodTopologySpread::new(DefaultSelectors {
            services: Informer::of_objects(services),
            replica_sets: Informer::of_objects([]),
            replication_controllers: Informer::of_objects([]),
            stateful_sets: Informer::of_objects([]),
        })
    }

    fn web(name: &str) -> PodBuilder {
        pod(name).label("app", "web")
    }

    fn spread(pod: PodBuilder, key: &str, when: &str, min_domains: Option<i32>) -> PodInfo {
        pod.edit(|spec| {
            spec.topology_spread_constraints = Some(vec![TopologySpreadConstraint {
                topology_key: key.to_owned(),
                max_skew: 1,
                min_domains,
                when_unsatisfiable: when.to_owned(),
                label_selector: Some(LabelSelector {
                    match_labels: Some([("app".to_owned(), "web".to_owned())].into()),
                    match_expressions: None,
                }),
                ..TopologySpreadConstraint::default()
            }]);
        })
        .info()
    }

    fn zones(counts: &[usize]) -> Snapshot {
        let build = |(i, count): (usize, &usize)| {
            let pods: Vec<_> = (0..*count).map(|j| web(&format!("{i}-{j}"))).collect();
            node(&format!("n{i}"))
                .label("zone", &i.to_string())
                .with(pods)
        };
        snapshot(counts.iter().enumerate().map(build))
    }

    #[test]
    fn skew_is_limited() {
        let plugin = plugin(vec![]);
        let incoming = |min_domains| spread(web("p"), "zone", "DoNotSchedule", min_domains);
        assert_eq!(
            passes(&plugin, &incoming(None), &zones(&[1, 1, 0])),
            [false, false, true]
        );
        assert_eq!(
            passes(&plugin, &incoming(None), &zones(&[1, 1, 1])),
            [true, true, true]
        );
        assert_eq!(
            passes(&plugin, &incoming(Some(4)), &zones(&[1, 1, 1])),
            [false, false, false]
        );
        let without_zone = snapshot([node("x").with([])]);
        assert_eq!(passes(&plugin, &incoming(None), &without_zone), [false]);
        let unrelated = spread(pod("other"), "zone", "DoNotSchedule", None);
        assert_eq!(
            passes(&plugin, &unrelated, &zones(&[2, 1])),
            [true, true],
            "does not count itself"
        );
    }

    proptest! {
        /// Scheduling one pod after the other never exceeds the skew and never gets stuck.
        #[test]
        fn spreading_many_pods(zone_count in 1..6usize, pods in 1..30usize, choice in any::<u64>()) {
            let plugin = plugin(vec![]);
            let mut counts = vec![0; zone_count];
            for i in 0..pods {
                let incoming = spread(web("p"), "zone", "DoNotSchedule", None);
                let open = passes(&plugin, &incoming, &zones(&counts));
                let open: Vec<usize> = (0..zone_count).filter(|zone| open[*zone]).collect();
                prop_assert!(!open.is_empty());
                counts[open[(choice as usize).wrapping_add(i * 7) % open.len()]] += 1;
                let skew = counts.iter().max().unwrap() - counts.iter().min().unwrap();
                prop_assert!(skew <= 1, "{counts:?}");
            }
        }
    }

    #[test]
    fn soft_constraints_score() {
        let incoming = spread(web("p"), "zone", "ScheduleAnyway", None);
        let scores = scores(&plugin(vec![]), &incoming, &zones(&[3, 1, 0]));
        assert!(scores[0] < scores[1] && scores[1] < scores[2], "{scores:?}");
        assert_eq!(scores[2], 100);
    }

    #[test]
    fn pods_of_a_service_are_spread_by_default() {
        let mut service = Service::default();
        service.metadata.namespace = Some("ns".to_owned());
        service.metadata.name = Some("web".to_owned());
        service.spec = Some(ServiceSpec {
            selector: Some([("app".to_owned(), "web".to_owned())].into()),
            ..ServiceSpec::default()
        });
        let plugin = plugin(vec![service]);
        let spread = scores(&plugin, &web("p").info(), &zones(&[2, 0]));
        assert!(spread[0] < spread[1], "{spread:?}");
        assert_eq!(
            scores(&plugin, &pod("lonely").info(), &zones(&[2, 0])),
            [0, 0]
        );
    }
}
