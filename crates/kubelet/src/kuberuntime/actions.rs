//! What has to be done to bring a pod's sandbox and containers to what its spec asks for: a pure function of the spec,
//! what the runtime has, and what the probes say.

use k8s_openapi::api::core::v1::{Container, ContainerRestartRule, Pod};

use super::labels::container_hash;
use super::runtime_pod::{RuntimeContainer, RuntimePod, State};
use crate::pod::{Kind, PodExt, RestartPolicy, is_sidecar};

/// What the probes of a container instance say, by container id.
pub trait Probes {
    /// `Some(false)` once the liveness probe has failed.
    fn liveness(&self, container_id: &str) -> Option<bool>;
    /// `Some(true)` once started; a container without a startup probe is started when it runs.
    fn startup(&self, container_id: &str) -> Option<bool>;
}

/// A running container that has to go, and why (the text of its `Killing` event).
#[derive(Clone, Debug, PartialEq)]
pub struct Kill {
    pub id: String,
    pub name: String,
    pub message: String,
    pub reason: KillReason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillReason {
    Stopping,
    LivenessProbe,
    StartupProbe,
}

/// A container to start: which list it is in and its place there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    pub kind: Kind,
    pub index: usize,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Actions {
    /// Stop everything that runs, sandbox included, before anything else.
    pub kill_pod: bool,
    pub create_sandbox: bool,
    /// The attempt number of the sandbox to create.
    pub attempt: u32,
    pub kill: Vec<Kill>,
    pub start: Vec<Start>,
}

/// The rule of a container for this exit code: the first one that names it.
pub fn matching_rule(container: &Container, exit_code: i32) -> Option<&ContainerRestartRule> {
    let mut rules = container.restart_policy_rules.iter().flatten();
    rules.find(|rule| {
        let Some(codes) = &rule.exit_codes else {
            return false;
        };
        let listed = codes.values.iter().flatten().any(|code| *code == exit_code);
        match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        }
    })
}

/// Whether a container that ended with `exit_code` is started again, alone or with all others.
pub fn should_restart(container: &Container, pod_policy: RestartPolicy, exit_code: i32) -> bool {
    let rule = matching_rule(container, exit_code);
    if rule.is_some_and(|r| matches!(r.action.as_str(), "Restart" | "RestartAllContainers")) {
        return true;
    }
    let policy = match container.restart_policy.as_deref() {
        Some("Always") => RestartPolicy::Always,
        Some("OnFailure") => RestartPolicy::OnFailure,
        Some("Never") => RestartPolicy::Never,
        _ => pod_policy,
    };
    match policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => exit_code != 0,
        RestartPolicy::Never => false,
    }
}

/// An init container is tried again as the pod's policy says, where `Always` means until it succeeds.
fn should_retry_init(container: &Container, pod_policy: RestartPolicy, exit_code: i32) -> bool {
    exit_code != 0 && should_restart(container, pod_policy, exit_code)
}

