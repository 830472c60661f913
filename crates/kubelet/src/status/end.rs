//! What is said of containers once a pod is over: every one of them has ended, also those of which nobody knows how.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod};

use crate::pod::{PodExt, is_sidecar};

/// Has all containers of a pod that is over end. Those that could not start yet, because of an init container before
/// them, have not begun and need no end.
pub(super) fn conclude(pod: &Pod, init: &mut [ContainerStatus], main: &mut [ContainerStatus]) {
    let initialized = is_initialized(pod, init, main);
    // The first one was about to start, if none did.
    let begun = init.iter().rposition(has_begun).unwrap_or_default() + 1;
    init.iter_mut().take(begun).for_each(end);
    if initialized {
        main.iter_mut().for_each(end);
    }
}

/// The end of a container that ran, or was about to, and of which nobody can say what became.
pub(super) fn lost() -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: 137,
            reason: Some("ContainerStatusUnknown".into()),
            message: Some("The container could not be located when the pod was terminated".into()),
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    }
}

fn end(status: &mut ContainerStatus) {
    let state = status.state.as_ref();
    if state.is_none_or(|state| state.terminated.is_none()) {
        status.state = Some(lost());
    }
}

fn has_begun(status: &ContainerStatus) -> bool {
    let is_waiting = |state: &ContainerState| state.waiting.is_some();
    let has_ended = |state: &ContainerState| state.terminated.is_some();
    !status.state.as_ref().is_some_and(is_waiting)
        || status.last_state.as_ref().is_some_and(has_ended)
}

/// Whether its containers could have started.
fn is_initialized(pod: &Pod, init: &[ContainerStatus], main: &[ContainerStatus]) -> bool {
    let (Some(container), Some(last)) = (pod.init_containers().last(), init.last()) else {
        return true;
    };
    if main.iter().any(has_begun) {
        return true;
    }
    if is_sidecar(container) {
        let running = last.state.as_ref().is_some_and(|s| s.running.is_some());
        return running && last.started == Some(true);
    }
    let mut states = last.state.iter().chain(&last.last_state);
    states.any(|state| {
        state
            .terminated
            .as_ref()
            .is_some_and(|end| end.exit_code == 0)
    })
}
