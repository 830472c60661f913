//! How long the parts of a request took: told of requests that took long.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::go_duration;

/// What requests take less than is not worth an explanation.
const THRESHOLD: Duration = Duration::from_millis(500);

const PREFIX: &str = "apiserver.latency.k8s.io/";

/// A part of a request's way, as annotations name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    Queue,
    Authentication,
    Authorization,
    Storage,
    Impersonation,
    MutatingWebhooks,
    ValidatingWebhooks,
    /// Decoding what the store had, of lists that are read from it.
    Decoding,
    /// Making a table or a part of objects of what was asked for.
    Transformation,
    /// Everything from there to the answer's end: what is not in the client's format yet is brought into it while it is sent.
    Serialization,
    /// What of that the connection took.
    Write,
}

impl Layer {
    fn name(self) -> &'static str {
        match self {
            Self::Queue => "apf-queue-wait",
            Self::Authentication => "authentication",
            Self::Authorization => "authorization",
            Self::Storage => "etcd",
            Self::Impersonation => "impersonation",
            Self::MutatingWebhooks => "mutating-webhook",
            Self::ValidatingWebhooks => "validating-webhook",
            Self::Decoding => "decode-response-object",
            Self::Transformation => "transform-response-object",
            Self::Serialization => "serialize-response-object",
            Self::Write => "response-write",
        }
    }
}

/// The times of one request.
pub(super) struct Latencies {
    received: Instant,
    took: BTreeMap<Layer, Duration>,
}

impl Latencies {
    pub fn since(received: Instant) -> Self {
        Self {
            received,
            took: BTreeMap::new(),
        }
    }

    /// Adds to what a part has taken.
    pub fn add(&mut self, layer: Layer, took: Duration) {
        *self.took.entry(layer).or_default() += took;
    }

    /// What there is to tell of a request that ends now.
    pub fn annotations(&self) -> Vec<(String, String)> {
        self.after(self.received.elapsed())
    }

    fn after(&self, total: Duration) -> Vec<(String, String)> {
        if total <= THRESHOLD || self.took.is_empty() {
            return Vec::new();
        }
        let parts = self.took.iter().map(|(layer, took)| (layer.name(), *took));
        let all = parts.chain([("total", total)]);
        all.filter(|(_, took)| !took.is_zero())
            .map(|(name, took)| (format!("{PREFIX}{name}"), go_duration::show(took)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_takes_long_is_explained() {
        let mut latencies = Latencies::since(Instant::now());
        let long = Duration::from_millis(501);
        assert_eq!(latencies.after(long), []);
        latencies.add(Layer::Storage, Duration::from_millis(200));
        latencies.add(Layer::Storage, Duration::from_millis(100));
        latencies.add(Layer::Queue, Duration::ZERO);
        assert_eq!(latencies.after(THRESHOLD), []);
        let told = [
            ("apiserver.latency.k8s.io/etcd", "300ms"),
            ("apiserver.latency.k8s.io/total", "501ms"),
        ];
        let told = told.map(|(name, took)| (name.to_owned(), took.to_owned()));
        assert_eq!(latencies.after(long), told);
    }
}
