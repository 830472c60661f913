//! `fluyt master`: the whole control plane of one cluster in one process.
//!
//! The components are tasks that reach the API server in memory, each under its own identity; nodes and users reach it
//! through two listeners, one inside the cluster's network and one on the host's loopback.

mod addons;
mod components;
pub mod pki;

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use async_trait::async_trait;
use fluyt_apiserver::authn::Anonymous;
use fluyt_apiserver::dial::{Connection, Dialer};
use fluyt_apiserver::{Encryption, Server, ServiceNetwork, Storage};
use fluyt_etcd::DynStore;
use fluyt_etcd::embedded::Embedded;
use fluyt_network::netns;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::tasks::Components;
use crate::{files, logs};

/// Service-account tokens name this issuer.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Where the master listens inside the cluster's network.
pub const PORT: u16 = 443;

/// The word on standard output that says that requests are answered.
pub const READY: &str = "ready";

/// The word before it: connections are taken, and answered once the master is ready.
pub const LISTENING: &str = "listening";

/// Flags of `fluyt master`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// File with the master's configuration, written by the service
    #[arg(long)]
    pub config: PathBuf,
}

/// What the service tells a master.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// The cluster's name, for people.
    pub cluster: String,
    /// The master's own directory: keys, store and logs.
    pub directory: PathBuf,
    /// Path of the cluster's network namespace.
    pub network_namespace: PathBuf,
    /// The master's address in the cluster's network.
    pub gateway: Ipv4Addr,
    /// The port on the host's loopback.
    pub port: u16,
    pub fqdn: String,
    pub pod_cidr: Ipv4Net,
    pub service_cidr: Ipv4Net,
    pub dns_service_ip: Ipv4Addr,
    /// Host addresses that Services of type LoadBalancer get.
    pub load_balancer_pool: Ipv4Net,
    /// `id.secret`: lets nodes ask for their certificate.
    pub bootstrap_token: String,
}

// === impl Config ===

impl Config {
    #[must_use]
    pub fn file(directory: &Path) -> PathBuf {
        directory.join("master.json")
    }

    #[must_use]
    pub fn logs(directory: &Path) -> PathBuf {
        directory.join("logs")
    }

    /// Writes the configuration where [`Self::file`] says.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self) -> anyhow::Result<()> {
        files::write_private(
            &Self::file(&self.directory),
            &serde_json::to_vec_pretty(self)?,
        )
    }

    /// The first address of the services' network, under which pods find the master.
    #[must_use]
    pub fn kubernetes_service_ip(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.service_cidr.network()) + 1)
    }
}

/// Opens connections inside the cluster's network.
struct InNetwork(PathBuf);