/// `resized` names the containers that have to be started anew for what they were newly allocated.
pub fn compute(
    pod: &Pod,
    runtime: &RuntimePod,
    probes: &dyn Probes,
    resized: &[String],
) -> Actions {
    let facts = &Facts { probes, resized };
    let policy = pod.restart_policy();
    let mut actions = Actions::default();
    let Some(sandbox) = usable_sandbox(pod, runtime) else {
        actions.kill_pod = true;
        actions.create_sandbox = true;
        actions.attempt = runtime.sandboxes.first().map_or(0, |s| s.attempt + 1);
        new_sandbox(pod, runtime, policy, &mut actions);
        return actions;
    };
    let here = |name: &str| runtime.latest(name).filter(|c| c.sandbox_id == sandbox);

    for (index, container) in pod.ephemeral_containers().iter().enumerate() {
        // An ephemeral container runs once.
        if runtime.latest(&container.name).is_none() {
            actions.start.push(Start {
                kind: Kind::Ephemeral,
                index,
            });
        }
    }

    let mut keep = 0;
    let main = |actions: &mut Actions, keep: &mut usize| {
        for (index, container) in pod.spec().containers.iter().enumerate() {
            let start = Start {
                kind: Kind::Main,
                index,
            };
            match check(container, here(&container.name), policy, facts) {
                Verdict::Keep => *keep += 1,
                Verdict::Start => actions.start.push(start),
                Verdict::Replace(kill) => {
                    actions.kill.push(kill);
                    actions.start.push(start);
                }
                Verdict::Stop(kill) => actions.kill.push(kill),
                Verdict::Done => {}
            }
        }
    };

    let main_started = pod
        .spec()
        .containers
        .iter()
        .any(|c| here(&c.name).is_some());
    match init(pod, &here, policy, facts, main_started) {
        Init::Waiting { start, kill } => {
            actions.start.extend(start);
            actions.kill.extend(kill);
        }
        Init::Failed => actions.kill_pod = true,
        Init::Done { start, kill } => {
            let before = actions.start.len() + actions.kill.len();
            main(&mut actions, &mut keep);
            let main_goes_on = keep > 0 || actions.start.len() + actions.kill.len() > before;
            if main_goes_on {
                // Sidecars live as long as any main container does.
                let mains = std::mem::take(&mut actions.start);
                actions.start.extend(start);
                actions.start.extend(mains);
                actions.kill.extend(kill);
            } else {
                actions.start.clear();
                actions.kill_pod = true;
            }
        }
    }
    actions
}

fn usable_sandbox(pod: &Pod, runtime: &RuntimePod) -> Option<String> {
    let newest = runtime.ready_sandbox()?;
    let network_fits = newest.host_network == pod.host_network();
    let has_address = pod.host_network() || !newest.ips.is_empty();
    (network_fits && has_address).then(|| newest.id.clone())
}

/// Everything begins anew in a new sandbox, except what has ended for good.
fn new_sandbox(pod: &Pod, runtime: &RuntimePod, policy: RestartPolicy, actions: &mut Actions) {
    let ended = |container: &Container| {
        runtime.latest(&container.name).is_some_and(|c| {
            c.state == State::Exited && !should_restart(container, policy, c.exit_code())
        })
    };
    let spec = pod.spec();
    let some_started = !runtime.sandboxes.is_empty() && !runtime.containers.is_empty();
    let may_repeat = spec
        .containers
        .iter()
        .chain(pod.init_containers())
        .any(|container| {
            container.restart_policy_rules.is_some() || container.restart_policy.is_some()
        });
    if policy == RestartPolicy::Never && some_started && !may_repeat {
        actions.create_sandbox = false;
        return;
    }
    let wanted: Vec<Start> = spec
        .containers
        .iter()
        .enumerate()
        .filter(|(_, container)| !ended(container))
        .map(|(index, _)| Start {
            kind: Kind::Main,
            index,
        })
        .collect();
    if wanted.is_empty() {
        actions.create_sandbox = false;
    } else if pod.init_containers().is_empty() {
        actions.start = wanted;
    } else {
        actions.start = vec![Start {
            kind: Kind::Init,
            index: 0,
        }];
    }
}

/// What is known besides the spec and the runtime's state.
struct Facts<'a> {
    probes: &'a dyn Probes,
    resized: &'a [String],
}

enum Init {
    /// Main containers may run. Sidecars may need a start or a kill still.
    Done {
        start: Vec<Start>,
        kill: Vec<Kill>,
    },
    Waiting {
        start: Vec<Start>,
        kill: Vec<Kill>,
    },
    Failed,
}

