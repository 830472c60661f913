use std::sync::Arc;

use k8s_cri::v1 as cri;
use serde_json::json;

use super::*;
use crate::kuberuntime::runtime_pod::{RuntimeSandbox, State};

struct AllReady;

impl Health for AllReady {
    fn ready(&self, _: &Container, _: &str) -> bool {
        true
    }

    fn started(&self, _: &Container, _: &str) -> bool {
        true
    }
}

fn runtime(containers: &[&str]) -> RuntimePod {
    let container = |text: &&str| {
        let (name, state) = text.split_once(':').unwrap();
        let (state, exit_code) = match state {
            "running" => (State::Running, 0),
            code => (State::Exited, code.parse().unwrap()),
        };
        RuntimeContainer {
            id: name.into(),
            name: name.into(),
            sandbox_id: "s".into(),
            state,
            created_at: 0,
            status: Arc::new(cri::ContainerStatus {
                exit_code,
                ..Default::default()
            }),
        }
    };
    RuntimePod {
        sandboxes: vec![RuntimeSandbox {
            id: "s".into(),
            ready: true,
            attempt: 0,
            host_network: false,
            ips: vec!["10.244.0.2".into()],
        }],
        containers: containers.iter().map(container).collect(),
    }
}

fn make(
    policy: &str,
    init: bool,
    containers: &[&str],
    waiting: &[&str],
    ending: bool,
) -> PodStatus {
    let mut pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "p", "uid": "u", "generation": 3},
        "spec": {"restartPolicy": policy, "containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]}
    }))
    .unwrap();
    if init {
        pod.spec.as_mut().unwrap().init_containers =
            serde_json::from_value(json!([{"name": "first", "image": "i"}])).unwrap();
    }
    let waiting = waiting
        .iter()
        .map(|name| {
            (
                name.to_string(),
                StartError::new("CrashLoopBackOff", "back-off"),
            )
        })
        .collect();
    with_inputs(&pod, &PodStatus::default(), containers, |inputs| {
        let stage = if ending { Stage::Over } else { Stage::Active };
        generate(&Inputs {
            waiting: &waiting,
            stage,
            ..inputs
        })
    })
}

