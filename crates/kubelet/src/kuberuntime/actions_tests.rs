use std::collections::HashMap;
use std::sync::Arc;

use k8s_cri::v1 as cri;
use serde_json::json;

use super::*;
use crate::kuberuntime::runtime_pod::RuntimeSandbox;

#[derive(Default)]
struct Fixed {
    liveness: HashMap<&'static str, bool>,
    startup: HashMap<&'static str, bool>,
}

impl Probes for Fixed {
    fn liveness(&self, id: &str) -> Option<bool> {
        self.liveness.get(id).copied()
    }

    fn startup(&self, id: &str) -> Option<bool> {
        self.startup.get(id).copied()
    }
}

fn pod(policy: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "uid": "u"},
        "spec": {
            "restartPolicy": policy,
            "containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]
        }
    }))
    .unwrap()
}

fn with_init(policy: &str) -> Pod {
    let mut pod = pod(policy);
    let init = json!([
        {"name": "first", "image": "i"},
        {"name": "side", "image": "i", "restartPolicy": "Always", "startupProbe": {}},
        {"name": "last", "image": "i"}
    ]);
    pod.spec.as_mut().unwrap().init_containers = serde_json::from_value(init).unwrap();
    pod
}

/// `name:running`, `name:exit code`, `name:created`; the id is the name.
fn runtime(containers: &[&str]) -> RuntimePod {
    let container = |text: &&str| {
        let (name, state) = text.split_once(':').unwrap();
        let spec = Container {
            name: name.into(),
            image: Some("i".into()),
            ..Container::default()
        };
        let (state, exit_code) = match state {
            "running" => (State::Running, 0),
            "created" => (State::Created, 0),
            "unknown" => (State::Unknown, 0),
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
                annotations: HashMap::from([(
                    crate::kuberuntime::labels::CONTAINER_HASH.into(),
                    container_hash(&spec),
                )]),
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
            ips: vec!["1.2.3.4".into()],
        }],
        containers: containers.iter().map(container).collect(),
    }
}

/// What is started (`kind index`) and killed, in order, in one line.
fn outline(actions: &Actions) -> String {
    let mut words = Vec::new();
    if actions.kill_pod {
        words.push("kill-pod".to_string());
    }
    if actions.create_sandbox {
        words.push(format!("sandbox:{}", actions.attempt));
    }
    words.extend(actions.kill.iter().map(|kill| format!("-{}", kill.name)));
    words.extend(
        actions
            .start
            .iter()
            .map(|start| format!("+{:?}{}", start.kind, start.index)),
    );
    words.join(" ")
}

#[test]
fn main_containers() {
    for (policy, containers, expected) in [
        ("Always", &["a:running", "b:running"][..], ""),
        ("Always", &["a:running"], "+Main1"),
        ("Always", &["a:running", "b:0"], "+Main1"),
        ("OnFailure", &["a:running", "b:0"], ""),
        ("OnFailure", &["a:running", "b:1"], "+Main1"),
        ("Never", &["a:running", "b:1"], ""),
        ("OnFailure", &["a:0", "b:0"], "kill-pod"),
        ("Never", &["a:0", "b:1"], "kill-pod"),
        ("Never", &[], "+Main0 +Main1"),
        ("Always", &["a:running", "b:created"], "+Main1"),
        ("Always", &["a:running", "b:unknown"], "-b +Main1"),
    ] {
        let actions = compute(&pod(policy), &runtime(containers), &Fixed::default(), &[]);
        assert_eq!(outline(&actions), expected, "{policy} {containers:?}");
    }
}

#[test]
fn sandbox_gone() {
    for (policy, containers, expected) in [
        (
            "Always",
            &["a:0", "b:1"][..],
            "kill-pod sandbox:1 +Main0 +Main1",
        ),
        ("OnFailure", &["a:0", "b:1"], "kill-pod sandbox:1 +Main1"),
        ("OnFailure", &["a:0", "b:0"], "kill-pod"),
        ("Never", &["a:0", "b:1"], "kill-pod"),
        ("Never", &[], "kill-pod sandbox:1 +Main0 +Main1"),
    ] {
        let mut runtime = runtime(containers);
        runtime.sandboxes[0].ready = false;
        let actions = compute(&pod(policy), &runtime, &Fixed::default(), &[]);
        assert_eq!(outline(&actions), expected, "{policy} {containers:?}");
    }
    let actions = compute(
        &with_init("Always"),
        &RuntimePod::default(),
        &Fixed::default(),
        &[],
    );
    assert_eq!(outline(&actions), "kill-pod sandbox:0 +Init0");
}

