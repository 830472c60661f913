//! The conditions of a pod that the kubelet owns.

use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Inputs, Phase};
use crate::kuberuntime::restart_all;
use crate::pod::{PodExt, is_sidecar};

/// Types of the conditions that are the kubelet's to write.
pub const OWNED: [&str; 8] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    "PodResizePending",
    "PodResizeInProgress",
    restart_all::CONDITION,
];

struct Verdict {
    status: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

fn yes() -> Verdict {
    Verdict {
        status: true,
        reason: None,
        message: None,
    }
}

fn no(reason: &'static str, message: Option<String>) -> Verdict {
    Verdict {
        status: false,
        reason: Some(reason),
        message,
    }
}

pub fn generate(
    inputs: &Inputs<'_>,
    phase: Phase,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Vec<PodCondition> {
    let pod = inputs.pod;
    let has_sandbox = inputs
        .runtime
        .ready_sandbox()
        .is_some_and(|sandbox| pod.host_network() || !sandbox.ips.is_empty());
    let initialized = initialized(inputs, phase, init, main);
    let containers_ready = containers_ready(inputs, phase, init, main);
    let ready = ready(inputs, &containers_ready);
    let mut conditions: Vec<PodCondition> = [
        (
            "PodReadyToStartContainers",
            Verdict {
                status: has_sandbox,
                reason: None,
                message: None,
            },
        ),
        ("Initialized", initialized),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", yes()),
    ]
    .into_iter()
    .map(|(kind, verdict)| condition(inputs, kind, verdict))
    .collect();
    conditions.extend(resize(inputs));
    if restart_all::is_possible(pod) {
        let restarting = restarting(inputs, phase);
        conditions.push(condition(inputs, restart_all::CONDITION, restarting));
    }
    // Readiness gates and whatever else others have set stay as they are.
    let others = inputs.old.conditions.iter().flatten();
    conditions.extend(
        others
            .filter(|c| !OWNED.contains(&c.type_.as_str()))
            .cloned(),
    );
    conditions
}

/// Only there while a resize is not done.
fn resize(inputs: &Inputs<'_>) -> Vec<PodCondition> {
    let mut conditions = Vec::new();
    if let Some(pending) = &inputs.resize.pending {
        let verdict = Verdict {
            status: true,
            reason: Some(pending.reason),
            message: Some(pending.message.clone()),
        };
        conditions.push(condition(inputs, "PodResizePending", verdict));
    }
    if let Some(progress) = &inputs.resize.in_progress {
        let verdict = Verdict {
            status: true,
            reason: progress.error.as_ref().map(|_| "Error"),
            message: progress.error.clone(),
        };
        conditions.push(condition(inputs, "PodResizeInProgress", verdict));
    }
    conditions
}

/// Only there if a container's end can restart all.
fn restarting(inputs: &Inputs<'_>, phase: Phase) -> Verdict {
    let (pod, runtime) = (inputs.pod, inputs.runtime);
    let not = |reason| Verdict {
        status: false,
        reason,
        message: None,
    };
    match phase {
        Phase::Succeeded => return not(Some("PodCompleted")),
        Phase::Failed => return not(Some("PodFailed")),
        Phase::Pending | Phase::Running => {}
    }
    if !restart_all::is_due(pod, runtime, inputs.old) || restart_all::is_cleaned_up(pod, runtime) {
        return not(None);
    }
    Verdict {
        status: true,
        reason: Some("RestartAllContainersStarted"),
        message: Some("container exited with restart policy rule".into()),
    }
}

fn condition(inputs: &Inputs<'_>, kind: &str, verdict: Verdict) -> PodCondition {
    let status = if verdict.status { "True" } else { "False" };
    let old = inputs
        .old
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == kind);
    let since = old
        .filter(|old| old.status == status)
        .and_then(|old| old.last_transition_time.clone())
        .unwrap_or(Time(inputs.now));
    PodCondition {
        type_: kind.into(),
        status: status.into(),
        reason: verdict.reason.map(String::from),
        message: verdict.message,
        last_transition_time: Some(since),
        observed_generation: inputs.pod.metadata.generation,
        ..PodCondition::default()
    }
}

fn initialized(
    inputs: &Inputs<'_>,
    phase: Phase,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Verdict {
    if phase == Phase::Succeeded {
        return Verdict {
            reason: Some("PodCompleted"),
            ..yes()
        };
    }
    let begun = main.iter().any(|status| {
        let running = status
            .state
            .as_ref()
            .is_some_and(|state| state.running.is_some());
        running
            || status
                .last_state
                .as_ref()
                .is_some_and(|last| last.terminated.is_some())
    });
    let incomplete: Vec<&str> = inputs
        .pod
        .init_containers()
        .iter()
        .filter(|container| {
            let status = init.iter().find(|status| status.name == container.name);
            let done = status.is_some_and(|status| {
                if is_sidecar(container) {
                    status.started == Some(true)
                } else {
                    let ended = status
                        .state
                        .as_ref()
                        .and_then(|state| state.terminated.as_ref());
                    ended.is_some_and(|ended| ended.exit_code == 0)
                }
            });
            !done && !begun
        })
        .map(|container| container.name.as_str())
        .collect();
    // What was initialized once stays so, even if all of its containers start anew.
    let was = inputs.old.conditions.iter().flatten();
    let was = was.into_iter().find(|c| c.type_ == "Initialized");
    if incomplete.is_empty() || was.is_some_and(|was| was.status == "True") {
        yes()
    } else {
        no(
            "ContainersNotInitialized",
            Some(format!(
                "containers with incomplete status: {}",
                list(&incomplete)
            )),
        )
    }
}

fn containers_ready(
    inputs: &Inputs<'_>,
    phase: Phase,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Verdict {
    match phase {
        Phase::Succeeded => return no("PodCompleted", None),
        Phase::Failed => return no("PodFailed", None),
        _ => {}
    }
    let sidecars = inputs
        .pod
        .init_containers()
        .iter()
        .filter(|c| is_sidecar(c));
    let wanted = sidecars.map(|container| (container, init)).chain(
        inputs
            .pod
            .spec()
            .containers
            .iter()
            .map(|container| (container, main)),
    );
    let unready: Vec<&str> = wanted
        .filter(|(container, list)| {
            !list
                .iter()
                .any(|status| status.name == container.name && status.ready)
        })
        .map(|(container, _)| container.name.as_str())
        .collect();
    if unready.is_empty() {
        yes()
    } else {
        no(
            "ContainersNotReady",
            Some(format!(
                "containers with unready status: {}",
                list(&unready)
            )),
        )
    }
}

fn ready(inputs: &Inputs<'_>, containers: &Verdict) -> Verdict {
    if !containers.status {
        return Verdict {
            status: false,
            reason: containers.reason,
            message: containers.message.clone(),
        };
    }
    let missing: Vec<String> = inputs
        .pod
        .spec()
        .readiness_gates
        .iter()
        .flatten()
        .filter_map(|gate| {
            let set = inputs.old.conditions.iter().flatten();
            match set.into_iter().find(|c| c.type_ == gate.condition_type) {
                Some(condition) if condition.status == "True" => None,
                Some(_) => Some(format!(
                    "the status of pod readiness gate \"{}\" is not \"True\", but False",
                    gate.condition_type
                )),
                None => Some(format!(
                    "corresponding condition of pod readiness gate \"{}\" does not exist.",
                    gate.condition_type
                )),
            }
        })
        .collect();
    if missing.is_empty() {
        yes()
    } else {
        no("ReadinessGatesNotReady", Some(missing.join(", ")))
    }
}

/// Names as Go prints a slice.
fn list(names: &[&str]) -> String {
    format!("[{}]", names.join(" "))
}
