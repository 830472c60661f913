//! `spec.podFailurePolicy`: what a pod's failure means for its Job.

use fluyt_client::{ObjectKey, helpers::pods as pod_state};
use k8s_openapi::api::{
    batch::v1::{PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule},
    core::v1::{ContainerStatus, Pod},
};

/// What becomes of a failure.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Count,
    Ignore,
    FailIndex,
    /// With the message of the job's condition.
    FailJob(String),
}

/// The verdict of the first rule that matches.
pub fn judge(policy: &PodFailurePolicy, pod: &Pod) -> Option<Verdict> {
    let (index, rule, why) = policy
        .rules
        .iter()
        .enumerate()
        .find_map(|(index, rule)| Some((index, rule, reason(rule, pod)?)))?;
    Some(match rule.action.as_str() {
        "FailJob" => {
            let pod = ObjectKey::of(pod);
            Verdict::FailJob(format!(
                "{} matching FailJob rule at index {index}",
                why.replace("{pod}", &pod.to_string())
            ))
        }
        "FailIndex" => Verdict::FailIndex,
        "Ignore" => Verdict::Ignore,
        _ => Verdict::Count,
    })
}

/// How the rule matches the pod.
fn reason(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    if let Some(codes) = &rule.on_exit_codes {
        let container = failed_container(codes, pod)?;
        let code = exit_code(container)?;
        return Some(format!(
            "Container {} for pod {{pod}} failed with exit code {code}",
            container.name
        ));
    }
    let wanted = rule.on_pod_conditions.iter().flatten();
    let mut matching = wanted.filter(|wanted| {
        pod_state::condition(pod, &wanted.type_)
            .is_some_and(|condition| condition.status == wanted.status.as_deref().unwrap_or("True"))
    });
    let condition = &matching.next()?.type_;
    Some(format!("Pod {{pod}} has condition {condition}"))
}

fn exit_code(container: &ContainerStatus) -> Option<i32> {
    let terminated = container.state.as_ref()?.terminated.as_ref()?;
    (terminated.exit_code != 0).then_some(terminated.exit_code)
}

fn failed_container<'a>(
    codes: &PodFailurePolicyOnExitCodesRequirement,
    pod: &'a Pod,
) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let containers = status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses)
        .flatten();
    let mut named = containers.filter(|container| {
        codes
            .container_name
            .as_ref()
            .is_none_or(|name| *name == container.name)
    });
    named.find(|container| {
        exit_code(container).is_some_and(|code| match codes.operator.as_str() {
            "In" => codes.values.contains(&code),
            "NotIn" => !codes.values.contains(&code),
            _ => false,
        })
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{
        batch::v1::PodFailurePolicyOnPodConditionsPattern,
        core::v1::{ContainerState, ContainerStateTerminated, PodCondition, PodStatus},
    };

    use super::*;

    fn failed(code: i32, condition: Option<&str>) -> Pod {
        let terminated = ContainerStateTerminated {
            exit_code: code,
            ..ContainerStateTerminated::default()
        };
        let container = ContainerStatus {
            name: "main".to_owned(),
            state: Some(ContainerState {
                terminated: Some(terminated),
                ..ContainerState::default()
            }),
            ..ContainerStatus::default()
        };
        let condition = condition.map(|type_| PodCondition {
            type_: type_.to_owned(),
            status: "True".to_owned(),
            ..PodCondition::default()
        });
        let mut pod = Pod {
            status: Some(PodStatus {
                container_statuses: Some(vec![container]),
                conditions: condition.map(|condition| vec![condition]),
                ..PodStatus::default()
            }),
            ..Pod::default()
        };
        pod.metadata.name = Some("p".to_owned());
        pod
    }

    #[test]
    fn the_first_matching_rule_decides() {
        let on_codes = |action: &str, operator: &str, values: &[i32]| PodFailurePolicyRule {
            action: action.to_owned(),
            on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
                container_name: None,
                operator: operator.to_owned(),
                values: values.to_vec(),
            }),
            on_pod_conditions: None,
        };
        let on_condition = PodFailurePolicyRule {
            action: "Ignore".to_owned(),
            on_exit_codes: None,
            on_pod_conditions: Some(vec![PodFailurePolicyOnPodConditionsPattern {
                type_: "DisruptionTarget".to_owned(),
                ..Default::default()
            }]),
        };
        let policy = PodFailurePolicy {
            rules: vec![
                on_condition,
                on_codes("FailJob", "In", &[42]),
                on_codes("FailIndex", "NotIn", &[1, 42]),
            ],
        };
        let verdict = |code, condition| judge(&policy, &failed(code, condition));
        assert_eq!(verdict(42, Some("DisruptionTarget")), Some(Verdict::Ignore));
        let message =
            "Container main for pod p failed with exit code 42 matching FailJob rule at index 1";
        assert_eq!(
            verdict(42, None),
            Some(Verdict::FailJob(message.to_owned()))
        );
        assert_eq!(verdict(7, None), Some(Verdict::FailIndex));
        assert_eq!(verdict(1, None), None);
    }
}
