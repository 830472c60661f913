//! Where pods may run: taints and tolerations, node selectors.

use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};

use super::labels::labels_of;

/// Whether `toleration` covers `taint`.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let given = |text: &Option<String>| {
        text.as_deref()
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    };
    if given(&toleration.effect).is_some_and(|effect| effect != taint.effect) {
        return false;
    }
    let operator = given(&toleration.operator).unwrap_or_else(|| "Equal".to_owned());
    match given(&toleration.key) {
        Some(key) if key != taint.key => return false,
        // No key tolerates everything, if the operator is Exists.
        None => return operator == "Exists",
        Some(_) => {}
    }
    let tolerated = toleration.value.as_deref().unwrap_or_default();
    let value = taint.value.as_deref().unwrap_or_default();
    let numbers = || Some((value.parse::<i64>().ok()?, tolerated.parse::<i64>().ok()?));
    match operator.as_str() {
        "Exists" => true,
        "Equal" => tolerated == value,
        "Lt" => numbers().is_some_and(|(value, tolerated)| value < tolerated),
        "Gt" => numbers().is_some_and(|(value, tolerated)| value > tolerated),
        _ => false,
    }
}

/// The first taint that passes `filter` and that no toleration covers.
pub fn untolerated_taint<'a>(
    taints: &'a [Taint],
    tolerations: &[Toleration],
    filter: impl Fn(&Taint) -> bool,
) -> Option<&'a Taint> {
    let relevant = taints.iter().filter(|taint| filter(taint));
    relevant.into_iter().find(|taint| {
        !tolerations
            .iter()
            .any(|toleration| tolerates(toleration, taint))
    })
}

/// The node's taints.
pub fn taints(node: &Node) -> &[Taint] {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref());
    taints.unwrap_or_default()
}

/// Whether the node satisfies one of the selector's terms (terms are ORed, requirements ANDed, an empty term
/// matches nothing).
pub fn node_selector_matches(selector: &NodeSelector, node: &Node) -> bool {
    selector
        .node_selector_terms
        .iter()
        .any(|term| node_selector_term_matches(term, node))
}

/// Whether the node satisfies all requirements of a non-empty term.
pub fn node_selector_term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let labels = labels_of(&node.metadata);
    let by_label = |requirement: &NodeSelectorRequirement| {
        let value = labels.get(&requirement.key).map(String::as_str);
        requirement_matches(requirement, value)
    };
    let by_field = |requirement: &NodeSelectorRequirement| {
        requirement.key == "metadata.name"
            && requirement_matches(requirement, node.metadata.name.as_deref())
    };
    expressions.iter().all(by_label) && fields.iter().all(by_field)
}

fn requirement_matches(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let numbers = || {
        Some((
            value?.parse::<i64>().ok()?,
            values.first()?.parse::<i64>().ok()?,
        ))
    };
    let listed = || value.is_some_and(|value| values.iter().any(|listed| listed == value));
    match requirement.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(value, bound)| value > bound),
        "Lt" => numbers().is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

/// Whether `spec.nodeSelector` and the required node affinity admit the node.
pub fn required_node_affinity_matches(spec: &PodSpec, node: &Node) -> bool {
    let labels = labels_of(&node.metadata);
    let selector_matches = spec
        .node_selector
        .iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| {
            affinity
                .required_during_scheduling_ignored_during_execution
                .as_ref()
        });
    selector_matches && required.is_none_or(|required| node_selector_matches(required, node))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn toleration(key: &str, operator: &str, value: &str, effect: &str) -> Toleration {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Toleration {
            key: some(key),
            operator: some(operator),
            value: some(value),
            effect: some(effect),
            toleration_seconds: None,
        }
    }

    #[test]
    fn tolerations() {
        let taint = Taint {
            key: "k".to_owned(),
            value: Some("5".to_owned()),
            effect: "NoSchedule".to_owned(),
            time_added: None,
        };
        let cases = [
            (toleration("k", "", "5", "NoSchedule"), true),
            (toleration("k", "Equal", "6", "NoSchedule"), false),
            (toleration("k", "Exists", "", ""), true),
            (toleration("", "Exists", "", ""), true),
            (toleration("", "Equal", "5", ""), false),
            (toleration("other", "Exists", "", ""), false),
            (toleration("k", "Exists", "", "NoExecute"), false),
            (toleration("k", "Lt", "6", ""), true),
            (toleration("k", "Gt", "6", ""), false),
        ];
        for (toleration, expected) in cases {
            assert_eq!(tolerates(&toleration, &taint), expected, "{toleration:?}");
        }
    }

    #[test]
    fn node_selector_terms() {
        let node = Node {
            metadata: ObjectMeta {
                name: Some("node-0".to_owned()),
                labels: Some([("zone".to_owned(), "1".to_owned())].into()),
                ..ObjectMeta::default()
            },
            ..Node::default()
        };
        let requirement = |key: &str, operator: &str, values: &[&str]| NodeSelectorRequirement {
            key: key.to_owned(),
            operator: operator.to_owned(),
            values: Some(values.iter().map(|value| (*value).to_owned()).collect()),
        };
        let expression = |requirement| NodeSelectorTerm {
            match_expressions: Some(vec![requirement]),
            match_fields: None,
        };
        let field = |requirement| NodeSelectorTerm {
            match_expressions: None,
            match_fields: Some(vec![requirement]),
        };
        let cases = [
            (expression(requirement("zone", "In", &["1", "2"])), true),
            (expression(requirement("zone", "NotIn", &["1"])), false),
            (expression(requirement("arch", "NotIn", &["1"])), true),
            (expression(requirement("zone", "Gt", &["0"])), true),
            (expression(requirement("zone", "Lt", &["0"])), false),
            (expression(requirement("arch", "DoesNotExist", &[])), true),
            (field(requirement("metadata.name", "In", &["node-0"])), true),
            (
                field(requirement("metadata.name", "In", &["node-1"])),
                false,
            ),
            (NodeSelectorTerm::default(), false),
        ];
        for (term, expected) in cases {
            assert_eq!(
                node_selector_term_matches(&term, &node),
                expected,
                "{term:?}"
            );
        }
    }
}
