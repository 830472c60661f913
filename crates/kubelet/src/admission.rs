//! Whether this node takes a pod at all: the scheduler's predicates once more, against what really is here. A pod that
//! doesn't fit fails with the reason users know.

use std::collections::BTreeMap;
use std::sync::Arc;

use fluyt_api::component_helpers::nodedeclaredfeatures::{FeatureSet, infer_for_scheduling};
use fluyt_api::component_helpers::resource::Options;
use fluyt_client::helpers::resource::{pod_info, pod_resources};
use fluyt_volumes::quantity::{milli_value, value};
use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::allocation::Pending;
use crate::pod::PodExt;

type Amounts = BTreeMap<String, i64>;

/// `Err` is the reason and message of the pod's failure.
pub fn admit(
    pod: &Pod,
    node: Option<&Node>,
    allocatable: &BTreeMap<String, Quantity>,
    active: &[Arc<Pod>],
    declared: FeatureSet,
) -> Result<(), (String, String)> {
    let rejected =
        |reason: &str, why: String| Err((reason.to_string(), format!("Pod was rejected: {why}")));
    let others: Vec<&Arc<Pod>> = active
        .iter()
        .filter(|other| other.uid() != pod.uid() && !other.is_mirror())
        .collect();
    let capacity = |name: &str| allocatable.get(name).and_then(value);
    if let Some(most) = capacity("pods")
        && i64::try_from(others.len()).unwrap_or(i64::MAX) >= most
    {
        return rejected(
            "OutOfpods",
            format!(
                "Node didn't have enough resource: pods, requested: 1, used: {}, capacity: {most}",
                others.len()
            ),
        );
    }
    let mut used = Amounts::new();
    for other in &others {
        add(&mut used, &requests(other));
    }
    for (name, requested) in requests(pod) {
        if requested == 0 {
            continue;
        }
        let offered =
            match node.and_then(|node| node.status.as_ref()?.allocatable.as_ref()?.get(&name)) {
                Some(quantity) => read(&name, quantity),
                None => allocatable
                    .get(&name)
                    .map_or(0, |quantity| read(&name, quantity)),
            };
        let used = used.get(&name).copied().unwrap_or(0);
        if used + requested > offered {
            return rejected(
                &format!("OutOf{name}"),
                format!(
                    "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {offered}"
                ),
            );
        }
    }
    if let Some(node) = node
        && !matches_node(pod, node)
    {
        return rejected(
            "NodeAffinity",
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
                .into(),
        );
    }
    let taken: Vec<_> = others.iter().flat_map(|other| host_ports(other)).collect();
    if host_ports(pod).iter().any(|port| taken.contains(port)) {
        return rejected(
            "NodePorts",
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports".into(),
        );
    }
    let missing = infer_for_scheduling(&pod_info(pod.spec())).without(declared);
    if !missing.is_empty() {
        let why = format!(
            "Pod requires node features that are not available: {}",
            missing.names().join(", ")
        );
        return rejected("PodFeatureUnsupported", why);
    }
    Ok(())
}

/// Whether a pod that runs already may have other resources than before.
pub fn room(
    pod: &Pod,
    allocatable: &BTreeMap<String, Quantity>,
    active: &[Arc<Pod>],
) -> Result<(), Pending> {
    let mut used = Amounts::new();
    for other in active.iter().filter(|other| other.uid() != pod.uid()) {
        add(&mut used, &requests(other));
    }
    let wanted: Vec<(String, i64, i64)> = requests(pod)
        .into_iter()
        .filter_map(|(name, amount)| {
            let capacity = read(&name, allocatable.get(&name)?);
            Some((name, amount, capacity))
        })
        .collect();
    for (name, requested, capacity) in &wanted {
        if requested > capacity {
            return Err(Pending {
                reason: "Infeasible",
                message: format!(
                    "Node didn't have enough capacity: {name}, requested: {requested}, capacity: {capacity}"
                ),
            });
        }
    }
    for (name, requested, capacity) in &wanted {
        let used = used.get(name).copied().unwrap_or(0);
        if used + requested > *capacity {
            return Err(Pending {
                reason: "Deferred",
                message: format!(
                    "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
                ),
            });
        }
    }
    Ok(())
}

fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        *sum.entry(name.clone()).or_default() += amount;
    }
}

fn read(name: &str, quantity: &Quantity) -> i64 {
    let read = if name == "cpu" { milli_value } else { value };
    read(quantity).unwrap_or(0)
}

/// What the pod asks for, in thousandths of CPUs and else in whole units.
fn requests(pod: &Pod) -> Amounts {
    let requests = pod_resources(pod).requests(Options::default());
    let read = |(name, amount): (String, fluyt_api::quantity::Quantity)| {
        let amount = match name.as_str() {
            "cpu" => amount.millis(),
            _ => amount.value(),
        };
        (name, amount)
    };
    requests.into_iter().map(read).collect()
}

