//! What a pod takes of a node, all in all: its containers together, or as much as starting it takes if that is more.

use std::collections::BTreeMap;

use fluyt_api::quantity::Quantity;
use serde_json::Value;

/// Amounts by the names of their resources.
pub(super) type Amounts = BTreeMap<String, Quantity>;

/// What containers ask for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Requirement {
    Requests,
    Limits,
}

impl Requirement {
    pub(super) fn field(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Limits => "limits",
        }
    }

    /// What a specification states.
    fn of(self, stated: &Value) -> Amounts {
        amounts(&stated["resources"][self.field()])
    }
}

fn items<'a>(of: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    of[list].as_array().into_iter().flatten()
}

fn amounts(map: &Value) -> Amounts {
    let map = map.as_object().into_iter().flatten();
    map.filter_map(|(name, amount)| Some((name.clone(), amount.as_str()?.parse().ok()?)))
        .collect()
}

fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = to.entry(name.clone()).or_insert(Quantity::ZERO);
        *sum = sum.plus(*amount);
    }
}

fn raise(amounts: &mut Amounts, to: &Amounts) {
    for (name, least) in to {
        let amount = amounts.entry(name.clone()).or_insert(*least);
        *amount = (*amount).max(*least);
    }
}

fn is_sidecar(container: &Value) -> bool {
    container["restartPolicy"] == "Always"
}

/// What a pod's containers ask for.
pub(super) fn asked(pod: &Value, requirement: Requirement) -> Amounts {
    total(pod, requirement, |container| requirement.of(container))
}

/// What a pod asks for: also what running it costs beside its containers.
pub(super) fn needed(pod: &Value, requirement: Requirement) -> Amounts {
    with_overhead(pod, requirement, asked(pod, requirement))
}

/// What a pod takes: also what it still has while it is being resized.
pub(super) fn taken(pod: &Value, requirement: Requirement) -> Amounts {
    let is_refused = items(&pod["status"], "conditions")
        .any(|c| c["type"] == "PodResizePending" && c["reason"] == "Infeasible");
    let total = total(pod, requirement, |container| {
        let named = |list: &str| {
            let mut statuses = items(&pod["status"], list);
            statuses.find(|status| status["name"] == container["name"])
        };
        let status = if is_sidecar(container) {
            named("initContainerStatuses")
        } else {
            named("containerStatuses")
        };
        let Some(status) = status.filter(|status| status["resources"].is_object()) else {
            return requirement.of(container);
        };
        let mut taken = requirement.of(status);
        if requirement == Requirement::Requests {
            raise(&mut taken, &amounts(&status["allocatedResources"]));
        }
        if !is_refused {
            raise(&mut taken, &requirement.of(container));
        }
        taken
    });
    with_overhead(pod, requirement, total)
}

fn with_overhead(pod: &Value, requirement: Requirement, mut total: Amounts) -> Amounts {
    for (name, more) in amounts(&pod["spec"]["overhead"]) {
        match total.get_mut(&name) {
            Some(amount) if !amount.is_zero() || requirement == Requirement::Requests => {
                *amount = amount.plus(more);
            }
            None if requirement == Requirement::Requests => {
                total.insert(name, more);
            }
            _ => {}
        }
    }
    total
}

fn total(pod: &Value, requirement: Requirement, of: impl Fn(&Value) -> Amounts) -> Amounts {
    let spec = &pod["spec"];
    let mut total = Amounts::new();
    for container in items(spec, "containers") {
        add(&mut total, &of(container));
    }
    // Sidecars run beside whatever is started after them.
    let (mut sidecars, mut starting) = (Amounts::new(), Amounts::new());
    for container in items(spec, "initContainers") {
        if is_sidecar(container) {
            let own = of(container);
            add(&mut total, &own);
            add(&mut sidecars, &own);
            raise(&mut starting, &sidecars);
        } else {
            let mut now = requirement.of(container);
            add(&mut now, &sidecars);
            raise(&mut starting, &now);
        }
    }
    raise(&mut total, &starting);
    // What the pod states itself is for all of its containers.
    for (name, amount) in requirement.of(spec) {
        if ["cpu", "memory"].contains(&name.as_str()) || name.starts_with("hugepages-") {
            total.insert(name, amount);
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn requests(cpu: &str) -> Value {
        json!({"requests": {"cpu": cpu}})
    }

    fn cpu(amounts: &Amounts) -> String {
        amounts["cpu"].to_string()
    }

    #[test]
    fn starting_may_take_more_than_running() {
        let sidecar = |cpu| json!({"restartPolicy": "Always", "resources": requests(cpu)});
        let plain = |cpu| json!({"resources": requests(cpu)});
        for (init, expected) in [
            (json!([]), "3"),
            (json!([plain("2")]), "3"),
            (json!([plain("4")]), "4"),
            (json!([sidecar("1")]), "4"),
            (json!([plain("4"), sidecar("2")]), "5"),
            (json!([sidecar("2"), plain("4")]), "6"),
            (json!([sidecar("2"), plain("4"), sidecar("3")]), "8"),
        ] {
            let spec = json!({"containers": [plain("1"), plain("2")], "initContainers": init});
            let asked = asked(&json!({"spec": spec}), Requirement::Requests);
            assert_eq!(cpu(&asked), expected, "{init}");
        }
    }

    #[test]
    fn a_pod_may_state_amounts_for_all_of_it() {
        let pod = json!({"spec": {
            "resources": {"requests": {"cpu": "1", "example.com/gpu": "7"}},
            "containers": [{"resources": {"requests": {"cpu": "5", "memory": "1Gi"}}}],
            "overhead": {"cpu": "250m", "memory": "1Mi"},
        }});
        let all = asked(&pod, Requirement::Requests);
        assert_eq!(cpu(&all), "1");
        assert!(all.keys().eq(["cpu", "memory"]), "{all:?}");
        assert_eq!(cpu(&needed(&pod, Requirement::Requests)), "1250m");
        // Of what has no limit there is none for the overhead either.
        assert!(needed(&pod, Requirement::Limits).is_empty());
    }

    #[test]
    fn what_is_being_resized_takes_what_it_had_or_gets() {
        let pod = |reason: &str| {
            json!({
                "spec": {"containers": [{"name": "a", "resources": requests("5")}]},
                "status": {
                    "conditions": [{"type": "PodResizePending", "reason": reason}],
                    "containerStatuses": [{"name": "a", "resources": requests("2"), "allocatedResources": {"cpu": "3"}}],
                },
            })
        };
        let of = |pod: &Value| cpu(&taken(pod, Requirement::Requests));
        assert_eq!(of(&pod("Deferred")), "5");
        assert_eq!(of(&pod("Infeasible")), "3");
        assert_eq!(cpu(&asked(&pod("Infeasible"), Requirement::Requests)), "5");
    }
}
