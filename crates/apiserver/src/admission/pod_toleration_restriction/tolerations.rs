//! Which tolerations say the same as others, and more.

use serde_json::Value;

/// A toleration's fields, where nothing and an empty text are the same.
#[derive(PartialEq)]
struct Fields<'a> {
    key: &'a str,
    operator: &'a str,
    value: &'a str,
    effect: &'a str,
    seconds: Option<i64>,
}

impl<'a> Fields<'a> {
    fn of(toleration: &'a Value) -> Self {
        let text = |field: &str| toleration[field].as_str().unwrap_or_default();
        Self {
            key: text("key"),
            operator: text("operator"),
            value: text("value"),
            effect: text("effect"),
            seconds: toleration["tolerationSeconds"].as_i64(),
        }
    }
}

/// Whether one toleration tolerates everything that another does.
fn covers(wide: &Value, narrow: &Value) -> bool {
    let (wide, narrow) = (Fields::of(wide), Fields::of(narrow));
    if wide == narrow {
        return true;
    }
    let every_key = wide.key.is_empty() && wide.operator == "Exists";
    if narrow.key != wide.key && !every_key {
        return false;
    }
    if narrow.effect != wide.effect && !wide.effect.is_empty() {
        return false;
    }
    let too_long = |most: i64| narrow.seconds.is_none_or(|seconds| seconds > most);
    if wide.effect == "NoExecute" && wide.seconds.is_some_and(too_long) {
        return false;
    }
    match wide.operator {
        "" | "Equal" => narrow.operator == "Equal" && narrow.value == wide.value,
        operator => operator == "Exists",
    }
}

/// Both lists as one, without what others cover. Of equal ones the first stays.
pub(super) fn merge(first: &[Value], second: &[Value]) -> Vec<Value> {
    let all: Vec<&Value> = first.iter().chain(second).collect();
    let mut merged: Vec<Value> = Vec::new();
    for (i, toleration) in all.iter().enumerate() {
        let differs = |other: &Value| Fields::of(other) != Fields::of(toleration);
        let is_covered = merged.iter().any(|kept| covers(kept, toleration))
            || all[i + 1..]
                .iter()
                .any(|later| differs(later) && covers(later, toleration));
        if !is_covered {
            merged.push((*toleration).clone());
        }
    }
    merged
}

/// Whether each is covered by something that is allowed.
pub(super) fn are_allowed(tolerations: &[Value], allowed: &[Value]) -> bool {
    let is_allowed = |toleration: &Value| allowed.iter().any(|a| covers(a, toleration));
    allowed.is_empty() || tolerations.iter().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_covers_another() {
        let all = json!({"operator": "Exists"});
        let equal = json!({"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule"});
        let implied = json!({"key": "k", "value": "v", "effect": "NoSchedule"});
        let exists = json!({"key": "k", "operator": "Exists"});
        let short = json!({"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5});
        let long = json!({"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 9});
        let forever = json!({"key": "k", "operator": "Exists", "effect": "NoExecute"});
        for (wide, narrow, expected) in [
            (&all, &equal, true),
            (&equal, &all, false),
            (&exists, &equal, true),
            (&equal, &exists, false),
            (&implied, &equal, true),
            // Upstream compares the operator as it is written.
            (&equal, &implied, false),
            (&long, &short, true),
            (&short, &long, false),
            (&long, &forever, false),
            (&forever, &long, true),
            (
                &json!({"key": "k", "operator": "Gt", "value": "1"}),
                &equal,
                false,
            ),
        ] {
            assert_eq!(covers(wide, narrow), expected, "{wide} {narrow}");
        }
    }

    #[test]
    fn what_is_covered_is_left_out() {
        let all = json!({"operator": "Exists"});
        let a = json!({"key": "a", "operator": "Exists", "effect": "NoSchedule"});
        let b = json!({"key": "b", "operator": "Exists", "effect": "NoSchedule"});
        let [all, a, b] = [&all, &a, &b].map(std::slice::from_ref);
        assert_eq!(merge(a, &[b, a].concat()), [a, b].concat());
        assert_eq!(merge(&[a, b].concat(), all), all);
        assert_eq!(merge(all, a), all);
        assert!(are_allowed(a, all) && are_allowed(all, &[]));
        assert!(!are_allowed(&[a, b].concat(), a) && !are_allowed(all, a));
    }
}
