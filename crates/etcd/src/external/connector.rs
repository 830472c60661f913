//! Members that are reached through something: a proxy on the way to them.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;

use etcd_client::{BalancedChannelBuilder, Channel as Balanced};
use futures::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::transport::channel::Change;
use tonic::transport::{Channel, Endpoint};
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Service as _};

/// What bytes go through, in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A connection being made to a host and a port.
pub type Connecting = BoxFuture<'static, io::Result<Box<dyn Stream>>>;

/// Opens connections to members.
#[derive(Clone)]
pub struct Connector(Arc<dyn Fn(String, u16) -> Connecting + Send + Sync>);

/// The members of a cluster, asked in turn.
struct Members {
    connector: Connector,
    known: Mutex<Known>,
}

struct Known {
    changes: mpsc::Receiver<Change<Uri, Endpoint>>,
    channels: Vec<(Uri, Channel)>,
    next: usize,
}

// === impl Connector ===

impl Connector {
    pub fn new(connect: impl Fn(String, u16) -> Connecting + Send + Sync + 'static) -> Self {
        Self(Arc::new(connect))
    }

    /// A channel to a member, which is connected when it is first used.
    fn channel(&self, endpoint: &Endpoint) -> Channel {
        let connect = self.0.clone();
        endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
            let host = uri.host().unwrap_or_default();
            let host = host
                .trim_start_matches('[')
                .trim_end_matches(']')
                .to_owned();
            let usual = if uri.scheme_str() == Some("https") {
                443
            } else {
                80
            };
            let connecting = connect(host, uri.port_u16().unwrap_or(usual));
            async move { connecting.await.map(TokioIo::new) }
        }))
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl BalancedChannelBuilder for Connector {
    type Error = etcd_client::Error;

    fn balanced_channel(
        self,
        buffer_size: usize,
    ) -> Result<(Balanced, mpsc::Sender<Change<Uri, Endpoint>>), Self::Error> {
        let (sender, changes) = mpsc::channel(buffer_size);
        let members = Arc::new(Members {
            connector: self,
            known: Mutex::new(Known {
                changes,
                channels: Vec::new(),
                next: 0,
            }),
        });
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let member = members.next();
            async move {
                let mut member = member.ok_or("there are no members")?;
                poll_fn(|cx| member.poll_ready(cx)).await?;
                Ok::<_, BoxError>(member.call(request).await?)
            }
        });
        let service = BoxCloneSyncService::new(service);
        Ok((Balanced::Custom(service), sender))
    }
}

// === impl Members ===

impl Members {
    fn next(&self) -> Option<Channel> {
        let mut known = self.known.lock();
        while let Ok(change) = known.changes.try_recv() {
            match change {
                Change::Insert(uri, endpoint) => {
                    let channel = self.connector.channel(&endpoint);
                    known.channels.push((uri, channel));
                }
                Change::Remove(uri) => known.channels.retain(|(known, _)| *known != uri),
            }
        }
        known.next = known.next.wrapping_add(1);
        let place = known.next.checked_rem(known.channels.len())?;
        Some(known.channels[place].1.clone())
    }
}