#[async_trait]
impl Dialer for InNetwork {
    async fn connect(&self, address: SocketAddr) -> std::io::Result<Connection> {
        let stream = self.connect_tcp(address).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

impl InNetwork {
    async fn connect_tcp(&self, address: SocketAddr) -> std::io::Result<TcpStream> {
        netns::connect_tcp_in(&self.0, address)
            .await
            .map_err(std::io::Error::other)
    }
}

/// Runs the master until shutdown.
///
/// # Errors
/// When its directory, keys, store or ports cannot be used.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    // A session of its own: the service's terminal is none of its business.
    let _ = nix::unistd::setsid();
    let config: Config = serde_json::from_str(&files::read(&args.config)?)
        .with_context(|| format!("in {}", args.config.display()))?;
    logs::init(&Config::logs(&config.directory), "master")?;
    let outcome = serve(config, shutdown).await;
    if let Err(error) = &outcome {
        tracing::error!(error = format!("{error:#}"), "the master failed");
    }
    outcome
}

async fn serve(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let host = TcpListener::bind((Ipv4Addr::LOCALHOST, config.port))
        .await
        .with_context(|| format!("listening on 127.0.0.1:{}", config.port))?;
    let inside = SocketAddr::from((config.gateway, PORT));
    let inner = netns::bind_tcp_in(&config.network_namespace, inside).await?;
    report(LISTENING);

    let keys = pki::ensure(&config)?;
    let store: DynStore = Arc::new(Embedded::open(&config.directory.join("store"))?);
    let encryption = Encryption::load(&keys.encryption, "/registry/").await?;
    let storage = Storage {
        encryption: Arc::new(encryption),
        ..Storage::default()
    };
    let components = Components::new(shutdown.clone());
    let server_config = fluyt_apiserver::Config {
        components: components::told(&components),
        ..server_config(&config, &keys, store, storage, inside, &shutdown)
    };
    let server = Server::start(server_config).await?;
    let listeners = [host, inner].map(|listener| {
        let (server, shutdown) = (server.clone(), shutdown.clone());
        tokio::spawn(async move {
            if let Err(error) = server.listen(listener).await {
                tracing::error!(error = format!("{error:#}"), "cannot serve");
                shutdown.cancel();
            }
        })
    });
    report(READY);
    tracing::info!(
        cluster = config.cluster,
        port = config.port,
        "the master is ready"
    );

    components::spawn_all(&components, &server, &Arc::new(config), &Arc::new(keys));
    components.finished().await;
    for listener in listeners {
        let _ = listener.await;
    }
    Ok(())
}

/// Tells the service, if it still listens.
fn report(word: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{word}").and_then(|()| out.flush());
}

fn server_config(
    config: &Config,
    keys: &pki::Keys,
    store: DynStore,
    storage: Storage,
    advertise: SocketAddr,
    shutdown: &CancellationToken,
) -> fluyt_apiserver::Config {
    let credentials = fluyt_apiserver::Credentials {
        client_ca_pem: keys.ca.certificate_pem().to_owned(),
        tls_certificate_pem: keys.apiserver.certificate_pem.clone(),
        tls_key_pem: keys.apiserver.key_pem.clone(),
        service_account_key_pem: keys.service_account_pem.clone(),
    };
    fluyt_apiserver::Config {
        storage,
        dialer: Arc::new(InNetwork(config.network_namespace.clone())),
        advertise,
        service_network: ServiceNetwork {
            cluster_ips: vec![config.service_cidr.into()],
            node_ports: (30000, 32767),
        },
        service_account_issuer: ISSUER.to_owned(),
        api_audiences: vec![ISSUER.to_owned()],
        kubelet_client: Some((
            keys.kubelet_client.certificate_pem.clone(),
            keys.kubelet_client.key_pem.clone(),
        )),
        kubelet_ca_pem: Some(keys.ca.certificate_pem().to_owned()),
        proxy_client: Some((
            keys.proxy_client.certificate_pem.clone(),
            keys.proxy_client.key_pem.clone(),
        )),
        requestheader_ca_pem: Some(keys.front_proxy_ca.certificate_pem().to_owned()),
        authentication: authentication(),
        ..fluyt_apiserver::Config::new(store, credentials, shutdown.clone())
    }
}

/// Who has no credentials may only ask whether the master is well.
fn authentication() -> fluyt_apiserver::authn::Settings {
    fluyt_apiserver::authn::Settings {
        anonymous: Anonymous::only(&["/healthz", "/livez", "/readyz"]),
        ..fluyt_apiserver::authn::Settings::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn config(directory: &Path) -> Config {
        Config {
            cluster: "test".into(),
            directory: directory.to_owned(),
            network_namespace: "/run/netns/none".into(),
            gateway: Ipv4Addr::new(10, 224, 0, 1),
            port: 0,
            fqdn: "test.example".into(),
            pod_cidr: "10.244.0.0/16".parse().unwrap(),
            service_cidr: "10.0.0.0/16".parse().unwrap(),
            dns_service_ip: Ipv4Addr::new(10, 0, 0, 10),
            load_balancer_pool: "127.20.0.0/24".parse().unwrap(),
            bootstrap_token: "abcdef.0123456789abcdef".into(),
        }
    }

    #[test]
    fn the_kubernetes_service_is_the_first_address() {
        assert_eq!(
            config(Path::new("/")).kubernetes_service_ip(),
            Ipv4Addr::new(10, 0, 0, 1)
        );
    }
}