fn init<'a>(
    pod: &Pod,
    here: &dyn Fn(&str) -> Option<&'a RuntimeContainer>,
    policy: RestartPolicy,
    facts: &Facts<'_>,
    main_started: bool,
) -> Init {
    let mut start = Vec::new();
    let mut kill = Vec::new();
    for (index, container) in pod.init_containers().iter().enumerate() {
        let this = Start {
            kind: Kind::Init,
            index,
        };
        let status = here(&container.name);
        if is_sidecar(container) {
            match check(container, status, RestartPolicy::Always, facts) {
                Verdict::Keep => {
                    let started = status.is_some_and(|c| {
                        container.startup_probe.is_none()
                            || facts.probes.startup(&c.id) == Some(true)
                    });
                    if started || main_started {
                        continue;
                    }
                }
                Verdict::Start => start.push(this),
                Verdict::Replace(reason) => {
                    kill.push(reason);
                    start.push(this);
                }
                Verdict::Stop(reason) => kill.push(reason),
                Verdict::Done => {}
            }
            // Later ones wait for it, unless the pod is past that.
            if main_started {
                continue;
            }
            return Init::Waiting { start, kill };
        }
        if main_started {
            continue;
        }
        match status {
            Some(c) if c.state == State::Exited && c.exit_code() == 0 => {}
            Some(c) if c.state == State::Exited => {
                if !should_retry_init(container, policy, c.exit_code()) {
                    return Init::Failed;
                }
                start.push(this);
                return Init::Waiting { start, kill };
            }
            Some(c) if c.state == State::Running => {
                if let Some(reason) = spoiled(container, c, facts) {
                    kill.push(reason);
                    start.push(this);
                }
                return Init::Waiting { start, kill };
            }
            Some(c) => {
                kill.push(stop(
                    c,
                    format!(
                        "Init container is in {:?} state, try killing it before restart",
                        c.state
                    ),
                ));
                start.push(this);
                return Init::Waiting { start, kill };
            }
            None => {
                start.push(this);
                return Init::Waiting { start, kill };
            }
        }
    }
    Init::Done { start, kill }
}

enum Verdict {
    Keep,
    Start,
    Replace(Kill),
    Stop(Kill),
    /// It has ended and stays so.
    Done,
}

fn check(
    container: &Container,
    status: Option<&RuntimeContainer>,
    policy: RestartPolicy,
    facts: &Facts<'_>,
) -> Verdict {
    let Some(status) = status else {
        return Verdict::Start;
    };
    match status.state {
        State::Exited if should_restart(container, policy, status.exit_code()) => Verdict::Start,
        State::Exited => Verdict::Done,
        State::Created => Verdict::Start,
        State::Unknown => Verdict::Replace(stop(
            status,
            "Container is in unknown state, try killing it before restart".into(),
        )),
        State::Running => match spoiled(container, status, facts) {
            None => Verdict::Keep,
            // A container whose image has changed is replaced whatever the policy.
            Some(kill) if kill.reason == KillReason::Stopping => Verdict::Replace(kill),
            // Killed by a probe it ends with a failure: whether it comes back is the policy's to say.
            Some(kill) if should_restart(container, policy, 137) => Verdict::Replace(kill),
            Some(kill) => Verdict::Stop(kill),
        },
    }
}

/// Why a running container can't stay.
fn spoiled(container: &Container, status: &RuntimeContainer, facts: &Facts<'_>) -> Option<Kill> {
    let probes = facts.probes;
    let name = &container.name;
    if status
        .hash()
        .is_some_and(|hash| hash != container_hash(container))
    {
        return Some(stop(
            status,
            format!("Container {name} definition changed, will be restarted"),
        ));
    }
    if facts.resized.contains(name) {
        let message = format!("Container {name} resize requires restart");
        return Some(stop(status, message));
    }
    if probes.liveness(&status.id) == Some(false) {
        return Some(Kill {
            reason: KillReason::LivenessProbe,
            ..stop(
                status,
                format!("Container {name} failed liveness probe, will be restarted"),
            )
        });
    }
    if probes.startup(&status.id) == Some(false) {
        return Some(Kill {
            reason: KillReason::StartupProbe,
            ..stop(
                status,
                format!("Container {name} failed startup probe, will be restarted"),
            )
        });
    }
    None
}

fn stop(status: &RuntimeContainer, message: String) -> Kill {
    Kill {
        id: status.id.clone(),
        name: status.name.clone(),
        message,
        reason: KillReason::Stopping,
    }
}

#[cfg(test)]
#[path = "actions_tests.rs"]
mod tests;
