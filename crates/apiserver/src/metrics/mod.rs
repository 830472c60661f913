//! `/metrics`, with upstream's names.

mod exposition;
mod process;
mod storage;
mod streams;
mod text;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ::http::{HeaderMap, StatusCode};
use fluyt_api::resources::{self, Resource};
use parking_lot::Mutex;

use crate::cache::Caches;
use crate::http::content_type;
use crate::request::RequestInfo;
use crate::served::MINOR;

pub use exposition::{Exposition, Filter};
pub use storage::Members;
pub(crate) use streams::Route;
use streams::Streams;
pub use text::{Histogram, Text};

/// Upper bounds of the sizes of events.
const EVENT_SIZES: &[f64] = &[
    1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0, 65536.0, 131_072.0,
];

/// Counters of everything that is worth counting.
#[derive(Default)]
pub struct Metrics {
    requests: Mutex<HashMap<Labels, Series>>,
    mutating: AtomicI64,
    read_only: AtomicI64,
    long_running: Mutex<HashMap<Labels, u64>>,
    events: Mutex<HashMap<Kind, EventSizes>>,
    store: Mutex<HashMap<(&'static str, Kind), Stored>>,
    /// Uses of extended tokens before and after they should have been renewed.
    valid_tokens: AtomicU64,
    stale_tokens: AtomicU64,
    /// Sizes of members of etcd clusters.
    members: storage::Sizes,
    pub(crate) streams: Streams,
}

/// What a request is counted under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Labels {
    verb: &'static str,
    dry_run: &'static str,
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    subresource: &'static str,
    scope: &'static str,
}

/// Group, version and name of a resource.
type Kind = (&'static str, &'static str, &'static str);

#[derive(Default)]
struct Series {
    by_code: BTreeMap<u16, u64>,
    duration: Histogram,
}

#[derive(Default)]
struct Stored {
    duration: Histogram,
    errors: u64,
}

/// A request that is being handled, until it is dropped.
pub struct InFlight {
    metrics: Arc<Metrics>,
    mutating: bool,
}

/// The sizes of a resource's events.
#[derive(Clone)]
pub struct EventSizes(Arc<Mutex<Histogram>>);

/// A request that goes on, until it is dropped.
pub struct LongRunning {
    metrics: Arc<Metrics>,
    labels: Labels,
}

/// Paths besides resources that are counted, by their names.
const PATHS: &[&str] = &[
    "/healthz",
    "/livez",
    "/metrics",
    "/openapi/v2",
    "/openapi/v3",
    "/readyz",
    "/version",
];

impl Labels {
    /// Unknown names from the outside must not grow the table.
    pub(crate) fn of(info: &RequestInfo, headers: &HeaderMap) -> Option<Self> {
        let Some(target) = &info.target else {
            let path = PATHS
                .iter()
                .find(|p| **p == info.path.trim_end_matches('/'))?;
            return Some(Self {
                verb: "GET",
                dry_run: "",
                group: "",
                version: "",
                resource: "",
                subresource: path,
                scope: "",
            });
        };
        let resource = target.resource.as_ref()?;
        let subresource = resource.subresource(&target.subresource);
        let connects = subresource.is_some_and(|s| s.kind.ends_with("Options"));
        let verb = match info.verb {
            _ if connects && target.subresource != "log" => "CONNECT",
            "get" => "GET",
            "list" => "LIST",
            "watch" => "WATCH",
            "create" => "POST",
            "update" => "PUT",
            "patch" if content_type(headers).starts_with("application/apply-patch+") => "APPLY",
            "patch" => "PATCH",
            "delete" => "DELETE",
            "deletecollection" => "DELETECOLLECTION",
            _ => "other",
        };
        let scope = if !target.name.is_empty() || info.verb == "create" {
            "resource"
        } else if !target.namespace.is_empty() {
            "namespace"
        } else {
            "cluster"
        };
        let dry_run = info.query.all("dryRun").any(|v| v == "All");
        Some(Self {
            verb,
            dry_run: if dry_run { "All" } else { "" },
            group: resource.group,
            version: resource.version,
            resource: resource.plural,
            subresource: subresource.map_or("", |s| s.name),
            scope,
        })
    }

    pub(crate) fn verb(&self) -> &'static str {
        self.verb
    }

    pub(crate) fn scope(&self) -> &'static str {
        self.scope
    }

    /// Whether the request lasts as long as its client wants.
    fn is_long_running(&self) -> bool {
        matches!(self.verb, "WATCH" | "CONNECT") || self.subresource == "log"
    }

    fn is_mutating(&self) -> bool {
        !matches!(self.verb, "GET" | "LIST" | "WATCH")
    }

    fn list(&self) -> [(&'static str, &'static str); 8] {
        [
            ("component", "apiserver"),
            ("dry_run", self.dry_run),
            ("group", self.group),
            ("resource", self.resource),
            ("scope", self.scope),
            ("subresource", self.subresource),
            ("verb", self.verb),
            ("version", self.version),
        ]
    }
}

