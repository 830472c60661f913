//! Spans on their way to the collector: a bounded queue, and the task that empties it in batches. Nobody waits for it.

use std::collections::BTreeMap;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream as StandardStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::config::Address;
use super::otlp::{
    EXPORT, ExportTraceServiceRequest, ExportTraceServiceResponse, InstrumentationScope, KeyValue,
    Resource, ResourceSpans, ScopeSpans, Span,
};
use crate::dial::{Connection, ControlPlane};

/// Spans that wait; what comes next is dropped.
const QUEUE: usize = 2048;

/// Spans that are sent at once, and how long the first of them waits for others.
const BATCH: usize = 512;
const DELAY: Duration = Duration::from_secs(5);

/// How long a collector may take for a batch, and all attempts together.
const ATTEMPT: Duration = Duration::from_secs(10);
const EXPORTING: Duration = Duration::from_secs(30);

/// The pause after the first attempt that failed; each is half as long again as the one before.
const PAUSE: Duration = Duration::from_secs(5);

enum Message {
    /// With the scope that it belongs to.
    Span(&'static str, Box<Span>),
    /// Answered when everything before it was sent.
    Flush(oneshot::Sender<()>),
}

/// The queue.
pub(super) struct Exporter {
    queue: mpsc::Sender<Message>,
    dropped: Arc<AtomicU64>,
}

impl Exporter {
    /// Starts the task. It ends with the exporter; after `shutdown` it tries nothing twice.
    ///
    /// # Errors
    /// When the address makes no sense.
    pub(super) fn spawn(
        address: &Address,
        resource: Vec<KeyValue>,
        network: ControlPlane,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Self> {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let task = Task {
            receiver,
            channel: channel(address, network)?,
            resource: Resource {
                attributes: resource,
            },
            dropped: dropped.clone(),
            shutdown,
        };
        tokio::spawn(task.run());
        Ok(Self { queue, dropped })
    }

    pub(super) fn push(&self, scope: &'static str, span: Span) {
        let message = Message::Span(scope, Box::new(span));
        if self.queue.try_send(message).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until what is in the queue has been sent, or could not be.
    pub(super) async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.queue.send(Message::Flush(done)).await.is_ok() {
            let _ = flushed.await;
        }
    }
}

/// A connection that is made when it is needed, and again when it broke.
fn channel(address: &Address, network: ControlPlane) -> anyhow::Result<Channel> {
    let uri = match address {
        Address::Network(target) => format!("http://{target}"),
        // gRPC wants an authority; nobody looks it up.
        Address::Socket(_) | Address::Abstract(_) => "http://localhost".to_owned(),
    };
    let endpoint = Endpoint::from_shared(uri).context("the collector's endpoint")?;
    let endpoint = endpoint.connect_timeout(ATTEMPT);
    let address = match address {
        Address::Network(_) => {
            let connect = tower::service_fn(move |uri: Uri| dial(uri, network.clone()));
            return Ok(endpoint.connect_with_connector_lazy(connect));
        }
        Address::Socket(path) => SocketAddr::from_pathname(path)?,
        Address::Abstract(name) => SocketAddr::from_abstract_name(name)?,
    };
    let connect = move |_: Uri| {
        let address = address.clone();
        async move {
            let stream = StandardStream::connect_addr(&address)?;
            stream.set_nonblocking(true)?;
            std::io::Result::Ok(TokioIo::new(UnixStream::from_std(stream)?))
        }
    };
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(connect)))
}

async fn dial(uri: Uri, network: ControlPlane) -> std::io::Result<TokioIo<Connection>> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let port = uri.port_u16().unwrap_or(80);
    Ok(TokioIo::new(network.0.connect_name(host, port).await?))
}

struct Task {
    receiver: mpsc::Receiver<Message>,
    channel: Channel,
    resource: Resource,
    dropped: Arc<AtomicU64>,
    shutdown: CancellationToken,
}

/// Spans by the scope that they belong to.
type Batch = BTreeMap<&'static str, Vec<Span>>;

