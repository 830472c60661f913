//! Gives running containers the resources that their pod was newly allocated, by changing their limits or by starting
//! them anew, as their resize policies say.

use fluyt_client::helpers::resource::pod_resources;
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::container::resources;
use super::runtime_pod::{RuntimeContainer, RuntimePod, State};
use crate::cgroups;
use crate::kubelet::Kubelet;
use crate::pod::PodExt;
use crate::qos::Amounts;

/// How CRI says that a limit is lifted.
const UNLIMITED: i64 = -1;

/// A running container that has other resources than it is to have.
pub struct Differing<'a> {
    container: &'a Container,
    instance: &'a RuntimeContainer,
    has: cri::LinuxContainerResources,
    wants: cri::LinuxContainerResources,
}

impl Differing<'_> {
    fn cpu_differs(&self) -> bool {
        self.has.cpu_shares != self.wants.cpu_shares || quota(&self.has) != quota(&self.wants)
    }

    fn memory_differs(&self) -> bool {
        memory_limit(&self.has) != memory_limit(&self.wants)
    }

    /// Whether one of the changes needs a new instance.
    fn restarts(&self) -> bool {
        let policy = |resource: &str| {
            let policies = self.container.resize_policy.iter().flatten();
            policies
                .into_iter()
                .any(|p| p.resource_name == resource && p.restart_policy == "RestartContainer")
        };
        self.cpu_differs() && policy("cpu") || self.memory_differs() && policy("memory")
    }

    /// A new memory limit that is below the old one.
    fn lowered_memory(&self) -> Option<i64> {
        let limit = memory_limit(&self.wants)?;
        memory_limit(&self.has)
            .is_none_or(|has| limit < has)
            .then_some(limit)
    }
}

/// A memory limit of the pod as a whole that is to be lowered.
pub struct Lowered {
    /// As the pod would state it: without overhead.
    from: Option<i64>,
    to: i64,
}

impl Lowered {
    /// The pod with the limit that it keeps.
    pub fn undo(&self, pod: &mut Pod) {
        let resources = pod.spec.as_mut().and_then(|spec| spec.resources.as_mut());
        let limits = resources.and_then(|resources| resources.limits.as_mut());
        if let Some(limits) = limits {
            match self.from {
                Some(bytes) => limits.insert("memory".into(), Quantity(bytes.to_string())),
                None => limits.remove("memory"),
            };
        }
    }
}

/// Whether a running pod has more memory for all of its containers than it states.
pub fn lowered(kubelet: &Kubelet, pod: &Pod, runtime: &RuntimePod) -> Option<Lowered> {
    let cgroups = kubelet.cgroups.as_ref()?;
    let stated = pod.spec().resources.as_ref()?.limits.as_ref()?;
    if !stated.contains_key("memory") || runtime.running().next().is_none() {
        return None;
    }
    let to = Amounts::of_pod(pod).memory_limit?;
    let from = cgroups.given(pod).memory_limit;
    let overhead = pod_resources(pod).overhead;
    let overhead = overhead.get("memory").map_or(0, |bytes| bytes.value());
    from.is_none_or(|from| to < from).then_some(Lowered {
        from: from.map(|from| from - overhead),
        to,
    })
}

/// What is differently limited than the pod's spec asks for.
pub fn differing<'a>(
    kubelet: &Kubelet,
    pod: &'a Pod,
    runtime: &'a RuntimePod,
) -> Vec<Differing<'a>> {
    let containers = pod.init_containers().iter().chain(&pod.spec().containers);
    containers
        .filter_map(|container| {
            let instance = runtime.latest(&container.name)?;
            // Runtimes that do not tell are trusted.
            let has = reported(instance)?.clone();
            let differing = Differing {
                container,
                instance,
                has,
                wants: resources(kubelet, pod, container),
            };
            let differs = differing.cpu_differs() || differing.memory_differs();
            (instance.state == State::Running && differs).then_some(differing)
        })
        .collect()
}

