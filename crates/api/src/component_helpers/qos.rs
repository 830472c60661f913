//! The quality of service of a pod: what is said of the CPU and memory of its containers, or of the pod as a whole.

use super::resource::{Amounts, PodResources, Requirements, add};

const COMPUTE: [&str; 2] = ["cpu", "memory"];

fn compute(amounts: &Amounts) -> Amounts {
    let compute = amounts.iter().filter(|(name, amount)| {
        COMPUTE.contains(&name.as_str()) && !amount.is_zero() && !amount.is_negative()
    });
    compute
        .map(|(name, amount)| (name.clone(), *amount))
        .collect()
}

/// `Guaranteed`, `Burstable` or `BestEffort`.
#[must_use]
pub fn class(pod: &PodResources) -> &'static str {
    let parts: Vec<&Requirements> = match &pod.stated {
        Some(stated) => vec![stated],
        None => {
            let all = pod.containers.iter().chain(&pod.init_containers);
            all.map(|container| &container.stated).collect()
        }
    };
    let (mut requests, mut limits, mut all_limited) = (Amounts::new(), Amounts::new(), true);
    for part in parts {
        let limited = compute(&part.limits);
        all_limited &= limited.len() == COMPUTE.len();
        add(&mut requests, &compute(&part.requests));
        add(&mut limits, &limited);
    }
    if requests.is_empty() && limits.is_empty() {
        "BestEffort"
    } else if all_limited && requests == limits {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_is_said_makes_the_class() {
        let both = |cpu: &str, memory: &str| json!({"cpu": cpu, "memory": memory});
        let same = json!({"requests": both("1000m", "1Gi"), "limits": both("1", "1Gi")});
        let less = json!({"requests": both("500m", "1Gi"), "limits": both("1", "1Gi")});
        let zero = json!({"requests": {"cpu": "0", "example.com/gpu": "1"}});
        let class = |whole: &Value, parts: [&Value; 2]| {
            let [first, second] = parts.map(|resources| json!([{"resources": resources}]));
            class(&PodResources::of(&json!({"spec": {
                "resources": whole, "containers": first, "initContainers": second,
            }})))
        };
        let none = &Value::Null;
        assert_eq!(class(none, [none, &zero]), "BestEffort");
        assert_eq!(class(none, [&same, &same]), "Guaranteed");
        assert_eq!(class(none, [&same, &less]), "Burstable");
        assert_eq!(class(none, [&same, none]), "Burstable");
        assert_eq!(
            class(none, [none, &json!({"limits": {"cpu": "1"}})]),
            "Burstable"
        );
        // What the pod states is all that counts.
        assert_eq!(class(&same, [&less, none]), "Guaranteed");
        assert_eq!(class(&less, [&same, &same]), "Burstable");
    }
}
