//! Whether the container runtime works and has a network for pods. CRI has no stream for it, so it is asked: often
//! until it is ready, then every five seconds as upstream does; and it is told the pods' CIDR as soon as that is known.

use std::sync::Arc;
use std::time::Duration;

use fluyt_client::Change;
use k8s_cri::v1 as cri;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cri::Cri;
use crate::kubelet::Kubelet;

const EVERY: Duration = Duration::from_secs(5);
const WHILE_NOT_READY: Duration = Duration::from_millis(200);

/// What is wrong, if anything.
#[derive(Clone, Debug, PartialEq)]
pub struct RuntimeState {
    pub runtime: Option<String>,
    pub network: Option<String>,
}

impl Default for RuntimeState {
    fn default() -> Self {
        let unknown = Some("container runtime status check may not have completed yet".to_string());
        RuntimeState {
            runtime: unknown.clone(),
            network: unknown,
        }
    }
}

/// Asks for the runtime's name and version until it answers.
pub async fn wait_for_version(
    cri: &Cri,
    shutdown: &CancellationToken,
) -> anyhow::Result<cri::VersionResponse> {
    let mut told = false;
    loop {
        match cri
            .version(cri::VersionRequest {
                version: "0.1.0".into(),
            })
            .await
        {
            Ok(version) => return Ok(version),
            Err(error) if !told => {
                info!(error = error.message(), "waiting for the container runtime");
                told = true;
            }
            Err(_) => {}
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
            () = shutdown.cancelled() => anyhow::bail!("shut down before the container runtime answered"),
        }
    }
}

pub async fn run(kubelet: Arc<Kubelet>) {
    let mut nodes = kubelet.node.subscribe();
    let mut cidr = None;
    loop {
        let state = ask(&kubelet.cri).await;
        let ready = state.runtime.is_none() && state.network.is_none();
        kubelet.runtime_state.send_if_modified(|known| {
            let changed = *known != state;
            *known = state;
            changed
        });
        let pause = if ready { EVERY } else { WHILE_NOT_READY };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            Some(change) = nodes.recv() => {
                let (Change::Added(node) | Change::Updated { new: node, .. }) = change else { continue };
                let assigned = node.spec.as_ref().and_then(|spec| {
                    let all = spec.pod_cidrs.clone().unwrap_or_default();
                    if all.is_empty() { spec.pod_cidr.clone() } else { Some(all.join(",")) }
                });
                if assigned != cidr && let Some(assigned) = assigned {
                    tell_cidr(&kubelet.cri, &assigned).await;
                    cidr = Some(assigned);
                }
            }
            () = kubelet.shutdown.cancelled() => return,
        }
    }
}

async fn tell_cidr(cri: &Cri, cidr: &str) {
    let request = cri::UpdateRuntimeConfigRequest {
        runtime_config: Some(cri::RuntimeConfig {
            network_config: Some(cri::NetworkConfig {
                pod_cidr: cidr.into(),
            }),
        }),
    };
    match cri.update_runtime_config(request).await {
        Ok(_) => info!(cidr, "pod CIDR handed to the runtime"),
        Err(error) => warn!(
            cidr,
            error = error.message(),
            "the runtime does not take the pod CIDR"
        ),
    }
}

async fn ask(cri: &Cri) -> RuntimeState {
    let status = match cri.status(cri::StatusRequest { verbose: false }).await {
        Ok(answer) => answer.status.unwrap_or_default(),
        Err(error) => {
            let why = format!("container runtime is down: {}", error.message());
            return RuntimeState {
                runtime: Some(why.clone()),
                network: Some(why),
            };
        }
    };
    let problem = |kind: &str, text: &str| match status.conditions.iter().find(|c| c.r#type == kind)
    {
        Some(condition) if condition.status => None,
        Some(condition) => Some(format!(
            "{text}: {kind}=false reason:{} message:{}",
            condition.reason, condition.message
        )),
        None => Some(format!("{text}: {kind} is not reported")),
    };
    RuntimeState {
        runtime: problem("RuntimeReady", "container runtime not ready"),
        network: problem("NetworkReady", "container runtime network not ready"),
    }
}
