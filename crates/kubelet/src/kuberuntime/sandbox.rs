//! A pod's sandbox: its configuration and its creation.

use std::collections::HashMap;

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::Pod;

use super::{labels, security_context};
use crate::cgroups;
use crate::dns;
use crate::kubelet::Kubelet;
use crate::pod::PodExt;
use crate::qos::{Amounts, QosClass};

/// The sandbox configuration of a pod; also handed to the runtime with each of its containers.
pub fn config(kubelet: &Kubelet, pod: &Pod, attempt: u32) -> cri::PodSandboxConfig {
    let settings = &kubelet.settings;
    let resolv = std::fs::read_to_string(&settings.resolv_conf).unwrap_or_default();
    let sysctls = pod
        .spec()
        .security_context
        .iter()
        .flat_map(|context| context.sysctls.iter().flatten())
        .map(|sysctl| (sysctl.name.clone(), sysctl.value.clone()))
        .collect();
    let cgroup_parent = kubelet
        .cgroups
        .as_ref()
        .map(|cgroups| cgroups.pod(pod))
        .unwrap_or_default();
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: pod.name().into(),
            uid: pod.uid().into(),
            namespace: pod.namespace().into(),
            attempt,
        }),
        hostname: if pod.host_network() {
            String::new()
        } else {
            dns::sandbox_hostname(settings, pod)
        },
        log_directory: log_directory(kubelet, pod).to_string_lossy().into_owned(),
        dns_config: Some(dns::pod_config(settings, pod, &resolv)),
        port_mappings: port_mappings(pod),
        labels: labels::sandbox_labels(pod),
        annotations: annotations(pod),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent,
            security_context: Some(security_context::sandbox(pod)),
            sysctls,
            overhead: None,
            resources: Some(resources(pod)),
        }),
        windows: None,
    }
}

/// `<pod logs dir>/<namespace>_<name>_<uid>`
pub fn log_directory(kubelet: &Kubelet, pod: &Pod) -> std::path::PathBuf {
    kubelet
        .settings
        .pod_logs_dir
        .join(format!("{}_{}_{}", pod.namespace(), pod.name(), pod.uid()))
}

fn annotations(pod: &Pod) -> HashMap<String, String> {
    let all = pod.metadata.annotations.clone().unwrap_or_default();
    all.into_iter()
        // May be as large as the pod itself, and says nothing to a runtime.
        .filter(|(key, _)| key != "kubectl.kubernetes.io/last-applied-configuration")
        .collect()
}

fn port_mappings(pod: &Pod) -> Vec<cri::PortMapping> {
    pod.spec()
        .containers
        .iter()
        .chain(pod.init_containers())
        .flat_map(|container| container.ports.iter().flatten())
        .map(|port| cri::PortMapping {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => cri::Protocol::Udp,
                Some("SCTP") => cri::Protocol::Sctp,
                _ => cri::Protocol::Tcp,
            }
            .into(),
            container_port: port.container_port,
            host_port: port.host_port.unwrap_or(0),
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}

fn resources(pod: &Pod) -> cri::LinuxContainerResources {
    let amounts = Amounts::of_pod(pod);
    let mut resources = cri::LinuxContainerResources {
        cpu_shares: cgroups::shares(amounts.milli_cpu_request.unwrap_or(0)),
        ..Default::default()
    };
    if QosClass::of(pod) != QosClass::BestEffort {
        if let Some(limit) = amounts.milli_cpu_limit {
            resources.cpu_period = cgroups::period();
            resources.cpu_quota = cgroups::quota(limit);
        }
        resources.memory_limit_in_bytes = amounts.memory_limit.unwrap_or(0);
    }
    resources
}

/// Creates and starts the sandbox; returns its id and configuration.
pub async fn create(
    kubelet: &Kubelet,
    pod: &Pod,
    attempt: u32,
) -> Result<(String, cri::PodSandboxConfig), String> {
    let config = config(kubelet, pod, attempt);
    std::fs::create_dir_all(&config.log_directory)
        .map_err(|error| format!("creating {}: {error}", config.log_directory))?;
    let answer = kubelet
        .cri
        .run_pod_sandbox(cri::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: String::new(),
        })
        .await
        .map_err(|error| error.message().to_string())?;
    Ok((answer.pod_sandbox_id, config))
}
