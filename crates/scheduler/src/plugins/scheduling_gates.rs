//! SchedulingGates: pods with `spec.schedulingGates` wait until all gates are removed.

use k8s_openapi::api::core::v1::Pod;

use crate::framework::{Event, Plugin, Rejection, Verdict};

pub struct SchedulingGates;

const NAME: &str = "SchedulingGates";

impl Plugin for SchedulingGates {
    fn name(&self) -> &'static str {
        NAME
    }

    fn pre_enqueue(&self, pod: &Pod) -> Verdict {
        let gates = pod
            .spec
            .iter()
            .flat_map(|spec| spec.scheduling_gates.iter().flatten());
        let names: Vec<&str> = gates.map(|gate| gate.name.as_str()).collect();
        if names.is_empty() {
            return Ok(());
        }
        Err(Rejection::unresolvable(
            NAME,
            format!("waiting for scheduling gates: [{}]", names.join(" ")),
        ))
    }

    fn may_help(&self, _event: &Event, _pod: &Pod) -> bool {
        // Only an update of the pod itself helps.
        false
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodSchedulingGate;

    use super::*;
    use crate::testing::pod;

    #[test]
    fn gated_until_the_last_gate_is_gone() {
        assert!(SchedulingGates.pre_enqueue(&pod("p").build()).is_ok());
        let gated = pod("p").edit(|spec| {
            spec.scheduling_gates = Some(vec![PodSchedulingGate {
                name: "example.com/x".to_owned(),
            }]);
        });
        assert!(SchedulingGates.pre_enqueue(&gated.build()).is_err());
    }
}
