//! What a pod takes of a node, all in all: its containers together, or as much as starting it takes if that is more.
//! <https://github.com/kubernetes/enhancements/tree/master/keps/sig-node/753-sidecar-containers#resources-calculation-for-scheduling-and-pod-admission>

use std::collections::BTreeMap;

use serde_json::Value;

use crate::quantity::Quantity;
use crate::validation::quantity_of;
use crate::validation::resource::is_huge_page;

/// Amounts by the names of their resources.
pub type Amounts = BTreeMap<String, Quantity>;

/// What containers ask for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Requirement {
    Requests,
    Limits,
}

impl Requirement {
    #[must_use]
    pub fn field(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Limits => "limits",
        }
    }
}

/// The amounts of a `ResourceRequirements`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requirements {
    pub requests: Amounts,
    pub limits: Amounts,
}

/// What a status tells of resources, while the specification may ask for others already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// What there really is.
    pub actual: Requirements,
    /// What the node has promised.
    pub allocated: Amounts,
}

/// One container's resources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    pub name: String,
    /// An init container that goes on running.
    pub is_sidecar: bool,
    pub stated: Requirements,
    /// If its status tells of any.
    pub held: Option<Held>,
}

/// The part of a pod that is about resources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodResources {
    pub containers: Vec<Container>,
    pub init_containers: Vec<Container>,
    /// What the pod states for all of its containers.
    pub stated: Option<Requirements>,
    /// The same as its status has it.
    pub held: Option<Held>,
    /// What running it costs beside its containers.
    pub overhead: Amounts,
    /// Whether its node can never give it what it asks for.
    pub is_infeasible: bool,
}

/// What is counted.
#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    /// Also what containers still have while they are being resized.
    pub use_status: bool,
    /// The same of the pod as a whole.
    pub use_pod_status: bool,
    pub exclude_overhead: bool,
    /// What a container counts for of a resource that it requests nothing of.
    pub instead_of_missing: Option<&'a Amounts>,
}

impl Requirements {
    /// Reads a `ResourceRequirements`. Amounts that are none are left out.
    #[must_use]
    pub fn of(resources: &Value) -> Self {
        Self {
            requests: amounts(&resources["requests"]),
            limits: amounts(&resources["limits"]),
        }
    }

    #[must_use]
    pub fn get(&self, requirement: Requirement) -> &Amounts {
        match requirement {
            Requirement::Requests => &self.requests,
            Requirement::Limits => &self.limits,
        }
    }

    /// Which is the most of what was asked for, what there is and what was promised. What can never be is not counted.
    fn while_resized(&self, requirement: Requirement, held: &Held, is_infeasible: bool) -> Amounts {
        let mut most = held.actual.get(requirement).clone();
        if requirement == Requirement::Requests {
            raise(&mut most, &held.allocated);
        }
        if !is_infeasible {
            raise(&mut most, self.get(requirement));
        }
        most
    }
}

impl Held {
    fn of(status: &Value) -> Option<Self> {
        status["resources"].is_object().then(|| Self {
            actual: Requirements::of(&status["resources"]),
            allocated: amounts(&status["allocatedResources"]),
        })
    }
}

impl PodResources {
    /// Reads a pod.
    #[must_use]
    pub fn of(pod: &Value) -> Self {
        Self::of_parts(&pod["spec"], &pod["status"])
    }

    /// Reads the specification of a pod that is not there yet.
    #[must_use]
    pub fn of_spec(spec: &Value) -> Self {
        Self::of_parts(spec, &Value::Null)
    }

    fn of_parts(spec: &Value, status: &Value) -> Self {
        let named = |container: &Value| {
            ["containerStatuses", "initContainerStatuses"]
                .into_iter()
                .flat_map(|list| items(status, list))
                .find(|status| status["name"] == container["name"])
        };
        let containers = |list: &str| {
            let read = |container: &Value| Container {
                name: container["name"].as_str().unwrap_or_default().to_owned(),
                is_sidecar: list == "initContainers" && container["restartPolicy"] == "Always",
                stated: Requirements::of(&container["resources"]),
                held: named(container).and_then(Held::of),
            };
            items(spec, list).map(read).collect()
        };
        let stated = &spec["resources"];
        let mut conditions = items(status, "conditions");
        Self {
            containers: containers("containers"),
            init_containers: containers("initContainers"),
            stated: stated.is_object().then(|| Requirements::of(stated)),
            held: Held::of(status),
            overhead: amounts(&spec["overhead"]),
            is_infeasible: conditions
                .any(|c| c["type"] == "PodResizePending" && c["reason"] == "Infeasible"),
        }
    }

    /// Whether the pod states an amount for all of its containers.
    #[must_use]
    pub fn is_stated(&self) -> bool {
        let all = self.stated.iter().flat_map(|s| [&s.requests, &s.limits]);
        all.flat_map(|amounts| amounts.keys())
            .any(|name| is_of_pods(name))
    }

