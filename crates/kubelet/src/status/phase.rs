//! The phase of a pod out of its containers' states.

use k8s_openapi::api::core::v1::{Container, ContainerStateTerminated, ContainerStatus, Pod};

use super::Stage;
use crate::kuberuntime::actions::should_restart;
use crate::kuberuntime::restart_all;
use crate::pod::{PodExt, is_sidecar};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Pending => "Pending",
            Phase::Running => "Running",
            Phase::Succeeded => "Succeeded",
            Phase::Failed => "Failed",
        }
    }
}

pub fn compute(
    pod: &Pod,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
    stage: Stage,
) -> Phase {
    let policy = pod.restart_policy();
    let find =
        |list: &'_ [ContainerStatus], name: &str| list.iter().find(|s| s.name == name).cloned();
    let mut pending_init = 0;
    let mut failed_init = 0;
    let mut failed_for_good = false;
    let restarts = |container: &Container, ended: &ContainerStateTerminated| {
        ended.reason.as_deref() == Some(restart_all::REASON)
            || should_restart(container, policy, ended.exit_code)
    };
    for container in pod.init_containers() {
        let Some(status) = find(init, &container.name) else {
            pending_init += 1;
            continue;
        };
        let state = status.state.unwrap_or_default();
        if is_sidecar(container) {
            let up = state.running.is_some() && status.started == Some(true);
            pending_init += usize::from(!up && state.terminated.is_none());
            continue;
        }
        match (
            state.terminated,
            status.last_state.and_then(|last| last.terminated),
        ) {
            (Some(ended), _) if ended.exit_code != 0 => {
                failed_init += 1;
                failed_for_good |= !restarts(container, &ended);
            }
            (Some(_), _) => {}
            (None, Some(last)) if state.waiting.is_some() && last.exit_code != 0 => {
                failed_init += 1;
                failed_for_good |= !restarts(container, &last);
            }
            _ => pending_init += 1,
        }
    }
    let (mut unknown, mut running, mut waiting, mut stopped, mut succeeded) = (0, 0, 0, 0, 0);
    let mut restarting = false;
    for container in &pod.spec().containers {
        let Some(status) = find(main, &container.name) else {
            unknown += 1;
            continue;
        };
        let state = status.state.unwrap_or_default();
        if state.running.is_some() {
            running += 1;
        } else if let Some(ended) = state.terminated {
            stopped += 1;
            succeeded += usize::from(ended.exit_code == 0);
            restarting |= restarts(container, &ended);
        } else if let Some(last) = status.last_state.and_then(|last| last.terminated) {
            stopped += 1;
            restarting |= restarts(container, &last);
        } else {
            waiting += 1;
        }
    }
    let any_main_started = running + stopped > 0;
    if failed_for_good && !any_main_started {
        return Phase::Failed;
    }
    if stage != Stage::Active
        && running == 0
        && (any_main_started || pending_init + failed_init > 0)
    {
        let all = stopped > 0 && stopped == succeeded && unknown + waiting == 0;
        return if all { Phase::Succeeded } else { Phase::Failed };
    }
    if pending_init + failed_init > 0 && !any_main_started {
        return Phase::Pending;
    }
    match (waiting, running, stopped, unknown) {
        (1.., _, _, _) => Phase::Pending,
        (0, 1.., _, 0) => Phase::Running,
        (0, 0, 1.., 0) if restarting => Phase::Running,
        (0, 0, 1.., 0) if stopped == succeeded => Phase::Succeeded,
        (0, 0, 1.., 0) => Phase::Failed,
        _ => Phase::Pending,
    }
}
