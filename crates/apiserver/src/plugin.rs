//! Plugins of the server: programs on this machine that serve gRPC on a socket.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream as Blocking};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

/// Requests to a plugin, which is connected to when the first one is sent.
#[must_use]
pub fn channel(path: String) -> Channel {
    // Only the socket matters; the address is a form.
    let endpoint = Endpoint::from_static("http://localhost");
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { connect(&path).await.map(TokioIo::new) }
    }))
}

/// Sends one message and waits for the answer.
///
/// # Errors
/// The plugin's, or that it cannot be reached.
pub async fn call<Q, A>(channel: &Channel, method: &'static str, message: Q) -> Result<A, Status>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let mut client = tonic::client::Grpc::new(channel.clone());
    let ready = client.ready().await;
    ready.map_err(|e| Status::unavailable(e.to_string()))?;
    let codec = ProstCodec::<Q, A>::default();
    let path = ::http::uri::PathAndQuery::from_static(method);
    let answer = client.unary(Request::new(message), path, codec).await;
    answer.map(tonic::Response::into_inner)
}

/// Connects to a socket's path, or to an abstract name (`@name`).
async fn connect(path: &str) -> std::io::Result<UnixStream> {
    let Some(name) = path.trim_start_matches('/').strip_prefix('@') else {
        return UnixStream::connect(path).await;
    };
    // The kernel answers at once: an abstract name is there or not.
    let stream = Blocking::connect_addr(&SocketAddr::from_abstract_name(name)?)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}