fn reported(instance: &RuntimeContainer) -> Option<&cri::LinuxContainerResources> {
    instance.status.resources.as_ref()?.linux.as_ref()
}

/// `None` for no limit, however it is written.
fn quota(resources: &cri::LinuxContainerResources) -> Option<i64> {
    Some(resources.cpu_quota).filter(|quota| *quota > 0)
}

fn memory_limit(resources: &cri::LinuxContainerResources) -> Option<i64> {
    Some(resources.memory_limit_in_bytes).filter(|limit| *limit > 0)
}

/// Names of the containers that are to be started anew.
pub fn restarts(differing: &[Differing<'_>]) -> Vec<String> {
    let restarting = differing.iter().filter(|d| d.restarts());
    restarting.map(|d| d.container.name.clone()).collect()
}

/// Changes the limits of those that go on running.
///
/// # Errors
/// Why some of them could not be changed, for the pod's condition.
pub async fn actuate(
    kubelet: &Kubelet,
    pod: &Pod,
    differing: &[Differing<'_>],
    lowered: Option<&Lowered>,
) -> Result<(), String> {
    check_memory(kubelet, pod, differing, lowered).await?;
    for change in differing.iter().filter(|change| !change.restarts()) {
        let mut wants = change.wants.clone();
        if quota(&wants).is_none() {
            wants.cpu_period = cgroups::period();
            wants.cpu_quota = UNLIMITED;
        }
        if memory_limit(&wants).is_none() {
            wants.memory_limit_in_bytes = UNLIMITED;
        }
        // The score of what runs already stays.
        wants.oom_score_adj = change.has.oom_score_adj;
        let request = cri::UpdateContainerResourcesRequest {
            container_id: change.instance.id.clone(),
            linux: Some(wants),
            ..Default::default()
        };
        if let Err(error) = kubelet.cri.update_container_resources(request).await {
            return Err(error.message().to_string());
        }
    }
    Ok(())
}

/// Nothing is killed for a limit that it is above already.
async fn check_memory(
    kubelet: &Kubelet,
    pod: &Pod,
    differing: &[Differing<'_>],
    lowered: Option<&Lowered>,
) -> Result<(), String> {
    let mut errors = Vec::new();
    if let Some(Lowered { to, .. }) = lowered {
        let cgroups = kubelet.cgroups.as_ref();
        match cgroups.and_then(|cgroups| cgroups.memory_in_use(pod)) {
            None => errors.push("missing pod memory usage".to_string()),
            Some(used) if used >= *to => errors.push(format!(
                "attempting to set pod memory limit ({to}) below current usage ({used})"
            )),
            Some(_) => {}
        }
    }
    for change in differing.iter().filter(|change| !change.restarts()) {
        let Some(limit) = change.lowered_memory() else {
            continue;
        };
        let (name, id) = (&change.container.name, &change.instance.id);
        match memory_in_use(kubelet, id).await {
            None => errors.push(format!("missing container {name:?} memory usage")),
            Some(used) if used >= u64::try_from(limit).unwrap_or(0) => errors.push(format!(
                "attempting to set container {name:?} memory limit ({limit}) below current usage ({used})"
            )),
            Some(_) => {}
        }
    }
    match &errors[..] {
        [] => Ok(()),
        [one] => Err(format!("cannot decrease memory limits: {one}")),
        several => Err(format!(
            "cannot decrease memory limits: [{}]",
            several.join(", ")
        )),
    }
}

async fn memory_in_use(kubelet: &Kubelet, id: &str) -> Option<u64> {
    let request = cri::ContainerStatsRequest {
        container_id: id.to_string(),
    };
    let stats = kubelet.cri.container_stats(request).await.ok()?.stats?;
    Some(stats.memory?.usage_bytes?.value)
}

/// The pod with what its containers have now.
pub fn as_it_is(pod: &Pod, runtime: &RuntimePod) -> Pod {
    let mut pod = pod.clone();
    if let Some(spec) = &mut pod.spec {
        let init = spec.init_containers.iter_mut().flatten();
        for container in init.chain(&mut spec.containers) {
            let running = |c: &&RuntimeContainer| c.state == State::Running;
            if let Some(instance) = runtime.latest(&container.name).filter(running) {
                container.resources = Some(actual(container, instance));
            }
        }
    }
    pod
}

/// What a running instance has, in the terms of a spec that asks for `spec`; that itself where it is the same.
pub fn actual(spec: &Container, instance: &RuntimeContainer) -> ResourceRequirements {
    let mut actual = spec.resources.clone().unwrap_or_default();
    let Some(has) = reported(instance) else {
        return actual;
    };
    let asked = Amounts::of(spec);
    let mut put = |limits: bool, name: &str, value: Option<String>| {
        let list = if limits {
            &mut actual.limits
        } else {
            &mut actual.requests
        };
        match value {
            Some(value) => {
                let list = list.get_or_insert_default();
                list.insert(name.into(), Quantity(value));
            }
            None => {
                if let Some(list) = list {
                    list.remove(name);
                }
            }
        }
    };
    let milli = |quota: i64| {
        let period = Some(has.cpu_period).filter(|period| *period > 0);
        cgroups::milli_of_quota(quota, period.unwrap_or(cgroups::period()))
    };
    let limit = quota(has);
    if limit != asked.milli_cpu_limit.map(cgroups::quota) {
        put(true, "cpu", limit.map(|q| format!("{}m", milli(q))));
    }
    if has.cpu_shares != cgroups::shares(asked.milli_cpu_request.unwrap_or(0)) {
        let milli = cgroups::milli_of_shares(has.cpu_shares);
        put(false, "cpu", Some(format!("{milli}m")));
    }
    let limit = memory_limit(has);
    if limit != asked.memory_limit {
        put(true, "memory", limit.map(|bytes| bytes.to_string()));
    }
    actual
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn container(requests: &str, limits: &str) -> Container {
        let list = |cpu: &str| match cpu {
            "" => json!(null),
            cpu => json!({"cpu": cpu, "memory": "64Mi"}),
        };
        let resources = json!({"requests": list(requests), "limits": list(limits)});
        serde_json::from_value(json!({"name": "c", "resources": resources})).unwrap()
    }

    fn instance(shares: i64, quota: i64, memory: i64) -> RuntimeContainer {
        RuntimeContainer {
            id: "c".into(),
            name: "c".into(),
            sandbox_id: "s".into(),
            state: State::Running,
            created_at: 0,
            status: Arc::new(cri::ContainerStatus {
                resources: Some(cri::ContainerResources {
                    linux: Some(cri::LinuxContainerResources {
                        cpu_shares: shares,
                        cpu_quota: quota,
                        memory_limit_in_bytes: memory,
                        ..Default::default()
                    }),
                    windows: None,
                }),
                ..Default::default()
            }),
        }
    }

    fn text(resources: &ResourceRequirements) -> String {
        serde_json::to_string(resources).unwrap()
    }

    #[test]
    fn what_is_as_asked_is_told_in_the_same_words() {
        let spec = container("500m", "0.5");
        let same = instance(512, 50_000, 64 << 20);
        assert_eq!(Some(actual(&spec, &same)), spec.resources);
        let unlimited = container("500m", "");
        let same = instance(512, -1, -1);
        assert_eq!(Some(actual(&unlimited, &same)), unlimited.resources);
    }

    #[test]
    fn what_differs_is_told_as_it_is() {
        let spec = container("1", "2");
        let has = instance(512, 50_000, 32 << 20);
        assert_eq!(
            text(&actual(&spec, &has)),
            r#"{"limits":{"cpu":"500m","memory":"33554432"},"requests":{"cpu":"500m","memory":"64Mi"}}"#
        );
        let unlimited = instance(1024, 0, 0);
        let told = actual(&spec, &unlimited);
        assert_eq!(
            text(&told),
            r#"{"limits":{},"requests":{"cpu":"1","memory":"64Mi"}}"#
        );
    }
}
