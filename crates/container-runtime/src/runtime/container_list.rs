//! ContainerStatus and ListContainers.

use k8s_cri::v1 as cri;

use super::container::{Container, Phase};
use super::sandbox_list::matches;
use super::{Result, Runtime};

impl Runtime {
    pub fn container_status(&self, id: &str) -> Result<cri::ContainerStatus> {
        Ok(self.container(id)?.status())
    }

    pub fn list_containers(&self, filter: &cri::ContainerFilter) -> Vec<cri::Container> {
        let mut items: Vec<cri::Container> = self
            .containers()
            .iter()
            .filter(|container| {
                (filter.id.is_empty() || container.id.starts_with(&filter.id))
                    && (filter.pod_sandbox_id.is_empty()
                        || container.sandbox.id.starts_with(&filter.pod_sandbox_id))
            })
            .map(|container| container.item())
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

impl Container {
    pub fn status(&self) -> cri::ContainerStatus {
        let record = self.record();
        cri::ContainerStatus {
            id: self.id.clone(),
            metadata: record.config.metadata,
            state: state(record.phase).into(),
            created_at: record.created_at,
            started_at: record.started_at,
            finished_at: record.finished_at,
            exit_code: record.exit_code,
            image: record.config.image,
            image_ref: record.image_ref,
            reason: record.reason,
            message: record.message,
            labels: record.config.labels,
            annotations: record.config.annotations,
            mounts: record.config.mounts,
            log_path: record
                .log_path
                .map(|path| path.display().to_string())
                .unwrap_or_default(),
            resources: Some(cri::ContainerResources {
                linux: record.resources,
                windows: None,
            }),
            image_id: record.image_id,
            user: Some(cri::ContainerUser {
                linux: Some(cri::LinuxContainerUser {
                    uid: record.user.uid.into(),
                    gid: record.user.gid.into(),
                    supplemental_groups: record
                        .user
                        .additional_gids
                        .into_iter()
                        .map(i64::from)
                        .collect(),
                }),
            }),
        }
    }

    fn item(&self) -> cri::Container {
        let record = self.record();
        cri::Container {
            id: self.id.clone(),
            pod_sandbox_id: self.sandbox.id.clone(),
            metadata: record.config.metadata,
            image: record.config.image,
            image_ref: record.image_ref,
            state: state(record.phase).into(),
            created_at: record.created_at,
            labels: record.config.labels,
            annotations: record.config.annotations,
            image_id: record.image_id,
        }
    }
}

fn state(phase: Phase) -> cri::ContainerState {
    match phase {
        Phase::Created => cri::ContainerState::ContainerCreated,
        Phase::Running => cri::ContainerState::ContainerRunning,
        Phase::Exited => cri::ContainerState::ContainerExited,
    }
}
