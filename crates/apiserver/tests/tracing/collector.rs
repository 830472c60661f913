//! A collector on loopback that keeps the spans it is sent.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tonic::codegen::{Body, Service, StdError, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::otlp::{
    ExportTraceServiceRequest, ExportTraceServiceResponse, KeyValue, ResourceSpans, Span, Value,
};

type Received = Arc<Mutex<Vec<ResourceSpans>>>;

/// A running collector.
pub struct Collector {
    pub address: SocketAddr,
    received: Received,
}

/// What tests look for in a span.
pub struct Collected {
    pub scope: String,
    pub span: Span,
}

impl Collector {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let received = Received::default();
        let incoming = futures::stream::unfold(listener, |listener| async {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        let server = tonic::transport::Server::builder().add_service(Traces(received.clone()));
        tokio::spawn(server.serve_with_incoming(incoming));
        Self { address, received }
    }

    /// All spans, in the order of their start.
    pub fn spans(&self) -> Vec<Collected> {
        let received = self.received.lock();
        let scopes = received.iter().flat_map(|r| &r.scope_spans);
        let mut spans: Vec<Collected> = scopes
            .flat_map(|scope| {
                let name = &scope.scope.as_ref().unwrap().name;
                scope.spans.iter().map(|span| Collected {
                    scope: name.clone(),
                    span: span.clone(),
                })
            })
            .collect();
        spans.sort_by_key(|collected| collected.span.start_time_unix_nano);
        spans
    }

    /// What the first batch says whose spans they are.
    pub fn resource(&self) -> Vec<KeyValue> {
        let received = self.received.lock();
        received[0].resource.clone().unwrap().attributes
    }
}

impl Collected {
    /// An attribute as text.
    pub fn attribute(&self, key: &str) -> Option<String> {
        attribute(&self.span.attributes, key)
    }

    pub fn traceparent(&self) -> String {
        let text = |bytes: &[u8]| -> String { bytes.iter().map(|b| format!("{b:02x}")).collect() };
        format!(
            "00-{}-{}-01",
            text(&self.span.trace_id),
            text(&self.span.span_id)
        )
    }
}

/// An attribute as text.
pub fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.clone()?.value? {
        Value::String(text) => Some(text),
        Value::Int(number) => Some(number.to_string()),
    }
}

#[derive(Clone)]
struct Traces(Received);

impl NamedService for Traces {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

impl UnaryService<ExportTraceServiceRequest> for Traces {
    type Response = ExportTraceServiceResponse;
    type Future = Ready<Result<Response<ExportTraceServiceResponse>, Status>>;

    fn call(&mut self, request: Request<ExportTraceServiceRequest>) -> Self::Future {
        self.0.lock().extend(request.into_inner().resource_spans);
        ready(Ok(Response::new(ExportTraceServiceResponse::default())))
    }
}

impl<B> Service<http::Request<B>> for Traces
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
    B::Data: Send,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let traces = self.clone();
        Box::pin(async move {
            assert!(request.uri().path().ends_with("TraceService/Export"));
            let mut grpc = Grpc::new(ProstCodec::default());
            Ok(grpc.unary(traces, request).await)
        })
    }
}
