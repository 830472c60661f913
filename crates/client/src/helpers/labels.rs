//! Label selectors over typed objects.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

static NO_LABELS: Labels = Labels::new();

/// The labels of an object, empty if it has none.
pub fn labels_of(meta: &ObjectMeta) -> &Labels {
    meta.labels.as_ref().unwrap_or(&NO_LABELS)
}

/// Whether `labels` satisfy `selector`. An empty selector selects everything, an unknown operator nothing.
pub fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    let mut equal = selector.match_labels.iter().flatten();
    let mut expressions = selector.match_expressions.iter().flatten();
    equal.all(|(key, value)| labels.get(key) == Some(value))
        && expressions.all(|term| {
            let value = labels.get(&term.key);
            let listed =
                || value.is_some_and(|value| term.values.iter().flatten().any(|v| v == value));
            match term.operator.as_str() {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// Whether `labels` contain every pair of a plain `key: value` selector.
pub fn matches_map(selector: &Labels, labels: &Labels) -> bool {
    selector
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

/// Whether the selector selects everything.
pub fn is_empty(selector: &LabelSelector) -> bool {
    selector
        .match_labels
        .as_ref()
        .is_none_or(BTreeMap::is_empty)
        && selector
            .match_expressions
            .as_ref()
            .is_none_or(Vec::is_empty)
}

/// The selector in the syntax of a `labelSelector` query parameter (and of `Scale.status.selector`).
pub fn to_query(selector: &LabelSelector) -> String {
    let equal = selector
        .match_labels
        .iter()
        .flatten()
        .map(|(key, value)| format!("{key}={value}"));
    let expressions = selector.match_expressions.iter().flatten().map(|term| {
        let values = term.values.as_deref().unwrap_or_default().join(",");
        match term.operator.as_str() {
            "In" => format!("{} in ({values})", term.key),
            "NotIn" => format!("{} notin ({values})", term.key),
            "DoesNotExist" => format!("!{}", term.key),
            _ => term.key.clone(),
        }
    });
    equal.chain(expressions).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    use super::*;

    fn term(key: &str, operator: &str, values: &[&str]) -> LabelSelector {
        let requirement = LabelSelectorRequirement {
            key: key.to_owned(),
            operator: operator.to_owned(),
            values: Some(values.iter().map(|value| (*value).to_owned()).collect()),
        };
        LabelSelector {
            match_expressions: Some(vec![requirement]),
            match_labels: None,
        }
    }

    #[test]
    fn operators() {
        let labels: Labels = [("app".to_owned(), "web".to_owned())].into();
        let cases = [
            (term("app", "In", &["db", "web"]), true),
            (term("app", "In", &["db"]), false),
            (term("tier", "In", &["db"]), false),
            (term("app", "NotIn", &["web"]), false),
            (term("tier", "NotIn", &["web"]), true),
            (term("app", "Exists", &[]), true),
            (term("tier", "Exists", &[]), false),
            (term("tier", "DoesNotExist", &[]), true),
            (term("app", "Bogus", &[]), false),
            (LabelSelector::default(), true),
        ];
        for (selector, expected) in cases {
            assert_eq!(matches(&selector, &labels), expected, "{selector:?}");
        }
    }

    #[test]
    fn query_syntax() {
        let mut selector = term("tier", "NotIn", &["a", "b"]);
        selector.match_labels = Some([("app".to_owned(), "web".to_owned())].into());
        assert_eq!(to_query(&selector), "app=web,tier notin (a,b)");
    }
}
