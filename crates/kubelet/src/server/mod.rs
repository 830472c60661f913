//! The kubelet's own API on port 10250, and its health on 10248.

use std::sync::Arc;

use crate::kubelet::Kubelet;

pub struct Server {
    kubelet: Arc<Kubelet>,
}

impl Server {
    pub async fn bind(kubelet: Arc<Kubelet>) -> anyhow::Result<Self> {
        Ok(Server { kubelet })
    }

    pub async fn run(self) {
        self.kubelet.shutdown.cancelled().await;
    }
}
