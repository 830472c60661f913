//! Queries for other domains go to the servers that `resolv.conf` names, as they came.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

/// How long one server is given.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks the servers in their order.
#[derive(Clone, Debug, Default)]
pub struct Forwarder {
    servers: Vec<SocketAddr>,
}

impl Forwarder {
    /// With the `nameserver` lines of a file; none when it cannot be read.
    pub fn from_resolv_conf(path: &Path) -> Self {
        Self::parse(&std::fs::read_to_string(path).unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let servers = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("nameserver"))
            .filter_map(|server| server.trim().parse::<IpAddr>().ok())
            .map(|server| SocketAddr::new(server, 53))
            .collect();
        Self { servers }
    }

    /// The first server's answer, or `None` when none gives one.
    pub async fn ask(&self, query: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
        for server in &self.servers {
            let asked = async {
                if over_tcp {
                    ask_tcp(*server, query).await
                } else {
                    ask_udp(*server, query).await
                }
            };
            match tokio::time::timeout(PATIENCE, asked).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%server, %error, "a name server failed"),
                Err(_) => tracing::debug!(%server, "a name server did not answer"),
            }
        }
        None
    }
}

async fn ask_udp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let socket = UdpSocket::bind((if server.is_ipv4() { "0.0.0.0" } else { "::" }, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut answer = vec![0; 65_535];
    loop {
        let length = socket.recv(&mut answer).await?;
        // Late answers to earlier questions are not ours.
        if length >= 2 && answer[..2] == query[..2] {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(std::io::Error::other)?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(query).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf() {
        let forwarder = Forwarder::parse(
            "# x\nsearch a\nnameserver 127.0.0.53\nnameserver nonsense\nnameserver ::1\n",
        );
        assert_eq!(
            forwarder.servers,
            [
                "127.0.0.53:53".parse().unwrap(),
                "[::1]:53".parse().unwrap()
            ]
        );
    }
}
