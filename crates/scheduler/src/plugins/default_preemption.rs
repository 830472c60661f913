//! DefaultPreemption: makes room for a pod by removing pods of lower priority, as few and as unimportant as
//! possible, within their disruption budgets if that can be.

use std::{collections::BTreeMap, sync::Arc};

use fluyt_client::helpers::{labels, pods};
use k8s_openapi::api::{core::v1::Pod, policy::v1::PodDisruptionBudget};

use crate::framework::{
    CycleState, Diagnosis, NodeInfo, PodInfo, Profile, Snapshot, profile::histogram,
};

/// Nodes looked at: at least this many, and 10 % of the cluster.
const MIN_CANDIDATES: usize = 100;

/// A node that has room once its victims are gone.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub node: String,
    pub victims: Vec<Arc<PodInfo>>,
    budget_violations: usize,
}

/// Whether the pod may have others removed. `snapshot` shows if earlier victims are still on their way out.
pub fn is_eligible(pod: &PodInfo, snapshot: &Snapshot) -> Result<(), &'static str> {
    if pod.spec().preemption_policy.as_deref() == Some("Never") {
        return Err("not eligible due to preemptionPolicy=Never.");
    }
    let nominated = pod
        .pod
        .status
        .as_ref()
        .and_then(|status| status.nominated_node_name.as_deref());
    let Some(node) = nominated.and_then(|node| snapshot.get(node)) else {
        return Ok(());
    };
    let leaving = |other: &Arc<PodInfo>| {
        pods::is_terminating(&other.pod) && pods::priority(&other.pod) < pods::priority(&pod.pod)
    };
    if node.pods.iter().any(leaving) {
        return Err("not eligible due to a terminating pod on the nominated node.");
    }
    Ok(())
}

/// The best node to make room on, or why there is none.
pub fn find(
    profile: &Profile,
    pod: &PodInfo,
    snapshot: &Snapshot,
    diagnosis: &Diagnosis,
    budgets: &[Arc<PodDisruptionBudget>],
) -> Result<Candidate, String> {
    let mut reasons: BTreeMap<&str, String> = BTreeMap::new();
    let mut candidates = Vec::new();
    let wanted = (snapshot.nodes.len() / 10).max(MIN_CANDIDATES);
    for node in &snapshot.nodes {
        let resolvable = diagnosis.rejection.is_none()
            && diagnosis
                .by_node
                .get(node.name())
                .is_none_or(|rejection| rejection.resolvable);
        if !resolvable {
            reasons.insert(
                node.name(),
                "Preemption is not helpful for scheduling".to_owned(),
            );
            continue;
        }
        if candidates.len() >= wanted {
            break;
        }
        match victims_on(profile, pod, snapshot, node, budgets) {
            Ok(candidate) => candidates.push(candidate),
            Err(reason) => {
                reasons.insert(node.name(), reason);
            }
        }
    }
    best(candidates).ok_or_else(|| {
        let counted = histogram(reasons.values().map(String::as_str));
        format!(
            "preemption: 0/{} nodes are available: {counted}.",
            snapshot.nodes.len()
        )
    })
}

/// The pods to remove from the node: first all of lower priority in thought, then as many as fit put back.
fn victims_on(
    profile: &Profile,
    pod: &PodInfo,
    snapshot: &Snapshot,
    node: &Arc<NodeInfo>,
    budgets: &[Arc<PodDisruptionBudget>],
) -> Result<Candidate, String> {
    let priority = pods::priority(&pod.pod);
    let mut lower: Vec<Arc<PodInfo>> = node
        .pods
        .iter()
        .filter(|other| pods::priority(&other.pod) < priority)
        .cloned()
        .collect();
    if lower.is_empty() {
        return Err("No preemption victims found for incoming pod".to_owned());
    }
    let mut stripped = (**node).clone();
    for other in &lower {
        stripped.remove_pod(other.uid());
    }
    let fits = |node: &NodeInfo| {
        let snapshot = snapshot.with(Arc::new(node.clone()));
        let mut state = CycleState::default();
        let checked = profile.pre_filter(&mut state, pod, &snapshot);
        checked.and_then(|_| profile.filter(&state, pod, node))
    };
    if let Err(rejection) = fits(&stripped) {
        return Err(rejection.reasons.join(", "));
    }
    // The most important are put back first; within budgets those whose loss would violate one.
    lower.sort_by_key(|pod| std::cmp::Reverse(importance(pod)));
    let (violating, others) = split_by_budgets(lower, budgets);
    let mut victims = Vec::new();
    let mut budget_violations = 0;
    let all = violating
        .into_iter()
        .map(|pod| (pod, true))
        .chain(others.into_iter().map(|pod| (pod, false)));
    for (other, violates) in all {
        stripped.add_pod(Arc::clone(&other));
        if fits(&stripped).is_err() {
            stripped.remove_pod(other.uid());
            budget_violations += usize::from(violates);
            victims.push(other);
        }
    }
    victims.sort_by_key(|pod| std::cmp::Reverse(importance(pod)));
    Ok(Candidate {
        node: node.name().to_owned(),
        victims,
        budget_violations,
    })
}

