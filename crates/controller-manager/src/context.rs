//! What every controller is given.

use std::sync::Arc;

use fluyt_client::{Informers, Recorder};
use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::Config;

/// The surroundings of one controller; cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// Acts as the controller's own service account.
    pub client: Client,
    /// Shared by all controllers of the process.
    pub informers: Informers,
    pub config: Arc<Config>,
    pub shutdown: CancellationToken,
}

impl Context {
    /// A recorder of events whose source is `component`.
    pub fn recorder(&self, component: &str) -> Recorder {
        Recorder::new(self.client.clone(), component, "")
    }
}
