//! Which way exec, attach and port-forward went.

use std::collections::BTreeMap;

use ::http::StatusCode;
use parking_lot::Mutex;

use super::Text;

/// Who makes of a client's protocol what the pod's runtime understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Route {
    ToKubelet,
    Translated,
}

/// Counters with upstream's names.
#[derive(Default)]
pub struct Streams {
    routed: Mutex<BTreeMap<(String, Route), u64>>,
    translated: Codes,
    tunnelled: Codes,
}

type Codes = Mutex<BTreeMap<u16, u64>>;

impl Streams {
    /// Counts a request, by its subresource.
    pub(crate) fn routed(&self, subresource: &str, route: Route) {
        let key = (subresource.to_owned(), route);
        *self.routed.lock().entry(key).or_default() += 1;
    }

    /// Counts a command that was translated, by how that went.
    pub(crate) fn translated(&self, code: StatusCode) {
        *self.translated.lock().entry(code.as_u16()).or_default() += 1;
    }

    /// Counts a tunnel, by the answer to it.
    pub(crate) fn tunnelled(&self, code: StatusCode) {
        *self.tunnelled.lock().entry(code.as_u16()).or_default() += 1;
    }

    pub(super) fn render(&self, text: &mut Text) {
        let name = "apiserver_stream_translator_requests_total";
        text.metric(
            name,
            "counter",
            "Total number of requests that were handled by the StreamTranslatorProxy, which processes streaming RemoteCommand/V5",
        );
        render_codes(text, name, &self.translated);
        let name = "apiserver_stream_tunnel_requests_total";
        text.metric(
            name,
            "counter",
            "Total number of requests that were handled by the StreamTunnelProxy, which processes streaming PortForward/V2",
        );
        render_codes(text, name, &self.tunnelled);
        let name = "apiserver_websocket_streaming_requests_total";
        text.metric(
            name,
            "counter",
            "Total number of WebSocket streaming requests (exec/attach/portforward) routed by the API server, labeled by subresource and proxy_type. proxy_type is proxied_to_kubelet when the kubelet handles the request directly; otherwise translated_at_apiserver.",
        );
        for ((subresource, route), count) in self.routed.lock().iter() {
            let proxy_type = match route {
                Route::ToKubelet => "proxied_to_kubelet",
                Route::Translated => "translated_at_apiserver",
            };
            let labels = [("proxy_type", proxy_type), ("subresource", subresource)];
            text.value(name, &labels, count);
        }
    }
}

fn render_codes(text: &mut Text, name: &str, codes: &Codes) {
    for (code, count) in codes.lock().iter() {
        text.value(name, &[("code", &code.to_string())], count);
    }
}
