//! TLS bootstrap: from a bootstrap token to a client certificate of the node's own, and its rotation.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kube::Client;
use kube::client::Body;
use parking_lot::RwLock;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::certificate::{self, Pair, Request};
use crate::config::args::Settings;

const NAME: &str = "kubelet-client";
const AGENT: &str = concat!("kubelet/fluyt-", env!("CARGO_PKG_VERSION"));
const RETRY: Duration = Duration::from_secs(1);

/// A client with the node's own identity. When it came by bootstrap, its certificate is renewed in the background and
/// the client goes on with the new one.
pub async fn client(settings: &Settings, shutdown: CancellationToken) -> anyhow::Result<Client> {
    let rotates = Pair::load(&settings.cert_dir, NAME).is_some();
    if settings.kubeconfig.exists() && (rotates || settings.bootstrap_kubeconfig.is_none()) {
        let client = fluyt_client::kubeconfig::client(Some(&settings.kubeconfig), AGENT).await?;
        return Ok(if rotates {
            rotating(settings, client, shutdown)
        } else {
            client
        });
    }
    let Some(bootstrap) = &settings.bootstrap_kubeconfig else {
        anyhow::bail!(
            "no kubeconfig at {} and no --bootstrap-kubeconfig to get one with",
            settings.kubeconfig.display()
        );
    };
    let first = fluyt_client::kubeconfig::client(Some(bootstrap), AGENT).await?;
    info!("asking for a client certificate");
    let pair = loop {
        match request(settings, &first).await {
            Ok(pair) => break pair,
            Err(error) => warn!(
                error = format!("{error:#}"),
                "no client certificate yet, trying again"
            ),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = shutdown.cancelled() => anyhow::bail!("shut down before a client certificate was issued"),
        }
    };
    let file = pair.store(&settings.cert_dir, NAME)?;
    write_kubeconfig(bootstrap, &settings.kubeconfig, &file)?;
    let client = fluyt_client::kubeconfig::client(Some(&settings.kubeconfig), AGENT).await?;
    Ok(rotating(settings, client, shutdown))
}

async fn request(settings: &Settings, client: &Client) -> anyhow::Result<Pair> {
    let wanted = Request {
        signer: "kubernetes.io/kube-apiserver-client-kubelet",
        node: &settings.node_name,
        usages: &["digital signature", "client auth"],
        names: Vec::new(),
    };
    certificate::request(client, &wanted).await
}

/// The bootstrap file's cluster with the certificate as the user.
fn write_kubeconfig(bootstrap: &Path, path: &PathBuf, pair: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(bootstrap)?;
    let value: serde_json::Value = serde_saphyr::from_str(&text)?;
    let context = value["current-context"].as_str().unwrap_or_default();
    let named = |list: &str, name: &str| {
        let entries = value[list].as_array().cloned().unwrap_or_default();
        let found = entries.iter().find(|entry| entry["name"] == name).cloned();
        found.or_else(|| entries.first().cloned())
    };
    let cluster = named("contexts", context)
        .and_then(|context| context["context"]["cluster"].as_str().map(String::from))
        .unwrap_or_default();
    let cluster = named("clusters", &cluster).context("the bootstrap kubeconfig has no cluster")?;
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "default-context",
        "clusters": [{"name": "default-cluster", "cluster": cluster["cluster"]}],
        "contexts": [{"name": "default-context", "context":
            {"cluster": "default-cluster", "user": "default-auth", "namespace": "default"}}],
        "users": [{"name": "default-auth", "user": {"client-certificate": pair, "client-key": pair}}]
    });
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    // JSON is YAML.
    let pending = path.with_extension("tmp");
    std::fs::write(&pending, serde_json::to_string_pretty(&config)?)?;
    std::fs::rename(&pending, path).with_context(|| format!("writing {}", path.display()))
}

/// A client that hands each request to whichever client is current.
fn rotating(settings: &Settings, first: Client, shutdown: CancellationToken) -> Client {
    let current = Arc::new(RwLock::new(first));
    let service = {
        let current = current.clone();
        tower::service_fn(move |request: http::Request<Body>| {
            let client = current.read().clone();
            async move { client.send(request).await }
        })
    };
    let settings = settings.clone();
    tokio::spawn(Box::pin(async move {
        rotate(&settings, &current, shutdown).await
    }));
    Client::new(service, "default")
}

async fn rotate(settings: &Settings, current: &RwLock<Client>, shutdown: CancellationToken) {
    let mut wait =
        Pair::load(&settings.cert_dir, NAME).map_or(Duration::ZERO, |pair| pair.renew_in());
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shutdown.cancelled() => return,
        }
        match renew(settings, current).await {
            Ok(next) => wait = next,
            Err(error) => {
                warn!(
                    error = format!("{error:#}"),
                    "renewing the client certificate failed"
                );
                wait = Duration::from_secs(30);
            }
        }
    }
}

async fn renew(settings: &Settings, current: &RwLock<Client>) -> anyhow::Result<Duration> {
    let client = current.read().clone();
    let pair = request(settings, &client).await?;
    pair.store(&settings.cert_dir, NAME)?;
    let fresh = fluyt_client::kubeconfig::client(Some(&settings.kubeconfig), AGENT).await?;
    *current.write() = fresh;
    info!("client certificate renewed");
    Ok(pair.renew_in())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubeconfig_of_the_bootstraps_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let bootstrap = dir.path().join("bootstrap");
        std::fs::write(
            &bootstrap,
            "apiVersion: v1\nkind: Config\ncurrent-context: b\nclusters: [{name: x, cluster: {server: 'https://no'}}, {name: c, cluster: {server: 'https://10.224.0.1:443'}}]\ncontexts: [{name: b, context: {cluster: c, user: u}}]\nusers: [{name: u, user: {token: t}}]\n",
        )
        .unwrap();
        let path = dir.path().join("kubeconfig");
        write_kubeconfig(
            &bootstrap,
            &path,
            Path::new("/pki/kubelet-client-current.pem"),
        )
        .unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        assert!(
            text.contains("https://10.224.0.1:443") && text.contains("kubelet-client-current.pem")
        );
        assert!(!text.contains("https://no") && !text.contains("token"));
    }
}
