//! Calls of others: each is a span, and the others are told of which.

use ::http::{HeaderMap, Method, StatusCode, Uri};

use super::otlp::SpanKind;
use super::span::{HTTP, Span, current};

/// A call that is under way.
pub struct Outgoing(Option<Span>);

/// Starts a call, whose headers tell where it is in which trace.
pub fn call(method: &Method, url: &str, headers: &mut HeaderMap) -> Outgoing {
    let Some(current) = current() else {
        return Outgoing(None);
    };
    let span = current.child(HTTP, &format!("HTTP {method}"), SpanKind::Client);
    span.as_ref().unwrap_or(&current).inject(headers);
    if let Some(span) = &span {
        span.set("http.request.method", method.as_str());
        span.set("url.full", url);
        let uri = url.parse::<Uri>().unwrap_or_default();
        span.set("server.address", uri.host().unwrap_or_default());
        if let Some(port) = uri.port_u16().filter(|port| *port != 443) {
            span.set("server.port", port);
        }
        span.set("network.protocol.version", "1.1");
    }
    Outgoing(span)
}

impl Outgoing {
    pub fn answered(&self, status: StatusCode) {
        if let Some(span) = &self.0 {
            span.set("http.response.status_code", status.as_u16());
            if status.is_client_error() || status.is_server_error() {
                span.fail("");
            }
        }
    }

    pub fn failed(&self, why: &str) {
        if let Some(span) = &self.0 {
            span.set("error.type", "_OTHER");
            span.fail(why);
        }
    }

    /// The span, for what the call goes on with.
    pub fn into_span(self) -> Option<Span> {
        self.0
    }
}