impl Metrics {
    pub(crate) fn observe(&self, labels: Option<Labels>, status: StatusCode, took: Duration) {
        let Some(labels) = labels else { return };
        let mut requests = self.requests.lock();
        let series = requests.entry(labels).or_default();
        *series.by_code.entry(status.as_u16()).or_default() += 1;
        // How long a watch lasts says nothing of the server.
        if !labels.is_long_running() {
            series.duration.observe_time(took);
        }
    }

    /// Counts a request as being handled.
    pub(crate) fn in_flight(self: &Arc<Self>, labels: Option<&Labels>) -> Option<InFlight> {
        let labels = labels.filter(|l| !l.is_long_running())?;
        let mutating = labels.is_mutating();
        self.gauge(mutating).fetch_add(1, Ordering::Relaxed);
        Some(InFlight {
            metrics: self.clone(),
            mutating,
        })
    }

    fn gauge(&self, mutating: bool) -> &AtomicI64 {
        if mutating {
            &self.mutating
        } else {
            &self.read_only
        }
    }

    /// Counts a request that goes on.
    pub(crate) fn long_running(self: &Arc<Self>, labels: Labels) -> LongRunning {
        *self.long_running.lock().entry(labels).or_default() += 1;
        LongRunning {
            metrics: self.clone(),
            labels,
        }
    }

    /// Where events of a resource are counted that are sent to watchers.
    pub(crate) fn event_sizes(&self, resource: &Resource) -> EventSizes {
        let kind = (resource.group, resource.version, resource.plural);
        self.events.lock().entry(kind).or_default().clone()
    }

