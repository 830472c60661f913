//! `LimitRange`: default requests and limits of containers, and the bounds of what pods and claims may ask for.

use async_trait::async_trait;
use fluyt_api::component_helpers::resource::{Options, PodResources, Requirement};
use fluyt_api::quantity::Quantity;
use fluyt_api::{Error, meta};
use serde_json::Value;

use super::{Attributes, Operation, Plugin, in_namespace};
use crate::cache::Caches;

pub(super) struct LimitRanger;

const LISTS: [&str; 2] = ["containers", "initContainers"];

fn items(range: &Value) -> impl Iterator<Item = &Value> {
    range["spec"]["limits"].as_array().into_iter().flatten()
}

fn quantity(value: &Value) -> Option<Quantity> {
    value.as_str()?.parse().ok()
}

#[async_trait]
impl Plugin for LimitRanger {
    async fn admit(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        pod: &mut Value,
    ) -> Result<(), Error> {
        if !attributes.is("pods", Operation::Create) {
            return Ok(());
        }
        for range in in_namespace(caches, "limitranges", attributes.at.namespace) {
            for item in items(&range).filter(|i| i["type"] == "Container") {
                for list in LISTS {
                    for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
                        default_container(container, item);
                    }
                }
            }
        }
        Ok(())
    }

    async fn validate(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        object: &Value,
    ) -> Result<(), Error> {
        let pod = attributes.is("pods", Operation::Create);
        if !pod && !attributes.is("persistentvolumeclaims", Operation::Create) {
            return Ok(());
        }
        let mut problems = Vec::new();
        for range in in_namespace(caches, "limitranges", attributes.at.namespace) {
            for item in items(&range) {
                match item["type"].as_str() {
                    Some("Container") if pod => {
                        for list in LISTS {
                            for container in object["spec"][list].as_array().into_iter().flatten() {
                                check(item, "Container", &container["resources"], &mut problems);
                            }
                        }
                    }
                    Some("Pod") if pod => check(item, "Pod", &pod_total(object), &mut problems),
                    Some("PersistentVolumeClaim") if !pod => {
                        check(
                            item,
                            "PersistentVolumeClaim",
                            &object["spec"]["resources"],
                            &mut problems,
                        );
                    }
                    _ => {}
                }
            }
        }
        match problems.as_slice() {
            [] => Ok(()),
            [one] => Err(attributes.forbidden(one)),
            many => Err(attributes.forbidden(format!("[{}]", many.join(", ")))),
        }
    }
}

/// Fills in what the container does not say; a limit that it sets itself is its request, too.
fn default_container(container: &mut Value, item: &Value) {
    for (requirement, defaults) in [("limits", "default"), ("requests", "defaultRequest")] {
        for (name, amount) in item[defaults].as_object().into_iter().flatten() {
            let resources = meta::child(container, "resources");
            let map = resources
                .entry(requirement)
                .or_insert_with(|| Value::Object(serde_json::Map::new()));
            if let Some(map) = map.as_object_mut() {
                map.entry(name.clone()).or_insert_with(|| amount.clone());
            }
        }
    }
}

/// What a pod asks for in all, stated as containers state it.
fn pod_total(pod: &Value) -> Value {
    let pod = PodResources::of(pod);
    let options = Options {
        exclude_overhead: true,
        ..Options::default()
    };
    let mut total = serde_json::json!({});
    for (requirement, amounts) in [
        (Requirement::Limits, pod.limits(options)),
        (Requirement::Requests, pod.requests(options)),
    ] {
        for (name, amount) in amounts {
            total[requirement.field()][name] = amount.to_string().into();
        }
    }
    total
}

fn check(item: &Value, kind: &str, resources: &Value, problems: &mut Vec<String>) {
    let asked = |requirement: &str, name: &str| quantity(&resources[requirement][name]);
    for (name, min) in item["min"].as_object().into_iter().flatten() {
        let Some(least) = quantity(min) else { continue };
        match asked("requests", name).or_else(|| asked("limits", name)) {
            None => problems.push(format!(
                "minimum {name} usage per {kind} is {least}.  No request is specified"
            )),
            Some(request) if request < least => {
                problems.push(format!(
                    "minimum {name} usage per {kind} is {least}, but request is {request}"
                ));
            }
            Some(_) => {}
        }
    }
    for (name, max) in item["max"].as_object().into_iter().flatten() {
        let Some(most) = quantity(max) else { continue };
        let asked = if kind == "PersistentVolumeClaim" {
            asked("requests", name)
        } else {
            asked("limits", name)
        };
        match asked {
            None => problems.push(format!(
                "maximum {name} usage per {kind} is {most}.  No limit is specified"
            )),
            Some(limit) if limit > most => {
                problems.push(format!(
                    "maximum {name} usage per {kind} is {most}, but limit is {limit}"
                ));
            }
            Some(_) => {}
        }
    }
    for (name, ratio) in item["maxLimitRequestRatio"]
        .as_object()
        .into_iter()
        .flatten()
    {
        let (Some(ratio), Some(limit), Some(request)) = (
            quantity(ratio),
            asked("limits", name),
            asked("requests", name),
        ) else {
            continue;
        };
        #[allow(clippy::cast_precision_loss)]
        let observed = limit.millis() as f64 / request.millis().max(1) as f64;
        #[allow(clippy::cast_precision_loss)]
        if observed > ratio.millis() as f64 / 1000.0 {
            problems.push(format!(
                "{name} max limit to request ratio per {kind} is {ratio}, but provided ratio is {observed:.6}"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_and_bounds() {
        let item = json!({"default": {"cpu": "1"}, "defaultRequest": {"cpu": "100m"}, "max": {"cpu": "2"}});
        let mut container = json!({"name": "c"});
        default_container(&mut container, &item);
        assert_eq!(
            container["resources"],
            json!({"limits": {"cpu": "1"}, "requests": {"cpu": "100m"}})
        );
        let mut problems = Vec::new();
        check(
            &item,
            "Container",
            &json!({"limits": {"cpu": "3"}}),
            &mut problems,
        );
        assert_eq!(
            problems,
            ["maximum cpu usage per Container is 2, but limit is 3"]
        );
    }
}