    /// Whether what it states is of requests.
    #[must_use]
    pub fn states_requests(&self) -> bool {
        let requests = self.stated.iter().flat_map(|s| s.requests.keys());
        requests.into_iter().any(|name| is_of_pods(name))
    }

    /// What the pod asks for or, if the status counts, takes.
    #[must_use]
    pub fn requests(&self, options: Options<'_>) -> Amounts {
        let mut total = self.total(Requirement::Requests, options);
        if !options.exclude_overhead {
            add(&mut total, &self.overhead);
        }
        total
    }

    /// What the pod is limited to. What has no limit has none for the overhead either.
    #[must_use]
    pub fn limits(&self, options: Options<'_>) -> Amounts {
        let mut total = self.total(Requirement::Limits, options);
        if !options.exclude_overhead {
            for (name, more) in &self.overhead {
                if let Some(limit) = total.get_mut(name).filter(|limit| !limit.is_zero()) {
                    *limit = limit.plus(*more);
                }
            }
        }
        total
    }

    fn total(&self, requirement: Requirement, options: Options<'_>) -> Amounts {
        let mut total = self.aggregate(requirement, options);
        let Some(stated) = &self.stated else {
            return total;
        };
        let held = self.held.as_ref();
        let resized = held
            .filter(|_| options.use_status && options.use_pod_status)
            .map(|held| stated.while_resized(requirement, held, self.is_infeasible));
        for (name, amount) in stated.get(requirement) {
            if is_of_pods(name) {
                let amount = match &resized {
                    Some(resized) => resized.get(name).copied().unwrap_or(Quantity::ZERO),
                    None => *amount,
                };
                total.insert(name.clone(), amount);
            }
        }
        total
    }

    /// The containers alone: without what the pod states itself, and without overhead.
    #[must_use]
    pub fn aggregate(&self, requirement: Requirement, options: Options<'_>) -> Amounts {
        let of = |container: &Container, has_status: bool| {
            let held = container.held.as_ref();
            let mut own = match held.filter(|_| has_status && options.use_status) {
                Some(held) => {
                    let stated = &container.stated;
                    stated.while_resized(requirement, held, self.is_infeasible)
                }
                None => container.stated.get(requirement).clone(),
            };
            if requirement == Requirement::Requests {
                for (name, least) in options.instead_of_missing.into_iter().flatten() {
                    own.entry(name.clone()).or_insert(*least);
                }
            }
            own
        };
        let mut total = Amounts::new();
        for container in &self.containers {
            add(&mut total, &of(container, true));
        }
        // Sidecars run beside whatever is started after them.
        let (mut sidecars, mut starting) = (Amounts::new(), Amounts::new());
        for container in &self.init_containers {
            let mut own = of(container, container.is_sidecar);
            if container.is_sidecar {
                add(&mut total, &own);
                add(&mut sidecars, &own);
                raise(&mut starting, &sidecars);
            } else {
                add(&mut own, &sidecars);
                raise(&mut starting, &own);
            }
        }
        raise(&mut total, &starting);
        total
    }
}

/// Whether a pod can state an amount of this for all of its containers.
fn is_of_pods(name: &str) -> bool {
    ["cpu", "memory"].contains(&name) || is_huge_page(name)
}

fn items<'a>(of: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    of[list].as_array().into_iter().flatten()
}

fn amounts(map: &Value) -> Amounts {
    let map = map.as_object().into_iter().flatten();
    map.filter_map(|(name, amount)| Some((name.clone(), quantity_of(amount)?)))
        .collect()
}