/// Has something done with what is known of a pod whose status was `old`.
pub fn with_inputs<T>(
    pod: &Pod,
    old: &PodStatus,
    containers: &[&str],
    with: impl FnOnce(Inputs<'_>) -> T,
) -> T {
    with(Inputs {
        pod,
        old,
        runtime: &runtime(containers),
        waiting: &HashMap::new(),
        health: &AllReady,
        message: &|_, _| None,
        runtime_name: "fluyt",
        host_ips: &["10.224.0.4".into()],
        ips: &["10.244.0.2".into()],
        now: Timestamp::UNIX_EPOCH,
        resize: &Resize::default(),
        given: None,
        stage: Stage::Active,
        verdict: None,
    })
}

fn conditions(status: &PodStatus) -> String {
    status
        .conditions
        .iter()
        .flatten()
        .filter(|condition| condition.status == "True")
        .map(|condition| condition.type_.as_str())
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn phases() {
    for (policy, init, containers, waiting, ending, expected) in [
        ("Always", false, &[][..], &[][..], false, "Pending"),
        ("Always", false, &["a:running"], &[], false, "Pending"),
        (
            "Always",
            false,
            &["a:running", "b:running"],
            &[],
            false,
            "Running",
        ),
        (
            "Always",
            false,
            &["a:running", "b:1"],
            &["b"],
            false,
            "Running",
        ),
        (
            "Always",
            false,
            &["a:1", "b:1"],
            &["a", "b"],
            false,
            "Running",
        ),
        ("Never", false, &["a:0", "b:0"], &[], false, "Succeeded"),
        ("Never", false, &["a:0", "b:1"], &[], false, "Failed"),
        ("OnFailure", false, &["a:0", "b:1"], &[], false, "Running"),
        ("OnFailure", false, &["a:0", "b:0"], &[], false, "Succeeded"),
        ("Always", false, &["a:0", "b:0"], &[], true, "Succeeded"),
        ("Always", false, &["a:0", "b:137"], &[], true, "Failed"),
        ("Always", false, &[], &[], true, "Failed"),
        ("Always", true, &[], &[], true, "Failed"),
        ("OnFailure", false, &["a:0"], &["b"], true, "Failed"),
        ("Always", true, &[], &[], false, "Pending"),
        ("Always", true, &["first:1"], &["first"], false, "Pending"),
        ("Never", true, &["first:1"], &[], false, "Failed"),
        (
            "Always",
            true,
            &["first:0", "a:running", "b:running"],
            &[],
            false,
            "Running",
        ),
    ] {
        let status = make(policy, init, containers, waiting, ending);
        assert_eq!(
            status.phase.as_deref(),
            Some(expected),
            "{policy} {init} {containers:?} {ending}"
        );
    }
}

#[test]
fn condition_sets() {
    let status = make("Always", true, &["first:running"], &[], false);
    assert_eq!(
        conditions(&status),
        "PodReadyToStartContainers PodScheduled"
    );
    let status = make(
        "Always",
        true,
        &["first:0", "a:running", "b:running"],
        &[],
        false,
    );
    assert_eq!(
        conditions(&status),
        "PodReadyToStartContainers Initialized Ready ContainersReady PodScheduled"
    );
    let status = make("Always", false, &["a:running", "b:1"], &["b"], false);
    let ready = status
        .conditions
        .as_ref()
        .unwrap()
        .iter()
        .find(|c| c.type_ == "Ready")
        .unwrap();
    assert_eq!(ready.reason.as_deref(), Some("ContainersNotReady"));
    assert_eq!(
        ready.message.as_deref(),
        Some("containers with unready status: [b]")
    );
    assert_eq!(ready.observed_generation, Some(3));
}

#[test]
fn container_states() {
    let status = make(
        "Always",
        true,
        &["first:0", "a:running", "b:1"],
        &["b"],
        false,
    );
    let main = status.container_statuses.unwrap();
    assert_eq!(main[0].container_id.as_deref(), Some("fluyt://a"));
    assert!(main[0].ready && main[0].started == Some(true));
    let b = &main[1];
    let waiting = b.state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
    let last = b.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (1, Some("Error")));
    let first = &status.init_container_statuses.unwrap()[0];
    let ended = first.state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!(ended.reason.as_deref(), Some("Completed"));
    let status = make("Always", true, &[], &[], false);
    let main = status.container_statuses.unwrap();
    let waiting = main[0].state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("PodInitializing"));
}

/// Name, then exit code or reason of waiting, of each container.
fn ends(status: &PodStatus) -> String {
    let all = status.init_container_statuses.iter().flatten();
    let all = all.chain(status.container_statuses.iter().flatten());
    let texts = all.map(|container| {
        let state = container.state.clone().unwrap_or_default();
        let ended = state
            .terminated
            .map(|end| format!("{} {}", end.exit_code, end.reason.unwrap_or_default()));
        let waiting = state.waiting.and_then(|waiting| waiting.reason);
        format!(
            "{}: {}",
            container.name,
            ended.or(waiting).unwrap_or_default()
        )
    });
    texts.collect::<Vec<_>>().join(", ")
}

#[test]
fn what_never_ran_has_an_end_when_its_pod_has() {
    for (init, containers, expected) in [
        (
            false,
            &[][..],
            "a: 137 ContainerStatusUnknown, b: 137 ContainerStatusUnknown",
        ),
        (
            false,
            &["a:0"],
            "a: 0 Completed, b: 137 ContainerStatusUnknown",
        ),
        // Those after an init container that never succeeded could not start.
        (
            true,
            &[],
            "first: 137 ContainerStatusUnknown, a: PodInitializing, b: PodInitializing",
        ),
        (
            true,
            &["first:1"],
            "first: 1 Error, a: PodInitializing, b: PodInitializing",
        ),
        (
            true,
            &["first:0"],
            "first: 0 Completed, a: 137 ContainerStatusUnknown, b: 137 ContainerStatusUnknown",
        ),
    ] {
        let status = make("Never", init, containers, &[], true);
        assert_eq!(ends(&status), expected, "{init} {containers:?}");
    }
}

