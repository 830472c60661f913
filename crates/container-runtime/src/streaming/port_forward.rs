//! Port forwarding: connections from inside the pod's network namespace to a port of the pod.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use fluyt_transport::spdy;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::runtime::{Error, Runtime};

pub const PROTOCOL: &str = "portforward.k8s.io";

/// Streams of one request that may wait for their other half.
const MAX_WAITING: usize = 100;

/// Connects to a port of the pod, as a process in it would through `localhost`.
pub async fn connect(runtime: &Runtime, sandbox: &str, port: u16) -> Result<TcpStream, Error> {
    let sandbox = runtime.sandbox(sandbox)?;
    let record = sandbox.record();
    if !record.ready {
        return Err(Error::FailedPrecondition(format!(
            "sandbox {} is not running",
            sandbox.id
        )));
    }
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = if record.is_host_network() {
        TcpStream::connect(address)
            .await
            .map_err(|error| Error::Internal(error.to_string()))
    } else {
        let namespace = PathBuf::from(format!("/proc/{}/ns/net", record.shim_pid));
        fluyt_network::netns::connect_tcp_in(&namespace, address)
            .await
            .map_err(|error| Error::Internal(error.to_string()))
    };
    stream.map_err(|error| {
        Error::Internal(format!(
            "failed to connect to localhost:{port} inside namespace {:?}: {error}",
            sandbox.id
        ))
    })
}

/// Passes bytes in both directions until the pod is done: a client may end its half and still get the answer, but
/// has nobody to talk to once the pod ended its own.
pub async fn relay(client: impl AsyncRead + AsyncWrite + Unpin, mut pod: TcpStream) {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_pod, mut to_pod) = pod.split();
    let upstream = async {
        let _ = tokio::io::copy(&mut from_client, &mut to_pod).await;
        let _ = to_pod.shutdown().await;
    };
    let downstream = async {
        let _ = tokio::io::copy(&mut from_pod, &mut to_client).await;
        let _ = to_client.shutdown().await;
    };
    tokio::pin!(upstream, downstream);
    let mut upstream_open = true;
    loop {
        tokio::select! {
            () = &mut downstream => return,
            () = &mut upstream, if upstream_open => upstream_open = false,
        }
    }
}

/// Serves a SPDY connection, on which the client opens two streams per connection that it forwards.
pub async fn over_spdy(mut connection: spdy::Connection, sandbox: &str, runtime: &Arc<Runtime>) {
    let mut waiting: HashMap<String, spdy::Stream> = HashMap::new();
    while let Some(stream) = connection.accept().await {
        let id = stream.header("requestid").unwrap_or_default().to_owned();
        let Some(other) = waiting.remove(&id) else {
            if waiting.len() < MAX_WAITING {
                waiting.insert(id, stream);
            }
            continue;
        };
        let (data, error) = if stream.header("streamtype") == Some("error") {
            (other, stream)
        } else {
            (stream, other)
        };
        let port = data.header("port").and_then(|port| port.parse().ok());
        let runtime = Arc::clone(runtime);
        let sandbox = sandbox.to_owned();
        tokio::spawn(async move { forward(&runtime, &sandbox, port, data, error).await });
    }
}

async fn forward(
    runtime: &Runtime,
    sandbox: &str,
    port: Option<u16>,
    mut data: spdy::Stream,
    mut error: spdy::Stream,
) {
    let result = match port {
        Some(port) => match connect(runtime, sandbox, port).await {
            Ok(pod) => {
                // A connection that breaks is between the client and its peer.
                relay(&mut data, pod).await;
                Ok(())
            }
            Err(error) => Err((port, error)),
        },
        None => Err((
            0,
            Error::InvalidArgument("\"port\" header is not a port".to_owned()),
        )),
    };
    if let Err((port, reason)) = result {
        let message = format!("error forwarding port {port} to pod {sandbox}, uid : {reason}");
        let _ = error.write_all(message.as_bytes()).await;
    }
    let _ = error.shutdown().await;
    let _ = data.shutdown().await;
}
