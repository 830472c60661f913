//! Pods: the STATUS column condenses phase, reasons and container states into one word.

use serde_json::Value;

use super::{AGE, Column, NAME, column, items, number, or, string, wide};
use crate::meta;

pub(super) static POD: &[Column] = &[
    NAME,
    column("Ready", "string", ready),
    column("Status", "string", |o| status(o).into()),
    column("Restarts", "string", restarts),
    AGE,
    wide("IP", "string", |o| or(string(o, "/status/podIP"), "<none>")),
    wide("Node", "string", |o| {
        or(string(o, "/spec/nodeName"), "<none>")
    }),
    wide("Nominated Node", "string", |o| {
        or(string(o, "/status/nominatedNodeName"), "<none>")
    }),
    wide("Readiness Gates", "string", readiness_gates),
];

/// Init containers that keep running count with the main ones.
fn sidecars(pod: &Value) -> Vec<&str> {
    items(pod, "/spec/initContainers")
        .filter(|c| c["restartPolicy"] == "Always")
        .filter_map(|c| c["name"].as_str())
        .collect()
}

fn running_statuses(pod: &Value) -> Vec<&Value> {
    let sidecars = sidecars(pod);
    items(pod, "/status/initContainerStatuses")
        .filter(|s| s["name"].as_str().is_some_and(|n| sidecars.contains(&n)))
        .chain(items(pod, "/status/containerStatuses"))
        .collect()
}

fn ready(pod: &Value) -> Value {
    let total = items(pod, "/spec/containers").count() + sidecars(pod).len();
    let ready = running_statuses(pod)
        .iter()
        .filter(|s| s["ready"] == true && s["state"]["running"].is_object())
        .count();
    format!("{ready}/{total}").into()
}

fn restarts(pod: &Value) -> Value {
    let initialising = init_status(pod).is_some();
    let statuses: Vec<&Value> = if initialising {
        items(pod, "/status/initContainerStatuses").collect()
    } else {
        running_statuses(pod)
    };
    let count: i64 = statuses.iter().map(|s| number(s, "/restartCount")).sum();
    let last = statuses
        .iter()
        .filter_map(|s| s.pointer("/lastState/terminated/finishedAt")?.as_str())
        .max();
    match last {
        Some(time) if count > 0 => format!("{count} ({} ago)", super::age(&time.into())).into(),
        _ => count.to_string().into(),
    }
}

/// What an init container that is not done yet is doing.
fn init_status(pod: &Value) -> Option<String> {
    let total = items(pod, "/spec/initContainers").count();
    let sidecars = sidecars(pod);
    for (i, status) in items(pod, "/status/initContainerStatuses").enumerate() {
        let state = &status["state"];
        let terminated = &state["terminated"];
        if terminated.is_object() && number(terminated, "/exitCode") == 0 {
            continue;
        }
        let sidecar = status["name"]
            .as_str()
            .is_some_and(|n| sidecars.contains(&n));
        if sidecar && status["started"] == true {
            continue;
        }
        let waiting = string(state, "/waiting/reason");
        return Some(if terminated.is_object() {
            match (string(terminated, "/reason"), number(terminated, "/signal")) {
                (reason, _) if !reason.is_empty() => format!("Init:{reason}"),
                (_, 0) => format!("Init:ExitCode:{}", number(terminated, "/exitCode")),
                (_, signal) => format!("Init:Signal:{signal}"),
            }
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{i}/{total}")
        });
    }
    None
}

fn status(pod: &Value) -> String {
    let phase = string(pod, "/status/phase");
    let mut reason = match string(pod, "/status/reason") {
        empty if empty.is_empty() => phase.clone(),
        reason => reason,
    };
    let gated = items(pod, "/status/conditions").any(|c| {
        c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated" && c["status"] == "False"
    });
    if gated {
        reason = "SchedulingGated".into();
    }
    match init_status(pod) {
        Some(init) => reason = init,
        None => {
            let mut running = false;
            let statuses: Vec<&Value> = items(pod, "/status/containerStatuses").collect();
            for status in statuses.into_iter().rev() {
                let state = &status["state"];
                let (waiting, terminated) =
                    (string(state, "/waiting/reason"), &state["terminated"]);
                if !waiting.is_empty() {
                    reason = waiting;
                } else if terminated.is_object() {
                    reason = match (string(terminated, "/reason"), number(terminated, "/signal")) {
                        (word, _) if !word.is_empty() => word,
                        (_, 0) => format!("ExitCode:{}", number(terminated, "/exitCode")),
                        (_, signal) => format!("Signal:{signal}"),
                    };
                } else if status["ready"] == true && state["running"].is_object() {
                    running = true;
                }
            }
            if reason == "Completed" && running {
                let ready = items(pod, "/status/conditions")
                    .any(|c| c["type"] == "Ready" && c["status"] == "True");
                reason = if ready {
                    "Running".into()
                } else {
                    "NotReady".into()
                };
            }
        }
    }
    if meta::is_terminating(pod) {
        if string(pod, "/status/reason") == "NodeLost" {
            return "Unknown".into();
        }
        if phase != "Succeeded" && phase != "Failed" {
            return "Terminating".into();
        }
    }
    reason
}

fn readiness_gates(pod: &Value) -> Value {
    let gates: Vec<&Value> = items(pod, "/spec/readinessGates").collect();
    if gates.is_empty() {
        return "<none>".into();
    }
    let passed = gates
        .iter()
        .filter(|g| {
            items(pod, "/status/conditions")
                .any(|c| c["type"] == g["conditionType"] && c["status"] == "True")
        })
        .count();
    format!("{passed}/{}", gates.len()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn status_words() {
        let spec = json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]});
        let status_of = |status: Value| status_word(json!({"spec": spec, "status": status}));
        fn status_word(pod: Value) -> String {
            status(&pod)
        }
        assert_eq!(status_of(json!({"phase": "Pending"})), "Pending");
        assert_eq!(
            status_of(
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]})
            ),
            "Init:0/1"
        );
        assert_eq!(
            status_of(
                json!({"phase": "Running", "containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]})
            ),
            "CrashLoopBackOff"
        );
        assert_eq!(
            status_of(
                json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]})
            ),
            "ExitCode:3"
        );
        let deleted = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Running"}});
        assert_eq!(status(&deleted), "Terminating");
    }
}