/// Adds to every amount.
pub fn add(to: &mut Amounts, more: &Amounts) {
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const STATUS: Options<'_> = Options {
        use_status: true,
        use_pod_status: false,
        exclude_overhead: false,
        instead_of_missing: None,
    };

    fn requests(cpu: &str) -> Value {
        json!({"requests": {"cpu": cpu}})
    }

    fn cpu(amounts: &Amounts) -> String {
        amounts["cpu"].to_string()
    }

    fn asked(pod: &Value) -> String {
        cpu(&PodResources::of(pod).requests(Options::default()))
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
            assert_eq!(asked(&json!({"spec": spec})), expected, "{init}");
        }
    }

    #[test]
    fn a_pod_may_state_amounts_for_all_of_it() {
        let pod = json!({"spec": {
            "resources": {"requests": {"cpu": "1", "example.com/gpu": "7", "hugepages-2Mi": "4Mi"}},
            "containers": [{"resources": {"requests": {"cpu": "5", "memory": "1Gi"}}}],
        }});
        let pod = PodResources::of(&pod);
        let all = pod.requests(Options::default());
        assert_eq!(cpu(&all), "1");
        assert!(all.keys().eq(["cpu", "hugepages-2Mi", "memory"]), "{all:?}");
        assert!(pod.is_stated());
        assert_eq!(
            cpu(&pod.aggregate(Requirement::Requests, Options::default())),
            "5"
        );
        let none = json!({"spec": {"resources": {"requests": {"example.com/gpu": "7"}}}});
        assert!(!PodResources::of(&none).is_stated());
    }

    #[test]
    fn overhead_is_part_of_requests_and_of_limits_that_there_are() {
        let pod = PodResources::of(&json!({"spec": {
            "containers": [{"resources": {"requests": {"cpu": "1"}, "limits": {"memory": "1Mi", "x": "0"}}}],
            "overhead": {"cpu": "250m", "memory": "1Mi", "x": "1"},
        }}));
        let (with, without) = (
            Options::default(),
            Options {
                exclude_overhead: true,
                ..Options::default()
            },
        );
        assert_eq!(cpu(&pod.requests(with)), "1250m");
        assert_eq!(pod.requests(with)["memory"].to_string(), "1Mi");
        assert_eq!(cpu(&pod.requests(without)), "1");
        let limits = pod.limits(with);
        assert!(limits.keys().eq(["memory", "x"]), "{limits:?}");
        assert_eq!(limits["memory"].to_string(), "2Mi");
        assert!(limits["x"].is_zero());
        assert_eq!(pod.limits(without)["memory"].to_string(), "1Mi");
    }

    #[test]
    fn what_is_being_resized_takes_what_it_had_or_gets() {
        let pod = |reason: &str, list: &str, status: &str, policy: Value| {
            let both = json!({"requests": {"cpu": "5"}, "limits": {"cpu": "6"}});
            let held = json!({"requests": {"cpu": "2"}, "limits": {"cpu": "8"}});
            PodResources::of(&json!({
                "spec": {list: [{"name": "a", "resources": both, "restartPolicy": policy}]},
                "status": {
                    "conditions": [{"type": "PodResizePending", "reason": reason}],
                    status: [{"name": "a", "resources": held, "allocatedResources": {"cpu": "3", "memory": "1"}}],
                },
            }))
        };
        let main = |reason| pod(reason, "containers", "containerStatuses", Value::Null);
        let taken = |pod: &PodResources| (cpu(&pod.requests(STATUS)), cpu(&pod.limits(STATUS)));
        let is = |requests: &str, limits: &str| (requests.to_owned(), limits.to_owned());
        assert_eq!(taken(&main("Deferred")), is("5", "8"));
        assert_eq!(taken(&main("Infeasible")), is("3", "8"));
        // What is promised are requests.
        assert!(main("Deferred").limits(STATUS).keys().eq(["cpu"]));
        let asked = main("Infeasible").requests(Options::default());
        assert_eq!(cpu(&asked), "5");
        // Sidecars have a status that counts. What has come to its end before the others has none.
        let init = |policy| {
            pod(
                "Infeasible",
                "initContainers",
                "initContainerStatuses",
                policy,
            )
        };
        assert_eq!(taken(&init(json!("Always"))), is("3", "8"));
        assert_eq!(taken(&init(Value::Null)), is("5", "6"));
    }

    #[test]
    fn a_pod_as_a_whole_may_be_resized() {
        let pod = |reason: &str| {
            PodResources::of(&json!({
                "spec": {
                    "resources": {"requests": {"cpu": "5", "memory": "1Gi"}, "limits": {"cpu": "6"}},
                    "containers": [{"name": "a", "resources": requests("1")}],
                },
                "status": {
                    "conditions": [{"type": "PodResizePending", "reason": reason}],
                    "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "8"}},
                    "allocatedResources": {"cpu": "3"},
                },
            }))
        };
        let whole = Options {
            use_pod_status: true,
            ..STATUS
        };
        let infeasible = pod("Infeasible");
        let requests = infeasible.requests(whole);
        assert_eq!(cpu(&requests), "3");
        assert!(requests["memory"].is_zero());
        assert_eq!(cpu(&infeasible.limits(whole)), "8");
        assert_eq!(cpu(&pod("Deferred").requests(whole)), "5");
        assert_eq!(cpu(&infeasible.requests(STATUS)), "5");
    }

    #[test]
    fn what_a_container_does_not_request_may_count_as_something() {
        let missing = Amounts::from([("cpu".to_owned(), Quantity::from_millis(100))]);
        let options = Options {
            instead_of_missing: Some(&missing),
            ..Options::default()
        };
        let containers = json!([{}, {"resources": requests("0")}, {"resources": requests("1")}]);
        let pod = PodResources::of(&json!({"spec": {"containers": containers}}));
        assert_eq!(cpu(&pod.requests(options)), "1100m");
        assert!(pod.limits(options).is_empty());
    }
}