impl Task {
    async fn run(mut self) {
        while let Some(first) = self.receiver.recv().await {
            let (batch, flushed) = self.gather(first).await;
            let spans = batch.values().map(Vec::len).sum::<usize>();
            if spans > 0
                && let Err(error) = self.deliver(batch).await
            {
                let error = error.message();
                tracing::warn!(spans, error, "spans could not be exported");
            }
            let dropped = self.dropped.swap(0, Ordering::Relaxed);
            if dropped > 0 {
                tracing::warn!(dropped, "there were more spans than could be exported");
            }
            if let Some(flushed) = flushed {
                let _ = flushed.send(());
            }
        }
    }

    /// As many spans as a batch holds, as come within the time, or as somebody waits for.
    async fn gather(&mut self, first: Message) -> (Batch, Option<oneshot::Sender<()>>) {
        let deadline = Instant::now() + DELAY;
        let (mut batch, mut gathered) = (Batch::new(), 0);
        let mut next = Some(first);
        loop {
            match next {
                Some(Message::Span(scope, span)) => batch.entry(scope).or_default().push(*span),
                Some(Message::Flush(flushed)) => return (batch, Some(flushed)),
                None => return (batch, None),
            }
            gathered += 1;
            if gathered == BATCH {
                return (batch, None);
            }
            let waiting = tokio::time::timeout_at(deadline, self.receiver.recv());
            next = waiting.await.unwrap_or_default();
        }
    }

    /// Sends a batch, several times if it is worth it.
    async fn deliver(&self, batch: Batch) -> Result<(), Status> {
        let scopes = batch.into_iter().map(|(scope, spans)| ScopeSpans {
            scope: Some(InstrumentationScope {
                name: scope.to_owned(),
            }),
            spans,
        });
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: scopes.collect(),
            }],
        };
        let deadline = Instant::now() + EXPORTING;
        let mut pause = PAUSE;
        loop {
            let Err(status) = self.send(&request).await else {
                return Ok(());
            };
            if !is_passing(status.code()) || Instant::now() + pause > deadline {
                return Err(status);
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.shutdown.cancelled() => return Err(status),
            }
            pause = pause * 3 / 2;
        }
    }

    async fn send(&self, request: &ExportTraceServiceRequest) -> Result<(), Status> {
        let exporting = async {
            let mut client = tonic::client::Grpc::new(self.channel.clone());
            client
                .ready()
                .await
                .map_err(|error| Status::unavailable(error.to_string()))?;
            let (path, codec) = (PathAndQuery::from_static(EXPORT), ProstCodec::default());
            let request = Request::new(request.clone());
            let answer: ExportTraceServiceResponse =
                client.unary(request, path, codec).await?.into_inner();
            Ok(answer)
        };
        let late = |_| Status::deadline_exceeded("the collector took too long");
        let answer: Result<_, Status> = tokio::time::timeout(ATTEMPT, exporting)
            .await
            .map_err(late)?;
        let partial = answer?.partial_success.unwrap_or_default();
        if partial.rejected_spans > 0 {
            let (spans, why) = (partial.rejected_spans, partial.error_message);
            tracing::warn!(spans, why, "the collector rejected spans");
        }
        Ok(())
    }
}

/// Whether the same request may go well later, as the protocol has it.
fn is_passing(code: Code) -> bool {
    matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody listens, and the task has no chance to run: there is no other thread.
    #[tokio::test]
    async fn a_full_queue_drops_what_comes() {
        let address = Address::Socket("/nonexistent/collector.sock".into());
        let shutdown = CancellationToken::new();
        let exporter = Exporter::spawn(
            &address,
            Vec::new(),
            ControlPlane::default(),
            shutdown.clone(),
        )
        .unwrap();
        for _ in 0..QUEUE + 3 {
            exporter.push("scope", Span::default());
        }
        assert_eq!(exporter.dropped.load(Ordering::Relaxed), 3);
        shutdown.cancel();
        // What cannot be sent is given up, so that a shutdown does not hang.
        exporter.flush().await;
        assert_eq!(exporter.queue.capacity(), QUEUE);
    }
}
