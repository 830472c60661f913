//! Outgoing connections. Where the cluster's network is not the process's own, the master hands in a [`Dialer`] that opens
//! sockets inside it.

use std::fmt;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// What bytes go through, in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}

/// A connection, whichever way it takes.
pub type Connection = Box<dyn Stream>;

/// Opens connections into a network.
#[async_trait]
pub trait Dialer: Send + Sync + 'static {
    /// # Errors
    /// What the kernel says.
    async fn connect(&self, address: SocketAddr) -> std::io::Result<Connection>;

    /// Connects to a host by its name, which is looked up from the process's own network.
    ///
    /// # Errors
    /// As [`Self::connect`], and when there is no such host.
    async fn connect_name(&self, host: &str, port: u16) -> std::io::Result<Connection> {
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

/// Connects from the process's own network.
pub struct Direct;

#[async_trait]
impl Dialer for Direct {
    async fn connect(&self, address: SocketAddr) -> std::io::Result<Connection> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

/// How services of the control plane are reached: webhooks that are named by kubeconfigs, and the collector of spans.
#[derive(Clone)]
pub struct ControlPlane(pub Arc<dyn Dialer>);

impl Default for ControlPlane {
    fn default() -> Self {
        Self(Arc::new(Direct))
    }
}

impl ControlPlane {
    /// Connects to an address, or to a host by its name.
    ///
    /// # Errors
    /// As [`Dialer::connect`] and [`Dialer::connect_name`].
    pub async fn connect(&self, host: &str, port: u16) -> std::io::Result<Connection> {
        match host.parse() {
            Ok(address) => self.0.connect(SocketAddr::new(address, port)).await,
            Err(_) => self.0.connect_name(host, port).await,
        }
    }
}

impl fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ControlPlane")
    }
}

/// Why a connection was not made, in Go's words, as far as it has some.
#[must_use]
pub fn refusal(error: &std::io::Error) -> String {
    let why = match error.kind() {
        ErrorKind::ConnectionRefused => "connection refused",
        ErrorKind::ConnectionReset => "connection reset by peer",
        ErrorKind::HostUnreachable => "no route to host",
        ErrorKind::NetworkUnreachable => "network is unreachable",
        ErrorKind::TimedOut => "connection timed out",
        _ => return error.to_string(),
    };
    format!("connect: {why}")
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
) -> std::io::Result<TlsStream<Connection>> {
    let stream = dialer.connect(address).await?;
    let name = match name {
        Some(name) => ServerName::try_from(name.to_owned()).map_err(std::io::Error::other)?,
        None => ServerName::IpAddress(address.ip().into()),
    };
    TlsConnector::from(config).connect(name, stream).await
}