fn host_ports(pod: &Pod) -> Vec<(String, i32, String)> {
    pod.spec()
        .containers
        .iter()
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            Some((
                port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                port.host_port.filter(|port| *port > 0)?,
                port.host_ip.clone().unwrap_or_default(),
            ))
        })
        .collect()
}

fn matches_node(pod: &Pod, node: &Node) -> bool {
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let spec = pod.spec();
    let selector = spec.node_selector.iter().flatten();
    if !selector
        .into_iter()
        .all(|(key, value)| labels.get(key) == Some(value))
    {
        return false;
    }
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| {
            affinity
                .required_during_scheduling_ignored_during_execution
                .as_ref()
        });
    let name = node.metadata.name.as_deref().unwrap_or_default();
    required.is_none_or(|required| {
        required
            .node_selector_terms
            .iter()
            .any(|term| matches_term(term, &labels, name))
    })
}

fn matches_term(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let fields_match = fields
        .iter()
        .all(|rule| rule.key == "metadata.name" && matches_rule(rule, Some(name)));
    fields_match
        && expressions
            .iter()
            .all(|rule| matches_rule(rule, labels.get(&rule.key).map(String::as_str)))
}

fn matches_rule(rule: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = rule.values.as_deref().unwrap_or_default();
    let listed = |value: &str| values.iter().any(|v| v == value);
    let number = |text: &str| text.parse::<i64>().ok();
    match rule.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        operator @ ("Gt" | "Lt") => {
            let (Some(own), Some(bound)) = (
                value.and_then(number),
                values.first().and_then(|v| number(v)),
            ) else {
                return false;
            };
            if operator == "Gt" {
                own > bound
            } else {
                own < bound
            }
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fluyt_api::component_helpers::nodedeclaredfeatures::Feature;
    use serde_json::json;

    fn pod(uid: &str, spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": uid, "uid": uid}, "spec": spec}))
            .unwrap()
    }

    fn cpu(amount: &str) -> serde_json::Value {
        json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": amount}}}]})
    }

    #[test]
    fn reasons() {
        let allocatable: BTreeMap<String, Quantity> =
            [("cpu", "2"), ("memory", "1Gi"), ("pods", "2")]
                .map(|(k, v)| (k.to_string(), Quantity(v.into())))
                .into();
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "n", "labels": {"zone": "a"}}}))
                .unwrap();
        let busy = vec![Arc::new(pod(
            "busy",
            json!({"containers": [{"name": "c",
            "ports": [{"containerPort": 1, "hostPort": 80}], "resources": {"requests": {"cpu": "1500m"}}}]}),
        ))];
        let affinity = |zone: &str| {
            json!({"containers": [], "affinity": {"nodeAffinity":
            {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms":
                [{"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]}]}}}})
        };
        let declared = FeatureSet::from_iter([Feature::RestartAllContainersOnContainerExits]);
        for (spec, expected) in [
            (cpu("500m"), None),
            (cpu("501m"), Some("OutOfcpu")),
            (
                json!({"containers": [], "nodeSelector": {"zone": "b"}}),
                Some("NodeAffinity"),
            ),
            (affinity("a"), None),
            (affinity("b"), Some("NodeAffinity")),
            (
                json!({"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 80}]}]}),
                Some("NodePorts"),
            ),
            (
                json!({"containers": [], "hostNetwork": true, "hostUsers": false}),
                Some("PodFeatureUnsupported"),
            ),
            (
                json!({"containers": [{"name": "c", "restartPolicyRules": [{"action": "RestartAllContainers"}]}]}),
                None,
            ),
        ] {
            let pod = pod("new", spec.clone());
            let verdict = admit(&pod, Some(&node), &allocatable, &busy, declared);
            assert_eq!(
                verdict.err().map(|(reason, _)| reason).as_deref(),
                expected,
                "{spec}"
            );
        }
        let full = vec![
            busy[0].clone(),
            Arc::new(pod("other", json!({"containers": []}))),
        ];
        let (reason, _) = admit(
            &pod("new", json!({"containers": []})),
            None,
            &allocatable,
            &full,
            declared,
        )
        .unwrap_err();
        assert_eq!(reason, "OutOfpods");
        let refused = |spec| admit(&pod("new", spec), None, &allocatable, &busy, declared);
        let namespaced = json!({"containers": [], "hostNetwork": true, "hostUsers": false});
        let (_, message) = refused(namespaced).unwrap_err();
        assert_eq!(
            message,
            "Pod was rejected: Pod requires node features that are not available: UserNamespacesHostNetworkSupport"
        );
        let (_, message) = refused(cpu("1")).unwrap_err();
        assert_eq!(
            message,
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000, used: 1500, capacity: 2000"
        );
    }
}
