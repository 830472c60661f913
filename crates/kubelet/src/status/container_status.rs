//! The status of each container.

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, ContainerUser, LinuxContainerUser, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Inputs, Stage, end};
use crate::kuberuntime::runtime_pod::{RuntimeContainer, State, timestamp};
use crate::kuberuntime::{resize, restart_all};
use crate::pod::{PodExt, is_sidecar};

pub fn main_statuses(inputs: &Inputs<'_>) -> Vec<ContainerStatus> {
    let old = inputs.old.container_statuses.as_deref().unwrap_or_default();
    let reason = if init_is_done(inputs) {
        "ContainerCreating"
    } else {
        "PodInitializing"
    };
    let mut statuses: Vec<_> = inputs
        .pod
        .spec()
        .containers
        .iter()
        .map(|container| status(inputs, container, old, reason, Role::Main))
        .collect();
    statuses.sort_by(|a, b| a.name.cmp(&b.name));
    statuses
}

pub fn init_statuses(inputs: &Inputs<'_>) -> Vec<ContainerStatus> {
    let old = inputs
        .old
        .init_container_statuses
        .as_deref()
        .unwrap_or_default();
    let containers = inputs.pod.init_containers();
    let started = main_has_started(inputs);
    containers
        .iter()
        .map(|container| {
            let role = if is_sidecar(container) { Role::Sidecar } else { Role::Init };
            let mut status = status(inputs, container, old, "PodInitializing", role);
            // Its record is gone, but what came after it could only start once it had succeeded.
            if started
                && role == Role::Init
                && inputs.runtime.latest(&container.name).is_none()
                && status.state.as_ref().is_some_and(|state| state.waiting.is_some())
            {
                status.state = Some(ContainerState {
                    terminated: Some(ContainerStateTerminated {
                        reason: Some("Completed".into()),
                        message: Some("Unable to get init container status from container runtime and pod has been initialized, default it to exit code 0".into()),
                        ..ContainerStateTerminated::default()
                    }),
                    ..ContainerState::default()
                });
                status.ready = true;
            }
            status
        })
        .collect()
}

pub fn ephemeral_statuses(inputs: &Inputs<'_>) -> Vec<ContainerStatus> {
    let old = inputs
        .old
        .ephemeral_container_statuses
        .as_deref()
        .unwrap_or_default();
    inputs
        .pod
        .ephemeral_containers()
        .iter()
        .map(|container| status(inputs, container, old, "ContainerCreating", Role::Ephemeral))
        .collect()
}

fn main_has_started(inputs: &Inputs<'_>) -> bool {
    let containers = &inputs.pod.spec().containers;
    containers
        .iter()
        .any(|container| inputs.runtime.latest(&container.name).is_some())
}

fn init_is_done(inputs: &Inputs<'_>) -> bool {
    main_has_started(inputs)
        || inputs.pod.init_containers().iter().all(|container| {
            inputs
                .runtime
                .latest(&container.name)
                .is_some_and(|status| {
                    if is_sidecar(container) {
                        status.state == State::Running
                            && inputs.health.started(container, &status.id)
                    } else {
                        status.state == State::Exited && status.exit_code() == 0
                    }
                })
        })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Main,
    Init,
    Sidecar,
    Ephemeral,
}

fn status(
    inputs: &Inputs<'_>,
    container: &Container,
    old: &[ContainerStatus],
    default_waiting: &str,
    role: Role,
) -> ContainerStatus {
    let old = old.iter().find(|status| status.name == container.name);
    let mut instances = inputs
        .runtime
        .containers
        .iter()
        .filter(|instance| instance.name == container.name);
    let waiting = inputs.waiting.get(&container.name);
    let wait = |reason: &str, message: Option<String>| ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.into()),
            message,
        }),
        ..ContainerState::default()
    };
    let Some(latest) = instances.next() else {
        return unknown_to_runtime(inputs, container, old, |state| {
            state.unwrap_or_else(|| match waiting {
                Some(error) => wait(&error.reason, Some(error.message.clone())),
                None => wait(default_waiting, None),
            })
        });
    };
    let previous = instances.find(|instance| instance.state == State::Exited);
    let ended = |instance: &RuntimeContainer| ContainerState {
        terminated: Some(terminated(inputs, container, instance)),
        ..ContainerState::default()
    };
    let last_of_old = || {
        let state = old.and_then(|old| old.last_state.clone());
        state.filter(|state| *state != ContainerState::default())
    };
    let mut last_state = previous.map(ended).or_else(last_of_old);
    let state = match latest.state {
        State::Running => ContainerState {
            running: Some(ContainerStateRunning {
                started_at: Some(Time(timestamp(latest.status.started_at))),
            }),
            ..ContainerState::default()
        },
        // Created but not started: the start failed, or is under way.
        State::Created | State::Unknown => match waiting {
            Some(error) => wait(&error.reason, Some(error.message.clone())),
            None => wait(default_waiting, None),
        },
        State::Exited => match waiting.filter(|_| inputs.stage == Stage::Active) {
            Some(error) => {
                last_state = Some(ended(latest));
                wait(&error.reason, Some(error.message.clone()))
            }
            None => ended(latest),
        },
    };
    let running = latest.state == State::Running;
    let started = running && inputs.health.started(container, &latest.id);
    let ready = match role {
        Role::Main | Role::Sidecar => running && inputs.health.ready(container, &latest.id),
        Role::Init => latest.state == State::Exited && latest.exit_code() == 0,
        Role::Ephemeral => false,
    };
    let given = container.image.clone().unwrap_or_default();
    let named = latest
        .status
        .image
        .as_ref()
        .map(|image| image.image.clone());
    ContainerStatus {
        name: container.name.clone(),
        state: Some(state),
        last_state: Some(last_state.unwrap_or_default()),
        ready,
        started: Some(started),
        restart_count: i32::try_from(latest.restart_count()).unwrap_or(i32::MAX),
        image: named
            .filter(|name| !name.is_empty() && !name.starts_with("sha256:"))
            .unwrap_or(given),
        image_id: if latest.status.image_ref.is_empty() {
            latest.status.image_id.clone()
        } else {
            latest.status.image_ref.clone()
        },
        container_id: Some(container_id(inputs, latest)),
        resources: running.then(|| resize::actual(container, latest)),
        allocated_resources: running
            .then(|| container.resources.as_ref()?.requests.clone())
            .flatten(),
        volume_mounts: volume_mounts(container),
        user: user(latest),
        ..ContainerStatus::default()
    }
}