/// The condition `AllContainersRestarting` as status and reason.
fn restarting(status: &PodStatus) -> String {
    let conditions = status.conditions.iter().flatten();
    let found = conditions.filter(|c| c.type_ == "AllContainersRestarting");
    let texts = found.map(|c| format!("{} {}", c.status, c.reason.as_deref().unwrap_or_default()));
    texts.collect()
}

#[test]
fn a_pod_whose_containers_all_start_anew_goes_on() {
    let rules =
        json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [7]}}]);
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "p", "uid": "u"},
        "spec": {
            "restartPolicy": "Never",
            "initContainers": [{"name": "first", "image": "i"}],
            "containers": [
                {"name": "a", "image": "i", "restartPolicy": "Never", "restartPolicyRules": rules},
                {"name": "b", "image": "i"}
            ]
        }
    }))
    .unwrap();
    let next = |old: &PodStatus, containers: &[&str]| {
        with_inputs(&pod, old, containers, |inputs| generate(&inputs))
    };
    let running = next(
        &PodStatus::default(),
        &["first:0", "a:running", "b:running"],
    );
    assert_eq!(restarting(&running), "False ");
    let ended = next(&running, &["first:0", "a:7", "b:0"]);
    assert_eq!(restarting(&ended), "True RestartAllContainersStarted");
    assert_eq!(ended.phase.as_deref(), Some("Running"));
    // Not all could be removed at first.
    let half = next(&ended, &["first:0", "a:7"]);
    assert_eq!(restarting(&half), "True RestartAllContainersStarted");
    assert_eq!(restarting(&next(&half, &[])), "False ");
    let removed = next(&ended, &[]);
    assert_eq!(restarting(&removed), "False ");
    let reason = "RestartingAllContainers";
    assert_eq!(
        ends(&removed),
        format!("first: {reason}, a: {reason}, b: {reason}")
    );
    assert_eq!(removed.phase.as_deref(), Some("Running"));
    assert!(conditions(&removed).contains("Initialized"));
    let again = next(&removed, &["first:0", "a:running", "b:running"]);
    assert_eq!(restarting(&again), "False ");
    let last = again.container_statuses.as_ref().unwrap()[0]
        .last_state
        .clone();
    let last = last.unwrap().terminated.unwrap();
    assert_eq!(
        (last.exit_code, last.reason.as_deref()),
        (137, Some(reason))
    );
    assert_eq!(
        removed.container_statuses.as_ref().unwrap()[0].restart_count,
        1
    );
    // Any other end is one.
    let failed = next(&running, &["first:0", "a:8", "b:0"]);
    assert_eq!(failed.phase.as_deref(), Some("Failed"));
    assert_eq!(restarting(&failed), "False PodFailed");
}

#[test]
fn an_init_container_may_start_all_anew() {
    let rules =
        json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [7]}}]);
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "p", "uid": "u"},
        "spec": {
            "restartPolicy": "Never",
            "initContainers": [{"name": "first", "image": "i", "restartPolicy": "Never", "restartPolicyRules": rules}],
            "containers": [{"name": "a", "image": "i"}]
        }
    }))
    .unwrap();
    let phase = |code: &str| {
        let status = with_inputs(&pod, &PodStatus::default(), &[code], |inputs| {
            generate(&inputs)
        });
        format!(
            "{} {}",
            status.phase.as_deref().unwrap(),
            restarting(&status)
        )
    };
    assert_eq!(phase("first:7"), "Pending True RestartAllContainersStarted");
    assert_eq!(phase("first:8"), "Failed False PodFailed");
}