#[test]
fn init_containers_in_turn() {
    let started = Fixed {
        startup: HashMap::from([("side", true)]),
        ..Fixed::default()
    };
    for (policy, containers, expected) in [
        ("Always", &[][..], "+Init0"),
        ("Always", &["first:running"], ""),
        ("Always", &["first:1"], "+Init0"),
        ("Never", &["first:1"], "kill-pod"),
        ("Always", &["first:0"], "+Init1"),
        ("Always", &["first:0", "side:running"], "+Init2"),
        ("Always", &["first:0", "side:1"], "+Init1"),
        ("Always", &["first:0", "side:running", "last:running"], ""),
        (
            "Always",
            &["first:0", "side:running", "last:0"],
            "+Main0 +Main1",
        ),
        (
            "Always",
            &[
                "first:0",
                "side:running",
                "last:0",
                "a:running",
                "b:running",
            ],
            "",
        ),
        (
            "Always",
            &["first:0", "side:1", "last:0", "a:running", "b:running"],
            "+Init1",
        ),
        // An init container's record may be gone once the main ones run.
        ("Always", &["side:running", "a:running", "b:running"], ""),
        // When the main ones are done the sidecar has to go as well.
        (
            "Never",
            &["first:0", "side:running", "last:0", "a:0", "b:0"],
            "kill-pod",
        ),
    ] {
        let actions = compute(&with_init(policy), &runtime(containers), &started, &[]);
        assert_eq!(outline(&actions), expected, "{policy} {containers:?}");
    }
    let runtime = runtime(&["first:0", "side:running"]);
    let actions = compute(&with_init("Always"), &runtime, &Fixed::default(), &[]);
    assert_eq!(
        outline(&actions),
        "",
        "the sidecar has not passed its startup probe"
    );
}

#[test]
fn probes_and_changes() {
    let failing = Fixed {
        liveness: HashMap::from([("a", false)]),
        ..Fixed::default()
    };
    let all = runtime(&["a:running", "b:running"]);
    let actions = compute(&pod("Always"), &all, &failing, &[]);
    assert_eq!(outline(&actions), "-a +Main0");
    assert_eq!(
        actions.kill[0].message,
        "Container a failed liveness probe, will be restarted"
    );
    assert_eq!(outline(&compute(&pod("Never"), &all, &failing, &[])), "-a");

    let resized = ["b".to_string()];
    let actions = compute(&pod("Never"), &all, &Fixed::default(), &resized);
    assert_eq!(outline(&actions), "-b +Main1");
    assert_eq!(
        actions.kill[0].message,
        "Container b resize requires restart"
    );

    let mut changed = pod("Never");
    changed.spec.as_mut().unwrap().containers[1].image = Some("other".into());
    let actions = compute(&changed, &all, &Fixed::default(), &[]);
    assert_eq!(outline(&actions), "-b +Main1");
}

#[test]
fn ephemeral_containers_run_once() {
    let mut pod = pod("Always");
    pod.spec.as_mut().unwrap().ephemeral_containers =
        serde_json::from_value(json!([{"name": "debug", "image": "i"}])).unwrap();
    let actions = compute(
        &pod,
        &runtime(&["a:running", "b:running"]),
        &Fixed::default(),
        &[],
    );
    assert_eq!(outline(&actions), "+Ephemeral0");
    let actions = compute(
        &pod,
        &runtime(&["a:running", "b:running", "debug:0"]),
        &Fixed::default(),
        &[],
    );
    assert_eq!(outline(&actions), "");
}

#[test]
fn restart_rules() {
    let container: Container = serde_json::from_value(json!({
        "name": "a", "restartPolicy": "Never",
        "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]
    }))
    .unwrap();
    assert!(should_restart(&container, RestartPolicy::Always, 42));
    assert!(!should_restart(&container, RestartPolicy::Always, 1));
}
