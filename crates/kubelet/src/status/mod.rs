//! A pod's status as users know it, out of its spec, what the runtime has, what the probes say, and what the status
//! was before.

mod conditions;
mod container_status;
mod end;
mod phase;
mod pod_resources;
pub mod termination_message;

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, HostIP, Pod, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::allocation::Resize;
use crate::kuberuntime::container::StartError;
use crate::kuberuntime::runtime_pod::{RuntimeContainer, RuntimePod};
use crate::qos::{Amounts, QosClass};

pub use phase::Phase;

/// What the probes know of a container instance.
pub trait Health {
    fn ready(&self, container: &Container, id: &str) -> bool;
    fn started(&self, container: &Container, id: &str) -> bool;
}

/// Where a pod is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Containers may still be started.
    Active,
    /// Nothing of it will be started again.
    Over,
    /// It was rejected: nothing of it has ever been here.
    Rejected,
}

/// Everything a status is made of.
pub struct Inputs<'a> {
    pub pod: &'a Pod,
    /// The status before: what the API server has, or what was last made here.
    pub old: &'a PodStatus,
    pub runtime: &'a RuntimePod,
    pub waiting: &'a HashMap<String, StartError>,
    pub health: &'a dyn Health,
    pub message: &'a dyn Fn(&Container, &RuntimeContainer) -> Option<String>,
    pub runtime_name: &'a str,
    pub host_ips: &'a [String],
    pub ips: &'a [String],
    pub now: Timestamp,
    /// How far a change of its resources is.
    pub resize: &'a Resize,
    /// What the pod's cgroup gives it, if it has one.
    pub given: Option<Amounts>,
    pub stage: Stage,
    /// Ended by a decision (eviction, deadline, rejection), with its reason and message.
    pub verdict: Option<&'a (String, String)>,
}

/// The pod's status now.
pub fn generate(inputs: &Inputs<'_>) -> PodStatus {
    let pod = inputs.pod;
    let (mut init, mut main, mut ephemeral) = (Vec::new(), Vec::new(), Vec::new());
    if inputs.stage != Stage::Rejected {
        init = container_status::init_statuses(inputs);
        main = container_status::main_statuses(inputs);
        ephemeral = container_status::ephemeral_statuses(inputs);
    }
    if inputs.stage == Stage::Over {
        end::conclude(pod, &mut init, &mut main);
    }
    let phase = match (inputs.verdict, inputs.old.phase.as_deref()) {
        // What has ended stays ended.
        (Some(_), _) | (None, Some("Failed")) => Phase::Failed,
        (None, Some("Succeeded")) => Phase::Succeeded,
        _ => phase::compute(pod, &init, &main, inputs.stage),
    };
    let conditions = conditions::generate(inputs, phase, &init, &main);
    let (reason, message) = match inputs.verdict {
        Some((reason, message)) => (Some(reason.clone()), Some(message.clone())),
        None => (inputs.old.reason.clone(), inputs.old.message.clone()),
    };
    let list = |statuses: Vec<_>| (!statuses.is_empty()).then_some(statuses);
    let ips: &[String] = inputs.ips;
    PodStatus {
        phase: Some(phase.as_str().into()),
        conditions: Some(conditions),
        reason,
        message,
        init_container_statuses: list(init),
        container_statuses: list(main),
        ephemeral_container_statuses: list(ephemeral),
        host_ip: inputs.host_ips.first().cloned(),
        host_ips: Some(
            inputs
                .host_ips
                .iter()
                .map(|ip| HostIP { ip: ip.clone() })
                .collect(),
        ),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect()),
        start_time: inputs.old.start_time.clone().or(Some(Time(inputs.now))),
        qos_class: inputs
            .old
            .qos_class
            .clone()
            .or_else(|| Some(QosClass::of(pod).as_str().into())),
        observed_generation: pod.metadata.generation,
        nominated_node_name: inputs.old.nominated_node_name.clone(),
        resize: inputs.old.resize.clone(),
        resources: Some(pod_resources::actual(inputs)),
        allocated_resources: pod_resources::allocated(pod),
        resource_claim_statuses: inputs.old.resource_claim_statuses.clone(),
        ..PodStatus::default()
    }
}

/// Types of the conditions that the kubelet writes.
pub fn owned_conditions() -> &'static [&'static str] {
    &conditions::OWNED
}

#[cfg(test)]
mod tests;
