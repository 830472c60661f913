//! PodSandboxStatus and ListPodSandbox.

use std::collections::HashMap;

use k8s_cri::v1 as cri;

use super::{Result, Runtime, Sandbox};

impl Runtime {
    pub fn pod_sandbox_status(&self, id: &str) -> Result<cri::PodSandboxStatus> {
        Ok(self.sandbox(id)?.status())
    }

    pub fn list_pod_sandbox(&self, filter: &cri::PodSandboxFilter) -> Vec<cri::PodSandbox> {
        let mut items: Vec<cri::PodSandbox> = self
            .sandboxes()
            .iter()
            .filter(|sandbox| filter.id.is_empty() || sandbox.id.starts_with(&filter.id))
            .map(|sandbox| sandbox.item())
            .filter(|item| {
                filter
                    .state
                    .as_ref()
                    .is_none_or(|wanted| wanted.state == item.state)
                    && matches(&filter.label_selector, &item.labels)
            })
            .collect();
        items.sort_by_key(|item| std::cmp::Reverse(item.created_at));
        items
    }
}

impl Sandbox {
    pub fn status(&self) -> cri::PodSandboxStatus {
        let record = self.record();
        cri::PodSandboxStatus {
            id: self.id.clone(),
            metadata: record.config.metadata.clone(),
            state: state(record.ready).into(),
            created_at: record.created_at,
            network: Some(cri::PodSandboxNetworkStatus {
                ip: record
                    .address
                    .filter(|_| record.ready)
                    .map(|address| address.to_string())
                    .unwrap_or_default(),
                additional_ips: Vec::new(),
            }),
            linux: Some(cri::LinuxPodSandboxStatus {
                namespaces: Some(cri::Namespace {
                    options: Some(record.namespace_options()),
                }),
            }),
            labels: record.config.labels,
            annotations: record.config.annotations,
            runtime_handler: record.runtime_handler,
        }
    }

    fn item(&self) -> cri::PodSandbox {
        let record = self.record();
        cri::PodSandbox {
            id: self.id.clone(),
            metadata: record.config.metadata,
            state: state(record.ready).into(),
            created_at: record.created_at,
            labels: record.config.labels,
            annotations: record.config.annotations,
            runtime_handler: record.runtime_handler,
        }
    }
}

fn state(ready: bool) -> cri::PodSandboxState {
    if ready {
        cri::PodSandboxState::SandboxReady
    } else {
        cri::PodSandboxState::SandboxNotready
    }
}

/// Whether the labels have all that the selector asks for.
pub fn matches(selector: &HashMap<String, String>, labels: &HashMap<String, String>) -> bool {
    selector
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}
