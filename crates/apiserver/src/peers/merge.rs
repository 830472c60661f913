//! Aggregated discovery of several servers as one: their groups, versions, resources, verbs and subresources, in an order
//! that none of them would object to.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;

use super::order;

/// The groups of several servers. Where they say different things of a resource, the first one's word counts.
pub(super) fn groups<'g>(servers: impl IntoIterator<Item = &'g [Value]>) -> Vec<Value> {
    let mut merged: HashMap<&str, Value> = HashMap::new();
    let mut orders: Vec<Vec<&str>> = Vec::new();
    for groups in servers {
        for group in groups {
            let name = group_name(group);
            match merged.get_mut(name) {
                None => {
                    merged.insert(name, group.clone());
                }
                Some(present) => add(present, group, "versions", "version", |version, other| {
                    add(version, other, "resources", "resource", add_abilities);
                }),
            }
        }
        orders.push(groups.iter().map(group_name).collect());
    }
    let order = order::merge(&orders);
    let in_order = order.iter().filter_map(|name| merged.remove(&**name));
    in_order.collect()
}

pub(super) fn group_name(group: &Value) -> &str {
    group["metadata"]["name"].as_str().unwrap_or_default()
}

/// Adds the things of a list to those of another, in an order that suits both; things that are in both become one.
fn add(
    present: &mut Value,
    other: &Value,
    list: &str,
    name: &str,
    unite: impl Fn(&mut Value, &Value),
) {
    let of = |value: &Value| value[list].as_array().cloned().unwrap_or_default();
    let (ours, theirs) = (of(present), of(other));
    if ours == theirs {
        return;
    }
    let names = |things: &'_ [Value]| -> Vec<String> {
        let names = things.iter().map(|t| t[name].as_str().unwrap_or_default());
        names.map(str::to_owned).collect()
    };
    let (our_names, their_names) = (names(&ours), names(&theirs));
    let orders = [&our_names, &their_names].map(|n| n.iter().map(String::as_str).collect());
    let order = order::merge(&orders);
    let mut things: HashMap<&str, Value> = our_names.iter().map(String::as_str).zip(ours).collect();
    for (name, thing) in their_names.iter().map(String::as_str).zip(theirs) {
        match things.get_mut(name) {
            Some(present) if *present == thing => {}
            Some(present) => unite(present, &thing),
            None => {
                things.insert(name, thing);
            }
        }
    }
    let in_order = order.iter().filter_map(|name| things.remove(&**name));
    present[list] = in_order.collect();
}

/// Adds what can be done with a resource elsewhere.
fn add_abilities(resource: &mut Value, other: &Value) {
    let list = |value: &Value, name: &str| value[name].as_array().cloned().unwrap_or_default();
    let both = |name: &str| list(resource, name).into_iter().chain(list(other, name));
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let verbs: BTreeSet<String> = both("verbs").filter_map(|verb| text(&verb)).collect();
    let subresources: BTreeMap<String, Value> = both("subresources")
        .filter_map(|sub| Some((text(&sub["subresource"])?, sub)))
        .collect();
    resource["verbs"] = verbs.into_iter().collect();
    if !subresources.is_empty() {
        resource["subresources"] = subresources.into_values().collect();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn resource(name: &str, verbs: &[&str], subresources: &[&str]) -> Value {
        let subresources: Vec<Value> = subresources
            .iter()
            .map(|name| json!({"subresource": name, "verbs": ["get"]}))
            .collect();
        json!({"resource": name, "verbs": verbs, "subresources": subresources})
    }

    fn version(name: &str, resources: &[Value]) -> Value {
        json!({"version": name, "resources": resources, "freshness": "Current"})
    }

    fn group(name: &str, versions: &[Value]) -> Value {
        json!({"metadata": {"name": name}, "versions": versions})
    }

    #[test]
    fn all_that_somebody_serves_is_there() {
        let first = [
            group(
                "apps",
                &[version(
                    "v1",
                    &[resource("b", &["list", "get"], &["status"])],
                )],
            ),
            group("policy", &[version("v1", &[])]),
        ];
        let second = [
            group(
                "apps",
                &[
                    version("v2", &[resource("c", &["get"], &[])]),
                    version(
                        "v1",
                        &[
                            resource("a", &["get"], &[]),
                            resource("b", &["create", "get"], &["scale", "status"]),
                        ],
                    ),
                ],
            ),
            group("batch", &[version("v1", &[])]),
            group("policy", &[version("v1", &[])]),
        ];
        let expected = [
            group(
                "apps",
                &[
                    version("v2", &[resource("c", &["get"], &[])]),
                    version(
                        "v1",
                        &[
                            resource("a", &["get"], &[]),
                            resource("b", &["create", "get", "list"], &["scale", "status"]),
                        ],
                    ),
                ],
            ),
            group("batch", &[version("v1", &[])]),
            group("policy", &[version("v1", &[])]),
        ];
        assert_eq!(groups([&first[..], &second]), expected);
        // In whichever order they come, no content differs here.
        assert_eq!(groups([&second[..], &first]), expected);
    }

    #[test]
    fn servers_that_serve_the_same_change_nothing() {
        let same = [
            group("b", &[version("v1", &[resource("x", &["z", "a"], &[])])]),
            group("a", &[]),
        ];
        assert_eq!(groups([&same[..], &same]), same);
    }
}
