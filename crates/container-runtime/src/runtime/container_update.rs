//! UpdateContainerResources and ReopenContainerLog.

use k8s_cri::v1 as cri;

use super::container::Phase;
use super::{Error, Result, Runtime};
use crate::cgroup::Cgroup;
use crate::shim::protocol::Operation;

impl Runtime {
    pub async fn update_container_resources(
        &self,
        id: &str,
        resources: cri::LinuxContainerResources,
    ) -> Result<()> {
        let container = self.container(id)?;
        let record = container.record();
        if record.phase != Phase::Exited {
            Cgroup::at(&record.cgroup)
                .update(&resources)
                .map_err(|error| Error::internal("failed to update resources", error))?;
        }
        container.update(|record| {
            let present = record.resources.get_or_insert_default();
            merge(present, resources);
        })
    }

    pub async fn reopen_container_log(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        if container.phase() != Phase::Running {
            return Err(Error::FailedPrecondition(
                "container is not running".to_owned(),
            ));
        }
        let operation = Operation::ReopenLog {
            container: container.id.clone(),
        };
        container
            .sandbox
            .shim()?
            .call(operation, &[])
            .await
            .map(drop)
            .map_err(|error| Error::internal("failed to reopen the log", error))
    }
}

/// Takes over what the change sets; zero and empty mean "leave as it is".
fn merge(present: &mut cri::LinuxContainerResources, change: cri::LinuxContainerResources) {
    let number = |present: &mut i64, change: i64| {
        if change != 0 {
            *present = change;
        }
    };
    number(&mut present.cpu_period, change.cpu_period);
    number(&mut present.cpu_quota, change.cpu_quota);
    number(&mut present.cpu_shares, change.cpu_shares);
    number(
        &mut present.memory_limit_in_bytes,
        change.memory_limit_in_bytes,
    );
    number(
        &mut present.memory_swap_limit_in_bytes,
        change.memory_swap_limit_in_bytes,
    );
    number(&mut present.oom_score_adj, change.oom_score_adj);
    if !change.cpuset_cpus.is_empty() {
        present.cpuset_cpus = change.cpuset_cpus;
    }
    if !change.cpuset_mems.is_empty() {
        present.cpuset_mems = change.cpuset_mems;
    }
    present.unified.extend(change.unified);
}
