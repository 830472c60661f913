//! Outgoing connections to kubelets, pods and services. Where the cluster's network is not the process's own, the master
//! hands in a [`Dialer`] that opens sockets inside it.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Opens connections into the cluster's network.
#[async_trait]
pub trait Dialer: Send + Sync + 'static {
    /// # Errors
    /// What the kernel says.
    async fn connect(&self, address: SocketAddr) -> std::io::Result<TcpStream>;
}

/// Connects from the process's own network.
pub struct Direct;

#[async_trait]
impl Dialer for Direct {
    async fn connect(&self, address: SocketAddr) -> std::io::Result<TcpStream> {
        TcpStream::connect(address).await
    }
}

/// A TLS connection to an address, verified against that address.
///
/// # Errors
/// When it cannot be reached or its certificate is not good.
pub async fn connect_tls(
    dialer: &dyn Dialer,
    config: Arc<ClientConfig>,
    address: SocketAddr,
    name: Option<&str>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = dialer.connect(address).await?;
    stream.set_nodelay(true)?;
    let name = match name {
        Some(name) => ServerName::try_from(name.to_owned()).map_err(std::io::Error::other)?,
        None => ServerName::IpAddress(address.ip().into()),
    };
    TlsConnector::from(config).connect(name, stream).await
}
