//! What is counted of peers, by upstream's names.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::Gvr;
use crate::metrics::Text;

#[derive(Default)]
pub(super) struct Counters {
    /// By the status that was answered; of no resource, questions what a peer serves.
    rerouted: Mutex<BTreeMap<(u16, Gvr), u64>>,
    unresolved: Mutex<BTreeMap<Gvr, u64>>,
    /// By what went wrong when a peer was asked what it serves.
    sync_errors: Mutex<BTreeMap<&'static str, u64>>,
    pub hits: AtomicU64,
    pub misses: AtomicU64,
    pub without_peers: AtomicU64,
}

pub(super) fn increment(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    /// A request that a peer was sent.
    pub fn rerouted(&self, status: u16, gvr: Gvr) {
        *self.rerouted.lock().entry((status, gvr)).or_default() += 1;
    }

    /// A request that no peer was sent, since nobody knows where they are.
    pub fn unresolved(&self, gvr: Gvr) {
        *self.unresolved.lock().entry(gvr).or_default() += 1;
    }

    pub fn sync_error(&self, kind: &'static str) {
        *self.sync_errors.lock().entry(kind).or_default() += 1;
    }

    pub fn render(&self, out: &mut String) {
        let mut text = Text::default();
        let rerouted = self.rerouted.lock();
        let name = "apiserver_rerouted_request_total";
        begin(
            &mut text,
            rerouted.is_empty(),
            name,
            "Requests passed on to a peer, or without a resource, questions what it serves.",
        );
        for ((status, gvr), count) in rerouted.iter() {
            let code = status.to_string();
            let labels = [&[("code", &*code)], &of(gvr)[..]].concat();
            text.value(name, &labels, count);
        }
        let unresolved = self.unresolved.lock();
        let name = "apiserver_peer_proxy_errors_total";
        begin(
            &mut text,
            unresolved.is_empty(),
            name,
            "Requests that could not be passed on to a peer.",
        );
        for (gvr, count) in unresolved.iter() {
            let [group, resource, version] = of(gvr);
            let labels = [group, resource, ("type", "endpoint_resolution"), version];
            text.value(name, &labels, count);
        }
        let errors = self.sync_errors.lock();
        let name = "apiserver_peer_discovery_sync_errors_total";
        begin(
            &mut text,
            errors.is_empty(),
            name,
            "Failed attempts to learn what a peer serves.",
        );
        for (kind, count) in errors.iter() {
            text.value(name, &[("type", kind)], count);
        }
        for (name, counter, help) in [
            (
                "aggregator_discovery_nopeer_requests_total",
                &self.without_peers,
                "Requests for discovery without what peers serve.",
            ),
            (
                "aggregator_discovery_peer_aggregated_cache_hits_total",
                &self.hits,
                "Requests for discovery that was already merged with what peers serve.",
            ),
            (
                "aggregator_discovery_peer_aggregated_cache_misses_total",
                &self.misses,
                "Requests for discovery that had to be merged with what peers serve.",
            ),
        ] {
            text.metric(name, "counter", help);
            text.value(name, &[], counter.load(Ordering::Relaxed));
        }
        out.push_str(&text.finish());
    }
}

/// Metrics with labels are not shown before there is something to show.
fn begin(text: &mut Text, is_empty: bool, name: &str, help: &str) {
    if !is_empty {
        text.metric(name, "counter", help);
    }
}

fn of(gvr: &Gvr) -> [(&'static str, &str); 3] {
    [
        ("group", &gvr.group),
        ("resource", &gvr.resource),
        ("version", &gvr.version),
    ]
}
