//! Asks every kubelet for its `/metrics/resource`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use fluyt_client::Informer;
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use parking_lot::Mutex;

use crate::samples::{Sample, Store};

/// How long one kubelet is given.
const PATIENCE: Duration = Duration::from_secs(5);

/// Until there are rates, samples are taken this often.
const FIRST: Duration = Duration::from_secs(2);

const KUBELET_PORT: i32 = 10250;

/// Takes samples of all nodes.
pub struct Scraper {
    config: kube::Config,
    insecure: bool,
    nodes: Informer<Node>,
    store: Arc<Store>,
    clients: Mutex<HashMap<String, kube::Client>>,
}

impl Scraper {
    pub fn new(
        config: kube::Config,
        insecure: bool,
        nodes: Informer<Node>,
        store: Arc<Store>,
    ) -> Self {
        Self {
            config,
            insecure,
            nodes,
            store,
            clients: Mutex::default(),
        }
    }

    /// Never returns.
    pub async fn run(&self, resolution: Duration) {
        self.nodes.synced().await;
        loop {
            self.scrape().await;
            tokio::time::sleep(if self.store.has_any() {
                resolution
            } else {
                FIRST.min(resolution)
            })
            .await;
        }
    }

    async fn scrape(&self) {
        let nodes = self.nodes.list();
        let names: Vec<String> = nodes.iter().map(|n| n.name_any()).collect();
        self.store.retain(&names);
        join_all(nodes.iter().map(|node| async {
            match tokio::time::timeout(PATIENCE, self.sample(node)).await {
                Ok(Ok(sample)) => self.store.push(&node.name_any(), sample),
                Ok(Err(error)) => tracing::warn!(
                    node = node.name_any(),
                    error = format!("{error:#}"),
                    "cannot scrape"
                ),
                Err(_) => tracing::warn!(node = node.name_any(), "a kubelet did not answer"),
            }
        }))
        .await;
    }

    async fn sample(&self, node: &Node) -> anyhow::Result<Sample> {
        let client = self.client(node)?;
        let request = http::Request::get("/metrics/resource").body(Vec::new())?;
        let text = client.request_text(request).await?;
        Ok(Sample::parse(Timestamp::now(), &text))
    }

    /// A client of a node's kubelet, kept as long as the node keeps its address.
    fn client(&self, node: &Node) -> anyhow::Result<kube::Client> {
        let status = node.status.as_ref();
        let addresses = status
            .and_then(|s| s.addresses.as_ref())
            .into_iter()
            .flatten();
        let address = addresses
            .into_iter()
            .find(|a| a.type_ == "InternalIP")
            .ok_or_else(|| anyhow::anyhow!("the node has no address yet"))?;
        let endpoints = status.and_then(|s| s.daemon_endpoints.as_ref());
        let port = endpoints
            .and_then(|e| e.kubelet_endpoint.as_ref())
            .map_or(KUBELET_PORT, |e| e.port);
        let url = format!("https://{}:{port}", address.address);
        let mut clients = self.clients.lock();
        if let Some(client) = clients.get(&url) {
            return Ok(client.clone());
        }
        let mut config = self.config.clone();
        config.cluster_url = url.parse()?;
        config.accept_invalid_certs = self.insecure;
        config.tls_server_name = None;
        let client = kube::Client::try_from(config)?;
        clients.insert(url, client.clone());
        Ok(client)
    }
}
