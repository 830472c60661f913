//! A collector on loopback that keeps the spans it is sent.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tonic::Status;

use crate::common::grpc::{Calls, Serving, answer};
use crate::tracing::otlp::{
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
        let server =
            tonic::transport::Server::builder().add_service(Serving(Traces(received.clone())));
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

impl Calls for Traces {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";

    fn call(&self, method: &str, message: &[u8]) -> Result<Vec<u8>, Status> {
        assert_eq!(method, "Export");
        answer(message, |request: ExportTraceServiceRequest| {
            self.0.lock().extend(request.resource_spans);
            Ok(ExportTraceServiceResponse::default())
        })
    }
}