/// Higher priority, and at the same priority longer running, is more important.
fn importance(pod: &Arc<PodInfo>) -> (i32, std::cmp::Reverse<Option<jiff::Timestamp>>) {
    (pods::priority(&pod.pod), std::cmp::Reverse(started(pod)))
}

fn started(pod: &PodInfo) -> Option<jiff::Timestamp> {
    let start = pod
        .pod
        .status
        .as_ref()
        .and_then(|status| status.start_time.as_ref());
    start
        .or(pod.pod.metadata.creation_timestamp.as_ref())
        .map(|time| time.0)
}

/// Separate the pods whose removal would exceed what a disruption budget allows.
fn split_by_budgets(
    pods: Vec<Arc<PodInfo>>,
    budgets: &[Arc<PodDisruptionBudget>],
) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let allowed = |budget: &PodDisruptionBudget| {
        budget
            .status
            .as_ref()
            .and_then(|status| status.disruptions_allowed)
            .unwrap_or(0)
    };
    let mut left: Vec<i32> = budgets.iter().map(|budget| allowed(budget)).collect();
    pods.into_iter().partition(|pod| {
        let mut violates = false;
        for (budget, left) in budgets.iter().zip(&mut left) {
            if covers(budget, &pod.pod) {
                *left -= 1;
                violates |= *left < 0;
            }
        }
        violates
    })
}

fn covers(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let disrupted = budget
        .status
        .as_ref()
        .and_then(|status| status.disrupted_pods.as_ref());
    budget.metadata.namespace == pod.metadata.namespace
        // Pods that are on their way out already were counted.
        && !disrupted.is_some_and(|disrupted| disrupted.contains_key(name))
        && selector.is_some_and(|selector| {
            !labels::is_empty(selector) && labels::matches(selector, labels::labels_of(&pod.metadata))
        })
}

