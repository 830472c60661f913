//! What pods are charged to resource quotas, for admission, which charges them, and for the controller, which counts again.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use crate::component_helpers::resource::{Amounts, Container, Options, PodResources, add};
use crate::quantity::Quantity;
use crate::validation::resource::{is_extended, is_huge_page};

const COMPUTE: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
/// What containers must state where it is limited.
const REQUIRED: [&str; 6] = [
    "cpu",
    "memory",
    "requests.cpu",
    "requests.memory",
    "limits.cpu",
    "limits.memory",
];
/// Extended resources that a class of devices gives without being named for it.
const DEVICE_CLASS: &str = "deviceclass.resource.kubernetes.io/";

/// What of a pod says whether it still takes anything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Life<'a> {
    pub phase: Option<&'a str>,
    pub deletion_timestamp: Option<Timestamp>,
    pub deletion_grace_period_seconds: Option<i64>,
}

impl Life<'_> {
    /// Whether all of its containers have ended, or should have: one whose node is lost does not keep others from starting.
    #[must_use]
    pub fn is_over(self, now: Timestamp) -> bool {
        let grace = self.deletion_grace_period_seconds;
        let end = self.deletion_timestamp.zip(grace).map(|(at, seconds)| {
            at.saturating_add(SignedDuration::from_secs(seconds))
                .unwrap_or(Timestamp::MAX)
        });
        matches!(self.phase, Some("Succeeded" | "Failed")) || end.is_some_and(|end| now > end)
    }
}

/// What a pod is charged by the names of quotas. One whose life is over is only there.
#[must_use]
pub fn pod_usage(pod: &PodResources, life: Life<'_>, now: Timestamp) -> Amounts {
    let one = Quantity::from_units(1);
    let mut usage = Amounts::from([("count/pods".to_owned(), one)]);
    if !life.is_over(now) {
        let options = Options {
            use_status: true,
            ..Options::default()
        };
        let compute = compute_usage(&pod.requests(options), &pod.limits(options));
        add(&mut usage, &compute);
    }
    usage
}

/// What is charged for these requests and limits.
fn compute_usage(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut usage = Amounts::from([("pods".to_owned(), Quantity::from_units(1))]);
    for (name, amount) in requests {
        let is_plain = COMPUTE.contains(&name.as_str()) || is_huge_page(name);
        if is_plain {
            usage.insert(name.clone(), *amount);
        }
        if is_plain || is_extended(name) || name.starts_with(DEVICE_CLASS) {
            usage.insert(format!("requests.{name}"), *amount);
        }
    }
    for name in COMPUTE {
        if let Some(amount) = limits.get(name) {
            usage.insert(format!("limits.{name}"), *amount);
        }
    }
    usage
}

