//! `--egress-selector-config-file`: connections that go through a proxy (KEP-1281), such as a konnectivity server.

mod config;
mod grpc;
mod http_connect;
mod packets;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, anyhow, ensure};
use async_trait::async_trait;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio_rustls::TlsConnector;

use crate::dial::{Connection, ControlPlane, Dialer, Direct};
use config::Selection;

/// How networks are reached.
pub struct Egress {
    /// Kubelets, pods, services, and the webhooks of the API.
    pub cluster: Arc<dyn Dialer>,
    pub control_plane: ControlPlane,
    /// The members of etcd clusters; directly when there is nothing on the way.
    pub etcd: Option<Arc<dyn Dialer>>,
}

/// Connections through a proxy.
struct Proxied {
    proxy: Proxy,
    protocol: Protocol,
}

/// Where a proxy listens.
enum Proxy {
    Tcp {
        host: String,
        port: u16,
        tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    },
    Socket(String),
}

enum Protocol {
    HttpConnect,
    Grpc,
}

// === impl Egress ===

impl Default for Egress {
    fn default() -> Self {
        Self {
            cluster: Arc::new(Direct),
            control_plane: ControlPlane::default(),
            etcd: None,
        }
    }
}

impl Egress {
    /// Reads and validates a file.
    ///
    /// # Errors
    /// What upstream objects to.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        ensure!(
            path.exists(),
            "egress-selector-config-file {shown} does not exist"
        );
        let text = std::fs::read_to_string(path)
            .with_context(|| {
                format!("unable to read egress selector configuration from \"{shown}\"")
            })
            .context("failed to read egress selector config")?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let selections = config::parse(text).context("failed to read egress selector config")?;
        if let Some(all) = config::validate(&selections) {
            return Err(anyhow!(all).context("failed to validate egress selector configuration"));
        }
        let mut egress = Self::default();
        for selection in selections {
            let name = selection.name.to_lowercase();
            let dialer = selection.dialer();
            let dialer = dialer.with_context(|| {
                format!("failed to create dialer for egressSelection \"{name}\"")
            })?;
            let Some(dialer) = dialer else { continue };
            match name.as_str() {
                "cluster" => egress.cluster = dialer,
                "controlplane" => egress.control_plane = ControlPlane(dialer),
                _ => egress.etcd = Some(dialer),
            }
        }
        Ok(egress)
    }
}

impl Selection {
    /// `None` when no proxy is wanted.
    fn dialer(&self) -> anyhow::Result<Option<Arc<dyn Dialer>>> {
        let protocol = match self.connection.proxy_protocol.as_str() {
            "HTTPConnect" => Protocol::HttpConnect,
            "GRPC" => Protocol::Grpc,
            _ => return Ok(None),
        };
        let transport = self.connection.transport.as_ref().context("no transport")?;
        let proxy = match (&transport.uds, &transport.tcp) {
            (Some(uds), _) => Proxy::Socket(uds.uds_name.clone()),
            (None, Some(tcp)) => tcp.proxy()?,
            (None, None) => return Err(anyhow!("Either a TCP or UDS transport must be specified")),
        };
        Ok(Some(Arc::new(Proxied { proxy, protocol })))
    }
}

// === impl Proxied ===

impl Proxied {
    async fn tunnel(&self, address: &str) -> std::io::Result<Connection> {
        match self.protocol {
            Protocol::HttpConnect => {
                let connection = self.proxy.connect().await?;
                http_connect::tunnel(connection, &self.proxy.name(), address).await
            }
            Protocol::Grpc => match &self.proxy {
                Proxy::Socket(path) => grpc::tunnel(path, address).await,
                Proxy::Tcp { .. } => Err(std::io::Error::other("GRPC needs a socket")),
            },
        }
    }
}

#[async_trait]
impl Dialer for Proxied {
    async fn connect(&self, address: SocketAddr) -> std::io::Result<Connection> {
        self.tunnel(&address.to_string()).await
    }

    /// The proxy looks the name up.
    async fn connect_name(&self, host: &str, port: u16) -> std::io::Result<Connection> {
        if host.contains(':') {
            self.tunnel(&format!("[{host}]:{port}")).await
        } else {
            self.tunnel(&format!("{host}:{port}")).await
        }
    }
}

// === impl Proxy ===

impl Proxy {
    async fn connect(&self) -> std::io::Result<Connection> {
        match self {
            Self::Socket(path) => Ok(Box::new(tokio::net::UnixStream::connect(path).await?)),
            Self::Tcp { host, port, tls } => {
                let stream = Direct.connect_name(host, *port).await?;
                let Some((config, name)) = tls else {
                    return Ok(stream);
                };
                let connector = TlsConnector::from(config.clone());
                Ok(Box::new(connector.connect(name.clone(), stream).await?))
            }
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Socket(path) => path.clone(),
            Self::Tcp { host, port, .. } => format!("{host}:{port}"),
        }
    }
}