    /// Counts the use of a service-account token that lives on after its time.
    pub(crate) fn extended_token(&self, stale: bool) {
        let count = if stale {
            &self.stale_tokens
        } else {
            &self.valid_tokens
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request to the store.
    pub(crate) fn stored(
        &self,
        operation: &'static str,
        resource: &Resource,
        since: Instant,
        succeeded: bool,
    ) {
        let kind = (resource.group, "", resource.plural);
        let mut store = self.store.lock();
        let stored = store.entry((operation, kind)).or_default();
        stored.duration.observe_time(since.elapsed());
        stored.errors += u64::from(!succeeded);
    }

    /// The Prometheus text format; with how many objects there are, if those are counted.
    pub(crate) async fn render(&self, caches: &Caches, counts_objects: bool) -> String {
        let mut text = Text::default();
        self.render_requests(&mut text);
        self.render_deprecated(&mut text);
        self.render_watches(&mut text);
        self.render_store(&mut text, caches, counts_objects);
        storage::render(&mut text, caches, &self.members).await;
        self.render_tokens(&mut text);
        self.streams.render(&mut text);
        let name = "kubernetes_build_info";
        text.metric(
            name,
            "gauge",
            "A metric with a constant '1' value labeled by version and platform from which Kubernetes was built.",
        );
        let labels = [
            ("compiler", "rustc"),
            ("git_version", crate::VERSION),
            ("major", "1"),
            ("minor", "36"),
            ("platform", "linux/amd64"),
        ];
        text.value(name, &labels, 1);
        process::render(&mut text);
        text.finish()
    }

    fn render_requests(&self, text: &mut Text) {
        let requests = self.requests.lock();
        let mut all: Vec<_> = requests.iter().collect();
        all.sort_by_key(|(labels, _)| **labels);
        let name = "apiserver_request_total";
        text.metric(
            name,
            "counter",
            "Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, component, and HTTP response code.",
        );
        for (labels, series) in &all {
            for (code, count) in &series.by_code {
                let code = code.to_string();
                let labels = [&[("code", code.as_str())], &labels.list()[..]].concat();
                text.value(name, &labels, count);
            }
        }
        let name = "apiserver_request_duration_seconds";
        text.metric(
            name,
            "histogram",
            "Response latency distribution in seconds for each verb, dry run value, group, version, resource, subresource, scope and component.",
        );
        for (labels, series) in all.iter().filter(|(l, _)| !l.is_long_running()) {
            text.histogram(name, &labels.list(), &series.duration);
        }
        let name = "apiserver_current_inflight_requests";
        text.metric(
            name,
            "gauge",
            "Number of requests that are being handled, per request kind.",
        );
        for (kind, mutating) in [("mutating", true), ("readOnly", false)] {
            let count = self.gauge(mutating).load(Ordering::Relaxed);
            text.value(name, &[("request_kind", kind)], count);
        }
    }

    /// Which versions that are on their way out somebody still asks for.
    fn render_deprecated(&self, text: &mut Text) {
        let name = "apiserver_requested_deprecated_apis";
        text.metric(
            name,
            "gauge",
            "Gauge of deprecated APIs that have been requested, broken out by API group, version, resource, subresource, and removed_release.",
        );
        let requested: BTreeSet<_> = (self.requests.lock().keys())
            .map(|l| (l.group, l.version, l.resource, l.subresource))
            .collect();
        for (group, version, plural, subresource) in requested {
            let found = resources::find(group, version, plural);
            let Some(resource) = found.filter(|r| r.deprecation(MINOR).is_some()) else {
                continue;
            };
            let removed = resource.life.removed.map(|minor| format!("1.{minor}"));
            let labels = [
                ("group", group),
                ("version", version),
                ("resource", plural),
                ("subresource", subresource),
                ("removed_release", removed.as_deref().unwrap_or_default()),
            ];
            text.value(name, &labels, 1);
        }
    }

    fn render_watches(&self, text: &mut Text) {
        let name = "apiserver_longrunning_requests";
        text.metric(
            name,
            "gauge",
            "Gauge of all active long-running apiserver requests broken out by verb, group, version, resource, scope and component.",
        );
        let mut running: Vec<(Labels, u64)> = self
            .long_running
            .lock()
            .iter()
            .map(|(l, n)| (*l, *n))
            .collect();
        running.sort_unstable();
        for (labels, count) in running {
            let labels = labels.list();
            let labels: Vec<_> = labels
                .into_iter()
                .filter(|(n, _)| *n != "dry_run")
                .collect();
            text.value(name, &labels, count);
        }
        let events = self.events.lock();
        let mut all: Vec<_> = events.iter().collect();
        all.sort_by_key(|(kind, _)| **kind);
        let labels = |(group, version, resource): &Kind| {
            [
                ("group", *group),
                ("resource", *resource),
                ("version", *version),
            ]
        };
        let name = "apiserver_watch_events_total";
        text.metric(name, "counter", "Number of events sent in watch clients");
        for (kind, sizes) in &all {
            text.value(name, &labels(kind), sizes.0.lock().count());
        }
        let name = "apiserver_watch_events_sizes";
        text.metric(name, "histogram", "Watch event size distribution in bytes");
        for (kind, sizes) in &all {
            text.histogram(name, &labels(kind), &sizes.0.lock());
        }
    }

    fn render_tokens(&self, text: &mut Text) {
        for (kind, count) in [("stale", &self.stale_tokens), ("valid", &self.valid_tokens)] {
            let name = format!("serviceaccount_{kind}_tokens_total");
            let help = format!("Cumulative {kind} projected service account tokens used");
            text.metric(&name, "counter", &help);
            text.value(&name, &[], count.load(Ordering::Relaxed));
        }
    }

    fn render_store(&self, text: &mut Text, caches: &Caches, counts_objects: bool) {
        let store = self.store.lock();
        let mut all: Vec<_> = store.iter().collect();
        all.sort_by_key(|(key, _)| **key);
        let labels = |(operation, (group, _, resource)): &(&'static str, Kind)| {
            [
                ("group", *group),
                ("operation", *operation),
                ("resource", *resource),
            ]
        };
        let name = "etcd_request_duration_seconds";
        text.metric(
            name,
            "histogram",
            "Etcd request latency in seconds for each operation and object type.",
        );
        for (key, stored) in &all {
            text.histogram(name, &labels(key), &stored.duration);
        }
        let name = "etcd_requests_total";
        text.metric(
            name,
            "counter",
            "Etcd request counts for each operation and object type.",
        );
        for (key, stored) in &all {
            text.value(name, &labels(key), stored.duration.count());
        }
        let name = "etcd_request_errors_total";
        text.metric(
            name,
            "counter",
            "Etcd failed request counts for each operation and object type.",
        );
        for (key, stored) in &all {
            text.value(name, &labels(key), stored.errors);
        }
        if !counts_objects {
            return;
        }
        let counts = caches.counts();
        let name = "apiserver_resource_objects";
        text.metric(
            name,
            "gauge",
            "Number of stored objects at the time of last check split by kind.",
        );
        for (group, resource, count) in &counts {
            text.value(name, &[("group", group), ("resource", resource)], count);
        }
        let name = "apiserver_storage_objects";
        text.metric(
            name,
            "gauge",
            "Number of stored objects at the time of last check split by kind. In case of a fetching error, the value will be -1.",
        );
        for (group, resource, count) in &counts {
            let resource = match *group {
                "" => (*resource).to_owned(),
                group => format!("{resource}.{group}"),
            };
            text.value(name, &[("resource", &resource)], count);
        }
    }
}

impl Default for EventSizes {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Histogram::new(EVENT_SIZES))))
    }
}