/// No instance is there: not yet, or no more.
fn unknown_to_runtime(
    inputs: &Inputs<'_>,
    container: &Container,
    old: Option<&ContainerStatus>,
    state_or: impl FnOnce(Option<ContainerState>) -> ContainerState,
) -> ContainerStatus {
    let was = old.and_then(|old| old.state.clone()).unwrap_or_default();
    let restarting = inputs.stage == Stage::Active
        && restart_all::is_due(inputs.pod, inputs.runtime, inputs.old);
    let mut kept = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        started: Some(false),
        last_state: Some(
            old.and_then(|old| old.last_state.clone())
                .unwrap_or_default(),
        ),
        restart_count: old.map_or(0, |old| old.restart_count),
        volume_mounts: volume_mounts(container),
        ..ContainerStatus::default()
    };
    let state = if restarting && old.is_some() && was.waiting.is_none() {
        let (waits, ended) = restart_all::removed();
        kept.last_state = Some(ended);
        kept.restart_count += 1;
        Some(waits)
    } else if was.terminated.is_some() {
        kept = ContainerStatus {
            ready: old.is_some_and(|old| old.ready),
            ..old.cloned().unwrap_or_default()
        };
        Some(was)
    } else if was.running.is_some() {
        // It ran when it was last seen and nobody can say what became of it.
        if inputs.stage == Stage::Over {
            Some(end::lost())
        } else {
            kept.last_state = Some(end::lost());
            None
        }
    } else {
        None
    };
    kept.state = Some(state_or(state));
    kept
}

fn container_id(inputs: &Inputs<'_>, instance: &RuntimeContainer) -> String {
    format!("{}://{}", inputs.runtime_name, instance.id)
}

fn terminated(
    inputs: &Inputs<'_>,
    container: &Container,
    instance: &RuntimeContainer,
) -> ContainerStateTerminated {
    let status = &instance.status;
    let reason = match (status.reason.as_str(), status.exit_code) {
        ("", 0) => "Completed",
        ("", _) => "Error",
        (reason, _) => reason,
    };
    let message = (inputs.message)(container, instance)
        .or_else(|| Some(status.message.clone()))
        .filter(|message| !message.is_empty());
    ContainerStateTerminated {
        exit_code: status.exit_code,
        reason: Some(reason.into()),
        message,
        started_at: Some(Time(timestamp(status.started_at))),
        finished_at: Some(Time(timestamp(status.finished_at))),
        container_id: Some(container_id(inputs, instance)),
        ..ContainerStateTerminated::default()
    }
}

fn volume_mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts: Vec<_> = container
        .volume_mounts
        .iter()
        .flatten()
        .map(|mount| VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: mount.read_only.filter(|read_only| *read_only),
            recursive_read_only: mount.read_only.filter(|read_only| *read_only).map(
                |_| match mount.recursive_read_only.as_deref() {
                    Some("Enabled") => "Enabled".into(),
                    _ => "Disabled".into(),
                },
            ),
            volume_status: None,
        })
        .collect();
    (!mounts.is_empty()).then_some(mounts)
}

fn user(instance: &RuntimeContainer) -> Option<ContainerUser> {
    let linux = instance.status.user.as_ref()?.linux.as_ref()?;
    Some(ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: linux.uid,
            gid: linux.gid,
            supplemental_groups: Some(linux.supplemental_groups.clone()),
        }),
    })
}