/// Fewest violated budgets, least important victims, fewest victims, youngest victims.
fn best(candidates: Vec<Candidate>) -> Option<Candidate> {
    candidates.into_iter().min_by_key(|candidate| {
        let priorities = || {
            candidate
                .victims
                .iter()
                .map(|victim| i64::from(pods::priority(&victim.pod)))
        };
        // Shifted so that two victims never weigh less than one of them, whatever the sign of priorities.
        let sum: i64 = priorities()
            .map(|priority| priority + i64::from(i32::MAX) + 1)
            .sum();
        let highest = priorities().max().unwrap_or(i64::MIN);
        let of_highest = candidate
            .victims
            .iter()
            .filter(|victim| i64::from(pods::priority(&victim.pod)) == highest);
        let earliest = of_highest.filter_map(|victim| started(victim)).min();
        (
            candidate.budget_violations,
            highest,
            sum,
            candidate.victims.len(),
            std::cmp::Reverse(earliest),
        )
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::policy::v1::{PodDisruptionBudgetSpec, PodDisruptionBudgetStatus},
        apimachinery::pkg::apis::meta::v1::LabelSelector,
    };

    use super::*;
    use crate::{
        framework::{Rejection, WeightedPlugin},
        plugins::{ScoringStrategy, node_resources_fit::NodeResourcesFit},
        testing::{PodBuilder, node, pod, snapshot},
    };

    fn profile() -> Profile {
        let fit = NodeResourcesFit {
            scoring: ScoringStrategy::LeastAllocated,
        };
        Profile {
            scheduler_name: "default-scheduler".to_owned(),
            plugins: vec![WeightedPlugin {
                plugin: Arc::new(fit),
                weight: 1,
            }],
        }
    }

    fn preempt(
        incoming: PodBuilder,
        nodes: &Snapshot,
        budgets: &[Arc<PodDisruptionBudget>],
    ) -> Result<(String, Vec<String>), String> {
        let diagnosis = Diagnosis {
            nodes: nodes.nodes.len(),
            ..Diagnosis::default()
        };
        find(&profile(), &incoming.info(), nodes, &diagnosis, budgets).map(|candidate| {
            let names = candidate.victims.iter().map(|victim| victim.key().name);
            (candidate.node, names.collect())
        })
    }

    fn running(name: &str, cpu: &str, priority: i32) -> PodBuilder {
        pod(name).cpu(cpu).priority(priority)
    }

    fn victim(node: &str, victims: &[&str]) -> Result<(String, Vec<String>), String> {
        Ok((
            node.to_owned(),
            victims.iter().map(|name| (*name).to_owned()).collect(),
        ))
    }

    #[test]
    fn the_least_important_and_the_fewest() {
        let incoming = || pod("p").cpu("2").priority(100);
        let a = || node("a").with([running("a1", "2", 50), running("a2", "2", 10)]);
        let only = snapshot([a()]);
        assert_eq!(preempt(incoming(), &only, &[]), victim("a", &["a2"]));
        let b = node("b").with([running("b1", "4", 5)]);
        assert_eq!(
            preempt(incoming(), &snapshot([a(), b]), &[]),
            victim("b", &["b1"])
        );
        let c = node("c").with([running("c1", "1", 10), running("c2", "3", 10)]);
        assert_eq!(
            preempt(incoming(), &snapshot([c, a()]), &[]),
            victim("a", &["a2"])
        );
    }

    #[test]
    fn none_of_equal_priority_and_none_in_vain() {
        let full = snapshot([node("a").with([running("x", "4", 100)])]);
        let refused = preempt(pod("p").cpu("2").priority(100), &full, &[]);
        let message =
            "preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.";
        assert_eq!(refused, Err(message.to_owned()));
        let huge = preempt(pod("p").cpu("9").priority(200), &full, &[]);
        assert_eq!(
            huge,
            Err("preemption: 0/1 nodes are available: 1 Insufficient cpu.".to_owned())
        );
        let mut diagnosis = Diagnosis {
            nodes: 1,
            ..Diagnosis::default()
        };
        diagnosis.by_node.insert(
            "a".to_owned(),
            Rejection::unresolvable("TaintToleration", "tainted"),
        );
        let incoming = pod("p").cpu("2").priority(200).info();
        let useless = find(&profile(), &incoming, &full, &diagnosis, &[]).unwrap_err();
        assert!(
            useless.ends_with("1 Preemption is not helpful for scheduling."),
            "{useless}"
        );
    }

    #[test]
    fn budgets_are_kept_if_that_can_be() {
        let budget = Arc::new(PodDisruptionBudget {
            metadata: pod("budget").build().metadata,
            spec: Some(PodDisruptionBudgetSpec {
                selector: Some(LabelSelector {
                    match_labels: Some([("app".to_owned(), "db".to_owned())].into()),
                    match_expressions: None,
                }),
                ..PodDisruptionBudgetSpec::default()
            }),
            status: Some(PodDisruptionBudgetStatus {
                disruptions_allowed: Some(0),
                ..PodDisruptionBudgetStatus::default()
            }),
        });
        let protected = running("db", "4", 1).label("app", "db");
        let both = snapshot([
            node("a").with([protected.clone()]),
            node("b").with([running("web", "4", 50)]),
        ]);
        let incoming = || pod("p").cpu("2").priority(100);
        assert_eq!(
            preempt(incoming(), &both, &[Arc::clone(&budget)]),
            victim("b", &["web"])
        );
        assert_eq!(preempt(incoming(), &both, &[]), victim("a", &["db"]));
        let only = snapshot([node("a").with([protected])]);
        assert_eq!(
            preempt(incoming(), &only, &[budget]),
            victim("a", &["db"]),
            "better than nothing"
        );
    }

    #[test]
    fn who_may_preempt() {
        let nodes = snapshot([node("a").with([])]);
        let never = pod("p").edit(|spec| spec.preemption_policy = Some("Never".to_owned()));
        assert!(is_eligible(&never.info(), &nodes).is_err());
        let leaving = running("x", "1", 0).edit_pod(|pod| {
            pod.metadata.deletion_timestamp = Some(jiff::Timestamp::UNIX_EPOCH.into());
        });
        let nominated = pod("p").priority(1).edit_pod(|pod| {
            pod.status.get_or_insert_default().nominated_node_name = Some("a".to_owned());
        });
        let waiting = snapshot([node("a").with([leaving])]);
        assert!(is_eligible(&nominated.clone().info(), &waiting).is_err());
        assert!(is_eligible(&nominated.info(), &nodes).is_ok());
    }
}