/// Refuses a pod of which a container does not say how much it takes of what is limited, as far as that is asked for: for
/// CPU and memory, unless the pod says it for all of its containers.
///
/// # Errors
/// What is missing, and of which containers.
pub fn constraints<'a>(
    pod: &PodResources,
    limited: impl Iterator<Item = &'a str>,
) -> Result<(), String> {
    if pod.is_stated() {
        return Ok(());
    }
    let mut limited: Vec<&str> = limited.filter(|name| REQUIRED.contains(name)).collect();
    limited.sort_unstable();
    let all = || pod.containers.iter().chain(&pod.init_containers);
    let lacking = limited.into_iter().filter_map(|name| {
        let lacks = |container: &&Container| {
            let stated = &container.stated;
            !compute_usage(&stated.requests, &stated.limits).contains_key(name)
        };
        let containers: BTreeSet<&str> = all().filter(lacks).map(|c| c.name.as_str()).collect();
        let containers: Vec<&str> = containers.into_iter().collect();
        (!containers.is_empty()).then(|| format!("{name} for: {}", containers.join(",")))
    });
    let lacking: Vec<String> = lacking.collect();
    match lacking.is_empty() {
        true => Ok(()),
        false => Err(format!("must specify {}", lacking.join("; "))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn text(usage: &Amounts) -> String {
        let each = usage
            .iter()
            .map(|(name, amount)| format!("{name}={amount}"));
        each.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn every_resource_has_its_names() {
        let resources = json!({
            "requests": {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "2Gi", "hugepages-2Mi": "4Mi",
                "example.com/gpu": "3", "deviceclass.resource.kubernetes.io/a": "5", "kubernetes.io/batteries": "7"},
            "limits": {"cpu": "2", "memory": "3Gi", "hugepages-2Mi": "4Mi", "example.com/gpu": "3"},
        });
        let spec = json!({"containers": [{"name": "c", "resources": resources}], "overhead": {"cpu": "1", "ephemeral-storage": "1Gi"}});
        let pod = PodResources::of(&json!({"spec": spec}));
        assert_eq!(
            text(&pod_usage(&pod, Life::default(), NOW)),
            "count/pods=1 cpu=2 ephemeral-storage=3Gi hugepages-2Mi=4Mi limits.cpu=3 limits.memory=3Gi memory=1Gi pods=1 \
             requests.cpu=2 requests.deviceclass.resource.kubernetes.io/a=5 requests.ephemeral-storage=3Gi \
             requests.example.com/gpu=3 requests.hugepages-2Mi=4Mi requests.memory=1Gi"
        );
    }

    #[test]
    fn a_resize_is_charged_while_it_lasts() {
        let requests = |cpu: &str| json!({"requests": {"cpu": cpu}});
        let pod = PodResources::of(&json!({
            "spec": {"containers": [{"name": "c", "resources": requests("1")}]},
            "status": {"containerStatuses": [{"name": "c", "resources": requests("3")}]},
        }));
        let usage = pod_usage(&pod, Life::default(), NOW);
        assert_eq!(usage["requests.cpu"].to_string(), "3");
    }

    #[test]
    fn a_pod_that_is_over_is_only_there() {
        let second = |second| Timestamp::from_second(second).unwrap();
        let phase = |phase| Life {
            phase: Some(phase),
            ..Life::default()
        };
        let deleted = Life {
            deletion_timestamp: Some(second(10)),
            deletion_grace_period_seconds: Some(5),
            ..phase("Running")
        };
        for (life, now, is_over) in [
            (phase("Running"), 0, false),
            (phase("Succeeded"), 0, true),
            (phase("Failed"), 0, true),
            (deleted, 15, false),
            (deleted, 16, true),
        ] {
            let usage = pod_usage(&PodResources::default(), life, second(now));
            let expected = if is_over {
                "count/pods=1"
            } else {
                "count/pods=1 pods=1"
            };
            assert_eq!(text(&usage), expected, "{life:?} {now}");
        }
    }

    #[test]
    fn what_is_limited_must_be_stated() {
        let container = |name: &str, resources: serde_json::Value| json!({"name": name, "resources": resources});
        let both = json!({"requests": {"cpu": "1"}, "limits": {"cpu": "1"}});
        let containers = json!([
            container("b", json!({"requests": {"cpu": "1"}})),
            container("a", json!({})),
            container("c", both),
        ]);
        let mut pod = json!({"spec": {"containers": containers, "initContainers": [container("i", json!({}))]}});
        let limited = |pod: &serde_json::Value, names: &[&str]| {
            constraints(&PodResources::of(pod), names.iter().copied())
        };
        let names = ["requests.cpu", "limits.cpu", "requests.ephemeral-storage"];
        assert_eq!(
            limited(&pod, &names).unwrap_err(),
            "must specify limits.cpu for: a,b,i; requests.cpu for: a,i"
        );
        assert_eq!(limited(&pod, &["pods", "requests.example.com/gpu"]), Ok(()));
        pod["spec"]["resources"] = json!({"limits": {"memory": "1Gi"}});
        assert_eq!(limited(&pod, &names), Ok(()));
    }
}