impl EventSizes {
    /// Counts an event that is sent.
    pub(crate) fn observe(&self, size: usize) {
        #[expect(clippy::cast_precision_loss)]
        self.0.lock().observe(size as f64);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let gauge = self.metrics.gauge(self.mutating);
        gauge.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for LongRunning {
    fn drop(&mut self) {
        let mut running = self.metrics.long_running.lock();
        if let Some(count) = running.get_mut(&self.labels) {
            *count = count.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::http::Method;
    use fluyt_api::resources::Snapshot;

    fn labels(method: Method, path: &str, query: &str) -> Labels {
        let info = RequestInfo::parse(&Snapshot::default(), &method, path, Some(query));
        Labels::of(&info, &HeaderMap::new()).unwrap()
    }

    #[test]
    fn requests_are_counted_under_upstreams_labels() {
        let pods = "/api/v1/namespaces/a/pods";
        let create = labels(Method::POST, pods, "dryRun=All");
        assert_eq!(
            (create.verb, create.scope, create.dry_run),
            ("POST", "resource", "All")
        );
        let list = labels(Method::GET, pods, "");
        assert_eq!((list.verb, list.scope), ("LIST", "namespace"));
        let watch = labels(Method::GET, "/api/v1/pods", "watch=1");
        assert_eq!((watch.verb, watch.scope), ("WATCH", "cluster"));
        let exec = labels(Method::POST, "/api/v1/namespaces/a/pods/b/exec", "");
        assert_eq!((exec.verb, exec.subresource), ("CONNECT", "exec"));
        let health = labels(Method::GET, "/healthz", "");
        assert_eq!((health.verb, health.subresource), ("GET", "/healthz"));
        let unknown = RequestInfo::parse(&Snapshot::default(), &Method::GET, "/x", None);
        assert!(Labels::of(&unknown, &HeaderMap::new()).is_none());
    }

    #[test]
    fn gauges_go_back_when_requests_end() {
        let metrics = Arc::new(Metrics::default());
        let get = labels(Method::GET, "/api/v1/namespaces/a/pods/b", "");
        let guard = metrics.in_flight(Some(&get)).unwrap();
        assert_eq!(metrics.read_only.load(Ordering::Relaxed), 1);
        drop(guard);
        assert_eq!(metrics.read_only.load(Ordering::Relaxed), 0);
        let watch = labels(Method::GET, "/api/v1/pods", "watch=1");
        assert!(metrics.in_flight(Some(&watch)).is_none());
        let running = metrics.long_running(watch);
        assert_eq!(metrics.long_running.lock()[&watch], 1);
        drop(running);
        assert_eq!(metrics.long_running.lock()[&watch], 0);
    }
}
