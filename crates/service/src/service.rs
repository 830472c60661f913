//! The service: its settings, its state, and the supervisors of its clusters.

use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cluster::supervisor::Supervisor;
use crate::providers::NodeProvider;
use crate::state::State;

/// What the service is told.
#[derive(Clone, Debug)]
pub struct Settings {
    pub data_dir: PathBuf,
    /// How much memory nodes may have altogether, in multiples of the host's.
    pub memory_overcommit: f64,
    /// Bytes that the host has.
    pub host_memory: u64,
}

/// The service.
pub struct Service {
    pub settings: Settings,
    pub state: State,
    pub provider: Arc<dyn NodeProvider>,
    pub supervisors: TaskTracker,
    pub shutdown: CancellationToken,
}

// === impl Service ===

impl Service {
    /// Takes up every cluster where it stands: adopts what runs, starts what does not, goes on with what is under way.
    pub fn resume(self: &Arc<Self>) {
        for key in self.state.read().clusters.into_keys() {
            Supervisor::spawn(self.clone(), key);
        }
        crate::arm::resume_group_deletions(self);
    }

    /// Bytes that nodes may have altogether.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss
    )]
    pub fn memory_budget(&self) -> u64 {
        (self.settings.host_memory as f64 * self.settings.memory_overcommit) as u64
    }
}
